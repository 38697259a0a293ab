"""The way out for a stream (floor 4): bytes go to the client's socket in the call that brought them.

A handler that writes costs its task a wake-up for every piece. So it only sends the head, waits while the client does
not read, and sends the end; what comes between is put here by whoever has it, as a plain call.
"""

import asyncio

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

ROOM_BYTES = 64 * 1024
"""What may wait for a client before its stream does. Above it the transport tells the writer to pause."""


class Streamed(web.StreamResponse):
    """An answer whose head leaves in one write with the first bytes, as aiohttp does it for whole answers."""

    _send_headers_immediately = False  # without effect in an older aiohttp: the head is a write of its own there


class Outlet:
    """One answer. The head leaves with the first bytes, so that a failure before them still has an honest status."""

    def __init__(self, request: web.Request, answer: web.StreamResponse) -> None:
        self.has_begun = False
        """The status is spent."""
        self._request = request
        self._answer = answer
        self._first: list[bytes] = []
        self._writer: AbstractStreamWriter | None = None
        self._transport: asyncio.Transport | None = None
        self._is_chunked = False

    def put(self, data: bytes) -> bool:
        """Send bytes; True if ``flush`` has to be awaited before the next ones. Never waits."""
        transport = self._transport
        if not self.has_begun:
            self._first.append(data)
            return True
        if transport is None or transport.is_closing():
            return True  # ``flush`` tells
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
        return transport.get_write_buffer_size() > ROOM_BYTES

    async def flush(self) -> None:
        """Send the head if it is due, and wait until the client has room. Raises ConnectionResetError if it is gone."""
        if self._writer is None:
            if not self._first:
                return
            self._writer = await self._answer.prepare(self._request)
            assert self._writer is not None
            # The framing is aiohttp's choice, by what the client speaks; we go on in the same way.
            self._is_chunked = self._answer.headers.get("Transfer-Encoding") == "chunked"
            self._transport = self._request.transport
            if self._transport is not None:
                self._transport.set_write_buffer_limits(high=ROOM_BYTES)
            self.has_begun = True
            await self._writer.write(b"".join(self._first))
            self._first.clear()
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        await self._writer.drain()

    async def end(self, rest: bytes = b"") -> None:
        """Send what is left, and the end."""
        if not self.has_begun:
            await self._answer.prepare(self._request)
            rest = b"".join((*self._first, rest))
        await self._answer.write_eof(rest)
