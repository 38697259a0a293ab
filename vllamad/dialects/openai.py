"""The engine's own wire, which is OpenAI's (floor 1): what its chat and completion answers say, streamed or whole, and
its errors; and what we say on that face ourselves: errors and the list of models.

Every face that translates reads the engine through here, so that the shape of an answer is known in one place.
Verified against vLLM 0.32.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from vllama.reasons import Reason
from vllamad.dialects.go_values import as_dict, as_list
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model

DONE = b"[DONE]"
"""The payload that ends a stream that is whole."""

_NS_PER_MS = 1_000_000
_TOO_LONG = re.compile(r"maximum context length|maximum model length|longer than the maximum|exceeds model's maximum")
_TOKENS = re.compile(r"contains (\d+) input tokens")
"""Not "at least 2049": there the engine stopped counting."""


@dataclass(slots=True)
class Usage:
    """Token counts as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True)
class Metrics:
    """The engine's own times in nanoseconds; 0 if it did not say. ``prompt_ns`` is scheduled to first token,
    ``generation_ns`` first to last token."""

    prompt_ns: int = 0
    generation_ns: int = 0


@dataclass(slots=True)
class ToolCallPart:
    """A fragment of a call: the first of an ``index`` brings ``id`` and ``name``, all bring pieces of ``arguments``."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Delta:
    """What one frame, or one whole answer, brings."""

    text: str = ""
    thinking: str = ""
    finish_reason: str = ""
    is_eos: bool = False
    """It ended with the model's own end token, which is then the last of ``token_ids``."""
    usage: Usage | None = None
    metrics: Metrics | None = None
    error: VllamaError | None = None
    logprobs: list[dict[str, Any]] | None = None
    """One entry a token: token, logprob, bytes, top_logprobs."""
    tool_calls: list[ToolCallPart] | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


def read_delta(payload: bytes) -> Delta:
    """Read one payload of a chat or completions stream (never ``DONE``). An in-band error comes back in ``error``;
    a payload that is no JSON object counts as one."""
    try:
        frame = as_dict(orjson.loads(payload))
    except orjson.JSONDecodeError:
        frame = None
    if frame is None:
        return Delta(error=_failed("its stream holds something that is not an event"))
    return _read(frame, "delta")


def read_answer(body: bytes) -> Delta:
    """Read a whole (not streamed) chat or completions answer."""
    try:
        answer = as_dict(orjson.loads(body))
    except orjson.JSONDecodeError:
        answer = None
    if answer is None or not answer.get("choices"):
        return Delta(error=_failed("its answer holds no choices"))
    return _read(answer, "message")


def _read(frame: dict[str, Any], part: str) -> Delta:
    delta = Delta()
    choices = frame.get("choices")
    if choices:
        choice = choices[0]
        message = choice.get(part)
        if message is None:
            delta.text = choice.get("text") or ""
        else:
            delta.text = message.get("content") or ""
            delta.thinking = message.get("reasoning") or ""
            if calls := message.get("tool_calls"):
                delta.tool_calls = [_tool_call(call, number) for number, call in enumerate(calls)]
        if reason := choice.get("finish_reason"):
            delta.finish_reason = reason
            delta.is_eos = reason in {"stop", "tool_calls"} and choice.get("stop_reason") is None
        if logprobs := choice.get("logprobs"):
            delta.logprobs = _logprobs(logprobs)
        delta.token_ids = choice.get("token_ids")
        delta.prompt_token_ids = frame.get("prompt_token_ids") or choice.get("prompt_token_ids")
    elif "error" in frame:
        delta.error = _read_error(frame, 0)
        return delta
    if usage := frame.get("usage"):
        delta.usage = Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)
        if metrics := frame.get("metrics"):
            delta.metrics = Metrics(
                round((metrics.get("time_to_first_token_ms") or 0) * _NS_PER_MS),
                round((metrics.get("generation_time_ms") or 0) * _NS_PER_MS),
            )
    return delta


def _tool_call(call: dict[str, Any], number: int) -> ToolCallPart:
    function: dict[str, Any] = call.get("function") or {}
    index = call.get("index")
    return ToolCallPart(
        number if index is None else index,
        call.get("id") or "",
        function.get("name") or "",
        function.get("arguments") or "",
    )


def _logprobs(logprobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Bring the forms of chat (``content``) and of completions (parallel lists) to that of chat."""
    if (content := logprobs.get("content")) is not None:
        return content
    tokens = as_list(logprobs.get("tokens")) or []
    values = as_list(logprobs.get("token_logprobs")) or []
    tops = as_list(logprobs.get("top_logprobs")) or [None] * len(tokens)
    return [
        _entry(token, value) | {"top_logprobs": [_entry(name, each) for name, each in (as_dict(top) or {}).items()]}
        for token, value, top in zip(tokens, values, tops, strict=False)
    ]


def _entry(token: str, value: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": value or 0.0, "bytes": list(token.encode())}


class ContextExceeded(VllamaError):
    """The prompt is longer than the context; callers that may shorten it catch this one. ``prompt_tokens`` is 0 if the
    engine did not count."""

    def __init__(self, message: str, prompt_tokens: int, context_length: int) -> None:
        super().__init__(
            Reason.INVALID_REQUEST,
            message,
            "shorten the prompt, or load the model with a longer context",
            prompt_tokens=prompt_tokens,
            context_length=context_length,
        )
        self.prompt_tokens = prompt_tokens


def read_error(status: int, body: bytes, context_length: int = 0) -> VllamaError:
    """The failure that an answer with an error status means: what the engine refuses is the caller's to mend, the rest
    is the engine's own."""
    try:
        frame = as_dict(orjson.loads(body))
    except orjson.JSONDecodeError:
        frame = None
    return _read_error(frame or {}, status, context_length)


def _read_error(frame: dict[str, Any], status: int, context_length: int = 0) -> VllamaError:
    error = frame.get("error")
    fields = as_dict(error) or {}
    message = str(fields.get("message") or error or frame.get("detail") or "no reason given")
    code = fields.get("code")
    if not status and isinstance(code, int):
        status = code
    if status in {400, 422} and _TOO_LONG.search(message):
        counted = _TOKENS.search(message)
        return ContextExceeded(message, int(counted[1]) if counted else 0, context_length)
    if status in {400, 413, 422}:
        return VllamaError(Reason.INVALID_REQUEST, message)
    if status in {404, 405, 501}:
        return VllamaError(Reason.UNSUPPORTED, f"the engine cannot do this for the model: {message}")
    if status == 503:
        return VllamaError(Reason.QUEUE_FULL, f"the engine takes no more requests: {message}", "try again in a moment")
    return _failed(message)


def _failed(detail: str) -> VllamaError:
    return VllamaError(
        Reason.ENGINE_DIED,
        f"the engine failed while answering: {detail}",
        "see its last lines: vllamactl logs MODEL",
    )


def error_body(error: VllamaError) -> dict[str, Any]:
    """The error envelope of the OpenAI face."""
    return {
        "error": {
            "message": error.message,
            "type": error.row.openai_type,
            "param": error.facts.get("field"),
            "code": error.reason.lower(),
        }
    }


def error_event(error: VllamaError) -> bytes:
    """A failure inside of a stream, as the engine itself tells of one; the official client raises it. No ``[DONE]``
    follows: the stream is not whole."""
    return b"data: " + orjson.dumps(error_body(error)) + b"\n\n"


_SEQUENCE = re.compile(rb'"sequence_number":(\d+)')


def response_error_event(error: VllamaError, last: bytes) -> bytes:
    """The same in a stream of ``/v1/responses``; ``last`` is what was sent before, for its number. The event has
    OpenAI's own fields, and ``error`` beside them, because of which the official client raises it."""
    numbers = _SEQUENCE.findall(last)
    body = error_body(error)
    event = {
        "type": "error",
        "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
        "code": body["error"]["code"],
        "message": error.message,
        "param": None,
        **body,
    }
    return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"


def model_card(name: str, model: Model) -> dict[str, Any]:
    """A model under the name that it was asked for; where its files lie is nobody's business."""
    return {
        "id": name,
        "object": "model",
        "created": int(model.modified_time),
        "owned_by": model.ref.namespace or "library",
        "context_length": model.details.context_length or None,
        "capabilities": [capability.value for capability in model.capabilities],
    }


def model_list(models: Iterable[Model]) -> dict[str, Any]:
    """Every model under its full name."""
    return {"object": "list", "data": [model_card(model.name, model) for model in models]}
