"""An acceptor (floor 4): a process of the daemon's that takes connections beside it, and answers what asks a model.

It is told everything by the first message, keeps nothing, and ends with its channel. What asks no model it refers to
the daemon's own HTTP: there is one truth.
"""

import asyncio
import logging
import socket
from pathlib import Path

from vllamad.acceptors.asking import Asking, Reply
from vllamad.acceptors.channel import Channel
from vllamad.acceptors.logs import ToDaemon
from vllamad.acceptors.messages import Begin, Done, Leave, LetGo, Ready, StopListening, Use, from_daemon
from vllamad.host.logs import set_level
from vllamad.http.server import HttpServer, make_acceptors_app, use_policy

Order = Begin | Use | StopListening | LetGo | Leave


class Acceptor:
    """One run of an acceptor; ``end`` is its end of the channel."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        self._asking: Asking | None = None

    async def run(self) -> None:
        """Serve until the daemon says so, or is gone."""
        self._channel = await Channel.over(self._end, self._take, self._lose)
        call_in_loop = asyncio.get_running_loop().call_soon_threadsafe
        logging.getLogger().handlers[:] = [ToDaemon(self._channel.send, call_in_loop)]
        logging.captureWarnings(True)
        begin = await self._orders.get()
        if isinstance(begin, Begin):
            await self._serve(begin)

    async def _serve(self, begin: Begin) -> None:
        set_level(begin.terms.log_level)
        asking = self._asking = Asking(self._channel.send, begin.silence_s)
        app = make_acceptors_app(asking, begin.terms.policy, Path(begin.daemon))
        server = HttpServer(app, sockets=[socket.socket(fileno=each) for each in begin.listeners])
        await server.start()
        try:
            self._channel.send(Ready())
            while not isinstance(order := await self._orders.get(), Leave | Begin):
                match order:
                    case Use():
                        set_level(order.terms.log_level)
                        use_policy(app, order.terms.policy)
                    case StopListening():
                        await server.stop_listening()
                    case LetGo():
                        await server.let_go()
                self._channel.send(Done(order.number))
        finally:
            await server.close()
            await asking.close()

    def _take(self, data: bytes) -> None:
        message = from_daemon(data)
        if not isinstance(message, Reply):
            self._orders.put_nowait(message)
        elif self._asking is not None:
            self._asking.take(message)

    def _lose(self) -> None:
        if self._asking is not None:
            self._asking.lose()
        self._orders.put_nowait(Leave())
