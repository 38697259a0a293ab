"""Where a download's bytes go (floor 2; used in the child that fetch.py is): to the disk at once, so that a kill costs
nothing, and into the hashes that will be asked for, so that verifying costs no second reading."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from vllamad.hub.solid import BLOCK_BYTES

_TICK_S = 0.1


@dataclass(slots=True)
class File:
    """One file of the download. ``sha256`` is known from the listing for big files, and for all once verified."""

    path: str
    size: int
    git_sha1: str
    sha256: str
    done_bytes: int = 0

    @property
    def identity(self) -> str:
        """A name by content, as far as the listing tells it."""
        return f"sha256-{self.sha256}" if self.sha256 else f"git-{self.git_sha1}"


class Mismatch(Exception):
    """The bytes are not what the listing promised."""


class Sink:
    """Where the bytes of one file go: to the disk at once, and into the hashes that will be asked for."""

    def __init__(self, out: FileIO, file: File, partial: Path) -> None:
        self._out = out
        self.file = file
        self._new_hashes()
        kept_bytes = 0
        with partial.open("rb", buffering=0) as kept:
            while block := kept.read(BLOCK_BYTES):
                self._hash(block)
                kept_bytes += len(block)
        file.done_bytes = kept_bytes

    def _new_hashes(self) -> None:
        self.sha256 = hashlib.sha256()
        self.git = hashlib.sha1(b"blob %d\0" % self.file.size, usedforsecurity=False)

    def _hash(self, block: bytes) -> None:
        self.sha256.update(block)
        if not self.file.sha256:
            self.git.update(block)

    def restart(self) -> None:
        """Forget what there is."""
        self._out.truncate(0)
        self._new_hashes()
        self.file.done_bytes = 0

    def write(self, block: bytes) -> None:
        """Append; more than the listing promised is a mismatch, not a full disk."""
        if self.file.done_bytes + len(block) > self.file.size:
            self.restart()
            raise Mismatch(f"digest mismatch, file must be downloaded again: {self.file.path} is longer than listed")
        view = memoryview(block)
        while view:
            view = view[self._out.write(view) :]
        self._hash(block)
        self.file.done_bytes += len(block)


class Reporter:
    """Says ten times a second how far the files are, if they moved."""

    def __init__(self, files: list[File], emit: Callable[..., None]) -> None:
        self._files = files
        self._emit = emit
        self._said = [file.done_bytes for file in files]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "Reporter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._say()

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            self._say()

    def _say(self) -> None:
        now = [file.done_bytes for file in self._files]
        moved = {str(i): count for i, count in enumerate(now) if count != self._said[i]}
        if moved:
            self._said = now
            self._emit(type="progress", bytes=moved)


def git_sha1(path: Path, size: int) -> str:
    """The name that git gives to a file's contents: what the hub lists for files outside LFS."""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
