"""A client that is only a socket: it sees framing, resets and silence as they are, and leaves as rudely as it likes."""

import asyncio
import contextlib
import socket
import struct
import time

from tests.soak.questions import Kind, Outcome, Question, Reading

NO_LINGER = struct.pack("ii", 1, 0)


class Asking:
    """One request on its way. Await ``outcome()``; ``leave()`` resets the connection at once."""

    def __init__(self, port: int, question: Question, deadline_s: float, leave_after: int | None = None) -> None:
        self.question = question
        self.reading = Reading(question)
        self.began_at = time.monotonic()
        self._port = port
        self._deadline_s = deadline_s
        self._leave_after = leave_after
        self._writer: asyncio.StreamWriter | None = None
        self._has_left = False
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def outcome(self) -> Outcome:
        return await self._task

    @property
    def is_over(self) -> bool:
        return self._task.done()

    async def has_said(self, pieces: int, seconds: float) -> bool:
        """Wait until so many pieces of the answer are here; False if that does not happen."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.reading.pieces < pieces and not self.is_over:
                    self._moved.clear()
                    await self._moved.wait()
        return self.reading.pieces >= pieces

    def leave(self) -> None:
        """Go without a word: the other side gets a reset."""
        self._has_left = True
        if self._writer is not None:
            sock = self._writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self._writer.transport.abort()

    async def _run(self) -> Outcome:
        try:
            async with asyncio.timeout(self._deadline_s):
                outcome = await self._exchange()
        except TimeoutError:
            outcome = Outcome(Kind.HUNG, f"{self.reading.pieces} pieces in {self._deadline_s:g} s: {self.question}")
        except ConnectionRefusedError:
            outcome = Outcome(Kind.REFUSED)
        except (OSError, asyncio.IncompleteReadError):
            outcome = Outcome(Kind.LEFT) if self._has_left else self.reading.end_broken()
        finally:
            if self._writer is not None:
                self._writer.close()
        outcome.began_at, outcome.ended_at = self.began_at, time.monotonic()
        self._moved.set()
        return outcome

    async def _exchange(self) -> Outcome:
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        if self._has_left:
            self.leave()
        body = self.question.body()
        head = f"POST {self.question.wire.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        status, headers = await read_head(reader)
        self.reading.status = status
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int(await _line(reader), 16):
                await self._fed(await reader.readexactly(size))
                if await reader.readexactly(2) != b"\r\n":
                    return Outcome(Kind.WRONG, "a chunk that does not end", status)
            await _line(reader)
        elif "content-length" in headers:
            await self._fed(await reader.readexactly(int(headers["content-length"])))
        else:
            return Outcome(Kind.WRONG, f"an answer without framing: {headers}", status)
        return self.reading.end()

    async def _fed(self, data: bytes) -> None:
        self.reading.feed(data)
        self._moved.set()
        if self._leave_after is not None and self.reading.pieces >= self._leave_after and not self._has_left:
            self.leave()
        if self._has_left:
            raise ConnectionResetError


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    return line


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def fetch(
    connected: tuple[asyncio.StreamReader, asyncio.StreamWriter], method: str, path: str, body: bytes = b""
) -> tuple[int, bytes]:
    """A plain request with a short answer."""
    reader, writer = connected
    try:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        status, headers = await read_head(reader)
        return status, await reader.readexactly(int(headers.get("content-length", 0)))
    finally:
        writer.close()
