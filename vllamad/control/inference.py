"""The Inference service (floor 4): what `vllamactl run` speaks.

A request is put into the shape of an Ollama chat, so that both faces share one translation to the engine and one set of
defaults; the engine's frames are read by the same reader.
"""

# The generated base classes are untyped and synchronous.
# pyright: reportIncompatibleMethodOverride=false

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing

import orjson
from google.protobuf.duration_pb2 import Duration

from vllama.control.v1 import inference_pb2 as pb
from vllama.control.v1 import inference_pb2_grpc as pb_grpc
from vllama.reasons import Reason
from vllamad.control import convert
from vllamad.control.interceptor import Context, streaming
from vllamad.control.workers import keep_alive_s
from vllamad.dialects.frames import EventParser
from vllamad.dialects.ollama import EngineRequest, build_chat, check_chat
from vllamad.dialects.ollama_options import read_options
from vllamad.dialects.ollama_requests import read_chat
from vllamad.dialects.openai import DONE, Delta, read_delta, read_error
from vllamad.dialects.recipes import options_with
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Clock
from vllamad.domain.view import WorkerView
from vllamad.gate.gate import Gate
from vllamad.models.catalog import Catalog
from vllamad.models.loading import CALLER, load_progress
from vllamad.supervisor.lease import Lease, engine_died


class InferenceService(pb_grpc.InferenceServicer):
    """Streams answers."""

    def __init__(self, catalog: Catalog, gate: Gate, clock: Clock) -> None:
        self._catalog = catalog
        self._gate = gate
        self._clock = clock

    @streaming
    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncGenerator[pb.ChatResponse, None]:
        started = self._clock.now()
        chat = read_chat(_ollama_body(request))
        if chat.is_empty:
            raise VllamaError(Reason.INVALID_REQUEST, "cannot chat: there are no messages", "use vllamactl load")
        model = self._catalog.resolve(request.model)
        check_chat(chat, model)
        options = read_options(options_with(model, chat.asked.options))
        idle_s = keep_alive_s(request.keep_alive) if request.HasField("keep_alive") else None
        async with AsyncExitStack() as held:
            views = _Latest()
            waiting = self._gate.lease(model, keep_alive_s=idle_s, caller=CALLER, on_progress=views.put)
            entering = asyncio.create_task(held.enter_async_context(waiting))
            try:
                async for view in views.until(entering):
                    yield pb.ChatResponse(loading=convert.progress(load_progress(view)))
                lease = await entering
            finally:
                await _end(entering)
            counted = Delta()
            today = time.strftime("%Y-%m-%d")
            async with aclosing(
                _deltas(lease, build_chat(chat, model, options, lease.context_length, today))
            ) as deltas:
                async for delta in deltas:
                    if delta.thinking:
                        yield pb.ChatResponse(thinking=delta.thinking)
                    if delta.text:
                        yield pb.ChatResponse(text=delta.text)
                    counted.finish_reason = delta.finish_reason or counted.finish_reason
                    counted.usage = delta.usage or counted.usage
                    counted.metrics = delta.metrics or counted.metrics
            yield pb.ChatResponse(finish=_finish(counted, lease, self._clock.now() - started))


class _Latest:
    """The newest picture of a worker, for one reader who may be slow."""

    def __init__(self) -> None:
        self._view: WorkerView | None = None
        self._is_new = asyncio.Event()

    def put(self, view: WorkerView) -> None:
        self._view = view
        self._is_new.set()

    async def until(self, task: "asyncio.Task[Lease]") -> AsyncIterator[WorkerView]:
        """Yield pictures until ``task`` is done."""
        task.add_done_callback(lambda _task: self._is_new.set())
        while not task.done():
            await self._is_new.wait()
            self._is_new.clear()
            view, self._view = self._view, None
            if view is not None:
                yield view


async def _end(task: "asyncio.Task[Lease]") -> None:
    """Cancel a task that is still waiting for its lease, and see it end."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])


async def _deltas(lease: Lease, request: EngineRequest) -> AsyncGenerator[Delta, None]:
    """What the engine says, until its stream is whole; raises what it failed with."""
    request.fields["stream"] = True
    request.fields["stream_options"] = {"include_usage": True}
    stream = await lease.open(request.path, request.body)
    try:
        if stream.status != 200:
            raise read_error(stream.status, await stream.read(), lease.context_length)
        parser = EventParser()
        async for chunk in stream.chunks():
            for payload in parser.feed(chunk):
                if payload == DONE:
                    return
                delta = read_delta(payload)
                if delta.error is not None:
                    raise delta.error
                yield delta
        raise engine_died(lease.model.name, "its answer ended before it was complete")
    finally:
        stream.close()


def _ollama_body(request: pb.ChatRequest) -> bytes:
    body: dict[str, object] = {
        "model": request.model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "options": _options(request.options),
    }
    if request.HasField("think"):
        body["think"] = request.think
    if request.format:
        try:
            body["format"] = request.format if request.format == "json" else orjson.loads(request.format)
        except orjson.JSONDecodeError as error:
            raise VllamaError(
                Reason.INVALID_REQUEST, f"cannot read the format: {error}", 'give "json" or a JSON schema'
            ) from error
    return orjson.dumps(body)


def _options(options: pb.Options) -> dict[str, object]:
    given: dict[str, object] = {field.name: value for field, value in options.ListFields() if field.name != "stop"}
    if options.stop:
        given["stop"] = list(options.stop)
    return given


def _finish(counted: Delta, lease: Lease, total_s: float) -> pb.Finish:
    if counted.usage is None:
        raise engine_died(lease.model.name, "it did not count its tokens")
    finish = pb.Finish(
        reason=counted.finish_reason,
        prompt_tokens=counted.usage.prompt_tokens,
        completion_tokens=counted.usage.completion_tokens,
        total_duration=_duration(int(total_s * 1e9)),
        load_duration=_duration(lease.load_ns),
    )
    if counted.metrics is not None:
        finish.prompt_duration.CopyFrom(_duration(counted.metrics.prompt_ns))
        finish.generation_duration.CopyFrom(_duration(counted.metrics.generation_ns))
    return finish


def _duration(nanoseconds: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(nanoseconds)
    return duration
