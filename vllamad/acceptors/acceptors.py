"""The HTTP face in several processes (floor 4): stands in for ``HttpServer`` in the daemon.

The daemon binds every listening socket and keeps it; acceptors inherit them. Without a service manager's socket each
acceptor has its own for every address, and the kernel deals connections out among them; else all share the one.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from vllamad.acceptors.granting import Catalog, Gate
from vllamad.acceptors.messages import LetGo, StopListening, Terms, Use
from vllamad.acceptors.post import Outfit, Post
from vllamad.domain.ports import Launcher
from vllamad.domain.view import AcceptorView
from vllamad.http.server import BACKLOG, HttpServer, addresses_of, bind
from vllamad.http.services import Policy

START_S = 60.0
"""It takes half a second on an idle machine; a start is not given up because another program had the processors."""

LEAVE_S = 2.0
_PRIVATE = 0o600


class Acceptors:
    """``count`` of them, which listen on ``sockets``, or else on ``host`` and ``port``. ``serve`` makes the daemon's
    own HTTP, which they refer to, on a socket that no other user may connect to."""

    def __init__(
        self,
        count: int,
        host: str,
        port: int,
        sockets: Sequence[socket.socket],
        outfit: Outfit,
        policy: Policy,
        log_level: str,
        launcher: Launcher,
        catalog: Catalog,
        gate: Gate,
        serve: Callable[[Sequence[socket.socket]], HttpServer],
    ) -> None:
        self._count = count
        self._host = host
        self._port = port
        self._sockets = sockets
        self._outfit = outfit
        self._terms = Terms(policy, log_level)
        self._launcher = launcher
        self._catalog = catalog
        self._gate = gate
        self._serve = serve
        self._own: HttpServer | None = None
        self._listeners: list[list[socket.socket]] = []
        """Of each acceptor."""
        self._posts: list[Post] = []
        self._using: list[tuple[Post, asyncio.Future[None]]] = []

    @property
    def addresses(self) -> list[str]:
        """See ``HttpServer.addresses``."""
        return addresses_of(self._listeners[0]) if self._listeners else []

    async def start(self) -> None:
        """Listen; connections wait until ``run``. Raises what ``HttpServer.start`` does."""
        sockets = self._sockets or await bind_each(self._host, self._port, self._count)
        self._listeners = deal(sockets, self._count)

    async def run(self, started: asyncio.Event) -> None:
        """Keep the acceptors up until ``close``; ``started`` is set when all of them serve. Raises INTERNAL if one does
        not come up."""
        self._own = self._serve([_listen_privately(self._outfit.behind)])
        await self._own.start()
        self._posts = [
            Post(number, mine, self._outfit, lambda: self._terms, self._launcher, self._catalog, self._gate)
            for number, mine in enumerate(self._listeners, 1)
        ]
        async with asyncio.TaskGroup() as tasks:
            for post in self._posts:
                tasks.create_task(post.keep(), name=f"acceptor-{post.number}")
            for post in self._posts:
                await _up(post)
            started.set()

    def use(self, policy: Policy, log_level: str) -> None:
        """Have all go by another policy and level of the log."""
        terms = self._terms = Terms(policy, log_level)
        self._using = [(post, post.tell(lambda number: Use(number, terms))) for post in self._posts]

    async def settle(self) -> None:
        """Return when they do."""
        using, self._using = self._using, []
        for post, done in using:
            await post.told(done)

    def hand_over(self) -> tuple[int, ...]:
        """See ``HttpServer.hand_over``."""
        return tuple(os.dup(each.fileno()) for each in dict.fromkeys(chain.from_iterable(self._listeners)))

    async def stop_listening(self) -> None:
        """See ``HttpServer.stop_listening``. Who ends from now on is not replaced."""
        for post in self._posts:
            post.stay_empty()
        await self._tell_all(StopListening)
        for listener in chain.from_iterable(self._listeners):
            listener.close()

    async def let_go(self) -> None:
        """See ``HttpServer.let_go``."""
        await self._tell_all(LetGo)

    async def quiet(self, seconds: float) -> bool:
        """See ``HttpServer.quiet``: of what was referred to the daemon, uploads among that. Acceptors have ``LEAVE_S``
        for what their clients have not read."""
        if self._own is None:
            return True
        await self._own.let_go()
        return await self._own.quiet(seconds)

    async def close(self) -> None:
        """See ``HttpServer.close``. Afterwards none is there."""
        await self.stop_listening()
        for post in self._posts:
            post.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                for post in self._posts:
                    await post.is_over.wait()
        for post in self._posts:
            await post.end()
        if self._own is not None:
            await self._own.close()
            self._outfit.behind.unlink(missing_ok=True)

    def views(self) -> list[AcceptorView]:
        """Each now. Reads ``/proc``: call it in a thread."""
        return [post.view() for post in self._posts]

    async def _tell_all(self, order: type[StopListening] | type[LetGo]) -> None:
        told = [(post, post.tell(order)) for post in self._posts]
        for post, done in told:
            await post.told(done)


async def bind_each(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets that listen on every address of a host, so many of them on each. Raises what ``bind`` does."""
    # Who shares a port is not told that a stranger has it, too: so it is first taken for us alone.
    probes = await bind(host, port)
    # A port that the kernel chose is another one for each address.
    where = [(host, port)] if port else [(str(name[0]), int(name[1])) for name in (one.getsockname() for one in probes)]
    for probe in probes:
        probe.close()
    made: list[socket.socket] = []
    try:
        for name, number in where * count:
            made += await bind(name, number, is_shared=True)
    except BaseException:
        for listener in made:
            listener.close()
        raise
    return made


def deal(sockets: Sequence[socket.socket], count: int) -> list[list[socket.socket]]:
    """Which sockets each of so many acceptors listens on. Those of one address are dealt out; where they are fewer than
    acceptors some share one, and none is left over."""
    by_address: dict[object, list[socket.socket]] = {}
    for each in sockets:
        by_address.setdefault(each.getsockname(), []).append(each)
    hands: list[list[socket.socket]] = [[] for _ in range(count)]
    for alike in by_address.values():
        for number in range(max(len(alike), count)):
            hands[number % count].append(alike[number % len(alike)])
    return hands


async def _up(post: Post) -> None:
    try:
        async with asyncio.timeout(START_S):
            await post.is_up.wait()
    except TimeoutError:
        raise post.not_up(f"it did not serve within {START_S:.0f} s") from None


def _listen_privately(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(_PRIVATE)  # its folder lets nobody else in either, in the moment before
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
