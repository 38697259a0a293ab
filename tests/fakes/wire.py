"""An engine that is only a script on a Unix socket, behind a real client, a real lease and the real face.

A script gets the request and writes bytes, framing and all, so that it may cut, stall, break off or lie where it
likes. ``served`` is the name that this engine shows in its answers.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestServer

from tests.fakes.http_services import World, make_world, model
from vllamad.engine.client import UdsEngineClient
from vllamad.http.server import MAX_HEADER_BYTES, make_app
from vllamad.http.services import Policy
from vllamad.supervisor.lease import Lease

SERVED = "m:latest"


@dataclass
class Request:
    """What the engine was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def fields(self) -> dict[str, Any]:
        return json.loads(self.body)


Script = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


class Breaks(Exception):
    """A script that ends so wants the connection dropped."""


@dataclass
class Wire:
    """The engine, the world in front of it, and the server that clients ask."""

    script: Script
    world: World
    folder: Path
    lease: Lease
    served: str = SERVED
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    suspected: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while (request := await read_request(reader, number)) is not None:
                self.requests.append(request)
                await self.script(request, writer)
                await writer.drain()
        except Breaks:
            writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            writer.close()


async def read_request(reader: asyncio.StreamReader, number: int) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = bytearray()
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body += await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, bytes(body), number)


def head(status: int = 200, kind: str = "text/event-stream; charset=utf-8", more: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n{more}\r\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(body: bytes, status: int = 200, kind: str = "application/json", more: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


def says(data: bytes, cuts: Sequence[int] = (), kind: str = "text/event-stream; charset=utf-8") -> Script:
    """Answer everything with these bytes, in chunks that end at ``cuts``, each written on its own."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(kind=kind))
        ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
        start = 0
        for end in ends:
            if end > start:
                writer.write(chunk(data[start:end]))
                await writer.drain()
                await asyncio.sleep(0)
            start = end
        writer.write(b"0\r\n\r\n")

    return script


@asynccontextmanager
async def wire(
    script: Script, *, idle_s: float | None = None, policy: Policy | None = None, served: str = SERVED, **more: Any
) -> AsyncIterator[Wire]:
    """Serve for the length of the block."""
    world = make_world(more.pop("model", None) or model("m"), model("e"), **more)
    # Socket paths are limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="vl-") as name:
        path = Path(name) / "s"
        client = UdsEngineClient(path, idle_s)
        client.served_name = served
        which = world.catalog.resolve("m")
        one = Lease(which, client, path, 2048, lambda _lease: None, lambda: _suspect(made))
        world.gate.one = one  # type: ignore[assignment]
        made = Wire(script, world, Path(name), one, served)
        engine = await asyncio.start_unix_server(made.serve, str(path), limit=64 * 1024 * 1024)
        server = TestServer(make_app(world.services, policy), handler_cancellation=True)
        await server.start_server(max_line_size=MAX_HEADER_BYTES, max_field_size=MAX_HEADER_BYTES)
        made.url = f"http://{server.host}:{server.port}"
        try:
            yield made
        finally:
            await server.close()
            await client.close()
            engine.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await engine.wait_closed()


def _suspect(made: Wire) -> None:
    made.suspected += 1
