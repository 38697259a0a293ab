"""The daemon's folders (floor 2), made with the right permissions: on the runtime folder they are the authorisation."""

import grp
import os
import stat
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

STATE_MODE = 0o755
RUNTIME_MODE = 0o750
PRIVATE_MODE = 0o700


def make_folder(path: Path, mode: int, what: str, flag: str) -> None:
    """Make a folder and those above it; one that exists keeps its mode. ``what`` and ``flag`` are for the message.

    Raises STORAGE_FAILED if it cannot be made, or cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=mode, exist_ok=True)
    except FileExistsError as error:
        raise _unusable(path, f"{error.filename} is not a folder", what, flag) from error
    except OSError as error:
        raise _unusable(path, error.strerror or str(error), what, flag) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise _unusable(path, "this user may not write to it", what, flag)


def make_private_folder(path: Path, what: str, flag: str) -> None:
    """Make a folder that only this user can enter, or make an existing one so.

    Refuses one of another user, and a link: in /tmp anyone may have put it there first.
    """
    make_folder(path, PRIVATE_MODE, what, flag)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise _unusable(path, "it is a link, or belongs to another user", what, flag)
    if stat.S_IMODE(found.st_mode) != PRIVATE_MODE:
        path.chmod(PRIVATE_MODE)


def share_with_group(path: Path, group: str, mode: int) -> str:
    """Give a path to a group with this mode. Returns "" or why it stays with its owner, which is no failure: then only
    the owner and root can use it."""
    if not group:
        return "control.group is empty"
    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError:
        return f"there is no group {group}"
    try:
        # A service may be one of this group and yet not allowed to ask for it (SystemCallFilter=).
        if path.stat().st_gid != number:
            os.chown(path, -1, number)
    except PermissionError:
        return f"this user is neither root nor a member of the group {group}, or may not change groups"
    path.chmod(mode)
    return ""


def _unusable(path: Path, why: str, what: str, flag: str) -> VllamaError:
    return VllamaError(Reason.STORAGE_FAILED, f"cannot use the {what} {path}: {why}", f"choose another one with {flag}")
