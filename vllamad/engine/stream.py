"""An answer on its way from the engine to its reader (floor 2).

The reader lends a function, the *sink*, and sleeps until the end; each piece reaches the sink where it was read from
the socket. While no sink is lent, pieces wait here, and soon the engine waits too.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Sink
from vllamad.engine.connection import Connection

HELD_BYTES = 256 * 1024
"""A client that does not read stops the engine's connection here, not in our memory."""


class UdsEngineStream:
    """Fills ``EngineStream`` for the reader, and ``Receiver`` for the connection.

    ``idle_s``: how long the body may stay silent before the engine counts as hung; None for ever. ``head`` is done when
    the head is there; it fails with what ``died`` makes of the cause.
    """

    def __init__(self, connection: Connection, idle_s: float | None, died: Callable[[str], VllamaError]) -> None:
        self._loop = asyncio.get_running_loop()
        self.head: asyncio.Future[None] = self._loop.create_future()
        self._connection: Connection | None = connection
        self._idle_s = idle_s
        self._died = died
        self._status = 0
        self._headers: dict[str, str] = {}
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_whole = False
        self._why = ""
        """Why it failed."""
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._heard_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # --- for the reader ------------------------------------------------------------------------------------------

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._status

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers, names in lower case."""
        return self._headers

    async def pour(self, sink: Sink) -> bool:
        """See ``EngineStream.pour``."""
        if self._held and sink(self._take_held()):
            return True
        if self._is_whole:
            return False
        if self._why:
            raise self._died(self._why)
        self._sink = sink
        self._heard_s = self._loop.time()
        if self._idle_s is not None and self._timer is None:
            self._timer = self._loop.call_later(self._idle_s, self._look)
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._sink = self._waiter = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """See ``EngineStream.chunks``. Leaving early closes the stream."""
        pieces: list[bytes] = []

        def take(piece: bytes) -> bool:
            pieces.append(piece)
            return True

        try:
            while await self.pour(take):
                yield pieces.pop()
        finally:
            self.close()

    async def read(self) -> bytes:
        """See ``EngineStream.read``."""
        pieces: list[bytes] = []

        def take(piece: bytes) -> bool:
            pieces.append(piece)
            return False

        try:
            await self.pour(take)
        finally:
            self.close()
        return b"".join(pieces)

    def close(self) -> None:
        """See ``EngineStream.close``."""
        if self._connection is not None:
            self._connection.drop()
            self.fail("the connection was closed")

    def _take_held(self) -> bytes:
        held = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        if self._connection is not None:
            self._connection.resume()
        return held

    def _look(self) -> None:
        """One timer a stream that looks back, instead of a new deadline for every token. While no sink is lent our own
        reader is busy: its slowness is not the engine's silence."""
        assert self._idle_s is not None
        now_s = self._loop.time()
        due_s = (now_s if self._sink is None else self._heard_s) + self._idle_s
        if due_s > now_s:
            self._timer = self._loop.call_at(due_s, self._look)
            return
        if self._connection is not None:
            self._connection.drop()
        self.fail(f"it was silent for {self._idle_s:g} s")

    # --- for the connection --------------------------------------------------------------------------------------

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self._status, self._headers = status, headers
        if not self.head.done():
            self.head.set_result(None)

    def take(self, data: bytes) -> None:
        sink, waiter = self._sink, self._waiter
        if sink is None or waiter is None:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes > HELD_BYTES and self._connection is not None:
                self._connection.pause()
            return
        self._heard_s = self._loop.time()
        try:
            has_enough = sink(data)
        except Exception as error:  # noqa: BLE001  a bug of the reader's: it is told there, the engine did nothing wrong
            self._sink = None
            if not waiter.done():
                waiter.set_exception(error)
            return
        if has_enough:
            self._sink = None
            if not waiter.done():
                waiter.set_result(True)

    def end(self) -> None:
        self._is_whole = True
        self._let_go()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)

    def fail(self, why: str) -> None:
        if not self._why and not self._is_whole:
            self._why = why
        self._let_go()
        if not self.head.done():
            self.head.set_exception(self._died(why))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._died(why))

    def _let_go(self) -> None:
        self._connection = None
        self._sink = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
