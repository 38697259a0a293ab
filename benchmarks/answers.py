"""Streamed answers, read after the clock has stopped. Pure.

Tokens are counted by the engine, in what it says of its usage: chunks are not tokens.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Dialect = Literal["ollama", "openai"]


class BadAnswer(Exception):
    """No whole answer, so nothing that could be measured."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``first_s``: from the request to the bytes that completed the first line with text in it."""

    tokens: int
    first_s: float
    last_s: float
    text: str


def read_answer(dialect: Dialect, reads: Iterable[tuple[float, bytes]]) -> Answer:
    """Read what arrived, as (seconds after the request, bytes). Raises BadAnswer."""
    first_s = last_s = 0.0
    tokens = 0
    texts: list[str] = []
    for at_s, line in _lines(reads):
        last_s = at_s
        data = _data(dialect, line)
        if data is None:
            continue
        text, count = _ollama(data) if dialect == "ollama" else _openai(data)
        if text:
            first_s = first_s or at_s
            texts.append(text)
        tokens = count or tokens
    if not tokens or not texts:
        raise BadAnswer(f"the answer ended without a count of its tokens; its text is {''.join(texts)[:80]!r}")
    return Answer(tokens, first_s, last_s, "".join(texts))


def _lines(reads: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    rest = b""
    for at_s, chunk in reads:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield at_s, line


def _data(dialect: Dialect, line: bytes) -> dict[str, Any] | None:
    if dialect == "openai":
        if not line.startswith(b"data: ") or line == b"data: [DONE]":
            return None
        line = line.removeprefix(b"data: ")
    if not line:
        return None
    data: dict[str, Any] = json.loads(line)
    if "error" in data:
        raise BadAnswer(f"the answer holds an error: {data['error']}")
    return data


def _ollama(data: dict[str, Any]) -> tuple[str, int]:
    return data["message"]["content"], data.get("eval_count", 0)


def _openai(data: dict[str, Any]) -> tuple[str, int]:
    choices = data["choices"]
    text = choices[0]["delta"].get("content") or "" if choices else ""
    usage: dict[str, int] = data.get("usage") or {}
    return text, usage.get("completion_tokens", 0)
