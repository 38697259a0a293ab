"""Control groups (floor 2): a leaf for every tree, where the kernel has version 2 and lets us.

Who is in a leaf stays in it, whatever becomes of its session, its group and its environment: the kernel ends all of it
at once, counts its processor time with that of everyone who has ended, and says when nobody is left. Nothing in the
house depends on it: without one, ``tree.py`` searches ``/proc``.

The files answer from memory, in some 50 us each.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
from pathlib import Path

PROC = Path("/proc")
OWN_LEAF = "vllamad"
"""Where the daemon itself lives: a group whose children have controllers may not hold processes. It is also the name to
give systemd's ``DelegateSubgroup=``."""
CONTROLLERS = ("memory", "cpu", "pids")
DELEGATED = ("user.delegate", "trusted.delegate")
"""The extended attributes by which systemd (251 and 236) tells that ``Delegate=`` is set."""
ROOT = 0
"""The user who may write everywhere, so that it proves nothing if he may."""

PAUSE_S = 0.01
MAX_TRIES = 50
"""A group may be busy for a moment after its last process has ended."""

_log = logging.getLogger(__name__)


class NotDelegatedError(Exception):
    """Our group is not ours to divide; says why."""


class Leaf:
    """The group of one tree. What it counted can be read until it is removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def limit(self, memory_bytes: int) -> bool:
        """Bound the memory of everyone in it together; beyond it the kernel ends all of them. False where it does not
        count memory by group."""
        try:
            _write(self.folder / "memory.max", str(memory_bytes))
        except OSError:
            return False
        return True

    def weigh(self, weight: int) -> None:
        """Its part of the processors beside others, who have 100 (1 to 10,000). Nothing happens where the kernel does
        not divide them by group."""
        with contextlib.suppress(OSError):
            _write(self.folder / "cpu.weight", str(weight))

    def pids(self) -> frozenset[int]:
        """Who is alive in it, and in groups that they made below it."""
        found: set[int] = set()
        for folder, _below, _files in os.walk(self.folder):
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split())
        # 0 stands for those whom our namespace of processes does not show.
        return frozenset(found - {0})

    def holds(self, pid: int, proc: Path = PROC) -> bool:
        """True if a process is in it; also of a zombie, which ``pids`` does not list."""
        with contextlib.suppress(OSError):
            return self.folder.name in group_of(proc / str(pid)).split("/")
        return False

    def is_populated(self) -> bool:
        """True while anyone in it, or below, is alive."""
        return _counts(self.folder / "cgroup.events").get("populated", 0) != 0

    def kill(self) -> None:
        """SIGKILL to everyone, and to whoever is being born. Kernels before 5.14 cannot, and nothing happens."""
        with contextlib.suppress(OSError):
            _write(self.folder / "cgroup.kill", "1")

    def oom_kills(self) -> int:
        """How many of them the kernel has killed for want of memory, whoever's limit it was."""
        return _counts(self.folder / "memory.events").get("oom_kill", 0)

    def cpu_seconds(self) -> float:
        """Processor time of everyone who ever was in it."""
        return _counts(self.folder / "cpu.stat").get("usage_usec", 0) / 1e6

    def remove(self) -> bool:
        """Remove it and the groups below; False if one is busy."""
        try:
            for folder, _below, _files in os.walk(self.folder, topdown=False):
                Path(folder).rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    async def discard(self) -> None:
        """Remove it as soon as it is not busy; one that stays so is logged and left to the next start."""
        for _ in range(MAX_TRIES):
            if self.remove():
                return
            await asyncio.sleep(PAUSE_S)
        _log.warning("cgroup.busy path=%s: not removed", self.folder)


class Leaves:
    """The group that is ours to divide. The ``owner`` of a leaf tells it from those of another daemon in here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, owner: str, name: str) -> Leaf | None:
        """A new leaf; None, and a line in the log, if the kernel refuses. Out of memory, everyone in it ends at once:
        half a worker serves nobody."""
        leaf = Leaf(self.folder / f"{_prefix(owner)}{name}")
        try:
            leaf.folder.mkdir()
        except OSError as error:
            _log.warning("cgroup.refused path=%s: %s", leaf.folder, error.strerror)
            return None
        with contextlib.suppress(OSError):
            _write(leaf.folder / "memory.oom.group", "1")
        return leaf

    def left(self, owner: str) -> list[Leaf]:
        """Every leaf of this owner that is still there."""
        return [Leaf(path) for path in sorted(self.folder.glob(f"{_prefix(owner)}*")) if path.is_dir()]


def settle(proc: Path = PROC) -> Leaves | None:
    """Take over the group that was delegated to us: move this process into a leaf of its own and have the kernel count
    for the leaves beside it what it can. None where nothing was delegated. Never raises; one line of the log says which
    it is. The path is for tests.

    Writable alone is not delegated: root may write to what a service manager rules, a user to the groups of his
    session.
    """
    try:
        folder = _delegated(proc)
        _move_into(folder / OWN_LEAF)
    except (OSError, NotDelegatedError) as why:
        _log.info("cgroup.none: %s; trees are found by their group and environment", why)
        return None
    missing: list[str] = []
    for controller in CONTROLLERS:
        try:
            _write(folder / "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            # ENOENT or EINVAL: not here, or not in this hierarchy. EBUSY: a process that is not ours lives in here.
            missing.append(f"{controller} ({error.strerror})")
    _log.info("cgroup.delegated path=%s missing=%s", folder, ", ".join(missing) or "none")
    return Leaves(folder)


def _delegated(proc: Path) -> Path:
    """The folder of our group, if it is ours to divide."""
    group = Path(group_of(proc / "self"))
    if not group.is_absolute():
        raise NotDelegatedError("the kernel has no control groups of version 2")
    if group.name == OWN_LEAF:
        group = group.parent
    place = mounted(group, proc)
    if place is None:
        raise NotDelegatedError(f"the group {group} cannot be seen here")
    folder, is_top = place
    if not (folder / "cgroup.type").exists():
        raise NotDelegatedError("it would be the kernel's root group")
    if not (is_top or _is_marked(folder) or _is_boundary(folder)):
        raise NotDelegatedError(f"{group} is not delegated to us")
    for path in (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control"):
        if not os.access(path, os.W_OK):
            raise NotDelegatedError(f"cannot write to {path}")
    return folder


def group_of(process: Path) -> str:
    """The path of the group of a process (its folder in ``/proc``) as the kernel tells it, "" without version 2."""
    lines = (process / "cgroup").read_text().splitlines()
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def mounted(group: Path, proc: Path = PROC) -> tuple[Path, bool] | None:
    """Where a group can be seen, and if it is the top of all that can be, as a container's own is."""
    for line in (proc / "self" / "mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        root, point = fields.split()[3:5]
        if kind.startswith("cgroup2 ") and group.is_relative_to(root) and ".." not in group.parts:
            return Path(point) / group.relative_to(root), str(group) == root
    return None


def _is_marked(folder: Path) -> bool:
    """True if systemd says that it is delegated."""
    for name in DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _is_boundary(folder: Path) -> bool:
    """True if it was given to a user who does not have the group above: how any manager delegates to one."""
    me = os.geteuid()
    return me != ROOT and folder.stat().st_uid == me and folder.parent.stat().st_uid != me


def _move_into(own: Path) -> None:
    own.mkdir(exist_ok=True)
    try:
        _write(own / "cgroup.procs", "0")
    except OSError:
        with contextlib.suppress(OSError):
            own.rmdir()
        raise


def _prefix(owner: str) -> str:
    return f"vllama-{hashlib.blake2s(owner.encode(), digest_size=4).hexdigest()}-"


def _write(path: Path, text: str) -> None:
    """One write, as the kernel wants it, and never a new file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _counts(path: Path) -> dict[str, int]:
    """Lines of a name and a number; none if the kernel does not count this here."""
    try:
        return {name: int(number) for name, number in (line.split() for line in path.read_text().splitlines())}
    except OSError:
        return {}
