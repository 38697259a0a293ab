"""What a download has on disk (floor 2; used in the child that fetch.py is): finished files, growing ones, and the
notes that spare hashing the finished ones again."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from vllamad.hub.sink import File, git_sha1
from vllamad.hub.solid import hash_file, link_or_copy, make_folder

_BIGGEST_TO_COMPARE = 64 << 20  # files without a sha256 in the listing are small: configurations and tokenizers


class Staging:
    """One staging folder: ``files/<path>``, ``partial/<identity>`` and ``verified``, as fetch.py lays them out.

    ``reuse`` is a folder of contents named ``sha256-<hex>`` that may be linked instead of downloaded.
    """

    def __init__(self, folder: Path, reuse: Path | None) -> None:
        self.files = folder / "files"
        self.partials = folder / "partial"
        self._record = folder / "verified"
        self._record_lock = threading.Lock()
        self._reuse = reuse

    def prepare(self, files: list[File]) -> None:
        """Make the folders, drop what is not of these files, and mark what is here already."""
        for place in (self.files, self.partials):
            make_folder(place)
        self._drop_others(files)
        self._find_finished(files)

    def _drop_others(self, files: list[File]) -> None:
        """Remove what an older commit left in the folder, so that what is there at the end is this commit."""
        wanted = {f.path for f in files}
        for path in [p for p in self.files.rglob("*") if p.is_file()]:
            if path.relative_to(self.files).as_posix() not in wanted:
                path.unlink()
        identities = {f.identity for f in files}
        for path in list(self.partials.iterdir()):
            if path.name not in identities:
                path.unlink()

    def _find_finished(self, files: list[File]) -> None:
        """Take over what is here already, from an earlier try or from another model's files."""
        verified = self._read_record()
        by_size = self._reusable()
        for file in files:
            place = self.files / file.path
            if place.is_file():
                status = place.stat()
                note = verified.get(file.path, {})
                if note.get("identity") == file.identity and note.get("mtime_ns") == status.st_mtime_ns:
                    file.sha256 = note["sha256"]
                    file.done_bytes = file.size
                    continue
                if status.st_size == file.size and self._accept(file, place):
                    continue
                place.unlink()
            if self._take_over(file, by_size.get(file.size, [])):
                continue
            partial = self.partials / file.identity
            if partial.exists():
                file.done_bytes = min(file.size, partial.stat().st_size)

    def _reusable(self) -> dict[int, list[Path]]:
        by_size: dict[int, list[Path]] = {}
        if self._reuse and self._reuse.is_dir():
            for entry in os.scandir(self._reuse):
                if entry.name.startswith("sha256-"):
                    by_size.setdefault(entry.stat().st_size, []).append(Path(entry.path))
        return by_size

    def _take_over(self, file: File, candidates: list[Path]) -> bool:
        for candidate in candidates:
            try:
                if file.sha256:
                    fits = candidate.name == f"sha256-{file.sha256}"
                else:
                    fits = file.size <= _BIGGEST_TO_COMPARE and git_sha1(candidate, file.size) == file.git_sha1
                if fits:
                    self.link(candidate, file, candidate.name.removeprefix("sha256-"))
                    return True
            except FileNotFoundError:
                continue  # the model that it belonged to was removed meanwhile
        return False

    def _accept(self, file: File, place: Path) -> bool:
        """Hash a whole file; if it is the promised one, say so for next time."""
        sha256 = hash_file(place)
        fits = sha256 == file.sha256 if file.sha256 else git_sha1(place, file.size) == file.git_sha1
        if fits:
            self.note(file, place, sha256)
        return fits

    def link(self, source: Path, file: File, sha256: str) -> None:
        """Finish a file with contents that are on this disk already."""
        place = self.files / file.path
        make_folder(place.parent)
        link_or_copy(source, place)
        self.note(file, place, sha256)

    def note(self, file: File, place: Path, sha256: str) -> None:
        """Write down, for us and for the next try, that a file is complete and verified."""
        note = {
            "path": file.path,
            "identity": file.identity,
            "sha256": sha256,
            "mtime_ns": place.stat().st_mtime_ns,
        }
        with self._record_lock, self._record.open("a", encoding="utf-8") as record:
            record.write(json.dumps(note) + "\n")
        file.sha256 = sha256
        file.done_bytes = file.size

    def _read_record(self) -> dict[str, dict[str, Any]]:
        notes: dict[str, dict[str, Any]] = {}
        if not self._record.exists():
            return notes
        for line in self._record.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                note = json.loads(line)
                notes[note["path"]] = note
            except (ValueError, KeyError, TypeError):
                continue  # a line that a crash cut off: that file is hashed again
        return notes

    def is_finished(self, file: File) -> bool:
        """True if nothing of it is left to download."""
        return file.done_bytes == file.size and bool(file.sha256) and (self.files / file.path).exists()
