"""Children and their trees (floor 2): fills ``Launcher`` and ``Child``.

A child leads a session and group of its own and dies with the daemon (``launch.py``). Its exit is seen through a
pidfd and *not* reaped: while the leader is a zombie its pid, and so the group's number, cannot mean anyone else, and
signals stay safe. ``kill_tree`` ends and reaps everyone and the leader last. Where control groups are delegated to us
(``cgroup.py``) every tree has a leaf of its own, which nobody in it can leave by accident.

A child whose command names a zygote is forked from that one instead of being executed (``zygotes.py``), which takes a
moment: ``ComingChild`` stands for it until it is there.

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
from collections.abc import Awaitable, Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import HandedChild
from vllamad.domain.ports import Command
from vllamad.domain.view import ZygoteState
from vllamad.process import tree
from vllamad.process.cgroup import Leaf, Leaves
from vllamad.process.launch import EXIT_NOT_FOUND
from vllamad.process.output import PipeReader
from vllamad.process.shared import SharedMemoryNotes
from vllamad.process.zygotes import Newborn, NotForked, Zygote, Zygotes

LAUNCH = Path(__file__).with_name("launch.py")

SWEEP_PAUSE_S = 0.005
MAX_SWEEPS = 400
"""A tree is swept until a sweep finds nobody but the leader's zombie. Zombies whose parent is about to end too get 2 s:
without a subreaper they wait for a pid 1 that may never reap, and they hold nothing."""

Taker = Callable[[str], None]
"""Gets every line of a child's output."""

_log = logging.getLogger(__name__)


class PosixLauncher:
    """Starts children on this machine. Fills ``Launcher``.

    ``owner`` (such as the path of the runtime folder) tells the children of this daemon from those of another one on
    the same machine, and lets a successor find them. ``leaves`` is where their control groups go, None for none.
    ``notes`` is a file for what the successor cannot find that way once the children are dead: see ``shared.py``.
    ``handed`` are children that a predecessor had in this same process: they are left alone until each was adopted.
    Makes the process a child subreaper.
    """

    def __init__(
        self,
        owner: str,
        leaves: Leaves | None = None,
        notes: Path | None = None,
        handed: Iterable[HandedChild] = (),
    ) -> None:
        self._owner = owner
        self._leaves = leaves
        self._notes = SharedMemoryNotes(notes)
        self._children: dict[int, PosixChild] = {}
        self._handed = {child.pid: child for child in handed}
        for child in self._handed.values():
            files = {Path(name): inode for name, inode in child.shared_memory.items()}
            self._notes.take_over(child.pid, files)
        self.zygotes = Zygotes(lambda command, stdin, on_line: self._execute(command, on_line, stdin))
        """What children may be forked from. Without its ``run``, all are executed."""
        self._orphans: set[int] = set()
        tree.become_subreaper()

    def spawn(self, command: Command, on_line: Taker) -> "PosixChild | ComingChild":
        """Start a child. See ``Launcher.spawn``; a program that turns out not to be executable only after the fork
        says so in its output and ends with status 126 or 127."""
        zygote = self.zygotes.keep(command.zygote) if command.zygote is not None else None
        if zygote is not None and zygote.state is not ZygoteState.OFF:
            return ComingChild(command, on_line, zygote, self._fork, self._execute)
        return self._execute(command, on_line)

    def _execute(self, command: Command, on_line: Taker, stdin: int = -1) -> "PosixChild":
        """Start a child by executing its program; ``stdin`` instead of what the command has for it."""
        program = Path(command.argv[0])
        if not os.access(program, os.X_OK) or program.is_dir():
            why = "not executable" if program.exists() else "no such file"
            raise _cannot_start(command, f"{program}: {why}")
        with self._prepared(command, on_line, stdin) as ready:
            place = str(ready.leaf.folder) if ready.leaf else ""
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), place, *command.argv],
                    env={**command.env, tree.MARKER: ready.marker},
                    cwd=command.cwd,
                    stdin=ready.stdin,
                    stdout=ready.output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=command.descriptors,
                )
            except OSError as error:
                raise _cannot_start(command, str(error)) from error
            # It is watched, and reaped, by us: Popen is told so, or it would wait for it when it is forgotten.
            process.returncode = 0
            child = self._born(process.pid, command, ready)
        _log.info("process.spawn title=%s pid=%d program=%s", command.title, child.pid, program)
        return child

    async def _fork(self, zygote: Zygote, command: Command, on_line: Taker) -> tuple["PosixChild", Newborn]:
        """Have a child forked; it waits for the word to begin. Raises NotForked, OSError."""
        with self._prepared(command, on_line) as ready:
            order = {
                "argv": list(command.argv),
                "env": dict(command.env),
                "marker": f"{tree.MARKER}={ready.marker}",
                "cwd": str(command.cwd),
                "leaf": str(ready.leaf.folder) if ready.leaf else "",
                "parent": os.getpid(),
            }
            try:
                newborn = await zygote.fork(order, [ready.output, ready.stdin])
            except NotForked:
                if ready.leaf:
                    # Whoever has got stuck on the way there.
                    ready.leaf.kill()
                    await ready.leaf.discard()
                raise
            try:
                child = self._born(newborn.pid, command, ready)
            except OSError:
                newborn.close()
                raise
        _log.info("process.fork title=%s pid=%d", command.title, child.pid)
        return child, newborn

    @contextlib.contextmanager
    def _prepared(self, command: Command, on_line: Taker, stdin: int = -1) -> Generator["_Prepared"]:
        """What a child is born with. When the block ends, its descriptors are closed here; and if it was not born, what
        was made for it is undone."""
        unique = secrets.token_hex(8)
        with contextlib.ExitStack() as closing, contextlib.ExitStack() as unborn:
            if leaf := self._leaf(command, unique):
                unborn.callback(leaf.remove)
            read_end, write_end = os.pipe()
            closing.callback(os.close, write_end)
            reader = PipeReader(read_end, on_line, command.longest_line_bytes)
            unborn.callback(reader.close)
            if stdin < 0:
                stdin = _input(command.stdin)
                closing.callback(os.close, stdin)
            yield _Prepared(f"{self._owner}:{unique}", leaf, stdin, write_end, reader, unborn)

    def _born(self, pid: int, command: Command, ready: "_Prepared") -> "PosixChild":
        loop = asyncio.get_running_loop()
        child = PosixChild(pid, ready.marker, ready.leaf, command.title, ready.reader, loop, self._notes, self._forget)
        self._children[pid] = child
        ready.unborn.pop_all()
        return child

    def adopt(self, handed: HandedChild, on_line: Taker) -> "PosixChild":
        """Go on with a child of a predecessor. See ``Launcher.adopt``."""
        # We are its parent, and nobody but us reaps: if it is our child, the number still means the same one.
        process = tree.read(handed.pid)
        if process is None or process.parent != os.getpid():
            self._handed.pop(handed.pid, None)
            raise VllamaError(Reason.ENGINE_DIED, f"cannot go on with {handed.title}: process {handed.pid} is gone")
        output = handed.output
        if output < 0:  # nobody can write to it any more, as the reader is about to find out
            output, nobody = os.pipe()
            os.close(nobody)
        os.set_inheritable(output, False)
        unfinished = handed.unfinished.encode("latin-1")
        reader = PipeReader(output, on_line, handed.longest_line_bytes, unfinished)
        loop, leaf = asyncio.get_running_loop(), _leaf_of(handed)
        child = PosixChild(handed.pid, handed.marker, leaf, handed.title, reader, loop, self._notes, self._forget)
        self._children[handed.pid] = child
        del self._handed[handed.pid]
        _log.info("process.adopt title=%s pid=%d", handed.title, handed.pid)
        return child

    async def kill_leftovers(self) -> int:
        """Kill what a predecessor with the same ``owner`` left behind, and remove what is left of it in shared memory;
        returns how many processes that were. What was handed to us is not left behind. Call once at start, when it is
        certain (by the lock) that no other daemon with this owner runs."""
        handed = {child.leaf for child in self._handed.values()}
        leaves = self._leaves.left(self._owner) if self._leaves else []
        leaves = [leaf for leaf in leaves if str(leaf.folder) not in handed]
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
            found = await asyncio.to_thread(self._left_behind, marker, leaf)
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

    def _left_behind(self, marker: str, leaf: Leaf | None) -> tree.Members:
        return tree.members(0, marker, leaf, but=self._trees_of_handed)

    def _trees_of_handed(self) -> set[int]:
        return {
            process.pid
            for child in self._handed.values()
            for process in tree.search(child.pid, child.marker, _leaf_of(child))
        }

    def _leaf(self, command: Command, unique: str) -> Leaf | None:
        leaf = self._leaves.make(self._owner, unique) if self._leaves else None
        limit_bytes = command.memory_limit_bytes
        if limit_bytes and leaf and not leaf.limit(limit_bytes):
            _log.warning("process.unlimited title=%s: its control group does not limit memory", command.title)
        return leaf

    async def reap_orphans(self) -> int:
        """Reap adopted orphans that have ended; call it now and then. A child that someone here waits for is gone
        within milliseconds, so only zombies that were there at the last call too are taken."""
        found = await asyncio.to_thread(tree.orphans, (*self._children, *self._handed))
        due = found & self._orphans
        self._orphans = found - due
        return tree.reap(due - self._children.keys() - self._handed.keys())

    def _remove_unowned(self) -> None:
        if noted := set(self._notes.left_behind()):
            remove_files(noted - tree.mapped_by_anyone())

    def _forget(self, pid: int) -> None:
        self._children.pop(pid, None)


class PosixChild:
    """One leader and its tree. Fills ``Child``."""

    def __init__(
        self,
        pid: int,
        marker: str,
        leaf: Leaf | None,
        title: str,
        output: PipeReader,
        loop: asyncio.AbstractEventLoop,
        notes: SharedMemoryNotes,
        on_gone: Callable[[int], None],
    ) -> None:
        self.pid = pid
        """The leader."""
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
        self._descriptor = os.pidfd_open(pid)
        loop.add_reader(self._descriptor, self._note_exit)

    async def wait(self) -> int:
        """See ``Child.wait``. What the leader wrote before it ended has reached ``on_line`` by then."""
        await self._exited.wait()
        return self._status

    def terminate(self) -> None:
        """SIGTERM to the leader's group; returns at once."""
        if not self._is_gone:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)

    def hand_over(self) -> HandedChild | None:
        """See ``Child.hand_over``. It stays known as a child that is not to be reaped as an orphan."""
        if self._is_gone or self._exited.is_set():
            return None
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        output, unfinished = self._output.let_go()
        return HandedChild(
            self.pid,
            self._marker,
            str(self._leaf.folder) if self._leaf else "",
            self._title,
            output,
            unfinished.decode("latin-1"),
            self._output.longest_line_bytes,
            {str(path): inode for path, inode in self._notes.noted(self.pid).items()},
        )

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

    def weigh(self, weight: int) -> None:
        """Its part of the processors, see ``Leaf.weigh``; nothing happens without a leaf."""
        if self._leaf:
            self._leaf.weigh(weight)

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
        os.close(self._descriptor)
        self._output.close()
        remove_files(self._shared_memory.union(self._notes.forget(self.pid)))
        self._on_gone(self.pid)


class ComingChild:
    """A child that a zygote was asked for, or is about to be. Fills ``Child``.

    Whoever ends it early has it ended at birth: an order that was sent is always waited for (``FORK_S`` bounds that),
    so that nothing is left. What cannot be forked is executed.
    """

    def __init__(
        self,
        command: Command,
        on_line: Taker,
        zygote: Zygote,
        fork: Callable[[Zygote, Command, Taker], Awaitable[tuple[PosixChild, Newborn]]],
        execute: Callable[[Command, Taker], PosixChild],
    ) -> None:
        self._command = command
        self._on_line = on_line
        self._zygote = zygote
        self._fork = fork
        self._execute = execute
        self._child: PosixChild | None = None
        self._status = 0
        """What it was ended by before it began."""
        self._is_waiting = True
        """For the zygote to be warm: nothing was asked of it yet."""
        # A task of its own: whoever asks for a child does not wait for it, and everyone who ends it does.
        self._coming = asyncio.get_running_loop().create_task(self._come(), name=f"{command.title}/coming")

    @property
    def pid(self) -> int:
        """See ``Child.pid``."""
        return self._child.pid if self._child is not None else 0

    async def wait(self) -> int:
        """See ``Child.wait``."""
        await asyncio.wait([self._coming])
        return await self._child.wait() if self._child is not None else self._status

    def terminate(self) -> None:
        """See ``Child.terminate``."""
        self._end(signal.SIGTERM)
        if self._child is not None:
            self._child.terminate()

    def hand_over(self) -> HandedChild | None:
        """See ``Child.hand_over``."""
        return self._child.hand_over() if self._child is not None else None

    async def kill_tree(self) -> None:
        """See ``Child.kill_tree``."""
        self._end(signal.SIGKILL)
        await asyncio.wait([self._coming])
        if self._child is not None:
            await self._child.kill_tree()

    def memory_bytes(self) -> int:
        """See ``Child.memory_bytes``."""
        return self._child.memory_bytes() if self._child is not None else 0

    def pids(self) -> frozenset[int]:
        """See ``Child.pids``."""
        return self._child.pids() if self._child is not None else frozenset()

    def cpu_seconds(self) -> float:
        """See ``Child.cpu_seconds``."""
        return self._child.cpu_seconds() if self._child is not None else 0.0

    def oom_kills(self) -> int:
        """See ``Child.oom_kills``."""
        return self._child.oom_kills() if self._child is not None else 0

    def _end(self, number: int) -> None:
        if self._coming.done():
            return
        self._status = self._status or -number
        if self._is_waiting:
            self._coming.cancel()

    async def _come(self) -> None:
        await self._zygote.warm()
        self._is_waiting = False
        try:
            self._child, newborn = await self._fork(self._zygote, self._command, self._on_line)
        except (NotForked, OSError) as why:
            if self._status:
                return
            _log.warning("process.unforked title=%s: %s; it is executed", self._command.title, why)
            self._be_executed()
            return
        if self._status:
            # Before the word to begin, or the lack of it, could end it otherwise.
            self._child.terminate()
            newborn.close()
        else:
            newborn.begin()

    def _be_executed(self) -> None:
        try:
            self._child = self._execute(self._command, self._on_line)
        except (VllamaError, OSError) as error:
            self._on_line(f"vllamad: {error}")
            self._status = EXIT_NOT_FOUND


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a child is born with: its marker, its leaf, standard input, where its output goes, and who reads that.
    ``unborn`` undoes what is its own from its birth on."""

    marker: str
    leaf: Leaf | None
    stdin: int
    output: int
    reader: PipeReader
    unborn: contextlib.ExitStack


def _leaf_of(handed: HandedChild) -> Leaf | None:
    return Leaf(Path(handed.leaf)) if handed.leaf else None


def remove_files(paths: Iterable[Path]) -> None:
    """Unlink what is still there."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            _log.info("process.leftover removed path=%s", path)


def _input(data: bytes) -> int:
    """A descriptor to read ``data`` from: a file in memory, so that nobody has to wait for the reader."""
    if not data:
        return os.open(os.devnull, os.O_RDONLY)
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
