"""Questions whose answers are known beforehand, on several faces, and the judgement of what came back.

The fake engine says the model's voice, the question and then counts, so an answer tells whose it is and to what. An
answer is WHOLE when its framing is, its last frame says so and every word is right; an ERROR when it says so itself, by
status or in band; BROKEN when the connection ended before the framing did. Anything else is a lie, and a violation.
"""

import json
from dataclasses import dataclass, field
from enum import Enum
from itertools import cycle, islice
from typing import Any

from tests.fakes.engine_answers import WORDS


class Wire(Enum):
    """A route and whether the answer comes as a stream."""

    CHAT = ("/api/chat", True)
    CHAT_WHOLE = ("/api/chat", False)
    GENERATE = ("/api/generate", True)
    OPENAI = ("/v1/chat/completions", True)
    OPENAI_WHOLE = ("/v1/chat/completions", False)
    COMPLETIONS = ("/v1/completions", True)

    @property
    def path(self) -> str:
        return self.value[0]

    @property
    def is_stream(self) -> bool:
        return self.value[1]

    @property
    def is_ollama(self) -> bool:
        return self.path.startswith("/api/")


class Kind(Enum):
    """What became of a request."""

    WHOLE = "whole answer"
    ERROR = "explicit error"
    BROKEN = "connection broke"
    REFUSED = "connection refused"
    LEFT = "client left"
    DENIED = "model denied"
    WRONG = "wrong answer"
    HUNG = "hung"


@dataclass
class Outcome:
    """How a request ended; ``detail`` says why, for people."""

    kind: Kind
    detail: str = ""
    status: int = 0
    began_at: float = 0.0
    ended_at: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind.value} after {self.ended_at - self.began_at:.1f} s ({self.detail or self.status})"


@dataclass(frozen=True)
class Question:
    """``voice`` and ``tokens`` are the model's: how its answers begin, and how far it counts if nothing limits it."""

    model: str
    voice: str
    tokens: int
    text: str
    wire: Wire = Wire.CHAT
    limit: int | None = None

    def body(self) -> bytes:
        fields: dict[str, Any] = {"model": self.model, "stream": self.wire.is_stream}
        if self.wire is Wire.GENERATE or self.wire is Wire.COMPLETIONS:
            fields["prompt"] = self.text
        else:
            fields["messages"] = [{"role": "user", "content": self.text}]
        # /v1/completions counts to 16 by itself.
        limit = self.limit or (1000 if self.wire is Wire.COMPLETIONS else None)
        if limit is not None:
            fields |= {"options": {"num_predict": limit}} if self.wire.is_ollama else {"max_tokens": limit}
        return json.dumps(fields).encode()

    @property
    def expected(self) -> str:
        words = [self.voice, *self.text.split(), *islice(cycle(WORDS), self.tokens)]
        return " ".join(words[: self.limit])

    def __str__(self) -> str:
        how = "streamed" if self.wire.is_stream else "whole"
        return f"{self.model} {self.wire.path} {how} {self.text!r}"


@dataclass
class Reading:
    """An answer as it comes: fed bytes of the body, judged at the end."""

    question: Question
    status: int = 0
    text: str = ""
    pieces: int = 0
    error: str = ""
    is_finished: bool = False
    _rest: bytes = b""
    _strange: list[str] = field(default_factory=list)

    def feed(self, data: bytes) -> None:
        if self.status != 200 or not self.question.wire.is_stream:
            self._rest += data
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._frame(line)

    def _frame(self, line: bytes) -> None:
        if not self.question.wire.is_ollama:
            if not line.startswith(b"data: "):
                self._strange.append(f"not an event: {line[:200]!r}")
                return
            line = line.removeprefix(b"data: ").strip()
            if line == b"[DONE]":
                self.is_finished = True
                return
        try:
            self._take(json.loads(line))
        except (ValueError, LookupError, TypeError) as error:
            self._strange.append(f"{error!r} in {line[:200]!r}")

    def _take(self, frame: dict[str, Any]) -> None:
        """One frame of a stream, or a whole answer."""
        if "error" in frame:
            self.error = str(frame["error"])[:300]
            return
        if self.question.wire.is_ollama:
            said = frame["message"]["content"] if "message" in frame else frame["response"]
            if frame["done"]:
                self.is_finished = True
        else:
            choice = frame["choices"][0]
            is_chat = "chat" in self.question.wire.path
            said = choice.get("message", choice.get("delta", {})).get("content") or "" if is_chat else choice["text"]
            if not self.question.wire.is_stream:
                self.is_finished = choice["finish_reason"] in {"stop", "length"}
        self.text += said
        self.pieces += bool(said)

    def end(self) -> Outcome:
        """The judgement, where the framing was whole."""
        if self._rest.strip():
            try:
                self._take(json.loads(self._rest))
            except (ValueError, LookupError, TypeError) as error:
                self._strange.append(f"{error!r} in {self._rest[:200]!r}")
        if self._strange:
            return Outcome(Kind.WRONG, "; ".join(self._strange), self.status)
        if self.status != 200:
            return self._refused()
        if (broken := self.end_broken()).kind is Kind.WRONG:
            return broken
        if self.error:
            # The engine itself sends [DONE] after its error; Ollama's `done` would call the answer whole.
            if self.question.wire.is_ollama and self.is_finished:
                return Outcome(Kind.WRONG, f"an error and done: {self.error}", self.status)
            return Outcome(Kind.ERROR, f"in band: {self.error}", self.status)
        if not self.is_finished:
            return Outcome(Kind.WRONG, f"truncated without a word: {self.text!r}", self.status)
        if self.text != self.question.expected:
            return Outcome(Kind.WRONG, f"said {self.text!r} instead of {self.question.expected!r}", self.status)
        return Outcome(Kind.WHOLE, "", self.status)

    def _refused(self) -> Outcome:
        if not self.error:
            return Outcome(Kind.WRONG, f"status {self.status} without an error", self.status)
        if self.status == 404:
            return Outcome(Kind.DENIED, f"404: {self.error}", self.status)
        if self.status < 429:
            return Outcome(Kind.WRONG, f"status {self.status} for a good request: {self.error}", self.status)
        return Outcome(Kind.ERROR, f"{self.status}: {self.error}", self.status)

    def end_broken(self) -> Outcome:
        """The judgement, where the connection broke: what came until then has to be right all the same."""
        if not self.question.expected.startswith(self.text):
            detail = f"said {self.text!r}, which {self.question.expected!r} does not begin with"
            return Outcome(Kind.WRONG, detail, self.status)
        return Outcome(Kind.BROKEN, f"after {self.pieces} pieces", self.status)
