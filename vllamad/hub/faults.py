"""Operating system errors in the house's words (floor 2): a full disk is not a broken one, and both name the path."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_MAKE_ROOM = "remove models (vllamactl rm), free space on that disk, or set server.state_dir to a bigger one"
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def storage_fault(doing: str, path: Path, error: OSError) -> VllamaError:
    """Word an error as "cannot <doing>: why", with the remedy that fits its number."""
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    why = error.strerror or str(error)
    message = f"cannot {doing}: {place}: {why}"
    if error.errno in _FULL:
        return VllamaError(Reason.STORAGE_FULL, message, _MAKE_ROOM, path=str(place))
    if error.errno in _DENIED:
        hint = f"let the daemon's user (uid {os.geteuid()}) read and write it, or set server.state_dir elsewhere"
    else:
        hint = "look at the disk (dmesg, fsck) and at the path; then try again"
    return VllamaError(Reason.STORAGE_FAILED, message, hint, path=str(place))


@contextmanager
def storage_faults(doing: str, path: Path) -> Generator[None]:
    """Turn every OSError inside into STORAGE_FULL or STORAGE_FAILED."""
    try:
        yield
    except OSError as error:
        raise storage_fault(doing, path, error) from error


def no_room(doing: str, place: Path, needed_bytes: int, free_bytes: int) -> VllamaError:
    """STORAGE_FULL before the first byte is written, with the numbers."""
    return VllamaError(
        Reason.STORAGE_FULL,
        f"cannot {doing}: needs {human_bytes(needed_bytes)}, {human_bytes(free_bytes)} free in {place}",
        _MAKE_ROOM,
        path=str(place),
        needed_bytes=needed_bytes,
        free_bytes=free_bytes,
    )


def human_bytes(count: int) -> str:
    """Write a size as people read it: ``4.7 GB`` (powers of 1000, as Ollama does)."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
