"""One post of an acceptor (floor 4): its process, the next one when that has ended, and what they are told."""

import asyncio
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllama.reasons import Reason
from vllamad.acceptors.channel import Channel, Questions
from vllamad.acceptors.granting import Catalog, Gate, Granting
from vllamad.acceptors.logs import write
from vllamad.acceptors.messages import (
    Begin,
    Done,
    FromDaemon,
    Leave,
    Logged,
    Ready,
    Terms,
    from_acceptor,
)
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Child, Command, Launcher
from vllamad.domain.view import AcceptorView
from vllamad.host.logs import event

log = logging.getLogger("vllamad.acceptors")

ORDER_S = 5.0
"""One that does not do as it is told within this is not waited for: it ends with the daemon in any case."""

FIRST_PAUSE_S, LONGEST_PAUSE_S, STEADY_S = 0.1, 10.0, 30.0
"""Before the next process is started: twice as long each time, from the beginning after one that lived ``STEADY_S``."""

LAST_LINES = 20


@dataclass(frozen=True, slots=True)
class Outfit:
    """What every acceptor is given: ``behind`` is the socket of the daemon's own HTTP, ``silence_s`` see ``Begin``,
    ``environment`` the whole of theirs, ``folder`` where they run."""

    behind: Path
    silence_s: float | None
    environment: Mapping[str, str]
    folder: Path


class Post:
    """``listeners`` are the daemon's, and stay open here: what waits in their queue waits for the next process.
    ``terms`` gives what is configured now."""

    def __init__(
        self,
        number: int,
        listeners: Sequence[socket.socket],
        outfit: Outfit,
        terms: Callable[[], Terms],
        launcher: Launcher,
        catalog: Catalog,
        gate: Gate,
    ) -> None:
        self.number = number
        self.is_up = asyncio.Event()
        """The first one serves."""
        self.is_over = asyncio.Event()
        """Nobody is there any more, and nobody will be."""
        self._listeners = listeners
        self._outfit = outfit
        self._terms = terms
        self._launcher = launcher
        self._catalog = catalog
        self._gate = gate
        self._is_leaving = asyncio.Event()
        self._is_ready = False
        self._starts = 0
        self._child: Child | None = None
        self._channel: Channel | None = None
        self._granting: Granting | None = None
        self._orders = Questions[None]()
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)

    async def keep(self) -> None:
        """Have a process here until ``leave``. Raises INTERNAL if the first one does not come up."""
        clock, pause_s = asyncio.get_running_loop().time, FIRST_PAUSE_S
        try:
            while not self._is_leaving.is_set():
                began_s = clock()
                why = await self._have_one()
                if self._is_leaving.is_set():
                    return
                if not self.is_up.is_set():  # the next one would fare no better
                    raise self.not_up(why)
                event(log, logging.ERROR, "acceptor.ended", acceptor=self.number, why=why, next_s=pause_s)
                if clock() - began_s >= STEADY_S:
                    pause_s = FIRST_PAUSE_S
                await self._pause(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            self.is_over.set()

    def tell(self, order: Callable[[int], FromDaemon]) -> "asyncio.Future[None]":
        """Give an order, made from its number; the future is done when it is carried out, or nobody is there."""
        number, done = self._orders.begin()
        if self._channel is None:
            self._orders.answer(number, None)
        else:
            self._channel.send(order(number))
        return done

    async def told(self, done: "asyncio.Future[None]") -> None:
        """Wait for an order to be carried out, but not for ever."""
        try:
            async with asyncio.timeout(ORDER_S):
                await done
        except TimeoutError:
            event(log, logging.WARNING, "acceptor.deaf", acceptor=self.number, waited_s=ORDER_S)

    def stay_empty(self) -> None:
        """Start no other one when this one ends."""
        self._is_leaving.set()

    def leave(self) -> None:
        """Have the process end."""
        self.stay_empty()
        if self._channel is not None:
            self._channel.send(Leave())

    async def end(self) -> None:
        """End the process that did not leave."""
        if self._child is not None:
            await self._child.kill_tree()

    def view(self) -> AcceptorView:
        """What it is now. Reads ``/proc``: call it in a thread."""
        child, granting = self._child, self._granting
        return AcceptorView(
            number=self.number,
            pid=child.pid if child is not None else 0,
            is_ready=self._is_ready,
            requests=granting.active if granting is not None else 0,
            starts=self._starts,
            memory_bytes=child.memory_bytes() if child is not None else 0,
        )

    def not_up(self, why: str) -> VllamaError:
        """Why the daemon does not start."""
        last = next((line for line in reversed(self._last_lines) if line.strip()), "")
        return VllamaError(
            Reason.INTERNAL,
            f"cannot start HTTP process {self.number}: {why}" + (f": {last[:300]}" if last else ""),
            "the log holds its last lines; server.processes = 1 does without",
        )

    # --- one process -----------------------------------------------------------------------------------------------

    async def _have_one(self) -> str:
        """Start one and return, when it and everything of it is gone, how it ended."""
        ours, theirs = socket.socketpair()
        listeners = tuple(each.fileno() for each in self._listeners)
        self._starts += 1
        try:
            with theirs:
                command = Command(
                    [sys.executable, "-P", "-m", "vllamad.acceptors", str(theirs.fileno())],
                    self._outfit.environment,
                    self._outfit.folder,
                    f"acceptor-{self.number}",
                    descriptors=(theirs.fileno(), *listeners),
                )
                child = self._child = self._launcher.spawn(command, self._hear)
        except VllamaError as error:
            ours.close()
            return error.message
        try:
            channel = self._channel = await Channel.over(ours, self._take, self._lose)
            self._granting = Granting(self._catalog, self._gate, channel.send)
            outfit = self._outfit
            channel.send(Begin(listeners, str(outfit.behind), outfit.silence_s, self._terms()))
            status = await child.wait()
        finally:
            self._let_go()
            await child.kill_tree()
            self._child = None
        return f"signal {-status}" if status < 0 else f"status {status}"

    def _take(self, data: bytes) -> None:
        match message := from_acceptor(data):
            case Ready():
                self._is_ready = True
                self.is_up.set()
                event(log, logging.INFO, "acceptor.ready", acceptor=self.number, pid=self._child and self._child.pid)
            case Done():
                self._orders.answer(message.number, None)
            case Logged():
                write(message)
            case _:
                if self._granting is not None:
                    self._granting.take(message)

    def _lose(self) -> None:
        """Its end of the channel is gone: so is the process, or it is good for nothing."""
        self._let_go()
        if self._child is not None and not self._is_leaving.is_set():
            self._child.terminate()

    def _let_go(self) -> None:
        """Take back everything that was held by this process."""
        channel, granting = self._channel, self._granting
        self._channel, self._granting, self._is_ready = None, None, False
        if granting is not None:
            granting.close()
        if channel is not None:
            channel.close()
        self._orders.settle(None)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._is_leaving.wait()
        except TimeoutError:
            return

    def _hear(self, line: str) -> None:
        """What it prints, though it logs through the channel: a trace of its end."""
        self._last_lines.append(line)
        event(log, logging.WARNING, "acceptor.output", acceptor=self.number, line=line)
