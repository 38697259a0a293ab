"""``/api/embed`` and ``/api/embeddings`` (floor 4): body, checks, lease, engine, vectors.

A long list goes to the engine in portions, a few at a time; their answers are put together in order. Vectors are many
bytes: reading and writing them is left to ``Bodies.work``.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import orjson
from aiohttp import web

from vllamad.dialects import ollama_embed
from vllamad.dialects.ollama_embed import EmbedAsked, Vectors, read_embed, read_embeddings
from vllamad.dialects.ollama_options import read_options
from vllamad.dialects.openai import read_error
from vllamad.dialects.recipes import options_with
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.http.bodies import Bodies
from vllamad.http.calls import Call, json_answer
from vllamad.http.fitting import TOKENIZE_PATH
from vllamad.http.services import Asking, HeldLease

MAX_PORTIONS = 2
"""In the engine at a time: while it computes one, the next is tokenised and the last one written."""

VECTOR_COST = 16
"""A byte of a vector costs the loop as much as so many bytes of other JSON: each number is written digit by digit."""


class Embeddings:
    """The two routes that embed."""

    def __init__(self, services: Asking, bodies: Bodies) -> None:
        self._services = services
        self._bodies = bodies

    async def embed(self, request: web.Request, call: Call) -> web.Response:
        asked, parts, load_ns = await self._run(request, call, read_embed)
        return json_answer(ollama_embed.embed_answer(asked, parts, call.spent_ns, load_ns))

    async def embeddings(self, request: web.Request, call: Call) -> web.Response:
        _, parts, _ = await self._run(request, call, read_embeddings)
        return json_answer(ollama_embed.embeddings_answer(parts))

    async def _run(
        self, request: web.Request, call: Call, read: Callable[[bytes], EmbedAsked]
    ) -> tuple[EmbedAsked, list[Vectors], int]:
        """The request as it was read, the vectors (none if it only loads), and the lease's ``load_ns``."""
        body = await self._bodies.read(request)
        asked = await self._bodies.work(len(body), lambda: read(body))
        call.model = asked.model
        try:
            model = await call.find(self._services.catalog, asked.model)
        except ModelNotFound as error:
            raise ollama_embed.not_found(asked) from error
        options = read_options(options_with(model, asked.options))
        if asked.inputs:
            ollama_embed.check_embed(asked, model)
        async with self._services.gate.lease(model, keep_alive_s=asked.keep_alive_s, caller=call.caller) as lease:
            call.waited_ms = lease.waited_ns / 1e6
            limit = ollama_embed.input_limit(options.num_ctx, lease.context_length)
            try:
                parts = await self._embed(lease, asked, limit, len(body), call.id)
            except VllamaError as error:
                raise ollama_embed.told(error, asked) from error
            call.prompt_tokens = sum(part.prompt_tokens for part in parts)
            return asked, parts, lease.load_ns

    async def _embed(self, lease: HeldLease, asked: EmbedAsked, limit: int, size: int, identity: str) -> list[Vectors]:
        portions = ollama_embed.split(asked.inputs)
        turns = asyncio.Semaphore(MAX_PORTIONS)

        async def one(number: int, inputs: Sequence[str]) -> Vectors:
            # The engine names its own requests after this one.
            headers = {"Content-Type": "application/json", "X-Request-Id": f"{identity}-{number}"}
            async with turns:
                return await self._portion(lease, asked, inputs, limit, size // len(portions), headers)

        if len(portions) < 2:
            return [await one(number, inputs) for number, inputs in enumerate(portions)]
        try:
            # Tasks, because the portions run side by side; none outlives the lease.
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number, inputs)) for number, inputs in enumerate(portions)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _portion(
        self,
        lease: HeldLease,
        asked: EmbedAsked,
        inputs: Sequence[str],
        limit: int,
        size: int,
        headers: Mapping[str, str],
    ) -> Vectors:
        if not asked.truncate and limit < lease.context_length:
            await self._check_lengths(lease, inputs, limit, headers)
        body = await self._bodies.work(
            size, lambda: ollama_embed.build_embed(inputs, limit, lease.context_length, truncate=asked.truncate)
        )
        answer = await _post(lease, ollama_embed.EMBEDDINGS_PATH, body, headers)
        return await self._bodies.work(
            len(answer) * VECTOR_COST, lambda: ollama_embed.read_vectors(answer, len(inputs), asked.dimensions)
        )

    async def _check_lengths(
        self, lease: HeldLease, inputs: Sequence[str], limit: int, headers: Mapping[str, str]
    ) -> None:
        """The engine knows no limit below its own, other than to cut: count what could be too long."""
        for text in inputs:
            if ollama_embed.may_exceed(text, limit):
                answer = await _post(lease, TOKENIZE_PATH, orjson.dumps({"prompt": text}), headers)
                if orjson.loads(answer)["count"] > limit:
                    raise ollama_embed.too_long()


async def _post(lease: HeldLease, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The body of an answer with status 200. Raises what the engine refuses the request with."""
    stream = await lease.open(path, body, headers)
    try:
        answer = await stream.read()
    finally:
        stream.close()
    if stream.status != 200:
        raise read_error(stream.status, answer, lease.context_length)
    return answer
