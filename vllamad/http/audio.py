"""``/v1/audio/*`` (floor 4): a form with a file of any size, on its way to the engine without being held in memory.

The model's name is a field of that form and may come behind the file. The form is read until the name is known; what
came before waits in memory up to ``SPOOL_BYTES``, in a temporary file beyond that. From then on it is a pipe: what
waited, then what the client still sends, as fast as the engine takes it. Official clients send the name first, so for
them nothing waits at all.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from tempfile import SpooledTemporaryFile

from aiohttp import web

from vllama.reasons import Reason
from vllamad.dialects.multipart import FieldFinder, boundary_of
from vllamad.dialects.passing import Wire
from vllamad.domain.errors import VllamaError
from vllamad.http import headers
from vllamad.http.bodies import Bodies
from vllamad.http.calls import Call, Handler
from vllamad.http.passing import keep_alive_of, relay
from vllamad.http.services import Asking

SPOOL_BYTES = 1024 * 1024
BLOCK_BYTES = 256 * 1024
AUDIO = ("/v1/audio/transcriptions", "/v1/audio/translations")


class Audio:
    """The routes that take a recording."""

    def __init__(self, services: Asking, bodies: Bodies) -> None:
        self._services = services
        self._bodies = bodies

    def handler(self, path: str) -> Handler:
        """A handler for one route."""
        wire = Wire(path)

        async def handle(request: web.Request, call: Call) -> web.StreamResponse:
            return await self._pass(request, call, wire)

        return handle

    async def _pass(self, request: web.Request, call: Call, wire: Wire) -> web.StreamResponse:
        content_type = request.headers.get("Content-Type", "")
        finder = FieldFinder(boundary_of(content_type), "model")
        rest = self._bodies.pieces(request)
        with closing(tempfile.SpooledTemporaryFile(SPOOL_BYTES)) as waiting:
            async for piece in rest:
                finder.feed(piece)
                await _keep(waiting, piece)
                if finder.value is not None:
                    break
            name = (finder.value or "").strip()
            if not name:
                raise VllamaError(Reason.INVALID_REQUEST, "model is required", field="model")
            call.model = name
            model = await call.find(self._services.catalog, name)
            async with self._services.gate.lease(
                model, keep_alive_s=keep_alive_of(request), caller=call.caller
            ) as lease:
                call.waited_ms = lease.waited_ns / 1e6
                body = _Body(waiting, rest)
                try:
                    stream = await lease.open(wire.path, body, headers.onward(request, call, content_type))
                except VllamaError as error:
                    raise body.refusal or error from error
                return await relay(request, call, wire, lease, stream)


async def _keep(file: "SpooledTemporaryFile[bytes]", piece: bytes) -> None:
    if file.tell() + len(piece) <= SPOOL_BYTES:
        file.write(piece)
    else:
        await asyncio.to_thread(file.write, piece)


class _Body:
    """What waited, then the rest as it comes. ``refusal``: why it ended early, which the engine's client cannot tell
    from an engine that is gone."""

    def __init__(self, file: "SpooledTemporaryFile[bytes]", rest: AsyncIterator[bytes]) -> None:
        self.refusal: VllamaError | None = None
        self._file = file
        self._rest = rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        file = self._file
        is_on_disk = file.tell() > SPOOL_BYTES
        file.seek(0)
        while block := await asyncio.to_thread(file.read, BLOCK_BYTES) if is_on_disk else file.read(BLOCK_BYTES):
            yield block
        try:
            async for piece in self._rest:
                yield piece
        except VllamaError as refusal:
            self.refusal = refusal
            raise
