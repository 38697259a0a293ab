"""Layers of configuration (floor 2): values with their sources, and every problem that was met while reading them.

A layer is what one source says. Problems are gathered, never raised one by one, so that a person corrects them all at
once.
"""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from vllamad.config.kinds import Refused, quoted
from vllamad.config.rows import Row


@dataclass(frozen=True, slots=True)
class Found:
    """A value that one source gives. ``source`` is "default", a file with line, a variable's name or a flag."""

    value: object
    source: str


Layer = dict[str, Found]


@dataclass(slots=True)
class Findings:
    """What was met on the way: problems stop the daemon, warnings are logged."""

    problems: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])


def read_value(row: Row, raw: object, source: str, problems: list[str]) -> Found | None:
    """Read a value of a file as the row's kind takes it; None after noting a problem."""
    try:
        return Found(row.kind.from_toml(raw), source)
    except Refused as error:
        problems.append(_refusal(row, raw, source, error))
        return None


def read_text(row: Row, text: str, source: str, problems: list[str]) -> Found | None:
    """The same for a value of the environment or the command line."""
    try:
        return Found(row.kind.from_text(text), source)
    except Refused as error:
        problems.append(_refusal(row, text, source, error))
        return None


def _refusal(row: Row, raw: object, source: str, error: Refused) -> str:
    found = "a value that is not shown" if row.is_secret else describe(raw)
    more = f" ({error})" if str(error) else ""
    return f"{source}: {row.key}: found {found}; allowed: {row.kind.allowed}{more}"


def describe(raw: object) -> str:
    """A value as its writer would recognise it, cut to a line."""
    match raw:
        case str():
            text = quoted(raw)
        case bool():
            text = "true" if raw else "false"
        case list():
            text = json.dumps(raw, ensure_ascii=False, default=str)
        case dict():
            text = "a table"
        case _:
            text = str(raw)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name that was probably meant; "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return near[0] if near else ""
