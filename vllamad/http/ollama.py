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
from vllamad.http.calls import JSON, LINE_HEADERS, PLAIN_JSON, Call, json_answer
from vllamad.http.errors import end_lines
from vllamad.http.fitting import Fitting
from vllamad.http.outlet import Outlet, Streamed
from vllamad.http.services import Asking, HeldLease

log = logging.getLogger("vllamad.http")

MAX_TOLD_OPTIONS = 200
"""Names of options are the callers' words; no more than these are remembered and logged."""


_Reply = ChatStream | GenerateStream


@dataclass(frozen=True, slots=True)
class _Job:
    """What chat and generate hand to the common way, once they have checked."""

    asked: Asked
    model: Model
    options: Options
    size: int
    build: Callable[[int], EngineRequest]
    new_reply: Callable[[], _Reply]
    may_cut: bool
    unspoken: dict[str, Any]
    """The reply's own field when nothing is generated."""


class Inference:
    """The two routes that generate."""

    def __init__(self, services: Asking, bodies: Bodies) -> None:
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
        model = await call.find(self._services.catalog, asked.model)
        empty: dict[str, Any] = {"message": {"role": "assistant", "content": ""}}
        if chat.is_empty and asked.keep_alive_s == 0:
            return await self._unload(asked, model, empty)
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
        model = await call.find(self._services.catalog, asked.model)
        empty: dict[str, Any] = {"response": ""}
        if generate.is_empty and asked.keep_alive_s == 0:
            return await self._unload(asked, model, empty)
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

    async def _unload(self, asked: Asked, model: Model, empty: dict[str, Any]) -> web.Response:
        """Returns at once; the model goes when nobody uses it."""
        await self._services.gate.unload(model)
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
            reply = job.new_reply()
            if lease.has_fast_path and engine_request.is_plain:
                engine_request.ask_for_lines(reply.expect_lines())
            opened_ns = time.perf_counter_ns()
            stream = await fitting.open(engine_request)
            try:
                if job.asked.stream:
                    return await self._relay(request, call, reply, lease, stream, opened_ns)
                return await self._answer_whole(call, reply, lease, stream, opened_ns)
            finally:
                stream.close()

    async def _answer_whole(
        self, call: Call, reply: _Reply, lease: HeldLease, stream: EngineStream, opened_ns: int
    ) -> web.Response:
        body = await stream.read()
        generation_ns = time.perf_counter_ns() - opened_ns
        timing = Timing(call.spent_ns, lease.load_ns, generation_ns=generation_ns)
        answer = reply.answer(body, self._stamp(time.time_ns()), timing)
        _note_usage(call, reply)
        return json_answer(answer, content_type=JSON)

    async def _relay(
        self, request: web.Request, call: Call, reply: _Reply, lease: HeldLease, stream: EngineStream, opened_ns: int
    ) -> web.StreamResponse:
        """Pass lines on as they come. The head leaves with the first line, so that a failure before it has a status."""
        answer = Streamed(headers=LINE_HEADERS)
        outlet = Outlet(request, answer)
        lines = _Lines(reply, outlet, self._stamp, call, lease.load_ns, opened_ns)
        try:
            while await stream.pour(lines.take):
                if lines.failure is not None:
                    raise lines.failure
                await outlet.flush()
            lines.check_end()
        except VllamaError as error:
            if not lines.is_finished:
                if not outlet.has_begun:
                    raise
                call.error = str(error.reason)
                await end_lines(answer, error)
                return answer
        _note_usage(call, lines.reply)
        await outlet.end()
        return answer

    def _options(self, asked: Asked, model: Model) -> Options:
        options = read_options(options_with(model, asked.options))
        for name, why in options.without_effect:
            if name not in self._told and len(self._told) < MAX_TOLD_OPTIONS:
                self._told.add(name)
                log.info("http.option_without_effect option=%r why=%r model=%s", name[:80], why, model.name)
        return options


class _Lines:
    """The sink of a streamed answer: the engine's frames in, lines out. It runs once for every token, so it does as
    little as it can."""

    __slots__ = ("_call", "_first_ns", "_load_ns", "_opened_ns", "_outlet", "_stamp", "failure", "is_finished", "reply")

    def __init__(
        self,
        reply: _Reply,
        outlet: Outlet,
        stamp: Stamp,
        call: Call,
        load_ns: int,
        opened_ns: int,
    ) -> None:
        self.reply = reply
        self.failure: VllamaError | None = None
        self.is_finished = False
        """The last line is on its way."""
        self._outlet = outlet
        self._stamp = stamp
        self._call = call
        self._load_ns = load_ns
        self._opened_ns = opened_ns
        self._first_ns = 0

    def take(self, piece: bytes) -> bool:
        """Translate and send; True once there is a failure, or the client has to be waited for."""
        if self.is_finished:
            return False  # read to the end, or the connection to the engine could not be used again
        reply = self.reply
        if not self._first_ns:
            self._first_ns = time.perf_counter_ns()
        try:
            lines = piece if reply.passes(piece) else reply.feed(piece, self._stamp(time.time_ns()))
            if reply.is_over and reply.error is None:
                lines += self._last_line()
        except VllamaError as failure:
            self.failure = failure
            return True
        self.failure = reply.error
        if not lines:
            return self.failure is not None
        if not self._outlet.has_begun:
            self._call.first_token_ms = self._call.spent_ns / 1e6
        # What came before a failure, in the same read, still goes out.
        return self._outlet.put(lines) or self.failure is not None

    def check_end(self) -> None:
        """The engine's stream has ended. Raises ENGINE_DIED if that was too early."""
        if not self.is_finished:
            self.reply.finish("", Timing(0, 0))

    def _last_line(self) -> bytes:
        now_ns = time.perf_counter_ns()
        timing = Timing(self._call.spent_ns, self._load_ns, self._first_ns - self._opened_ns, now_ns - self._first_ns)
        line = self.reply.finish(self._stamp(time.time_ns()), timing)
        self.is_finished = True
        return line


def _work(size: int, template: str) -> int:
    """How much work building a request is, as ``Bodies.work`` counts: a template may loop for seconds."""
    return max(size, OFFLOAD_BYTES) if template else size


def _today() -> str:
    """For templates that show the date: the local one, as Ollama's."""
    return time.strftime("%Y-%m-%d")


def _note_usage(call: Call, reply: _Reply) -> None:
    if reply.usage is not None:
        call.prompt_tokens = reply.usage.prompt_tokens
        call.tokens = reply.usage.completion_tokens
