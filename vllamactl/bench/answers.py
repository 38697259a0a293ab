"""What is sent and what came back, in the two dialects (floor 3). Pure; everything is read after the clock has stopped.

Tokens are those that the server counted: chunks are not tokens.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from vllamactl.bench.workload import Ask

Api = Literal["ollama", "openai"]
Reads = Sequence[tuple[float, bytes]]

PATHS: dict[Api, str] = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}
MOST_WORDS = 200
UNKNOWN = "unknown"
"""How an answer ended, by a server that says that it did and not why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request has no whole answer. ``reason`` is a name of the table of reasons; ``kind`` is what failures are
    counted by: "status 503", "connection", "timeout", "broken off", "told in the answer"."""

    kind: str
    reason: str
    words: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """What happened to one request, as bytes. Instants are seconds since the beginning of its round; ``status`` 0: no
    head of an answer came; ``fault`` is what the connection failed of."""

    index: int
    intended_s: float
    sent_s: float
    end_s: float
    status: int
    reads: Reads
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and what it took. Of a request with a fault nothing but that counts.

    ``intended_s`` is when it should have been sent, and what its times are counted from: in an open loop a client that
    was late must not make the server look quick. ``text`` is a short digest, to see who said the same.
    """

    index: int
    intended_s: float
    sent_s: float
    first_s: float
    end_s: float
    prompt_tokens: int = 0
    tokens: int = 0
    ending: str = ""
    text: str = ""
    fault: Fault | None = None

    @property
    def latency_s(self) -> float:
        """To the last byte."""
        return self.end_s - self.intended_s

    @property
    def first_token_s(self) -> float:
        """To the bytes that completed the first line with text (or thinking) in it; to the end if there was none."""
        return self.first_s - self.intended_s

    @property
    def per_token_s(self) -> float | None:
        """Mean time between two tokens after the first; None for an answer that has no two."""
        return (self.end_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None


def body(api: Api, model: str, ask: Ask) -> bytes:
    """The request: the likeliest tokens only, and no penalty for repeating, which older Ollamas have by default."""
    fields: dict[str, Any] = {"model": model, "messages": list(ask.messages), "stream": True}
    if api == "ollama":
        fields["options"] = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": ask.max_tokens}
    else:
        fields |= {"temperature": 0, "max_tokens": ask.max_tokens, "stream_options": {"include_usage": True}}
    return json.dumps(fields).encode()


@dataclass
class _Found:
    first_s: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    ending: str = ""
    is_whole: bool = False
    fault: Fault | None = None


def read_exchange(api: Api, exchange: Exchange) -> Sample:
    """Read what came back."""
    found, text = _Found(), hashlib.sha256()
    if exchange.status and exchange.status != 200:
        found.fault = read_refusal(exchange.status, b"".join(chunk for _, chunk in exchange.reads))
    else:
        for at_s, line in _lines(exchange.reads):
            try:
                said = (_ollama if api == "ollama" else _openai)(line, found)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
                found.fault = Fault("not understood", "INTERNAL", f"the answer has a line that is none: {_cut(line)}")
                break
            if said:
                found.first_s = at_s if found.first_s is None else found.first_s
                text.update(said.encode(errors="replace"))
            if found.fault is not None or found.is_whole:
                break
    # What the connection did after the end of the answer is no harm to it.
    fault = found.fault or (None if found.is_whole else exchange.fault) or _incomplete(found)
    first_s = exchange.end_s if found.first_s is None else found.first_s
    return Sample(
        exchange.index,
        exchange.intended_s,
        exchange.sent_s,
        first_s,
        exchange.end_s,
        found.prompt_tokens,
        found.tokens,
        found.ending,
        text.hexdigest()[:12],
        fault,
    )


def read_refusal(status: int, content: bytes) -> Fault:
    """What a status other than 200 says. The OpenAI face of vllama names the reason; elsewhere the status must do."""
    code = ""
    try:
        error: object = json.loads(content)["error"]
        words = str(error)
        if isinstance(error, dict):
            told = cast("dict[str, Any]", error)
            words, code = str(told["message"]), str(told.get("code", "")).upper()
    except (ValueError, TypeError, KeyError, RecursionError):
        words = _cut(content)
    from vllama.reasons import Reason

    reason = code if code in Reason.__members__ else _REASONS.get(status, "ENGINE_DIED" if status >= 500 else "")
    return Fault(f"status {status}", reason or "INVALID_REQUEST", words)


_REASONS = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "MODEL_NOT_FOUND",
    429: "QUEUE_FULL",
    503: "QUEUE_FULL",
    504: "DEADLINE_EXCEEDED",
    529: "QUEUE_FULL",
}


def _lines(reads: Reads) -> Iterator[tuple[float, bytes]]:
    """Lines, each with the instant of the read that completed it."""
    rest = b""
    for at_s, chunk in reads:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line := line.strip():
                yield at_s, line
    if rest.strip() and reads:
        yield reads[-1][0], rest.strip()


def _ollama(line: bytes, found: _Found) -> str:
    data: dict[str, Any] = json.loads(line)
    if "error" in data:
        found.fault = Fault("told in the answer", "ENGINE_DIED", str(data["error"]))
        return ""
    message: dict[str, Any] = data["message"]
    if data.get("done"):
        found.is_whole = True
        found.tokens, found.prompt_tokens = int(data.get("eval_count", 0)), int(data.get("prompt_eval_count", 0))
        found.ending = str(data.get("done_reason") or UNKNOWN)
    return _words(message, ("thinking", "content"))


def _openai(line: bytes, found: _Found) -> str:
    if not line.startswith(b"data:"):
        return ""  # a comment that keeps the connection open, or an event's name
    content = line.removeprefix(b"data:").strip()
    if content == b"[DONE]":
        found.is_whole = True
        return ""
    data: dict[str, Any] = json.loads(content)
    if "error" in data:
        error: Any = data["error"]
        found.fault = Fault("told in the answer", "ENGINE_DIED", str(error.get("message", error)))
        return ""
    if usage := data.get("usage"):
        found.tokens, found.prompt_tokens = int(usage["completion_tokens"]), int(usage.get("prompt_tokens", 0))
    said = ""
    for choice in data["choices"]:
        said += _words(choice["delta"], ("reasoning", "reasoning_content", "content"))
        found.ending = choice.get("finish_reason") or found.ending
    return said


def _words(message: dict[str, Any], names: Iterable[str]) -> str:
    return "".join(str(message.get(name) or "") for name in names)


def _incomplete(found: _Found) -> Fault | None:
    if not found.is_whole or not found.ending:
        return Fault("broken off", "ENGINE_DIED", "the answer ended before its end")
    if not found.tokens:
        return Fault("not counted", "UNSUPPORTED", "the server did not say how many tokens it answered")
    return None


def _cut(content: bytes) -> str:
    text = content.decode(errors="replace").strip()
    return text if len(text) <= MOST_WORDS else text[:MOST_WORDS] + "…"
