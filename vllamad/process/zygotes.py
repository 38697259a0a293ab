"""Zygotes: processes that have imported a program once and are forked instead of starting it anew (floor 2).

``Zygotes`` keeps one, as it was wanted last: started before anybody needs it, started again when it has ended, and
given up with one line in the log where that does not help. ``fork`` gets a worker of one; whatever goes
wrong there is ``NotForked``, and the caller executes the program instead. What runs on the other side is ``zygote.py``,
which also tells the protocol.

A zygote is a child like any other, and nothing of a worker depends on it once that one runs.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Command
from vllamad.domain.view import ZygoteState, ZygoteView

SCRIPT = Path(__file__).with_name("zygote.py")
"""Run by the interpreter of the program, with the path of a preparation as its argument."""

MESSAGE_BYTES = 64 * 1024
WARM_S = 120.0
"""For its imports. They take 5 to 15 s, with a cold disk a minute; executing a program takes them twice."""
FORK_S = 10.0
"""From an order to a worker with a pid: 20 to 50 ms. A zygote that takes longer hangs, and is killed."""
BACKOFF_S = (1.0, 2.0, 4.0, 8.0)
"""Waits after a zygote that ended; if it ends once more without having lived for ``STABLE_S``, it is given up."""
STABLE_S = 60.0
BACKGROUND, NORMAL = 1, 100
"""Weights of its control group: while it warms and nobody waits for it, and else."""

_log = logging.getLogger(__name__)


class NotForked(Exception):
    """There is no worker; says why. Nothing is left of the attempt."""


class ZygoteChild(Protocol):
    """What is needed of a child here."""

    @property
    def pid(self) -> int:
        """See ``Child``."""
        ...

    async def kill_tree(self) -> None:
        """See ``Child``."""
        ...

    def memory_bytes(self) -> int:
        """See ``Child``."""
        ...

    def weigh(self, weight: int) -> None:
        """Its part of the processors, see ``Leaf.weigh``."""
        ...


Launch = Callable[[Command, int, Callable[[str], None]], ZygoteChild]
"""Executes a command with a descriptor as its standard input, and a taker for its lines. Raises VllamaError."""


class Newborn:
    """A worker that was forked and waits for a word, in a process of its own. Closing without the word ends it."""

    def __init__(self, pid: int, talk: socket.socket) -> None:
        self.pid = pid
        self._talk = talk

    def begin(self) -> None:
        """Let it run its program. If it has ended meanwhile, its status tells."""
        with contextlib.suppress(OSError):
            self._talk.send(b"1")
        self._talk.close()

    def close(self) -> None:
        """Let it end."""
        self._talk.close()


@dataclass(frozen=True, slots=True)
class End:
    """Why a zygote's process ended; ``is_final`` if another one would fare no better."""

    why: str
    is_final: bool = False
    is_stale: bool = False


class Zygote:
    """One that is kept: the process that there is of it now, if any, and its history."""

    def __init__(self, command: Command, launch: Launch) -> None:
        self.command = command
        """As ``Command.zygote`` has it."""
        self.state = ZygoteState.WARMING
        self.problem = ""
        """Why there is none, in words."""
        self.forked = 0
        self.child: ZygoteChild | None = None
        self._launch = launch
        self._control: socket.socket | None = None
        self._waiting = 0
        self._changed = asyncio.Event()
        self._said: deque[str] = deque(maxlen=20)

    async def keep(self) -> None:
        """Have a process of it until cancelled, or given up."""
        try:
            await self._keep()
        finally:
            # Nobody waits for it any more.
            self._enter(ZygoteState.OFF, self.problem or "it is not wanted any more")

    async def _keep(self) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            end = await self._live()
            is_stable = end.is_stale or loop.time() - began > STABLE_S
            failures = 0 if is_stable else failures + 1
            if end.is_final or failures > len(BACKOFF_S):
                self._enter(ZygoteState.OFF, end.why)
                _log.warning("zygote.off: %s; engines are started without it, which takes longer", end.why)
                return
            pause_s = BACKOFF_S[max(0, failures - 1)]
            _log.warning("zygote.ended: %s; started again in %g s", end.why, pause_s)
            self._enter(ZygoteState.ENDED, end.why)
            await asyncio.sleep(pause_s)

    async def warm(self) -> None:
        """Return when it is warm, or will not be for a while. While somebody waits, it gets its full part of the
        processors."""
        self._waiting += 1
        try:
            if self.state is ZygoteState.WARMING and self.child is not None:
                self.child.weigh(NORMAL)
            while self.state is ZygoteState.WARMING:
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._waiting -= 1

    async def fork(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> Newborn:
        """Get a worker of one that is warm. Raises NotForked. The caller keeps its descriptors. Not to be cancelled:
        the worker may be on its way."""
        if self._control is None:
            raise NotForked(self.problem or "the zygote has just ended")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            ours.setblocking(False)
            try:
                socket.send_fds(self._control, [json.dumps(order).encode()], [theirs.fileno(), *descriptors])
            except OSError as error:
                raise NotForked(f"the zygote takes no order: {error.strerror}") from error
            finally:
                theirs.close()
            answer = await self._answer(ours)
            if "pid" not in answer:
                raise NotForked(answer.get("refused") or "the zygote has ended")
            self.forked += 1
            undo.pop_all()
            return Newborn(answer["pid"], ours)

    def view(self) -> ZygoteView:
        """What it is now. Blocking, some 10 ms."""
        child = self.child
        pid, held = (child.pid, child.memory_bytes()) if child is not None else (0, 0)
        return ZygoteView(self.state, pid, held, self.forked, self.problem)

    async def _live(self) -> "End":
        """One process, from its start to its end."""
        self._enter(ZygoteState.WARMING)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            ours.setblocking(False)
            try:
                python, preparation = self.command.argv
                command = replace(self.command, argv=[python, str(SCRIPT), preparation])
                self.child = self._launch(command, theirs.fileno(), self._take)
            except VllamaError as error:
                return End(error.message, is_final=True)
            finally:
                theirs.close()
            if not self._waiting:
                self.child.weigh(BACKGROUND)
            try:
                async with asyncio.timeout(WARM_S):
                    message = await _hear(ours)
            except TimeoutError:
                return End(f"it was not warm after {WARM_S:g} s")
            if message.get("state") == "refused":
                return End(message["why"], is_final=True)
            if message.get("state") != "ready":
                return End(self._last_words("it ended while it warmed"))
            self.child.weigh(NORMAL)
            self._control = ours
            _log.info("zygote.ready pid=%d warm_s=%.1f", self.child.pid, loop.time() - began)
            self._enter(ZygoteState.READY)
            message = await _hear(ours)
            if message.get("state") == "stale":
                return End("the engine was changed since it was warmed", is_stale=True)
            return End(self._last_words("it ended"))
        finally:
            self._control = None
            ours.close()
            if self.child is not None:
                child, self.child = self.child, None
                await child.kill_tree()

    async def _answer(self, talk: socket.socket) -> dict[str, Any]:
        """What the worker or the zygote says; {} if nobody is there any more who could."""
        try:
            async with asyncio.timeout(FORK_S):
                return await _hear(talk)
        except TimeoutError:
            _log.warning("zygote.hangs: no answer within %g s; it is killed", FORK_S)
        if self.child is not None:
            # A worker that has not got so far as to be one of its own goes with it.
            await self.child.kill_tree()
        raise NotForked(f"the zygote did not answer within {FORK_S:g} s")

    def _enter(self, state: ZygoteState, problem: str = "") -> None:
        self.state, self.problem = state, problem
        self._changed.set()

    def _take(self, line: str) -> None:
        self._said.append(line)
        _log.debug("zygote.line text=%s", line)

    def _last_words(self, what: str) -> str:
        return f"{what}, and said last: {self._said[-1]}" if self._said else what


class Zygotes:
    """The one that is kept: engines differ in what they are given late, so a command that differs is that of settings
    which were reloaded, and takes the place of the one before. ``launch`` executes one."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._kept: Zygote | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self, started: asyncio.Event) -> None:
        """Its branch of the daemon's tree: runs until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                started.set()
                await asyncio.Event().wait()
        finally:
            self._tasks = None

    def keep(self, command: Command) -> Zygote | None:
        """Have the one that is made by this command, from now on; None if ``run`` does not run."""
        if self._kept is not None and self._kept.command == command:
            return self._kept
        if self._tasks is None:
            return None
        if self._keeping is not None:
            self._keeping.cancel()
        self._kept = Zygote(command, self._launch)
        self._keeping = self._tasks.create_task(self._kept.keep(), name="zygote")
        return self._kept

    def views(self) -> list[ZygoteView]:
        """What there is now: one, or none. Blocking, some 10 ms."""
        return [self._kept.view()] if self._kept is not None else []


async def _hear(conversation: socket.socket) -> dict[str, Any]:
    """The next message; {} at the end."""
    try:
        data = await asyncio.get_running_loop().sock_recv(conversation, MESSAGE_BYTES)
    except ConnectionError:
        return {}
    return json.loads(data) if data else {}
