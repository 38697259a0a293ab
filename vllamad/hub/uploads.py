"""Files that clients send before they make a model of them (floor 2, fills ``ports.Uploads``).

::

    <folder>/sha256-<hex>      complete and verified
    <folder>/.tmp-...          on its way, or left by a crash

A file is known by its digest. What the store has as a blob need not be sent. Uploads are a means to an end: one that is
older than an hour goes, at start and whenever the next one begins.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.hub.faults import no_room, storage_faults
from vllamad.hub.solid import FILE_MODE, make_folder

KEPT_S = 3600.0
"""As Ollama keeps blobs that no model names."""

_TEMPORARY = ".tmp-"
_DOING = "keep an upload"


class UploadFolder:
    """Uploads under one folder; ``blobs`` is the store's. Blocking: callers run it in threads."""

    def __init__(self, folder: Path, blobs: Path, *, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._blobs = blobs
        self._now = now

    def find(self, sha256: str) -> Path | None:
        """The file with this digest (64 hex digits), or None. An upload that is found stays for another hour."""
        name = f"sha256-{sha256.lower()}"
        upload, blob = self._folder / name, self._blobs / name
        with contextlib.suppress(FileNotFoundError):
            os.utime(upload)
            return upload
        return blob if blob.is_file() else None

    def begin(self, sha256: str, size_bytes: int) -> "Upload":
        """Make room for a file; ``size_bytes`` 0 if nobody knows. Raises STORAGE_FULL before the first byte if it
        cannot fit."""
        with storage_faults(_DOING, self._folder):
            make_folder(self._folder)
            self.sweep()
            free = shutil.disk_usage(self._folder).free
            if size_bytes > free:
                raise no_room(_DOING, self._folder, size_bytes, free)
            return Upload(self._folder, sha256.lower())

    def sweep(self, *, all_temporary: bool = False) -> None:
        """Remove what is too old; at start, when nobody writes yet, everything that is incomplete."""
        if not self._folder.is_dir():
            return
        for entry in os.scandir(self._folder):
            is_old = self._now() - entry.stat().st_mtime > KEPT_S
            if is_old or (all_temporary and entry.name.startswith(_TEMPORARY)):
                Path(entry.path).unlink(missing_ok=True)

    def discard(self, sha256: str) -> None:
        """It has served its purpose."""
        (self._folder / f"sha256-{sha256.lower()}").unlink(missing_ok=True)


class Upload:
    """One file on its way: ``write`` its bytes in turn, then ``finish``, or ``abandon`` it."""

    def __init__(self, folder: Path, sha256: str) -> None:
        self._folder = folder
        self._sha256 = sha256
        self._path = folder / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}"
        self._digest = hashlib.sha256()
        self._file = self._path.open("wb", buffering=0)
        os.fchmod(self._file.fileno(), FILE_MODE)

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises STORAGE_FULL, STORAGE_FAILED."""
        with storage_faults(_DOING, self._path):
            self._digest.update(data)
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]

    def finish(self) -> None:
        """Give it its name. Raises INVALID_REQUEST, and removes it, if the bytes are not those that were announced."""
        got = self._digest.hexdigest()
        if got != self._sha256:
            self.abandon()
            raise VllamaError(
                Reason.INVALID_REQUEST,
                f'digest mismatch, expected "sha256:{self._sha256}", got "sha256:{got}"',
                "send the file again",
            )
        with storage_faults(_DOING, self._path):
            os.fsync(self._file.fileno())
            self._file.close()
            self._path.replace(self._folder / f"sha256-{self._sha256}")

    def abandon(self) -> None:
        """Remove what came so far; harmless after the end."""
        self._file.close()
        self._path.unlink(missing_ok=True)
