"""Children and their trees (floor 2): fills ``Launcher`` and ``Child``.

A child leads a session and group of its own and dies with the daemon (``launch.py``). Its exit is seen through a
pidfd and *not* reaped: while the leader is a zombie its pid, and so the group's number, cannot mean anyone else, and
signals stay safe. ``kill_tree`` ends and reaps everyone and the leader last. Where control groups are delegated to us
(``cgroup.py``) every tree has a leaf of its own, which nobody in it can leave by accident.

Descriptors, processes and events are touched in the event loop's thread only; ``/proc`` is searched in a thread.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Command
from vllamad.process import tree
from vllamad.process.cgroup import Leaf, Leaves
from vllamad.process.output import PipeReader
from vllamad.process.shared import SharedMemoryNotes

LAUNCH = Path(__file__).with_name("launch.py")

SWEEP_PAUSE_S = 0.005
MAX_SWEEPS = 400
"""A tree is swept until a sweep finds nobody but the leader's zombie. Zombies whose parent is about to end too get 2 s:
without a subreaper they wait for a pid 1 that may never reap, and they hold nothing."""

_log = logging.getLogger(__name__)


class PosixLauncher:
    """Starts children on this machine. Fills ``Launcher``.

    ``owner`` (such as the path of the runtime folder) tells the children of this daemon from those of another one on
    the same machine, and lets a successor find them. ``leaves`` is where their control groups go, None for none.
    ``notes`` is a file for what the successor cannot find that way once the children are dead: see ``shared.py``. Makes
    the process a child subreaper.
    """

    def __init__(self, owner: str, leaves: Leaves | None = None, notes: Path | None = None) -> None:
        self._owner = owner
        self._leaves = leaves
        self._notes = SharedMemoryNotes(notes)
        self._children: dict[int, PosixChild] = {}
        self._orphans: set[int] = set()
        tree.become_subreaper()

    def spawn(self, command: Command, on_line: Callable[[str], None]) -> "PosixChild":
        """Start a child. See ``Launcher.spawn``; a program that turns out not to be executable only after the fork
        says so in its output and ends with status 126 or 127."""
        loop = asyncio.get_running_loop()
        program = Path(command.argv[0])
        if not os.access(program, os.X_OK) or program.is_dir():
            why = "not executable" if program.exists() else "no such file"
            raise _cannot_start(command, f"{program}: {why}")
        unique = secrets.token_hex(8)
        marker = f"{self._owner}:{unique}"
        leaf = self._leaf(command, unique)
        place = str(leaf.folder) if leaf else ""
        read_end, write_end = os.pipe()
        stdin = _input(command.stdin)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), place, *command.argv],
                env={**command.env, tree.MARKER: marker},
                cwd=command.cwd,
                stdin=stdin,
                stdout=write_end,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            os.close(read_end)
            if leaf:
                leaf.remove()
            raise _cannot_start(command, str(error)) from error
        finally:
            os.close(write_end)
            if stdin != subprocess.DEVNULL:
                os.close(stdin)
        output = PipeReader(read_end, on_line, command.longest_line_bytes)
        child = PosixChild(process, marker, leaf, command.title, output, loop, self._notes, self._forget)
        self._children[process.pid] = child
        _log.info("process.spawn title=%s pid=%d program=%s", command.title, process.pid, program)
        return child

    async def kill_leftovers(self) -> int:
        """Kill what a predecessor with the same ``owner`` left behind, and remove what is left of it in shared memory;
        returns how many processes that were. Call once at start, when it is certain (by the lock) that no other daemon
        with this owner runs."""
        leaves = self._leaves.left(self._owner) if self._leaves else []
        count = await self._clear(None)
        for leaf in leaves:
            count += await self._clear(leaf)
            await leaf.discard()
        await asyncio.to_thread(self._remove_unowned)
        if count:
            _log.warning("process.leftovers killed=%d: an earlier daemon did not end by itself", count)
        return count

    async def _clear(self, leaf: Leaf | None) -> int:
        """Kill everyone who carries a marker of this owner or is in the leaf; returns how many that were."""
        marker, count, waited_for = f"{self._owner}:", 0, set[int]()
        for tries in itertools.count():
            found = await asyncio.to_thread(tree.members, 0, marker, leaf)
            if not found.processes and not (leaf and leaf.is_populated()):
                break
            spared = tree.tidiers(found) - waited_for
            waited_for |= spared
            dying = tree.kill(found, 0, marker, spared, leaf)
            count += len(dying)
            await tree.exits(dying)
            await tree.finish(spared)
            tree.collect(dying)
            remove_files(found.shared_memory)
            if tries:
                await asyncio.sleep(SWEEP_PAUSE_S)
        return count

    def _leaf(self, command: Command, unique: str) -> Leaf | None:
        leaf = self._leaves.make(self._owner, unique) if self._leaves else None
        limit_bytes = command.memory_limit_bytes
        if limit_bytes and leaf and not leaf.limit(limit_bytes):
            _log.warning("process.unlimited title=%s: its control group does not limit memory", command.title)
        return leaf

    async def reap_orphans(self) -> int:
        """Reap adopted orphans that have ended; call it now and then. A child that someone here waits for is gone
        within milliseconds, so only zombies that were there at the last call too are taken."""
        found = await asyncio.to_thread(tree.orphans, tuple(self._children))
        due = found & self._orphans
        self._orphans = found - due
        return tree.reap(due - self._children.keys())

    def _remove_unowned(self) -> None:
        if noted := set(self._notes.left_behind()):
            remove_files(noted - tree.mapped_by_anyone())

    def _forget(self, pid: int) -> None:
        self._children.pop(pid, None)


class PosixChild:
    """One leader and its tree. Fills ``Child``."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        marker: str,
        leaf: Leaf | None,
        title: str,
        output: PipeReader,
        loop: asyncio.AbstractEventLoop,
        notes: SharedMemoryNotes,
        on_gone: Callable[[int], None],
    ) -> None:
        self._process = process
        self._marker = marker
        self._leaf = leaf
        self._title = title
        self._output = output
        self._loop = loop
        self._notes = notes
        self._on_gone = on_gone
        self._exited = asyncio.Event()
        self._status = 0
        self._is_gone = False
        self._shared_memory: set[Path] = set()
        self._dying: list[tree.Dying] = []
        self._oom_kills = 0
        self._cpu_seconds = 0.0
        # Still valid if it has ended already: only reaping frees the number.
        self._descriptor = os.pidfd_open(process.pid)
        loop.add_reader(self._descriptor, self._note_exit)

    @property
    def pid(self) -> int:
        """The leader."""
        return self._process.pid

    async def wait(self) -> int:
        """See ``Child.wait``. What the leader wrote before it ended has reached ``on_line`` by then."""
        await self._exited.wait()
        return self._status

    def terminate(self) -> None:
        """SIGTERM to the leader's group; returns at once."""
        if not self._is_gone:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)

    async def kill_tree(self) -> None:
        """See ``Child.kill_tree``. Several callers may wait; a cancelled one has still sent its signals."""
        waited_for = set[int]()
        for tries in itertools.count():
            found = await asyncio.to_thread(tree.members, self.pid, self._marker, self._leaf)
            if self._is_gone:
                return
            # No await from here to the signals: whoever is cancelled later has noted whom it killed.
            self._shared_memory |= found.shared_memory
            # Each gets its time once: one that was not there in an earlier sweep has work to do like any other.
            spared = tree.tidiers(found) - waited_for
            waited_for |= spared
            dying = tree.kill(found, self.pid, self._marker, spared, self._leaf)
            self._dying += [one for one in dying if one.pid != self.pid]
            await tree.exits(dying)
            await tree.finish(spared)
            if self._is_gone:
                return
            self._dying = tree.collect(self._dying)
            is_alone = all(process.pid == self.pid and process.is_zombie for process in found.processes)
            is_empty = not (self._leaf and self._leaf.is_populated())
            if is_empty and ((is_alone and not self._dying) or tries >= MAX_SWEEPS):
                self._finish()
                if self._leaf:
                    await self._leaf.discard()
                return
            if tries:
                await asyncio.sleep(SWEEP_PAUSE_S)

    def memory_bytes(self) -> int:
        """See ``Child.memory_bytes``. Takes some 10 ms per GiB: call it in a thread. What the tree has in shared memory
        is noted on the way: it is asked now and then, and when an engine has got ready."""
        if self._is_gone:
            return 0
        seen = tree.shared_memory(self.pid)
        self._notes.note(self.pid, seen)
        # Who is killed together with everyone who knows it, as by an OOM killer that ends a whole group, cannot be
        # asked afterwards.
        self._shared_memory.update(seen)
        return tree.memory_bytes(self.pid)

    def pids(self) -> frozenset[int]:
        """See ``Child.pids``. Without a leaf it searches ``/proc``: call it in a thread."""
        if self._is_gone:
            return frozenset()
        inside = self._leaf.pids() if self._leaf else frozenset[int]()
        # A leaf is empty until the child has entered it.
        return inside or frozenset(p.pid for p in tree.search(self.pid, self._marker) if not p.is_zombie)

    def cpu_seconds(self) -> float:
        """See ``Child.cpu_seconds``. Without a leaf it searches ``/proc``: call it in a thread."""
        if not self._is_gone:
            counted = self._leaf.cpu_seconds() if self._leaf else 0.0
            self._cpu_seconds = max(self._cpu_seconds, counted or tree.cpu_seconds(self.pid, self._marker))
        return self._cpu_seconds

    def oom_kills(self) -> int:
        """See ``Child.oom_kills``."""
        if self._leaf and not self._is_gone:
            self._oom_kills = max(self._oom_kills, self._leaf.oom_kills())
        return self._oom_kills

    def _note_exit(self) -> None:
        if self._exited.is_set():
            return
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return
        self._loop.remove_reader(self._descriptor)
        self._status = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        self._output.drain()
        self._exited.set()
        _log.info("process.exit title=%s pid=%d status=%d", self._title, self.pid, self._status)

    def _finish(self) -> None:
        """Nobody but the leader's zombie is left: reap it. Synchronous, so it happens once."""
        if self._is_gone:
            return
        self._note_exit()
        if self._leaf:
            # Its counts end with it.
            self.oom_kills()
            self._cpu_seconds = max(self._cpu_seconds, self._leaf.cpu_seconds())
        os.waitid(os.P_PID, self.pid, os.WEXITED)
        self._is_gone = True
        # Tells Popen that there is nothing to wait for any more.
        self._process.returncode = self._status
        os.close(self._descriptor)
        self._output.close()
        remove_files(self._shared_memory.union(self._notes.forget(self.pid)))
        self._on_gone(self.pid)


def remove_files(paths: Iterable[Path]) -> None:
    """Unlink what is still there."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            _log.info("process.leftover removed path=%s", path)


def _input(data: bytes) -> int:
    """A descriptor to read ``data`` from: a file in memory, so that nobody has to wait for the reader."""
    if not data:
        return subprocess.DEVNULL
    descriptor = os.memfd_create("vllama-stdin")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _cannot_start(command: Command, why: str) -> VllamaError:
    return VllamaError(
        Reason.ENGINE_START_FAILED,
        f"cannot start {command.title}: cannot execute {why}",
        "check the setting engine.python",
        program=str(command.argv[0]),
    )
