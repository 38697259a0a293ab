"""What engines keep in shared memory (floor 2): noted while they live, because afterwards nobody knows whose it was.

A file in /dev/shm outlives the processes that mapped it, has a name without meaning (``psm_1a2b3c4d``) and holds up to
hundreds of megabytes. Whoever is killed cannot remove it, and when daemon and engines are killed together (by the
kernel for want of memory, by a service manager that lost patience) only this note tells the next daemon.

It is no loss if the note itself is lost with the machine's power: shared memory is lost with it. So it is not synced.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from vllamad.process.tree import SHARED_MEMORY

_log = logging.getLogger(__name__)

Files = Mapping[Path, int]
"""Files in shared memory with their inodes, which tell them from later ones of the same name."""


class SharedMemoryNotes:
    """What each tree has mapped, also in the file ``path`` if there is one. For several threads."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._noted: dict[int, dict[Path, int]] = {}

    def note(self, leader: int, files: Files) -> None:
        """A tree has mapped these, besides what was noted of it before."""
        with self._lock:
            known = self._noted.get(leader, {})
            if files.items() <= known.items():
                return
            self._noted[leader] = {**known, **files}
            self._write()

    def noted(self, leader: int) -> Files:
        """What was noted of a tree."""
        with self._lock:
            return dict(self._noted.get(leader, {}))

    def take_over(self, leader: int, files: Files) -> None:
        """A predecessor has noted these of a tree that goes on. The file stays as it is: it has more to tell."""
        with self._lock:
            self._noted[leader] = dict(files)

    def forget(self, leader: int) -> Collection[Path]:
        """A tree is gone: return what is still there of it."""
        with self._lock:
            files = self._noted.pop(leader, None)
            if files is None:
                return ()
            self._write()
        return _still_there(files)

    def left_behind(self) -> Collection[Path]:
        """What a predecessor noted and is still there; from then on it is noted no more. Whether somebody uses it is
        the caller's to find out."""
        if self._path is None:
            return ()
        try:
            document = cast(dict[str, Any], json.loads(self._path.read_bytes()))
            files = {Path(name): int(inode) for name, inode in document["files"].items()}
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("process.notes unreadable path=%s why=%s", self._path, error)
            files = {}
        with self._lock:
            self._write()
        # Whatever the file says, nothing elsewhere is touched.
        return _still_there({path: inode for path, inode in files.items() if path.parent == Path(SHARED_MEMORY)})

    def _write(self) -> None:
        if self._path is None:
            return
        files = {str(path): inode for noted in self._noted.values() for path, inode in noted.items()}
        temporary = self._path.with_name(f".tmp-{self._path.name}")
        try:
            temporary.write_text(json.dumps({"files": files}))
            temporary.replace(self._path)
        except OSError as error:
            _log.warning("process.notes unwritten path=%s why=%s", self._path, error)


def _still_there(files: Files) -> set[Path]:
    found: set[Path] = set()
    for path, inode in files.items():
        with contextlib.suppress(OSError):
            if path.lstat().st_ino == inode:
                found.add(path)
    return found
