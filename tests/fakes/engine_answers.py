"""What the fake engine answers: requests in, bodies and stream chunks out, in the shapes of vLLM 0.32. Pure.

Tokens are words. The answer to a question about the capital of France is the true one, every other answer counts up:
``one two three ...``; both are the same every time. A model with a *voice* says it first, and then the question, so
that an answer shows whose it is, and to what.
"""

import base64
import itertools
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DEFAULT_TOKENS = 16
EMBEDDING_LENGTH = 8


class Refused(Exception):
    """A request that vLLM answers with an error; ``kind`` is its ``type``."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass
class Card:
    """What was said on the command line about the model."""

    names: list[str]
    root: str
    max_model_len: int
    has_tools: bool = False
    has_reasoning: bool = False
    is_pooling: bool = False
    has_adapters: bool = False
    default_tokens: int = DEFAULT_TOKENS
    voice: str = ""


@dataclass
class Plan:
    """An answer, token by token. ``thoughts`` come before ``tokens``; ``tool_calls`` instead of them."""

    prompt_tokens: int
    tokens: list[str]
    finish_reason: str
    stop_reason: str | None = None
    thoughts: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def completion_tokens(self) -> int:
        return len(self.thoughts) + len(self.tokens) + (5 if self.tool_calls else 0)

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


def count_tokens(card: Card, body: dict[str, Any]) -> list[int]:
    """Token ids of a prompt (two more around it for a pooling model) or of messages (four for the template's own)."""
    if "messages" in body:
        text = " ".join(_text(message.get("content")) for message in body["messages"])
        return list(range(len(text.split()) + 4))
    prompt = body.get("prompt", "")
    if isinstance(prompt, list):
        return [int(each) for each in prompt]
    return list(range(1, len(prompt.split()) + (3 if card.is_pooling else 1)))


def plan(card: Card, body: dict[str, Any], *, is_chat: bool) -> Plan:
    """Decide the whole answer; raises Refused as vLLM would."""
    _check(card, body)
    prompt_tokens = len(count_tokens(card, body))
    if prompt_tokens >= card.max_model_len:
        raise Refused(
            400,
            f"This model's maximum context length is {card.max_model_len} tokens. However, your request has "
            f"{prompt_tokens} input tokens. Please reduce the length of the input messages.",
            param="input_tokens",
        )
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or (None if is_chat else DEFAULT_TOKENS)
    limit = min(limit or card.max_model_len, card.max_model_len - prompt_tokens)
    question = _text(body["messages"][-1].get("content")) if is_chat else str(body.get("prompt", ""))
    if is_chat and (called := _tool_call(card, body, question)):
        return Plan(prompt_tokens, [], "tool_calls", tool_calls=[called])
    thoughts = ["I ", "think."] if is_chat and _thinks(card, body) else []
    words = list(itertools.islice(_words(card, body, question), max(0, limit - len(thoughts))))
    tokens, finish, stop = _stopped(words, _list(body.get("stop")))
    if not stop and len(words) + len(thoughts) >= limit:
        finish = "length"
    return Plan(prompt_tokens, tokens, finish, stop, thoughts)


def _check(card: Card, body: dict[str, Any]) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        if (value := body.get(name)) is not None and (not isinstance(value, int) or value < 1):
            raise Refused(400, f"{name} must be at least 1, got {value}.", param=name)
        if isinstance(value, int) and value > card.max_model_len:
            raise Refused(400, f"{name} is too large: {value}.", param=name)
    temperature, top_p = body.get("temperature", 1), body.get("top_p", 1)
    if not 0 <= (1 if temperature is None else temperature) <= 2:
        raise Refused(400, f"temperature must be in [0, 2], got {temperature}.", param="temperature")
    if not 0 < (1 if top_p is None else top_p) <= 1:
        raise Refused(400, f"top_p must be in (0, 1], got {top_p}.", param="top_p")
    if "" in _list(body.get("stop")):
        raise Refused(400, "stop cannot contain an empty string.", param="stop")
    if body.get("stream_options") and not body.get("stream"):
        raise Refused(400, "Stream options can only be defined when `stream=True`.")
    if body.get("tools") and body.get("tool_choice", "auto") == "auto" and not card.has_tools:
        raise Refused(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
    for message in body.get("messages", []):
        if any(part.get("type") == "image_url" for part in _parts(message.get("content"))):
            raise Refused(400, f"{card.names[0]} is not a multimodal model")
    if body.get("prompt") == "":
        raise Refused(400, "Either prompt or prompt_embeds must be provided and non-empty.")


def _words(card: Card, body: dict[str, Any], question: str) -> Iterator[str]:
    response_format = body.get("response_format") or {}
    structured = body.get("structured_outputs") or {}
    if response_format.get("type") in {"json_object", "json_schema"} or structured:
        yield from ('{"', "answer", '":', "42", "}")
    elif "capital of France" in question:
        yield from ("The", " capital", " of", " France", " is", " Paris", ".")
    else:
        count = card.default_tokens if not body.get("ignore_eos") else card.max_model_len
        spoken = [card.voice, *question.split()] if card.voice else []
        for at, word in enumerate(itertools.chain(spoken, itertools.islice(itertools.cycle(WORDS), count))):
            yield f" {word}" if at else word


def _stopped(words: list[str], stops: list[str]) -> tuple[list[str], str, str | None]:
    text = "".join(words)
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return words, "stop", None
    end, stop = min(found)
    kept: list[str] = []
    for word in words:
        if end <= 0:
            break
        kept.append(word[:end])
        end -= len(word)
    return kept, "stop", stop


def _tool_call(card: Card, body: dict[str, Any], question: str) -> dict[str, Any] | None:
    if body.get("tool_choice") == "none" or body["messages"][-1].get("role") == "tool":
        return None
    for tool in body.get("tools") or []:
        if (name := tool["function"]["name"]) in question:
            at = question.find("{")
            arguments = question[at : question.rfind("}") + 1] if at >= 0 else "{}"
            call = {"name": name, "arguments": arguments}
            return {"id": f"chatcmpl-tool-{name}", "type": "function", "function": call}
    return None


def _thinks(card: Card, body: dict[str, Any]) -> bool:
    wants = (body.get("chat_template_kwargs") or {}).get("enable_thinking", True)
    return card.has_reasoning and wants is not False and body.get("reasoning_effort") != "none"


def metrics(plan: Plan, decode_s: float) -> dict[str, Any]:
    """The numbers of --enable-per-request-metrics."""
    return {
        "time_to_first_token_ms": 2.0,
        "generation_time_ms": round(decode_s * 1000, 3),
        "queue_time_ms": 0.25,
        "mean_itl_ms": 1.0,
        "tokens_per_second": 1000.0,
    }


def whole(card: Card, body: dict[str, Any], plan: Plan, number: int, *, is_chat: bool) -> dict[str, Any]:
    """The answer to a request that is not streamed: explicit nulls, as vLLM sends them."""
    text = "".join(plan.tokens)
    choice: dict[str, Any] = {"index": 0, "finish_reason": plan.finish_reason, "stop_reason": plan.stop_reason}
    if is_chat:
        choice["message"] = {
            "role": "assistant",
            "content": None if plan.tool_calls else text,
            "refusal": None,
            "tool_calls": plan.tool_calls,
            "reasoning": "".join(plan.thoughts) or None,
        }
        choice["logprobs"] = {"content": [_logprob(t, body) for t in plan.tokens]} if body.get("logprobs") else None
    else:
        choice |= {"text": text, "logprobs": None, "prompt_logprobs": None}
    if body.get("return_token_ids"):
        choice["token_ids"] = list(range(1000, 1000 + len(plan.tokens)))
        choice["prompt_token_ids"] = count_tokens(card, body)
    return _head(card, number, is_chat=is_chat) | {
        "choices": [choice],
        "usage": plan.usage,
        "metrics": metrics(plan, 0.001 * len(plan.tokens)),
        "system_fingerprint": "fake",
        "kv_transfer_params": None,
    }


def chunks(card: Card, body: dict[str, Any], plan: Plan, number: int, *, is_chat: bool) -> Iterator[dict[str, Any]]:
    """The chunks of a stream; one token each."""
    head = _head(card, number, is_chat=is_chat, is_chunk=True)
    wants_ids = body.get("return_token_ids")

    def chunk(delta: dict[str, Any] | str, **more: Any) -> dict[str, Any]:
        content = {"delta": delta} if is_chat else {"text": delta}
        return head | {"choices": [{"index": 0, **content, "logprobs": None, "finish_reason": None, **more}]}

    if is_chat:
        yield chunk({"role": "assistant", "content": ""})
        for thought in plan.thoughts:
            yield chunk({"reasoning": thought})
        for at, call in enumerate(plan.tool_calls):
            yield chunk({"tool_calls": [{"index": at, **call}]})
    for at, token in enumerate(plan.tokens):
        more: dict[str, Any] = {"logprobs": {"content": [_logprob(token, body)]}} if body.get("logprobs") else {}
        if wants_ids:
            more["token_ids"] = [1000 + at]
            if at == 0:
                more["prompt_token_ids"] = count_tokens(card, body)
        yield chunk({"content": token} if is_chat else token, **more)
    yield chunk({} if is_chat else "", finish_reason=plan.finish_reason, stop_reason=plan.stop_reason)
    if (body.get("stream_options") or {}).get("include_usage"):
        seconds = 0.001 * len(plan.tokens)
        yield head | {
            "choices": [], "usage": plan.usage, "metrics": metrics(plan, seconds), "system_fingerprint": "fake",
        }  # fmt: skip


def embeddings(card: Card, body: dict[str, Any], number: int) -> dict[str, Any]:
    """Vectors that differ by text and are the same every time; of length 1. Raises Refused as vLLM would."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    if not texts:
        raise Refused(400, "You must pass at least one prompt")
    if (dimensions := body.get("dimensions")) is not None:
        raise Refused(
            400,
            f"Model '{card.names[0]}' does not support Matryoshka embeddings; dimensions must be unset"
            f" (received dimensions={dimensions}).",
        )
    prompts = [_embedded(card, text, body.get("truncate_prompt_tokens")) for text in texts]
    data: list[dict[str, Any]] = []
    for index, words in enumerate(prompts):
        raw = [1.0 + (sum(map(ord, "".join(words))) * (at + 1)) % 97 for at in range(EMBEDDING_LENGTH)]
        norm = sum(each * each for each in raw) ** 0.5
        vector: Any = [each / norm for each in raw]
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"={EMBEDDING_LENGTH}f", *vector)).decode()
        data.append({"index": index, "object": "embedding", "embedding": vector})
    count = sum(len(words) for words in prompts)
    usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0, "prompt_tokens_details": None}
    return {
        "id": f"embd-{number}", "object": "list", "created": 0, "model": card.names[0], "data": data, "usage": usage,
    }  # fmt: skip


def _embedded(card: Card, text: str, kept: int | None) -> list[str]:
    """The tokens of a text: its words and one at either end, as an encoder has them."""
    words = text.split()
    count = len(words) + 2
    limit = card.max_model_len
    if kept is not None and kept > limit:
        raise Refused(
            400,
            "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size.",
        )
    if kept is None and count > limit:
        raise Refused(
            400,
            f"This model's maximum context length is {limit} tokens. However, your prompt contains at least {limit + 1}"
            " input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the"
            f" input prompt. (parameter=input_tokens, value={limit + 1})",
            param="input_tokens",
        )
    if kept is not None:
        words = words[: max((limit if kept < 0 else kept) - 2, 0)]
    return ["[CLS]", *words, "[SEP]"]


def _head(card: Card, number: int, *, is_chat: bool, is_chunk: bool = False) -> dict[str, Any]:
    kind = ("chat.completion" if is_chat else "text_completion") + (".chunk" if is_chat and is_chunk else "")
    prefix = "chatcmpl" if is_chat else "cmpl"
    return {"id": f"{prefix}-{number:016x}", "object": kind, "created": 1_700_000_000, "model": card.names[0]}


def _logprob(token: str, body: dict[str, Any]) -> dict[str, Any]:
    one = {"token": token, "logprob": -0.25, "bytes": list(token.encode())}
    other = {"token": " other", "logprob": -1.5, "bytes": list(b" other")}
    return one | {"top_logprobs": [one, other][: int(body.get("top_logprobs") or 0)]}


def _parts(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else []


def _text(content: Any) -> str:
    return " ".join(part.get("text", "") for part in content) if isinstance(content, list) else str(content or "")


def _list(stop: Any) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or [])


def sse(data: dict[str, Any] | str) -> bytes:
    """One event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return f"data: {text}\n\n".encode()
