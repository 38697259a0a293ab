"""The engine's answer as Ollama's lines (floor 1): streamed frame by frame, or whole.

Counts and times are the engine's own. A stream that ends without its end is never finished as if it were whole.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import orjson

from vllama.reasons import Reason
from vllamad.dialects.frames import EventParser
from vllamad.dialects.go_values import as_dict, dumps, escape
from vllamad.dialects.openai import DONE, Delta, Metrics, ToolCallPart, Usage, read_answer, read_delta
from vllamad.domain.errors import VllamaError

_LEAST_NS = 1000
"""Clients divide by ``eval_duration``; Ollama too reports 1 µs for a single token."""

LINES_END = b"\x1e"
"""Behind it, in a stream that the engine writes as lines, stand its own frames. In no line: JSON escapes it."""

_DONE_REASONS = {"length": "length"}
_NOT_AN_END = frozenset({"abort", "error"})
_ENGINES_CALL = "chatcmpl-tool-"
"""How ids of tool calls begin unless the model's own format brings them."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What the daemon measured of one request, in ns. ``prompt_ns`` and ``generation_ns`` (to the first byte, first to
    last byte) only serve where the engine tells no metrics."""

    total_ns: int
    load_ns: int
    prompt_ns: int = 0
    generation_ns: int = 0


class _Call:
    """A tool call on its way together."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def add(self, part: ToolCallPart) -> None:
        self.id = self.id or part.id
        self.name = self.name or part.name
        self.arguments.append(part.arguments)

    def parse(self) -> dict[str, Any] | None:
        """The arguments as an object; None if the model wrote something else."""
        text = "".join(self.arguments).strip()
        if not text:
            return {}
        try:
            return as_dict(orjson.loads(text))
        except orjson.JSONDecodeError:
            return None


class _Reply(ABC):
    """What chat and generate share. ``feed`` the engine's bytes until ``is_over``, then ``finish``; or give a whole
    answer to ``answer``. After ``error`` is set nothing more comes out."""

    def __init__(self, model: str, *, top_logprobs: int = 0, wants_context: bool = False) -> None:
        self.error: VllamaError | None = None
        self.usage: Usage | None = None
        self.is_over = False
        """The engine's end mark has come."""
        self._parser = EventParser()
        self._passes = False
        """What comes are lines."""
        self._prefix = b'{"model":' + dumps(model) + b',"created_at":"'
        self._top_logprobs = top_logprobs
        self._wants_context = wants_context
        self._finish_reason = ""
        self._metrics: Metrics | None = None
        self._context: list[int] = []
        self._calls: dict[int, _Call] = {}
        self._call_count = 0
        self._has_thought = False
        self._is_after_thinking = False
        self._blanks = ""
        """The end of the thinking so far, kept back until more of it comes."""

    def expect_lines(self) -> tuple[str, str, str]:
        """Take what comes for lines, up to ``LINES_END``. Returns the parts of a line around its time and its text."""
        self._passes = True
        head, middle, end = self._text_line(self._prefix + LINES_END, LINES_END).decode().split(LINES_END.decode())
        return head, middle, end

    def passes(self, chunk: bytes) -> bool:
        """True for lines that only have to be sent on; anything else is for ``feed``."""
        return self._passes and LINES_END not in chunk

    def feed(self, chunk: bytes, created_at: str) -> bytes:
        """Translate what has arrived; returns the lines that are due now, maybe none."""
        lines: list[bytes] = []
        if self._passes:
            passed, end, chunk = chunk.partition(LINES_END)
            self._passes = not end
            lines.append(passed)
        for payload in self._parser.feed(chunk):
            if payload == DONE:
                self.is_over = True
                break
            delta = read_delta(payload)
            if delta.error is not None:
                self.error = delta.error
                break
            if delta.thinking or self._is_after_thinking:
                self._trim(delta)
            if delta.text or delta.thinking or delta.logprobs:
                self._write_text(delta, created_at, lines)
            if delta.tool_calls or delta.finish_reason:
                self._write_calls(delta, created_at, lines)
            self._note(delta)
        return b"".join(lines)

    def finish(self, created_at: str, timing: Timing) -> bytes:
        """The last line. Raises ENGINE_DIED if the stream broke off before its end."""
        if self.error is not None:
            raise self.error
        if not self.is_over or not self._finish_reason:
            raise VllamaError(
                Reason.ENGINE_DIED,
                "the engine broke off its answer before the end",
                "see its last lines: vllamactl logs MODEL",
            )
        return self._object(created_at, timing) + b"\n"

    def answer(self, body: bytes, created_at: str, timing: Timing) -> bytes:
        """The single object for a request that is not streamed. Raises ENGINE_DIED if the answer is none."""
        delta = read_answer(body)
        if delta.error is not None:
            raise delta.error
        self._note(delta)
        if self.error is not None:
            raise self.error
        self._trim(delta)
        calls: list[dict[str, Any]] = []
        text = delta.text
        for part in delta.tool_calls or ():
            call = _Call()
            call.add(part)
            arguments = call.parse()
            if arguments is None:
                text += _as_text(call)
            else:
                calls.append(self._tool_call(call, arguments))
        return self._object(
            created_at, timing, text, delta.thinking, calls, self._logprobs(delta.logprobs) if delta.logprobs else None
        )

    def _note(self, delta: Delta) -> None:
        if delta.usage is not None:
            self.usage = delta.usage
            self._metrics = delta.metrics
        if self._wants_context:
            if delta.prompt_token_ids:
                self._context = list(delta.prompt_token_ids) + self._context
            if delta.token_ids:
                self._context += delta.token_ids[:-1] if delta.is_eos else delta.token_ids
        if delta.finish_reason:
            if delta.finish_reason in _NOT_AN_END:
                self.error = VllamaError(
                    Reason.ENGINE_DIED,
                    f"the engine gave the request up ({delta.finish_reason})",
                    "see its last lines: vllamactl logs MODEL",
                )
            self._finish_reason = _DONE_REASONS.get(delta.finish_reason, "stop")

    def _trim(self, delta: Delta) -> None:
        """Take the blanks around thinking away, as Ollama's parsers do: they belong to its marks (``<think>`` and its
        end stand on lines of their own), and clients show what they get."""
        if delta.thinking:
            thought = self._blanks + delta.thinking
            delta.thinking = (thought if self._has_thought else thought.lstrip()).rstrip()
            self._has_thought = self._has_thought or bool(delta.thinking)
            self._blanks = thought[len(thought.rstrip()) :]
            self._is_after_thinking = True
        if self._is_after_thinking and delta.text:
            delta.text = delta.text.lstrip()
            self._is_after_thinking = not delta.text

    def _write_text(self, delta: Delta, created_at: str, lines: list[bytes]) -> None:
        head = self._prefix + created_at.encode()
        if delta.thinking:
            lines.append(self._thinking_line(head, escape(orjson.dumps(delta.thinking))))
            if not delta.text and not delta.logprobs:
                return
        text = escape(orjson.dumps(delta.text))
        if delta.logprobs is None:
            lines.append(self._text_line(head, text))
        else:
            tail = b',"logprobs":' + dumps(self._logprobs(delta.logprobs)) + b"}\n"
            lines.append(self._text_line(head, text)[:-2] + tail)

    def _write_calls(self, delta: Delta, created_at: str, lines: list[bytes]) -> None:
        """Calls leave whole: one is whole when the next begins, or at the end."""
        done: list[_Call] = []
        for part in delta.tool_calls or ():
            if part.index not in self._calls:
                done += self._calls.values()
                self._calls = {part.index: _Call()}
            self._calls[part.index].add(part)
        if delta.finish_reason:
            done += self._calls.values()
            self._calls = {}
        head = self._prefix + created_at.encode()
        for call in done:
            arguments = call.parse()
            if arguments is None:
                lines.append(self._text_line(head, dumps(_as_text(call))))
            else:
                lines.append(self._calls_line(head, dumps([self._tool_call(call, arguments)])))

    def _tool_call(self, call: _Call, arguments: dict[str, Any]) -> dict[str, Any]:
        index = self._call_count
        self._call_count += 1
        # Ollama's ids begin with call_, and some clients look at that. One that is the model's own stays: its template
        # may want it back.
        identity = f"call_{call.id.removeprefix(_ENGINES_CALL)}" if call.id.startswith(_ENGINES_CALL) else call.id
        return {"id": identity, "function": {"index": index, "name": call.name, "arguments": arguments}}

    def _logprobs(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._logprob(entry, is_top=False) for entry in entries]

    def _logprob(self, entry: dict[str, Any], *, is_top: bool) -> dict[str, Any]:
        shown: dict[str, Any] = {"token": entry.get("token", ""), "logprob": entry.get("logprob", 0.0)}
        if entry.get("bytes"):
            shown["bytes"] = entry["bytes"]
        if not is_top and self._top_logprobs:
            tops: list[dict[str, Any]] = entry.get("top_logprobs") or []
            shown["top_logprobs"] = [self._logprob(top, is_top=True) for top in tops[: self._top_logprobs]]
        return shown

    def _counts(self, timing: Timing) -> dict[str, Any]:
        """The fields that say how much and how long; what is zero or unknown is left out, as Ollama does."""
        fields: dict[str, Any] = {"total_duration": timing.total_ns, "load_duration": timing.load_ns}
        usage, metrics = self.usage, self._metrics or Metrics()
        if usage is not None and usage.prompt_tokens:
            fields["prompt_eval_count"] = usage.prompt_tokens
            fields["prompt_eval_duration"] = max(metrics.prompt_ns or timing.prompt_ns, _LEAST_NS)
        if usage is not None and usage.completion_tokens:
            fields["eval_count"] = usage.completion_tokens
            fields["eval_duration"] = max(metrics.generation_ns or timing.generation_ns, _LEAST_NS)
        return {name: value for name, value in fields.items() if value}

    @abstractmethod
    def _text_line(self, head: bytes, text: bytes) -> bytes: ...

    @abstractmethod
    def _thinking_line(self, head: bytes, text: bytes) -> bytes: ...

    @abstractmethod
    def _calls_line(self, head: bytes, calls: bytes) -> bytes: ...

    @abstractmethod
    def _object(
        self,
        created_at: str,
        timing: Timing,
        text: str = "",
        thinking: str = "",
        calls: list[dict[str, Any]] | None = None,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> bytes: ...

    def _rest(self, head: bytes, fields: dict[str, Any]) -> bytes:
        return head + b"," + dumps(fields)[1:]


class ChatStream(_Reply):
    """Lines of ``/api/chat``."""

    def _text_line(self, head: bytes, text: bytes) -> bytes:
        return b"".join((head, b'","message":{"role":"assistant","content":', text, b'},"done":false}\n'))

    def _thinking_line(self, head: bytes, text: bytes) -> bytes:
        return b"".join((head, b'","message":{"role":"assistant","content":"","thinking":', text, b'},"done":false}\n'))

    def _calls_line(self, head: bytes, calls: bytes) -> bytes:
        return b"".join(
            (head, b'","message":{"role":"assistant","content":"","tool_calls":', calls, b'},"done":false}\n')
        )

    def _object(
        self,
        created_at: str,
        timing: Timing,
        text: str = "",
        thinking: str = "",
        calls: list[dict[str, Any]] | None = None,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        fields: dict[str, Any] = {"message": message, "done": True, "done_reason": self._finish_reason or "stop"}
        if logprobs:
            fields["logprobs"] = logprobs
        return self._rest(self._prefix + created_at.encode() + b'"', fields | self._counts(timing))


class GenerateStream(_Reply):
    """Lines of ``/api/generate``; its end carries ``context``, the token ids of prompt and answer, if they were asked
    of the engine."""

    def _text_line(self, head: bytes, text: bytes) -> bytes:
        return b"".join((head, b'","response":', text, b',"done":false}\n'))

    def _thinking_line(self, head: bytes, text: bytes) -> bytes:
        return b"".join((head, b'","response":"","thinking":', text, b',"done":false}\n'))

    def _calls_line(self, head: bytes, calls: bytes) -> bytes:
        return b"".join((head, b'","response":"","done":false,"tool_calls":', calls, b"}\n"))

    def _object(
        self,
        created_at: str,
        timing: Timing,
        text: str = "",
        thinking: str = "",
        calls: list[dict[str, Any]] | None = None,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> bytes:
        fields: dict[str, Any] = {"response": text}
        if thinking:
            fields["thinking"] = thinking
        fields |= {"done": True, "done_reason": self._finish_reason or "stop"}
        if self._context:
            fields["context"] = self._context
        fields |= self._counts(timing)
        if calls:
            fields["tool_calls"] = calls
        if logprobs:
            fields["logprobs"] = logprobs
        return self._rest(self._prefix + created_at.encode() + b'"', fields)


def _as_text(call: _Call) -> str:
    """A call whose arguments are no object reaches the client as what the model wrote."""
    return f'{{"name": {orjson.dumps(call.name).decode()}, "arguments": {"".join(call.arguments)}}}'
