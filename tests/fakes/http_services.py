"""In-process services for the HTTP face: a catalogue, a gate whose leases play scripted engine answers, operations."""

import asyncio
import base64
import json
import math
import struct
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fakes.shelf import FakeUploads
from vllama.reasons import Reason
from vllamad.domain.creation import Creation
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import Capability, Model, ModelDetails, ModelFile, Source, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.operation import Operation, OperationKind, Progress
from vllamad.domain.ports import EngineSocket, Sink
from vllamad.domain.view import WorkerView
from vllamad.domain.worker import State
from vllamad.http.services import CatalogService, OperationsService, Services
from vllamad.models.receiving import Receiving

EOS = 2


def model(name: str, *capabilities: Capability, **changes: Any) -> Model:
    """A small model; completion unless told otherwise."""
    made = Model(
        ref=ModelRef.parse(name),
        digest="87f1d0a9b36dcf9cb1d960d954bd3d082192c62cc4634bc77f30d0f5b1359e42",
        files=(ModelFile("model.safetensors", "ab" * 32, 270_886_274),),
        path="/models/x",
        modified_time=1_795_343_634.248968,
        source=Source(SourceKind.GGUF),
        details=ModelDetails(
            family="llama",
            families=("llama",),
            parameter_count=134_515_008,
            quantization_level="BF16",
            context_length=8192,
            embedding_length=576,
            block_count=30,
            feed_forward_length=1536,
            head_count=9,
            head_count_kv=3,
            vocab_size=49152,
        ),
        capabilities=capabilities or (Capability.COMPLETION,),
        template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )
    return replace(made, **changes)


def worker(name: str, *, expire_time: float | None = 2_000_000_000.0, idle_s: float = 300.0) -> WorkerView:
    """A loaded worker on CPU."""
    return WorkerView(
        name=name.replace(":", "-"),
        model=name,
        model_digest="87f1d0a9b36dcf9cb1d960d954bd3d082192c62cc4634bc77f30d0f5b1359e42",
        state=State.READY,
        incarnation=1,
        pid=4711,
        leases=0,
        waiting=0,
        load_phase="ready",
        load_fraction=1.0,
        load_s=12.0,
        start_time=1_795_343_000.0,
        expire_time=expire_time,
        idle_s=idle_s,
        memory_bytes=382_027_692,
        device_bytes=0,
        device="cpu",
        context_length=4096,
    )


# --- the engine ------------------------------------------------------------------------------------------------------


def event(frame: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(frame).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@dataclass
class Answer:
    """What the engine says: pieces are deltas of a chat (content, reasoning, tool_calls), or texts of a completion."""

    pieces: Sequence[Mapping[str, Any]]
    finish_reason: str = "stop"
    prompt_tokens: int = 5
    completion_tokens: int = 3
    prompt_ids: Sequence[int] = ()
    rendered: str = ""
    tokens: Sequence[int] = ()
    """What /tokenize says if it is not to count words."""
    ids: Sequence[int] = ()

    usage_tail: Mapping[str, Any] = field(
        default_factory=lambda: {"metrics": {"time_to_first_token_ms": 25.5, "generation_time_ms": 220.25}}
    )

    def _ids(self) -> list[int]:
        return [*self.ids, EOS] if self.finish_reason == "stop" else [*self.ids]

    def _prompt_ids(self, request: Mapping[str, Any]) -> list[int]:
        prompt = request["prompt"]
        return prompt if isinstance(prompt, list) else list(self.prompt_ids)

    def usage(self) -> dict[str, Any]:
        total = self.prompt_tokens + self.completion_tokens
        counts = {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": total,
            "completion_tokens": self.completion_tokens,
        }
        return {"usage": counts, **self.usage_tail}

    def stream(self, request: Mapping[str, Any]) -> list[bytes]:
        """The chunks of a streamed answer, one event each."""
        is_chat = "messages" in request
        wants_ids = bool(request.get("return_token_ids"))
        base = {"id": "cmpl-1", "object": "chunk", "created": 1, "model": "m"}
        chunks: list[bytes] = []
        if is_chat:
            first: dict[str, Any] = {**base, "choices": [_choice({"delta": {"role": "assistant", "content": ""}})]}
            if wants_ids:
                first["prompt_token_ids"] = list(self.prompt_ids)
            chunks.append(event(first))
        for piece in self.pieces:
            fields = dict(piece)
            logprobs = fields.pop("logprobs", None)
            body = {"delta": fields} if is_chat else {"text": fields.get("content", "")}
            chunks.append(event({**base, "choices": [_choice({**body, "logprobs": logprobs})]}))
        last: dict[str, Any] = {"delta": {"content": ""}} if is_chat else {"text": ""}
        if wants_ids and not is_chat:
            last["prompt_token_ids"] = self._prompt_ids(request)
        last |= {"finish_reason": self.finish_reason, "stop_reason": None}
        if wants_ids:
            last["token_ids"] = self._ids()
        chunks.append(event({**base, "choices": [_choice(last)]}))
        chunks.append(event({**base, "choices": [], **self.usage()}))
        chunks.append(DONE)
        return chunks

    def whole(self, request: Mapping[str, Any]) -> bytes:
        """The body of an answer that is not streamed."""
        text = "".join(piece.get("content") or "" for piece in self.pieces)
        thinking = "".join(piece.get("reasoning") or "" for piece in self.pieces)
        calls = [call for piece in self.pieces for call in piece.get("tool_calls", ())]
        logprobs = [entry for piece in self.pieces for entry in (piece.get("logprobs") or {}).get("content", ())]
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": self.finish_reason,
            "stop_reason": None,
            "logprobs": {"content": logprobs} if logprobs else None,
            "token_ids": self._ids() if request.get("return_token_ids") else None,
        }
        answer: dict[str, Any] = {"id": "x", "choices": [choice], **self.usage()}
        if "messages" in request:
            message = {"role": "assistant", "content": text, "reasoning": thinking or None, "tool_calls": calls}
            choice["message"] = message
            answer["prompt_token_ids"] = list(self.prompt_ids) if request.get("return_token_ids") else None
        else:
            choice["text"] = text
            choice["prompt_token_ids"] = self._prompt_ids(request) if request.get("return_token_ids") else None
        return json.dumps(answer).encode()


def _choice(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": 0, "finish_reason": None, **fields}


class FakeStream:
    """An engine's answer. ``broken`` is raised when its chunks run out, like a worker that died; ``hold`` blocks."""

    def __init__(
        self, status: int, chunks: Sequence[bytes], broken: VllamaError | None = None, hold: asyncio.Event | None = None
    ) -> None:
        self.status = status
        is_events = bool(chunks) and chunks[0].startswith((b"data:", b"event:"))
        kind = "text/event-stream; charset=utf-8" if is_events else "application/json"
        self.headers: Mapping[str, str] = {"content-type": kind}
        self.is_closed = False
        self._chunks = chunks
        self._poured = 0
        self._broken = broken
        self._hold = hold

    async def pour(self, sink: Sink) -> bool:
        while self._poured < len(self._chunks):
            await asyncio.sleep(0)
            self._poured += 1
            if sink(self._chunks[self._poured - 1]):
                return True
        if self._hold is not None:
            await self._hold.wait()
        if self._broken is not None:
            raise self._broken
        return False

    async def chunks(self) -> AsyncIterator[bytes]:
        pieces: list[bytes] = []
        while await self.pour(lambda piece: pieces.append(piece) is None):
            yield pieces.pop()

    async def read(self) -> bytes:
        if self._hold is not None:
            await self._hold.wait()
        if self._broken is not None:
            raise self._broken
        return b"".join(self._chunks)

    def close(self) -> None:
        self.is_closed = True


def refusal(status: int, message: str, kind: str = "BadRequestError") -> FakeStream:
    """An engine's error answer."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return FakeStream(status, [json.dumps(body).encode()])


Script = Callable[[str, dict[str, Any]], FakeStream]


def plays(answer: Answer) -> Script:
    """An engine that always gives this answer, streamed or not as it is asked."""

    def script(path: str, body: dict[str, Any]) -> FakeStream:
        if path == "/tokenize":
            return FakeStream(200, [json.dumps({"tokens": answer.tokens or tokenize(body)}).encode()])
        if path == "/detokenize":
            return FakeStream(200, [json.dumps({"prompt": answer.rendered}).encode()])
        if body.get("stream"):
            return FakeStream(200, answer.stream(body))
        return FakeStream(200, [answer.whole(body)])

    return script


def embeds(vectors: Sequence[Sequence[float]], prompt_tokens: int = 1) -> Script:
    """An engine whose n-th text has the n-th vector. Its tokenizer puts nothing around a text, so that it refuses the
    empty one, and has a token a word."""

    def script(path: str, body: dict[str, Any]) -> FakeStream:
        if path == "/tokenize":
            return FakeStream(200, [json.dumps({"count": len(tokenize(body))}).encode()])
        if "" in body["input"]:
            return refusal(400, "The decoder prompt cannot be empty")
        data = [
            {"index": index, "object": "embedding", "embedding": base64_floats(vectors[index])}
            for index, _ in enumerate(body["input"])
        ]
        usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
        return FakeStream(200, [json.dumps({"object": "list", "data": data, "usage": usage}).encode()])

    return script


def base64_floats(vector: Sequence[float]) -> str:
    """A vector as the engine sends it."""
    return base64.b64encode(struct.pack(f"={len(vector)}f", *vector)).decode()


def tokenize(body: Mapping[str, Any]) -> list[int]:
    """One token a word, six for the template of a message."""
    if "messages" in body:
        return [1] * sum(6 + len(str(message["content"]).split()) for message in body["messages"])
    prompt = body["prompt"]
    return [1] * (len(prompt) if isinstance(prompt, list) else len(prompt.split()))


def checked(script: Script, context_length: int) -> Script:
    """The same engine, with the real one's checks: ranges of sampling fields, and the context length."""

    def checking(path: str, body: dict[str, Any]) -> FakeStream:
        if path in {"/tokenize", "/detokenize"}:
            return script(path, body)
        wrong = [name for name, is_right in _RANGES.items() if name in body and not is_right(body[name])]
        if wrong:
            return refusal(400, f"{wrong} out of range")
        count = len(tokenize(body))
        if count > context_length and "truncate_prompt_tokens" not in body:
            return refusal(
                400,
                f"This model's maximum context length is {context_length} tokens. However, your prompt contains"
                f" {count} input tokens, which exceeds this limit even without any output tokens.",
            )
        return script(path, body)

    return checking


_RANGES: dict[str, Callable[[Any], bool]] = {
    "temperature": lambda value: 0 <= value <= 2,
    "top_p": lambda value: 0 < value <= 1,
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: value > 0,
    "presence_penalty": lambda value: -2 <= value <= 2,
    "frequency_penalty": lambda value: -2 <= value <= 2,
    "max_tokens": lambda value: value >= 1,
    "seed": lambda value: 0 <= value < 2**63,
    "stop": lambda value: all(value),
}


@dataclass
class FakeLease:
    """Plays a script, and remembers what it was asked."""

    script: Script
    context_length: int = 4096
    load_ns: int = 1_500_000
    waited_ns: int = 1_500_000
    asked: list[tuple[str, dict[str, Any], Mapping[str, str]]] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    served_name: str = "m"
    has_fast_path: bool = False
    bodies: list[bytes] = field(default_factory=list)

    async def open(
        self, path: str, body: bytes | AsyncIterable[bytes], headers: Mapping[str, str] | None = None
    ) -> FakeStream:
        if not isinstance(body, bytes):
            self.bodies.append(b"".join([part async for part in body]))
            self.asked.append((path, {}, headers or {}))
            return self.script(path, {})
        self.bodies.append(body)
        fields = json.loads(body)
        self.asked.append((path, fields, headers or {}))
        stream = self.script(path, fields)
        self.streams.append(stream)
        return stream

    async def connect(self, path: str, headers: Mapping[str, str] | None = None) -> EngineSocket:
        raise VllamaError(Reason.UNSUPPORTED, f"the engine has no websocket at {path}")


class FakeGate:
    """Hands out one lease again and again; ``refusal`` is raised instead, ``blocked`` makes requests wait."""

    def __init__(self, lease: FakeLease) -> None:
        self.one = lease
        self.refusal: VllamaError | None = None
        self.blocked: asyncio.Event | None = None
        self.active = 0
        self.waiting = 0
        self.returned = asyncio.Event()
        self.left = asyncio.Event()
        self.entered = asyncio.Event()
        self.keep_alives: list[tuple[str, float | None]] = []
        self.unloaded: list[str] = []

    @asynccontextmanager
    async def lease(
        self, wanted: Model, *, keep_alive_s: float | None = None, caller: str = ""
    ) -> AsyncGenerator[FakeLease, None]:
        self.entered.set()
        self.keep_alives.append((wanted.name, keep_alive_s))
        if self.refusal is not None:
            raise self.refusal
        if self.blocked is not None:
            self.waiting += 1
            try:
                await self.blocked.wait()
            finally:
                self.waiting -= 1
                self.left.set()
        self.active += 1
        try:
            yield self.one
        finally:
            self.active -= 1
            self.returned.set()

    async def unload(self, wanted: Model) -> None:
        self.unloaded.append(wanted.name)


class FakeCatalog:
    """Models in memory; a pull of a name in ``hub`` succeeds, the snapshots are the test's."""

    def __init__(self, models: Sequence[Model], operations: "FakeOperations") -> None:
        self.models = {each.ref.key: each for each in models}
        self._operations = operations

    def list(self) -> list[Model]:
        return sorted(self.models.values(), key=lambda each: -each.modified_time)

    def resolve(self, name: str) -> Model:
        found = self.models.get(ModelRef.parse(name).key)
        if found is None:
            raise ModelNotFound(name)
        return found

    async def find(self, name: str) -> Model:
        return self.resolve(name)

    def create(self, name: str, creation: Creation) -> Operation:
        raise AssertionError("making models is the real catalogue's")

    def source_name(self, model: Model) -> str:
        return model.name

    def pull(self, name: str) -> Operation:
        ModelRef.parse(name)
        return self._operations.begin(name)

    async def copy(self, source: str, destination: str) -> Model:
        made = replace(self.resolve(source), ref=ModelRef.parse(destination))
        self.models[made.ref.key] = made
        return made

    async def remove(self, name: str, force: bool) -> int:
        assert force
        return self.models.pop(self.resolve(name).ref.key).size_bytes


class FakeOperations:
    """Plays prepared snapshots; without any, the model does not exist. ``hold`` blocks after the last one."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.error: VllamaError | None = ModelNotFound("x")
        self.hold: asyncio.Event | None = None
        self.cancelled: list[tuple[str, bool]] = []
        self.ended = asyncio.Event()
        self.operation = Operation(1, OperationKind.PULL, "x", Progress(), 0.0)

    def begin(self, name: str) -> Operation:
        self.operation = replace(self.operation, model=name)
        return self.operation

    async def watch(self, name: str) -> AsyncGenerator[Operation, None]:
        assert name == self.operation.name
        try:
            for progress in [Progress(), *self.progress]:
                await asyncio.sleep(0)
                yield replace(self.operation, progress=progress)
            if self.hold is not None:
                await self.hold.wait()
            last = self.progress[-1] if self.progress else Progress()
            yield replace(self.operation, progress=last, is_done=True, error=self.error, end_time=1.0)
        finally:
            self.ended.set()

    def cancel(self, name: str, only_if_unwatched: bool = False) -> Operation:
        self.cancelled.append((name, only_if_unwatched))
        return self.operation


class FakeWorkers:
    """Whatever the test puts in."""

    def __init__(self) -> None:
        self.all: list[WorkerView] = []

    def views(self) -> list[WorkerView]:
        return self.all


@dataclass
class World:
    """The fakes together; ``services`` is what the application takes."""

    lease: FakeLease
    gate: FakeGate
    operations: FakeOperations
    catalog: FakeCatalog
    workers: FakeWorkers
    uploads: FakeUploads = field(default_factory=FakeUploads)
    health: dict[str, Any] = field(default_factory=lambda: {"status": "ok"})

    @property
    def services(self) -> Services:
        return self.services_with(self.catalog, self.operations)

    def services_with(self, catalog: CatalogService, operations: OperationsService) -> Services:
        """The same, with another catalogue and its operations: the real ones."""
        receiving = Receiving(self.uploads)
        return Services(catalog, receiving, self.catalog, operations, self.gate, self.workers, lambda: self.health)


def make_world(*models: Model, answer: Answer | None = None, context_length: int = 4096) -> World:
    """Services with these models and an engine that checks what it is asked."""
    answer = answer or Answer([{"content": "Hello"}, {"content": " there"}], ids=[10, 11], prompt_ids=[1, 2, 3])
    operations = FakeOperations()
    lease = FakeLease(checked(plays(answer), context_length), context_length)
    return World(lease, FakeGate(lease), operations, FakeCatalog(models, operations), FakeWorkers())


def died() -> VllamaError:
    """What a lease says when its worker is gone."""
    return VllamaError(Reason.ENGINE_DIED, "the engine of m has stopped unexpectedly: killed by SIGKILL")


FOREVER = math.inf
