"""Bytes from the engine to the client (floor 4): the way of every request that the engine answers in its own wire.

Body, checks, lease, and then a pump: what came from the engine is written before anything more is read, so that a
client that does not read stops the engine and fills no memory here. The head leaves with the first byte of the body: a
failure before it still has an honest status. After it a failure is told in the stream, in the words of the face, and
the connection is closed.
"""

from functools import partial

import orjson
from aiohttp import web

from vllama.reasons import Reason
from vllamad.dialects import anthropic, openai
from vllamad.dialects.go_values import parse_keep_alive
from vllamad.dialects.media import refuse_address
from vllamad.dialects.passing import Asked, Face, Wire, body_for, check, read_asked
from vllamad.dialects.renaming import Renamer
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import EngineStream
from vllamad.http import headers
from vllamad.http.bodies import Bodies
from vllamad.http.calls import Call, Handler
from vllamad.http.outlet import Outlet, Streamed
from vllamad.http.remote_images import RemoteImages
from vllamad.http.services import Asking, HeldLease

KEEP_ALIVE_HEADER = "X-Keep-Alive"
RESPONSES = "/v1/responses"
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
_NO_ROUTE = {"detail": "Not Found"}
"""What the engine says of a path that it has not, in neither face's envelope."""


class Passing:
    """The routes of ``WIRES``; also the common second half of those whose bodies are something else."""

    def __init__(self, services: Asking, bodies: Bodies, images: RemoteImages | None) -> None:
        self._services = services
        self._bodies = bodies
        self._images = images

    def handler(self, wire: Wire) -> Handler:
        """A handler for one route."""

        async def handle(request: web.Request, call: Call) -> web.StreamResponse:
            return await self._pass(request, call, wire)

        return handle

    async def _pass(self, request: web.Request, call: Call, wire: Wire) -> web.StreamResponse:
        body = await self._bodies.read(request)
        size = len(body)
        asked = await self._bodies.work(size, partial(read_asked, body))
        del body
        call.model = asked.model
        model = await call.find(self._services.catalog, asked.model)
        check(asked, model, wire)
        if asked.addresses:
            await self._bring(asked)
        keep_alive_s = keep_alive_of(request) if asked.keep_alive_s is None else asked.keep_alive_s
        async with self._services.gate.lease(model, keep_alive_s=keep_alive_s, caller=call.caller) as lease:
            call.waited_ms = lease.waited_ns / 1e6
            data = await self._bodies.work(size, partial(body_for, asked, model, wire, lease.context_length))
            asked = Asked(asked.model, {}, b"")  # a large body is not kept for as long as its answer takes
            stream = await lease.open(wire.path, data, headers.onward(request, call))
            del data
            return await relay(request, call, wire, lease, stream)

    async def _bring(self, asked: Asked) -> None:
        """Put what addresses name in their places, if that is configured."""
        images = self._images
        for address in asked.addresses:
            if images is None or not address.is_image:
                raise refuse_address(address)
        assert images is not None
        found = await images.fetch_all([address.url for address in asked.addresses])
        for address, data in zip(asked.addresses, found, strict=True):
            address.holder[address.key] = data
        asked.is_changed = True


def keep_alive_of(request: web.Request) -> float | None:
    """``X-Keep-Alive``: seconds, or a duration as in a body. Raises INVALID_REQUEST."""
    text = request.headers.get(KEEP_ALIVE_HEADER, "").strip()
    if not text:
        return None
    try:
        return parse_keep_alive(float(text))
    except ValueError:
        return parse_keep_alive(text)


async def relay(
    request: web.Request, call: Call, wire: Wire, lease: HeldLease, stream: EngineStream
) -> web.StreamResponse:
    """Pass an answer on, whatever its status; closes ``stream``. Raises what it failed with while nothing was sent."""
    try:
        if stream.status >= 400:
            return await _refused(call, lease, stream)
        renamer = Renamer(lease.served_name, call.model) if lease.served_name != call.model else None
        return await _pump(request, call, wire, renamer, stream)
    finally:
        stream.close()


async def _refused(call: Call, lease: HeldLease, stream: EngineStream) -> web.Response:
    """The engine's own error: its status, type and body."""
    body = await stream.read()
    if stream.status == 404 and _is_no_route(body):
        raise VllamaError(
            Reason.UNSUPPORTED,
            f'"{call.model}" does not support {call.path}: its engine has no such route',
            "see what the model can do: vllamactl show MODEL",
            model=call.model,
        )
    call.error = f"engine:{stream.status}"
    return web.Response(status=stream.status, body=body, headers=headers.back(stream.headers))


async def _pump(
    request: web.Request, call: Call, wire: Wire, renamer: Renamer | None, stream: EngineStream
) -> web.StreamResponse:
    answer = Streamed(status=stream.status, headers=headers.back(stream.headers))
    length = stream.headers.get("content-length", "")
    if length.isdecimal() and renamer is None:
        answer.content_length = int(length)
    outlet = Outlet(request, answer)
    pieces = _Pieces(renamer, outlet, call)
    try:
        while await stream.pour(pieces.take):
            await outlet.flush()
    except VllamaError as error:
        if not outlet.has_begun:
            raise
        call.error = str(error.reason)
        await _break_off(request, answer, wire, error, pieces.end)
        return answer
    await outlet.end(renamer.flush() if renamer is not None else b"")
    return answer


class _Pieces:
    """The sink of an answer that passes. It remembers the end of what was sent, for the words of a failure."""

    __slots__ = ("_before", "_call", "_last", "_outlet", "_renamer")

    def __init__(self, renamer: Renamer | None, outlet: Outlet, call: Call) -> None:
        self._renamer = renamer
        self._outlet = outlet
        self._call = call
        self._before = self._last = b""

    @property
    def end(self) -> bytes:
        """The last two pieces."""
        return self._before + self._last

    def take(self, piece: bytes) -> bool:
        """Send; True if the client has to be waited for."""
        if self._renamer is not None:
            piece = self._renamer.feed(piece)
            if not piece:
                return False
        if not self._outlet.has_begun:
            self._call.first_token_ms = self._call.spent_ns / 1e6
        self._before, self._last = self._last, piece
        return self._outlet.put(piece)


async def _break_off(
    request: web.Request, answer: web.StreamResponse, wire: Wire, error: VllamaError, last: bytes
) -> None:
    """End an answer that is not whole. Between two events of a stream that can be said; anywhere else only a
    connection that breaks off says it, before the end that the framing promised."""
    if headers.is_events({"content-type": answer.content_type}) and last.endswith(_EVENT_ENDS):
        await answer.write(_error_event(wire, error, last))
        answer.force_close()
        await answer.write_eof()
    elif request.transport is not None:
        request.transport.close()  # what was written before still goes out


def _error_event(wire: Wire, error: VllamaError, last: bytes) -> bytes:
    if wire.face is Face.ANTHROPIC:
        return anthropic.error_event(error)
    if wire.path == RESPONSES:
        return openai.response_error_event(error, last)
    return openai.error_event(error)


def _is_no_route(body: bytes) -> bool:
    try:
        return orjson.loads(body) == _NO_ROUTE
    except orjson.JSONDecodeError:
        return False
