"""``/api/create`` and ``/api/blobs`` (floor 4)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from vllama.reasons import Reason
from vllamad.dialects.go_values import dumps
from vllamad.dialects.ollama_create import (
    CreateAsked,
    CreateLines,
    create_failure,
    known_pieces,
    read_create,
    read_digest,
)
from vllamad.domain.errors import VllamaError
from vllamad.domain.operation import Operation
from vllamad.http.bodies import Bodies
from vllamad.http.calls import PLAIN_JSON, Call, json_answer, start_lines
from vllamad.http.errors import end_lines
from vllamad.http.services import Services

BLOBS = "/api/blobs/"
BLOCK_BYTES = 1024 * 1024
"""What goes to the disk at once: a thread for every packet would cost more than the disk."""


class Creating:
    """The routes that make models."""

    def __init__(self, services: Services, bodies: Bodies) -> None:
        self._services = services
        self._bodies = bodies

    async def create(self, request: web.Request, call: Call) -> web.StreamResponse:
        """Follows the creation until it ends. When its last follower leaves, it stops."""
        body = await self._bodies.read(request)
        asked = await self._bodies.work(len(body), lambda: read_create(body))
        call.model = asked.name
        call.error_type = PLAIN_JSON
        creation = asked.creation()
        lines = CreateLines(creation, known_pieces(self._services.catalog.list()))
        operation = self._services.catalog.create(asked.name, creation)
        if not asked.stream:
            async with aclosing(self._follow(operation, asked, lines)) as batches:
                async for _ in batches:
                    pass
            return json_answer({"status": "success"}, content_type=PLAIN_JSON)
        answer = await start_lines(request)
        try:
            async with aclosing(self._follow(operation, asked, lines)) as batches:
                async for batch in batches:
                    if batch:
                        await answer.write(batch)
        except VllamaError as error:
            call.error = str(error.reason)
            await end_lines(answer, error)
        await answer.write_eof()
        return answer

    async def has_blob(self, request: web.Request, call: Call) -> web.Response:
        """200 if a file with this digest need not be sent."""
        sha256 = read_digest(request.path.removeprefix(BLOBS))
        if await self._services.uploads.find(sha256) is None:
            raise VllamaError(Reason.NOT_FOUND, f'blob "sha256:{sha256}" not found', "send it with POST")
        return web.Response()

    async def put_blob(self, request: web.Request, call: Call) -> web.Response:
        """Takes a file of any size: it goes to the disk as it comes. A client that leaves leaves nothing behind."""
        sha256 = read_digest(request.path.removeprefix(BLOBS))
        if await self._services.uploads.find(sha256) is not None:
            return web.Response()
        async with self._services.uploads.receive(sha256, request.content_length or 0) as upload:
            waiting = bytearray()
            async for part in request.content.iter_any():
                waiting += part
                if len(waiting) >= BLOCK_BYTES:
                    await upload.write(bytes(waiting))
                    waiting.clear()
            await upload.write(bytes(waiting))
            await upload.finish()
        return web.Response(status=201)

    async def _follow(
        self, operation: Operation, asked: CreateAsked, lines: CreateLines
    ) -> AsyncGenerator[bytes, None]:
        """The status lines as they fall due; raises what the creation failed with. Close it to lose interest."""
        operations = self._services.operations
        last = operation
        try:
            async with aclosing(operations.watch(operation.name)) as snapshots:
                async for last in snapshots:
                    yield b"".join(dumps(line) + b"\n" for line in lines.feed(last))
        finally:
            if not last.is_done:
                operations.cancel(operation.name, only_if_unwatched=True)
        if last.error is not None:
            raise create_failure(last.error) from last.error
        made = self._services.catalog.resolve(asked.name)
        yield b"".join(dumps(line) + b"\n" for line in lines.finish(made))
