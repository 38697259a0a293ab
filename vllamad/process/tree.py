"""Process trees as the kernel shows them (floor 2): who belongs to one, what it holds, and its end.

A tree is a leader's session and group, and whoever left both with ``setsid`` but still carries the marker that the
leader got in its environment; where it has a leaf (``cgroup.py``), everyone in there too. Functions here block for as
long as reading ``/proc`` takes (some 50 us a process): callers run the searching ones in a thread.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vllamad.process.cgroup import Leaf

PR_SET_CHILD_SUBREAPER = 36
MARKER = "VLLAMA_WORKER"
"""The environment variable that every process of a worker inherits. Its value is ``<owner>:<unique>``."""

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SHARED_MEMORY = "/dev/shm/"
TIDIER = b"multiprocessing.resource_tracker"
TIDYING_S = 2.0
"""What it is given to finish, once everyone else is dead: it takes milliseconds."""
GOING_ON_S = 0.5
"""The same, once it was told to go on in case it was stopped."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Process:
    """One line of ``/proc/PID/stat``."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    cpu_seconds: float
    """Its own and that of children which it has waited for."""

    @property
    def is_zombie(self) -> bool:
        """Ended, holds nothing, waits to be reaped."""
        return self.state in {"Z", "X"}


class Dying:
    """A process that is about to end, by a descriptor that means it even after its number was given away. Closed with
    the object: a search in a thread whose caller was cancelled leaves none behind."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self.descriptor)

    def kill(self) -> None:
        """SIGKILL; harmless if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def go_on(self) -> None:
        """SIGCONT: one that was stopped cannot end by itself."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Members:
    """Who belongs to a tree, zombies included, and the files in shared memory that they have mapped."""

    processes: tuple[Process, ...]
    shared_memory: frozenset[Path]


def become_subreaper() -> None:
    """Make orphans of our trees our children, so that they can be reaped here. Process-wide; harmless to repeat."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        _log.warning("process.subreaper refused: %s; orphans are left to pid 1", os.strerror(error))


def read(pid: int) -> Process | None:
    """One process, or None if there is none."""
    try:
        stat = (PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, rest = stat.rpartition(")")
    fields = rest.split()
    cpu_seconds = sum(map(int, fields[11:15])) / TICKS_PER_S
    return Process(pid, head.partition("(")[2], fields[0], int(fields[1]), int(fields[2]), int(fields[3]), cpu_seconds)


def processes() -> Iterator[Process]:
    """Every process on this machine that we can see."""
    for entry in os.scandir(PROC):
        if entry.name.isdigit() and (process := read(int(entry.name))):
            yield process


def members(
    leader: int, marker: str, leaf: Leaf | None = None, but: Callable[[], Container[int]] = frozenset[int]
) -> Members:
    """Search a tree. The leader's pid must be pinned (not reaped), or it may mean someone else; ``leader`` 0 stands
    for none: then only the marker counts, and the leaf. ``but`` tells pids that do not count. It is asked after the
    search: asked before, who was born in between would count."""
    everyone = search(leader, marker, leaf)
    others = but()
    found = tuple(process for process in everyone if process.pid not in others)
    mapped = [_shared_memory(process.pid) for process in found]
    return Members(found, frozenset[Path]().union(*mapped))


def search(leader: int, marker: str, leaf: Leaf | None = None) -> tuple[Process, ...]:
    """The processes of a tree, as ``members`` finds them."""
    everyone, me = tuple(processes()), os.getpid()
    inside = leaf.pids() if leaf else frozenset[int]()
    found = {p.pid: p for p in everyone if p.pid in inside or _belongs(p, leader, marker)}
    # A zombie shows no environment any more; it belongs where its parent does.
    found |= {p.pid: p for p in everyone if p.is_zombie and p.parent in found}
    if leaf:
        # One that we have adopted has no other parent than us, but is still known to its leaf.
        found |= {p.pid: p for p in everyone if p.is_zombie and p.parent == me and leaf.holds(p.pid)}
    return tuple(found.values())


def _belongs(process: Process, leader: int, marker: str) -> bool:
    is_inside = leader != 0 and leader in (process.session, process.group)
    return is_inside or (not process.is_zombie and carries(process.pid, marker))


def carries(pid: int, marker: str) -> bool:
    """True if the environment that a process was started with has our variable with a value that begins so."""
    try:
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        # Gone, or not ours to look into: then it is not of our making either.
        return False
    return b"\0" + f"{MARKER}={marker}".encode() in b"\0" + environment


def tidiers(found: Members) -> set[int]:
    """The processes in which Python keeps the names of semaphores and shared memory that a program shares with its
    children. Such a one unlinks what is left once the last of them has ended, and then ends itself.

    They are to be spared at first: what a process has mapped can be read while it lives only, and when the engine's
    inner processes have died with their API server, nobody else knows which files in shared memory were theirs.
    """
    return {process.pid for process in found.processes if not process.is_zombie and _is_tidier(process.pid)}


def _is_tidier(pid: int) -> bool:
    try:
        return TIDIER in (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def kill(
    found: Members, leader: int, marker: str, spared: Container[int] = (), leaf: Leaf | None = None
) -> list[Dying]:
    """Send SIGKILL to everyone who was found and is still who it was, but for the pids in ``spared``; returns them, and
    who had ended already. If nobody is to be spared, whoever was born in the leaf since is killed as well."""
    if leader and not spared:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
    dying: list[Dying] = []
    for process in found.processes:
        if process.pid in spared:
            continue
        with contextlib.suppress(ProcessLookupError):
            one = Dying(process.pid)
            # The number may have a new owner since it was read; from here on the descriptor pins it.
            now = read(process.pid)
            if now is None or not (now.is_zombie or _belongs(now, leader, marker) or (leaf and leaf.holds(now.pid))):
                continue
            if leader and not process.is_zombie and leader not in (process.session, process.group):
                _log.warning("process.escaped pid=%d name=%s leader=%d", process.pid, process.name, leader)
            one.kill()
            dying.append(one)
    if leaf and not spared:
        leaf.kill()
    return dying


def _reap(pid: int) -> bool:
    """Collect a child that has ended; False if it is not ours to collect (yet)."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return read(pid) is None


def orphans(leaders: Iterable[int]) -> set[int]:
    """Zombies among our children that no leader is."""
    me, known = os.getpid(), set(leaders)
    return {p.pid for p in processes() if p.is_zombie and p.parent == me and p.pid not in known}


def reap(pids: Iterable[int]) -> int:
    """Collect these children; returns how many there were."""
    return sum(_reap(pid) for pid in pids)


def collect(ended: Iterable[Dying]) -> list[Dying]:
    """Reap processes that have ended; returns those that are still zombies of a parent that is about to leave."""
    left: list[Dying] = []
    for dying in ended:
        try:
            if os.waitid(os.P_PIDFD, dying.descriptor, os.WEXITED | os.WNOHANG):
                continue
        except ChildProcessError:
            pass
        process = read(dying.pid)
        if process is not None and process.is_zombie:
            left.append(dying)
    return left


async def finish(tidiers: Iterable[int]) -> None:
    """Let those who tidy up end by themselves; who hangs is left to the next sweep. One that was stopped together with
    its engine goes on first: what the engine left is known to nobody else if it died before anyone had looked."""
    dying: list[Dying] = []
    for pid in tidiers:
        with contextlib.suppress(ProcessLookupError):
            dying.append(Dying(pid))
    for seconds in (TIDYING_S, GOING_ON_S):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await exits(dying)
            return
        for one in dying:
            one.go_on()


async def exits(dying: Iterable[Dying]) -> None:
    """Return when every one of these processes has ended."""
    loop = asyncio.get_running_loop()
    for one in dying:
        ended = asyncio.Event()
        loop.add_reader(one.descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(one.descriptor)


def cpu_seconds(leader: int, marker: str) -> float:
    """Processor time of a tree's members and of the children that they have waited for."""
    return sum(process.cpu_seconds for process in search(leader, marker))


def memory_bytes(leader: int) -> int:
    """Resident bytes of a leader's session; shared pages are divided among their users (PSS) where the kernel says."""
    return sum(_resident_bytes(p.pid) for p in processes() if p.session == leader and not p.is_zombie)


def _resident_bytes(pid: int) -> int:
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with contextlib.suppress(OSError):
            for line in (PROC / str(pid) / name).read_text("utf-8", "replace").splitlines():
                if line.startswith(key):
                    return int(line.split()[1]) * 1024
    return 0


def shared_memory(leader: int) -> dict[Path, int]:
    """Files in /dev/shm that a leader's session has mapped, with their inodes."""
    found: dict[Path, int] = {}
    for process in processes():
        if process.session == leader and not process.is_zombie:
            found |= _shared_memory(process.pid)
    return found


def mapped_by_anyone() -> set[Path]:
    """Files in /dev/shm that some process on this machine has mapped, as far as we may look."""
    return {path for process in processes() for path in _shared_memory(process.pid)}


def _shared_memory(pid: int) -> dict[Path, int]:
    """Files in /dev/shm that a process has mapped: after SIGKILL nobody else removes them (vLLM's queues between
    processes are 400 MB there)."""
    try:
        maps = (PROC / str(pid) / "maps").read_text("utf-8", "replace")
    except OSError:
        return {}
    return {
        Path(line[start:]): int(line.split(maxsplit=5)[4])
        for line in maps.splitlines()
        if (start := line.find(SHARED_MEMORY)) >= 0 and not line.endswith(" (deleted)")
    }
