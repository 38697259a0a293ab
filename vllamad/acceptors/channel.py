"""One end of the line between an acceptor and the daemon (floor 4): messages over a socket pair, and what was asked.

Whoever holds an end learns at once, from the kernel, that the other process has ended, however it did.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from vllamad.acceptors.messages import Message, encode
from vllamad.host.logs import event

T = TypeVar("T")

LENGTH_BYTES = 4
"""Before each message, big-endian: how long it is."""

log = logging.getLogger("vllamad.acceptors")


class Channel(asyncio.Protocol):
    """Messages that come are given to ``take``, in their order, each in a call of its own; it raises ValueError at what
    is none. ``on_lost`` is called once, when the other end is gone or does not make sense."""

    def __init__(self, take: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._take = take
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()
        self._outgoing: list[bytes] = []

    @classmethod
    async def over(cls, end: socket.socket, take: Callable[[bytes], None], on_lost: Callable[[], None]) -> "Channel":
        """A channel over a connected socket, which it owns from now on."""
        end.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(take, on_lost), sock=end)
        return channel

    def send(self, message: Message) -> None:
        """Send a message; never waits. What is said to an end that is gone is lost, which ``on_lost`` tells."""
        if not self._outgoing:
            # What is said in one turn of the loop, as at the end of a request, is one write and one read.
            asyncio.get_running_loop().call_soon(self._flush)
        data = encode(message)
        self._outgoing += (len(data).to_bytes(LENGTH_BYTES, "big"), data)

    def close(self) -> None:
        """Hang up, once what was said is on its way."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(outgoing))

    # --- asyncio's calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= LENGTH_BYTES:
            end = at + LENGTH_BYTES + int.from_bytes(rest[at : at + LENGTH_BYTES], "big")
            if len(rest) < end:
                break
            message = bytes(rest[at + LENGTH_BYTES : end])
            at = end
            try:
                self._take(message)
            except ValueError as error:
                event(log, logging.ERROR, "acceptor.unreadable", error=error)
                self.close()
                return
        del rest[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost()


class Questions(Generic[T]):
    """What was asked over a channel and is not answered yet, by number."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[int, asyncio.Future[T]] = {}
        self._ended: Exception | None = None

    def begin(self) -> tuple[int, asyncio.Future[T]]:
        """A number to ask under, and what the answer arrives in."""
        self._number += 1
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._ended is not None:
            answer.set_exception(self._ended)
        else:
            self._waiting[self._number] = answer
        return self._number, answer

    def answer(self, number: int, value: T) -> None:
        """The answer has come; nothing happens if nobody waits for it any more."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(value)

    def refuse(self, number: int, error: Exception) -> None:
        """It failed."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)

    def forget(self, number: int) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(number, None)

    def settle(self, value: T) -> None:
        """Nothing is left to wait for: let this be the answer to everything that was asked."""
        for number in list(self._waiting):
            self.answer(number, value)

    def end(self, error: Exception) -> None:
        """No answer will come, neither to what was asked nor to what will be."""
        self._ended = error
        for number in list(self._waiting):
            self.refuse(number, error)
