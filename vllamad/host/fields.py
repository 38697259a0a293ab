"""Fields of log lines as text (floor 2): ``key=value``, quoted where a reader could not tell where a value ends."""

import json
import math
import re
from collections.abc import Mapping
from enum import Enum

Fields = Mapping[str, object]

_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+")


def write_fields(fields: Fields) -> str:
    """All fields on one line, in their order."""
    return " ".join(f"{key}={write_value(value)}" for key, value in fields.items())


def write_value(value: object) -> str:
    """A value that stays on its line: numbers short, nothing as ``-``, odd text as a JSON string."""
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case Enum():
            return write_value(value.value)
        case float():
            return _number(value)
        case _:
            text = str(value)
            return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "forever" if value > 0 else str(value)
    return f"{value:.3f}".rstrip("0").rstrip(".")
