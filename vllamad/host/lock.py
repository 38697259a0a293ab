"""Locks on the state folder and on the runtime folder (floor 2): one daemon owns each. With the second comes the right
to unlink a stale socket there, and to end what a dead daemon left behind.

A ``flock`` is released by the kernel with the process, however that ends; a file that is left behind means nothing.
The file is never removed: another daemon could hold a lock on a name that is gone.
"""

import errno
import fcntl
import os
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError


class FolderLock:
    """A held lock. Children do not inherit it (close-on-exec)."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, flag: str) -> "FolderLock":
        """Lock ``path`` without waiting; ``flag`` is what chooses another folder. Raises ALREADY_RUNNING, naming the
        holder, or STORAGE_FAILED."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unusable(path, error, flag) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno == errno.EWOULDBLOCK:
                raise _held(path, holder, flag) from error
            raise _unusable(path, error, flag) from error
        return cls(path, descriptor)

    @classmethod
    def inherit(cls, path: Path, descriptor: int) -> "FolderLock":
        """One that a predecessor took in this same process, and that was never open to others since."""
        os.set_inheritable(descriptor, False)
        return cls(path, descriptor)

    @property
    def descriptor(self) -> int:
        """The open file that holds it; -1 when it was released."""
        return self._descriptor

    def release(self) -> None:
        """Let another daemon in; safe to call again. The end of the process does the same."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _held(path: Path, holder: str, flag: str) -> VllamaError:
    # Between its lock and its write, the holder's number is not there yet.
    who = f"process {holder}" if holder.isdecimal() else "another process"
    return VllamaError(
        Reason.ALREADY_RUNNING,
        f"cannot start: vllamad runs already as {who} on {path.parent}",
        f"stop that one, or choose another folder with {flag}",
        **({"pid": int(holder)} if holder.isdecimal() else {}),
    )


def _unusable(path: Path, error: OSError, flag: str) -> VllamaError:
    return VllamaError(
        Reason.STORAGE_FAILED,
        f"cannot lock {path}: {error.strerror}",
        f"check who owns the folder, or choose another one with {flag}",
    )
