"""``/api/generate`` and ``/api/chat`` (floor 4): body, checks, lease, engine, lines. Nothing is decided here that the
dialect or the gate could decide."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from vllamad.dialects import ollama
from vllamad.dialects.go_values import Stamp
from vllamad.dialects.ollama import EngineRequest
from vllamad.dialects.ollama_options import Options, read_options
from vllamad.dialects.ollama_requests import Asked, ChatAsked, GenerateAsked, read_chat, read_generate
from vllamad.dialects.ollama_stream import ChatStream, GenerateStream, Timing
from vllamad.dialects.peek import bad_request
from vllamad.dialects.recipes import options_with
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import Model
from vllamad.domain.ports import EngineStream
from vllamad.http.bodies import OFFLOAD_BYTES, Bodies
from vllamad.http.calls import JSON, PLAIN_JSON, Call, json_answer, start_lines
from vllamad.http.errors import end_lines
from vllamad.http.fitting import Fitting
from vllamad.http.services import HeldLease, Services

log = logging.getLogger("vllamad.http")

MAX_TOLD_OPTIONS = 200
"""Names of options are the callers' words; no more than these are remembered and logged."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What chat and generate hand to the common way, once they have checked."""

    asked: Asked
    model: Model
    options: Options
    size: int
    build: Callable[[int], EngineRequest]
    new_reply: Callable[[], ChatStream | GenerateStream]
    may_cut: bool
    unspoken: dict[str, Any]
    """The reply's own field when nothing is generated."""


class Inference:
    """The two routes that generate."""

    def __init__(self, services: Services, bodies: Bodies) -> None:
        self._services = services
        self._bodies = bodies
        self._stamp = Stamp()
        self._told: set[str] = set()

    async def chat(self, request: web.Request, call: Call) -> web.StreamResponse:
        body = await self._bodies.read(request)
        chat: ChatAsked = await self._bodies.work(len(body), lambda: read_chat(body))
        asked = chat.asked
        call.model = asked.model
        if not asked.model:
            raise bad_request("model is required")
        model = self._services.catalog.resolve(asked.model)
        call.found = model.name
        empty: dict[str, Any] = {"message": {"role": "assistant", "content": ""}}
        if chat.is_empty and asked.keep_alive_s == 0:
            return self._unload(asked, model, empty)
        ollama.check_chat(chat, model)
        options = self._options(asked, model)
        if chat.is_empty:
            return await self._load(asked, model, empty, call)
        ollama.check_format(asked)
        return await self._generate(
            request,
            call,
            _Job(
                asked,
                model,
                options,
                _work(len(body), model.recipe.template),
                lambda context_length: ollama.build_chat(chat, model, options, context_length, _today()),
                lambda: ChatStream(asked.model, top_logprobs=asked.top_logprobs),
                may_cut=False,
                unspoken={"message": {"role": "", "content": ""}},
            ),
        )

    async def generate(self, request: web.Request, call: Call) -> web.StreamResponse:
        body = await self._bodies.read(request)
        generate: GenerateAsked = await self._bodies.work(len(body), lambda: read_generate(body))
        asked = generate.asked
        call.model = asked.model
        if not asked.model:
            raise ModelNotFound("")
        model = self._services.catalog.resolve(asked.model)
        call.found = model.name
        empty: dict[str, Any] = {"response": ""}
        if generate.is_empty and asked.keep_alive_s == 0:
            return self._unload(asked, model, empty)
        ollama.check_generate(generate, model)
        options = self._options(asked, model)
        if generate.is_empty:
            return await self._load(asked, model, empty, call)
        ollama.check_format(asked)
        return await self._generate(
            request,
            call,
            _Job(
                asked,
                model,
                options,
                _work(len(body), generate.template or model.recipe.template),
                lambda context_length: ollama.build_generate(generate, model, options, context_length, _today()),
                lambda: GenerateStream(asked.model, top_logprobs=asked.top_logprobs, wants_context=not generate.raw),
                may_cut=True,
                unspoken=empty,
            ),
        )

    # --- loading and unloading -----------------------------------------------------------------------------------

    def _unload(self, asked: Asked, model: Model, empty: dict[str, Any]) -> web.Response:
        """Returns at once; the model goes when nobody uses it."""
        self._services.gate.set_keep_alive(model, 0)
        return self._empty_answer(asked, empty, "unload")

    async def _load(self, asked: Asked, model: Model, empty: dict[str, Any], call: Call) -> web.Response:
        """Returns when the model is ready."""
        async with self._services.gate.lease(model, keep_alive_s=asked.keep_alive_s, caller=call.caller) as lease:
            call.waited_ms = lease.waited_ns / 1e6
        return self._empty_answer(asked, empty, "load")

    def _empty_answer(self, asked: Asked, empty: dict[str, Any], reason: str) -> web.Response:
        """One object, also for a request that streams."""
        head = {"model": asked.model, "created_at": self._stamp(time.time_ns())}
        return json_answer(head | empty | {"done": True, "done_reason": reason})

    # --- generating ----------------------------------------------------------------------------------------------

    async def _generate(self, request: web.Request, call: Call, job: _Job) -> web.StreamResponse:
        async with self._services.gate.lease(
            job.model, keep_alive_s=job.asked.keep_alive_s, caller=call.caller
        ) as lease:
            call.waited_ms = lease.waited_ns / 1e6
            if job.asked.stream:
                call.error_type = PLAIN_JSON  # as Ollama, once the scheduler let a streamed request through
            engine_request = await self._bodies.work(job.size, lambda: job.build(lease.context_length))
            headers = {"Content-Type": "application/json", "X-Request-Id": call.id}
            fitting = Fitting(lease, job.asked, job.options, headers, may_cut=job.may_cut)
            if job.asked.render_only:
                rendered = await fitting.render(engine_request)
                head = {"model": job.asked.model, "created_at": self._stamp(time.time_ns())}
                shown = {"done": False, "_debug_info": {"rendered_template": rendered}}
                return json_answer(head | job.unspoken | shown)
            opened_ns = time.perf_counter_ns()
            stream = await fitting.open(engine_request)
            try:
                if job.asked.stream:
                    return await self._relay(request, call, job, lease, stream, opened_ns)
                return await self._answer_whole(call, job, lease, stream, opened_ns)
            finally:
                stream.close()

    async def _answer_whole(
        self, call: Call, job: _Job, lease: HeldLease, stream: EngineStream, opened_ns: int
    ) -> web.Response:
        body = await stream.read()
        generation_ns = time.perf_counter_ns() - opened_ns
        reply = job.new_reply()
        timing = Timing(call.spent_ns, lease.load_ns, generation_ns=generation_ns)
        answer = reply.answer(body, self._stamp(time.time_ns()), timing)
        _note_usage(call, reply)
        return json_answer(answer, content_type=JSON)

    async def _relay(
        self, request: web.Request, call: Call, job: _Job, lease: HeldLease, stream: EngineStream, opened_ns: int
    ) -> web.StreamResponse:
        """Pass lines on as they come. The head leaves with the first line, so that a failure before it has a status."""
        reply = job.new_reply()
        answer: web.StreamResponse | None = None
        first_ns = last_ns = 0
        is_finished = False
        try:
            async for chunk in stream.chunks():
                if is_finished:
                    continue  # read to the end, or the connection to the engine could not be used again
                last_ns = time.perf_counter_ns()
                first_ns = first_ns or last_ns
                lines = reply.feed(chunk, self._stamp(time.time_ns()))
                if reply.error is not None:
                    raise reply.error
                if reply.is_over:
                    timing = Timing(call.spent_ns, lease.load_ns, first_ns - opened_ns, last_ns - first_ns)
                    lines += reply.finish(self._stamp(time.time_ns()), timing)
                    is_finished = True
                if lines:
                    if answer is None:
                        call.first_token_ms = call.spent_ns / 1e6
                        answer = await start_lines(request)
                    await answer.write(lines)
            if not is_finished:
                reply.finish("", Timing(0, 0))  # raises: it broke off
        except VllamaError as error:
            if not is_finished:
                if answer is None:
                    raise
                call.error = str(error.reason)
                await end_lines(answer, error)
        _note_usage(call, reply)
        assert answer is not None  # a finished reply has at least its last line
        await answer.write_eof()
        return answer

    def _options(self, asked: Asked, model: Model) -> Options:
        options = read_options(options_with(model, asked.options))
        for name, why in options.without_effect:
            if name not in self._told and len(self._told) < MAX_TOLD_OPTIONS:
                self._told.add(name)
                log.info("http.option_without_effect option=%r why=%r model=%s", name[:80], why, model.name)
        return options


def _work(size: int, template: str) -> int:
    """How much work building a request is, as ``Bodies.work`` counts: a template may loop for seconds."""
    return max(size, OFFLOAD_BYTES) if template else size


def _today() -> str:
    """For templates that show the date: the local one, as Ollama's."""
    return time.strftime("%Y-%m-%d")


def _note_usage(call: Call, reply: ChatStream | GenerateStream) -> None:
    if reply.usage is not None:
        call.prompt_tokens = reply.usage.prompt_tokens
        call.tokens = reply.usage.completion_tokens
