"""The services as an acceptor has them (floor 4): names and gate are the daemon's, and are asked over a channel.

What decides is there; this end translates. A lease is held here as it is there, by the same class, and the engine is
asked from here over its own socket: not a token passes the daemon.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from vllama.reasons import Reason
from vllamad.acceptors.channel import Questions
from vllamad.acceptors.messages import (
    Ask,
    Broken,
    Done,
    Find,
    Found,
    FromAcceptor,
    Granted,
    Over,
    Refused,
    Suspect,
    Unload,
)
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model
from vllamad.engine.client import UdsEngineClient
from vllamad.supervisor.lease import Lease

Reply = Found | Granted | Refused | Broken | Done


class Asking:
    """Fills ``services.Asking``, its names and its gate. ``send`` is the way to the daemon, whose replies are given to
    ``take``; ``silence_s`` is after how long an engine that says nothing counts as hung."""

    def __init__(self, send: Callable[[FromAcceptor], None], silence_s: float | None) -> None:
        self._send = send
        self._silence_s = silence_s
        self._questions = Questions[Model | Lease | None]()
        self._wanted: dict[int, Model] = {}
        """Of leases that were asked for, by number, until they are over."""
        self._leases: dict[int, Lease] = {}
        self._clients: dict[Path, UdsEngineClient] = {}

    @property
    def catalog(self) -> "Asking":
        """See ``services.Asking``."""
        return self

    @property
    def gate(self) -> "Asking":
        """See ``services.Asking``."""
        return self

    async def find(self, name: str) -> Model:
        """See ``Catalog.find``."""
        number, answer = self._questions.begin()
        self._send(Find(number, name))
        found = await answer
        assert isinstance(found, Model)
        return found

    @asynccontextmanager
    async def lease(
        self, model: Model, *, keep_alive_s: float | None = None, caller: str = ""
    ) -> AsyncGenerator[Lease, None]:
        """See ``Gate.lease``. Who is cancelled in the queue has left it as soon as the daemon reads of it."""
        number, answer = self._questions.begin()
        self._wanted[number] = model
        self._send(Ask(number, model.name, keep_alive_s, caller))
        try:
            lease = await answer
            assert isinstance(lease, Lease)
            yield lease
        finally:
            self._questions.forget(number)
            del self._wanted[number]
            if lease := self._leases.pop(number, None):
                lease.give_back()
            self._send(Over(number))

    async def unload(self, model: Model) -> None:
        """See ``Gate.unload``."""
        number, answer = self._questions.begin()
        self._send(Unload(number, model.name))
        await answer

    def take(self, reply: Reply) -> None:
        """What the daemon says. A lease begins here, not where its request goes on: it may break in between."""
        number = reply.number
        match reply:
            case Found():
                self._questions.answer(number, reply.model)
            case Granted():
                if model := self._wanted.get(number):
                    lease = self._leases[number] = self._lease(reply, model)
                    self._questions.answer(number, lease)
            case Done():
                self._questions.answer(number, None)
            case Refused():
                self._questions.refuse(number, reply.failure.error())
            case Broken():
                if lease := self._leases.get(number):
                    lease.break_off(reply.failure.error())

    def lose(self) -> None:
        """The daemon is gone, and every lease with it."""
        error = VllamaError(Reason.DRAINING, "cannot serve any model: the daemon has ended", "ask again in a moment")
        self._questions.end(error)
        for lease in self._leases.values():
            lease.break_off(error)

    async def close(self) -> None:
        """Close every connection to engines."""
        for client in self._clients.values():
            await client.close()

    def _lease(self, granted: Granted, model: Model) -> Lease:
        socket, number = Path(granted.socket), granted.number
        lease = Lease(
            replace(model, adapter=granted.adapter),
            self._client(socket, granted),
            socket,
            granted.context_length,
            lambda _: None,  # that it is over is said in any case, also of one that was never granted
            lambda: self._send(Suspect(number)),
        )
        lease.load_ns, lease.waited_ns = granted.load_ns, granted.waited_ns
        return lease

    def _client(self, socket: Path, granted: Granted) -> UdsEngineClient:
        client = self._clients.get(socket)
        if client is None:
            self._forget_engines()
            client = self._clients[socket] = UdsEngineClient(socket, self._silence_s)
            client.served_name, client.fast_path = granted.engine_name, granted.fast_path
        return client

    def _forget_engines(self) -> None:
        """Those whose sockets are gone. Nobody tells; so we look when there is a new one."""
        in_use = {lease.socket for lease in self._leases.values()}
        for socket in [each for each in self._clients if each not in in_use and not each.exists()]:
            del self._clients[socket]
