"""What is asked (floor 3). Pure: text in, requests out.

Prompts are *distinct* unless somebody wants otherwise: each begins with a mark that no other request has. Engines keep
what they computed for the beginning of a prompt, so a prompt that was asked before shows how fast a cache is read, and
whoever asks second shines. What stands before the prompt (a chat template's own system message) is shared all the same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

Message = dict[str, str]

_TOPICS = (
    "the sea", "a lighthouse", "old maps", "the winter", "trains", "a small garden", "bread", "the moon",
    "rivers", "a clock maker", "bees", "the desert", "paper", "a violin", "mountains", "the harbour",
)  # fmt: skip

_FIELDS = ("prompt", "messages", "max_tokens")
_ROLES = ("system", "user", "assistant")


class BadWorkload(ValueError):
    """What cannot be asked; the text names the line and the field."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a conversation, and the most tokens that may answer it."""

    messages: tuple[Message, ...]
    max_tokens: int

    def marked(self, mark: str) -> "Ask":
        """The same with a mark at its very beginning, where prefix caches look."""
        first, *rest = self.messages
        return replace(self, messages=({**first, "content": f"[{mark}] {first['content']}"}, *rest))


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, gone through from the first to the last and again. ``source`` says where they are from."""

    asks: tuple[Ask, ...]
    source: str
    is_distinct: bool

    def round(self, start: int, count: int, mark: Callable[[int], str]) -> list[Ask]:
        """The requests number ``start`` to ``start + count`` of a whole run; ``mark`` makes a mark of such a number."""
        numbers = range(start, start + count)
        asks = [self.asks[number % len(self.asks)] for number in numbers]
        if not self.is_distinct:
            return asks
        return [ask.marked(mark(number)) for number, ask in zip(numbers, asks, strict=True)]

    def repeats(self, count: int) -> int:
        """How many of so many requests say what an earlier one of them has said."""
        if self.is_distinct:
            return 0
        return count - len({_key(ask) for ask in self.asks[:count]})


def stories(max_tokens: int) -> tuple[Ask, ...]:
    """Requests whose answers run into any limit, so that both sides of a comparison do the same work."""
    return tuple(question(f"Tell me a very long story about {topic}.", max_tokens) for topic in _TOPICS)


def question(text: str, max_tokens: int) -> Ask:
    """A conversation of one turn."""
    return Ask(({"role": "user", "content": text},), max_tokens)


def read_rows(text: str, max_tokens: int, name: str = "workload") -> tuple[Ask, ...]:
    """Read JSON lines of ``prompt`` or ``messages``, and ``max_tokens`` where a row has its own. Empty lines are left
    out. Raises BadWorkload."""
    asks: list[Ask] = []
    # Not splitlines(): a JSON text may hold U+2028, which that takes for the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                asks.append(_row(line, max_tokens))
            except BadWorkload as problem:
                raise BadWorkload(f"{name}, line {number}: {problem}") from problem
    if not asks:
        raise BadWorkload(f"{name} has no rows")
    return tuple(asks)


def _row(line: str, max_tokens: int) -> Ask:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise BadWorkload(f"is no JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise BadWorkload('is no object: write {"prompt": "..."}')
    row = cast("dict[str, Any]", found)
    unknown = [name for name in row if name not in _FIELDS]
    if unknown:
        raise BadWorkload(f"{unknown[0]!r} is not known: rows have {', '.join(_FIELDS)}")
    limit = row.get("max_tokens", max_tokens)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise BadWorkload(f"max_tokens must be a whole number from 1 on, not {limit!r}")
    if ("prompt" in row) == ("messages" in row):
        raise BadWorkload("needs either prompt or messages")
    if "messages" in row:
        return Ask(_messages(row["messages"]), limit)
    prompt: object = row["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadWorkload("prompt must be a text that is not empty")
    return question(prompt, limit)


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise BadWorkload("messages must be a list that is not empty")
    messages: list[Message] = []
    for each in cast("list[object]", value):
        message = cast("dict[str, object]", each) if isinstance(each, dict) else {}
        role, content = message.get("role"), message.get("content")
        if set(message) != {"role", "content"} or role not in _ROLES or not isinstance(content, str):
            raise BadWorkload(f"a message must have a role ({', '.join(_ROLES)}) and content, a text; nothing else")
        messages.append({"role": str(role), "content": content})
    return tuple(messages)


def _key(ask: Ask) -> str:
    return json.dumps(ask.messages)


def marks(nonce: int) -> Callable[[int], str]:
    """Marks of eight hex digits that differ among the requests of a run, and from run to run by ``nonce``."""

    # An odd factor permutes the numbers below 2^32: no two requests of a run share a mark, and neighbours differ from
    # their first digit on.
    def mark(number: int) -> str:
        return f"{(nonce + number * 0x9E3779B1) % 2**32:08x}"

    return mark


def longest(asks: Sequence[Ask]) -> int:
    """The largest limit among requests."""
    return max(ask.max_tokens for ask in asks)
