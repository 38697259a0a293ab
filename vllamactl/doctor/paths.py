"""The way to a path (floor 4): every folder from / on, links followed, as far as this user may look."""

import os
import stat

from vllamactl.doctor.facts import Part, Step, Way
from vllamactl.doctor.machine import Machine

MOST_ENTRIES = 100
MAX_LINKS = 40
"""What the kernel follows."""
ACL = "system.posix_acl_access"
SHEBANG_BYTES = 256
"""What the kernel reads of a script's first line."""


def look(machine: Machine, name: str, path: str) -> Way:
    """Walk to ``path``; ``name`` is what people call it. Links count for nothing themselves, the folders that they lead
    through count: an interpreter of a virtual environment is one."""
    steps = [_step(machine, "/", os.lstat(machine.path("/")))]
    pending = path.split("/")[::-1]
    here, links = "", 0
    while pending:
        part = pending.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            here = here.rpartition("/")[0]
            continue
        place = f"{here}/{part}"
        try:
            found = os.lstat(machine.path(place))
            if stat.S_ISLNK(found.st_mode) and links < MAX_LINKS:
                target = os.readlink(machine.path(place))  # noqa: PTH115 - as it is written
                links += 1
                here = "" if target.startswith("/") else here
                pending += target.split("/")[::-1]
                continue
        except PermissionError:
            return Way(name, path, tuple(steps), unseen=here or "/")
        except OSError:
            return Way(name, path, tuple(steps), missing=place)
        here = place
        steps.append(_step(machine, place, found))
    return Way(name, path, tuple(steps))


def _step(machine: Machine, path: str, found: os.stat_result) -> Step:
    try:
        has_acl = ACL in os.listxattr(machine.path(path), follow_symlinks=False)
    except OSError:
        has_acl = False  # this file system has none, or does not tell us
    return Step(
        path,
        found.st_mode,
        found.st_uid,
        found.st_gid,
        machine.user_name(found.st_uid),
        machine.group_name(found.st_gid),
        has_acl,
    )


def folder_ways(machine: Machine, config: Part) -> list[tuple[Way, str]]:
    """The daemon's folders and what lies directly in those that it keeps, with the rights that it needs: whoever ran it
    once as root has some that the service cannot write to."""
    found: list[tuple[Way, str]] = []
    for name in ("state", "runtime", "cache", "models"):
        path = config.text(name)
        if not path:
            continue
        found.append((look(machine, f"{name} folder", path), "wx"))
        if name in {"state", "models"}:
            below = [f"{path}/{entry}" for entry in machine.names(path)[:MOST_ENTRIES]]
            found += [(look(machine, "folder", one), "wx") for one in below if machine.path(one).is_dir()]
            found += [(look(machine, "lock", one), "rw") for one in below if one.endswith(".lock")]
    return found


def program_ways(machine: Machine, command: tuple[str, ...]) -> list[tuple[Way, str]]:
    """What has to be readable or executable ("rx") to run a command: the program, the interpreter that its first line
    names, and a script that it is given."""
    if not command or not command[0].startswith("/"):
        return []
    found = [(look(machine, "program", command[0]), "x")]
    interpreter = _interpreter(machine, command[0])
    if interpreter:
        found = [(found[0][0], "rx"), (look(machine, "its interpreter", interpreter), "x")]
    if len(command) > 1 and command[1].startswith("/"):
        found.append((look(machine, "program", command[1]), "r"))
    return found


def _interpreter(machine: Machine, program: str) -> str:
    try:
        with machine.path(program).open("rb") as file:
            first = file.read(SHEBANG_BYTES).split(b"\n")[0]
    except OSError:
        return ""
    words = first[2:].split()
    return os.fsdecode(words[0]) if first.startswith(b"#!") and words else ""
