"""One HTTP/1.1 connection to an engine (floor 2): a request goes out, its answer comes in, then perhaps the next one.

What arrives is handed on in the call of the event loop that read it: no task is woken for a token, and what one read
brought is handed on as one piece. The only module that imports httptools.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol, cast

import httptools

HOST = "engine"
MAX_HEAD_BYTES = 1024 * 1024
"""Of the head of an answer: what reached the engine in a head may come back in one."""


class Receiver(Protocol):
    """Who gets an answer. ``fail`` is told why, as the end of a sentence on the engine."""

    def begin(self, status: int, headers: dict[str, str]) -> None: ...
    def take(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def fail(self, why: str) -> None: ...


class Connection(asyncio.Protocol):
    """``on_free`` is told when it may carry another request, ``on_lost`` when it is gone."""

    def __init__(self, on_free: Callable[["Connection"], None], on_lost: Callable[["Connection"], None]) -> None:
        self.is_answered = False
        """A byte of the present answer has come."""
        self._on_free = on_free
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._room: asyncio.Future[None] | None = None
        self._is_sending = self._is_paused = False
        self._head_bytes = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        # The parser takes its callbacks once, here: a chunk of the body costs it no call into Python.
        self.on_body = self._parts.append
        self._parser = httptools.HttpResponseParser(self)
        self._has_head = self._is_interim = self._is_whole = self._keeps = self._ends_with_connection = False

    @property
    def is_open(self) -> bool:
        """As far as is known here."""
        return self._transport is not None and not self._transport.is_closing()

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(self, request: bytes, receiver: Receiver) -> None:
        """Send a request, or the beginning of one; its answer goes to ``receiver``."""
        assert self._transport is not None
        self._receiver = receiver
        self._fields = []
        self._head_bytes = 0
        self.is_answered = self._has_head = self._is_whole = self._keeps = self._ends_with_connection = False
        self._transport.write(request)

    async def send_rest(self, pieces: AsyncIterator[bytes], *, is_chunked: bool) -> None:
        """Send the rest of a request piece by piece, as fast as the engine takes it. Ends early, without a word, when
        the connection does: the answer tells of that. Raises what ``pieces`` does."""
        self._is_sending = True
        async for piece in pieces:
            if not piece:
                continue
            if not await self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece):
                return
        if not is_chunked or await self._write(b"0\r\n\r\n"):
            self._is_sending = False

    async def _write(self, data: bytes) -> bool:
        """Send and wait for room; False if there is no connection any more."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(data)
        if self._room is not None:
            await self._room
        return True

    # --- stopping ------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Break the connection off; its receiver hears nothing more. The engine then aborts the request."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def abandon(self) -> None:
        """Break the connection off, and tell its receiver."""
        receiver = self._receiver
        self.drop()
        if receiver is not None:
            receiver.fail("the connection was closed")

    def pause(self) -> None:
        """Read no more: what comes waits in the kernel, and then in the engine."""
        if self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._is_paused:
            self._is_paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    # --- asyncio's calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self.drop()  # nothing was asked
            return
        self.is_answered = True
        if not self._has_head:
            self._head_bytes += len(data)
        parts = self._parts
        problem = ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            problem = f"its answer is no HTTP ({error})"
        if parts:
            piece = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            receiver.take(piece)
        if self._is_whole and not problem:
            self._finish()
        elif not self._has_head and self._head_bytes > MAX_HEAD_BYTES:
            problem = f"the head of its answer is larger than {MAX_HEAD_BYTES} bytes"
        if problem and self._receiver is not None:
            self.drop()
            receiver.fail(problem)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        self._on_lost(self)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._ends_with_connection:
            receiver.end()
        elif self._has_head:
            receiver.fail("the connection broke before the end of the answer")
        else:
            receiver.fail("it closed the connection without an answer")

    # --- the parser's calls --------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, []
        self._is_interim = status < 200
        if self._is_interim or self._receiver is None or self._has_head:
            return
        headers = {_text(name).lower(): _text(value) for name, value in fields}
        self._has_head = True
        self._ends_with_connection = status not in {204, 304} and not {"content-length", "transfer-encoding"} & set(
            headers
        )
        self._receiver.begin(status, headers)

    def on_message_begin(self) -> None:
        self._keeps = False  # a second answer to one question: not to be trusted with another

    def on_message_complete(self) -> None:
        if not self._is_interim:
            self._keeps = not self._is_whole and self._parser.should_keep_alive()
            self._is_whole = True

    def _finish(self) -> None:
        receiver, self._receiver = self._receiver, None
        self.resume()
        if self._keeps and not self._is_sending and self._transport is not None and not self._transport.is_closing():
            self._on_free(self)
        elif self._transport is not None:
            self._transport.abort()
        if receiver is not None:
            receiver.end()


class IdleConnections:
    """Connections between two requests, the one that was used last first. We are the ones who close them, before the
    engine's own patience ends."""

    def __init__(self, keep_alive_s: float) -> None:
        self._keep_alive_s = keep_alive_s
        self._waiting: dict[Connection, asyncio.TimerHandle] = {}

    def put(self, connection: Connection) -> None:
        """Keep it for the next request."""
        loop = asyncio.get_running_loop()
        self._waiting[connection] = loop.call_later(self._keep_alive_s, self._expire, connection)

    def take(self) -> Connection | None:
        """One that is open as far as we know, if there is any."""
        while self._waiting:
            connection, timer = self._waiting.popitem()
            timer.cancel()
            if connection.is_open:
                return connection
        return None

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        timer = self._waiting.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Close them all."""
        while (connection := self.take()) is not None:
            connection.drop()

    def _expire(self, connection: Connection) -> None:
        del self._waiting[connection]
        connection.drop()


def request_head(method: str, path: str, headers: Mapping[str, str], length: int | None) -> bytes:
    """The head of a request with a body of so many bytes; None: in chunks. Raises ValueError on what would be read as
    more than one line."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if not any(name.lower() == "accept" for name in headers):
        lines.append("Accept: */*")
    if length is None:
        lines.append("Transfer-Encoding: chunked")
    elif length or method != "GET":
        lines.append(f"Content-Length: {length}")
    if any("\r" in line or "\n" in line for line in lines) or lines[0].count(" ") != 2:
        raise ValueError("a path or header for the engine holds an end of line or a blank")
    return "\r\n".join((*lines, "", "")).encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
