"""Asking the engine within a context (floor 4): the prompt is shortened as Ollama does it, or refused with numbers.

The engine is asked first and counts for itself; tokens are only counted beforehand for a request whose own ``num_ctx``
is below what the model was loaded with, and then only if its text could be too long.
"""

from collections.abc import Mapping

import orjson

from vllamad.dialects import ollama_errors
from vllamad.dialects.ollama import EngineRequest, continue_context
from vllamad.dialects.ollama_options import Options
from vllamad.dialects.ollama_requests import Asked
from vllamad.dialects.openai import ContextExceeded, read_error
from vllamad.domain.ports import EngineStream
from vllamad.http.services import HeldLease

TOKENIZE_PATH = "/tokenize"
DETOKENIZE_PATH = "/detokenize"
_LEAST_CONTEXT = 4


class Fitting:
    """One request on its way into a context. ``may_cut``: the prompt is one text, which loses its beginning; else it is
    a conversation, which loses its oldest messages."""

    def __init__(
        self, lease: HeldLease, asked: Asked, options: Options, headers: Mapping[str, str], *, may_cut: bool
    ) -> None:
        self._lease = lease
        self._asked = asked
        self._options = options
        self._headers = headers
        self._may_cut = may_cut
        wanted = max(options.num_ctx, _LEAST_CONTEXT) if options.num_ctx > 0 else lease.context_length
        self._limit = min(wanted, lease.context_length)

    async def open(self, request: EngineRequest) -> EngineStream:
        """Send the request; returns its answer, which has status 200. Raises what the engine refuses it with."""
        if request.context_prefix:
            prompt_ids = await self._tokens(request.tokenize_body)
            request = continue_context(request, prompt_ids, self._asked, self._lease.context_length)
        is_bounded = self._limit < self._lease.context_length
        if is_bounded and (not self._asked.shift or request.text_bytes > self._limit):
            await self._fit_before(request)
        stream = await self._lease.open(request.path, request.body, self._headers)
        if stream.status == 200:
            return stream
        error = await self._error_of(stream)
        if not isinstance(error, ContextExceeded):
            raise error
        count = error.prompt_tokens or await self._count(request)
        await self._shorten(request, count)
        stream = await self._lease.open(request.path, request.body, self._headers)
        if stream.status == 200:
            return stream
        raise await self._error_of(stream)

    async def render(self, request: EngineRequest) -> str:
        """The prompt as the engine would read it, shortened if need be; nothing is generated."""
        prompt = request.fields.get("prompt")
        if isinstance(prompt, str) and not request.conversation:
            return prompt
        await self._fit_before(request)
        if isinstance(prompt, str) and not request.context_prefix:
            return request.fields["prompt"]
        tokens = [*request.context_prefix, *await self._tokens(request.tokenize_body)]
        stream = await self._lease.open(DETOKENIZE_PATH, orjson.dumps({"tokens": tokens}), self._headers)
        if stream.status != 200:
            raise await self._error_of(stream)
        return orjson.loads(await stream.read())["prompt"]

    async def _fit_before(self, request: EngineRequest) -> None:
        count = await self._count(request)
        if count >= self._limit:
            await self._shorten(request, count)
            count = self._limit - self._room()
        if not self._asked.shift:
            left = max(self._limit - count, 1)
            request.fields["max_tokens"] = min(request.fields.get("max_tokens", left), left)

    async def _shorten(self, request: EngineRequest, count: int) -> None:
        if not self._asked.truncate:
            raise ollama_errors.context_exceeded(count, self._limit)
        if self._may_cut:
            request.fields |= {"truncate_prompt_tokens": self._limit - self._room(), "truncation_side": "left"}
            return
        messages = request.conversation
        droppable = [at for at, message in enumerate(messages[:-1]) if message["role"] != "system"]
        fewest, most = 1, len(droppable)
        kept = None
        while fewest <= most:  # the count falls with every message that goes
            middle = (fewest + most) // 2
            gone = set(droppable[:middle])
            request.say([each for at, each in enumerate(messages) if at not in gone])
            if await self._count(request) < self._limit:
                kept, most = request.conversation, middle - 1
            else:
                fewest = middle + 1
        if kept is None:
            raise ollama_errors.context_exceeded(count, self._limit)
        request.say(kept)

    def _room(self) -> int:
        """Tokens of the context that a shortened prompt leaves for the answer: half, as Ollama's engine does, or less
        if less is asked for."""
        half = max(self._limit // 2, 1)
        return min(self._options.num_predict, half) if self._options.num_predict > 0 else half

    async def _count(self, request: EngineRequest) -> int:
        prompt = request.fields.get("prompt")
        if isinstance(prompt, list):
            return len(prompt)  # pyright: ignore[reportUnknownArgumentType]
        return len(await self._tokens(request.tokenize_body))

    async def _tokens(self, body: bytes) -> list[int]:
        stream = await self._lease.open(TOKENIZE_PATH, body, self._headers)
        if stream.status != 200:
            raise await self._error_of(stream)
        return orjson.loads(await stream.read())["tokens"]

    async def _error_of(self, stream: EngineStream) -> Exception:
        try:
            return read_error(stream.status, await stream.read(), self._limit)
        finally:
            stream.close()
