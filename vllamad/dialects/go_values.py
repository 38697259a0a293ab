"""Values as Ollama's server, a Go program, reads and writes them (floor 1): JSON text, durations, instants."""

import math
import re
from datetime import UTC, datetime
from typing import Any

import orjson

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

NS_PER_S = 1_000_000_000
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"[0-9]*(?:\.[0-9]*)?")
_UNIT = re.compile(r"[^0-9.]+")
_MAX_S = 2**63 / NS_PER_S
"""A duration is a signed 64-bit count of nanoseconds there: about 292 years."""

FOREVER_S = _MAX_S
"""What "for ever" looks like on the wire: clients show anything over 20 years as such."""

_GO_ESCAPES = re.compile(rb"[<>&]|\xe2\x80[\xa8\xa9]")
_GO_ESCAPED = {
    b"<": b"\\u003c",
    b">": b"\\u003e",
    b"&": b"\\u0026",
    b"\xe2\x80\xa8": b"\\u2028",
    b"\xe2\x80\xa9": b"\\u2029",
}


def dumps(value: object) -> bytes:
    """Write compact JSON with ``< > &`` and the two Unicode line separators escaped, as Go does."""
    return escape(orjson.dumps(value))


def escape(text: bytes) -> bytes:
    """Escape what Go escapes in JSON text; such characters only occur inside its strings."""
    if b"<" in text or b">" in text or b"&" in text or b"\xe2\x80" in text:
        return _GO_ESCAPES.sub(lambda found: _GO_ESCAPED[found[0]], text)
    return text


def parse_duration(text: str) -> float:
    """Read a Go duration ("5m", "1h30m", "-1.5s", "0") into seconds. Raises INVALID_REQUEST in Go's words."""
    rest = text
    sign = 1.0
    if rest[:1] in {"-", "+"}:
        sign = -1.0 if rest[0] == "-" else 1.0
        rest = rest[1:]
    if rest == "0":
        return 0.0
    if not rest:
        raise _invalid_duration(text)
    total = 0.0
    while rest:
        number = _NUMBER.match(rest)
        digits = number[0] if number else ""
        if digits in {"", "."}:
            raise _invalid_duration(text)
        rest = rest[len(digits) :]
        unit = _UNIT.match(rest)
        if unit is None:
            raise _refuse(f'time: missing unit in duration "{text}"')
        if unit[0] not in _UNITS_S:
            raise _refuse(f'time: unknown unit "{unit[0]}" in duration "{text}"')
        total += float(digits) * _UNITS_S[unit[0]]
        rest = rest[unit.end() :]
    if total >= _MAX_S:
        raise _invalid_duration(text)
    return sign * total


def parse_keep_alive(value: object) -> float | None:
    """Read a ``keep_alive``: None if absent, else seconds; ``math.inf`` for ever, 0 unload right after.

    Numbers are seconds, strings are Go durations, anything negative is for ever. Raises INVALID_REQUEST.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise _refuse("Unsupported type: 'bool'")
    if isinstance(value, int | float):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = parse_duration(value)
    else:
        raise _refuse(
            f"Unsupported type: '{'map[string]interface {}' if isinstance(value, dict) else '[]interface {}'}'"
        )
    return math.inf if seconds < 0 or seconds >= _MAX_S else seconds


class Stamp:
    """Writes instants (wall time in ns) as RFC 3339 in UTC with up to nine digits, trailing zeros trimmed. The part
    down to the second is kept: a stream asks for thousands of them."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, time_ns: int) -> str:
        second, fraction = divmod(time_ns, NS_PER_S)
        if second != self._second:
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second
        if not fraction:
            return self._text + "Z"
        return f"{self._text}.{fraction:09d}".rstrip("0") + "Z"


def local_instant(time_s: float) -> str:
    """RFC 3339 with the local offset, as Ollama shows file and expiry times; years beyond what Python can show are
    clipped."""
    moment = datetime.fromtimestamp(min(time_s, 253_000_000_000), UTC).astimezone()
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    if moment.microsecond:
        text += f".{moment.microsecond:06d}".rstrip("0")
    offset = moment.strftime("%z")
    return text + ("Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:5]}")


def go_kind(value: object) -> str:
    """What Go's decoder calls a JSON value in its errors."""
    match value:
        case bool():
            return "bool"
        case int():
            return "number"
        case float():
            return f"number {value!r}" if math.isfinite(value) else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def as_dict(value: Any) -> dict[str, Any] | None:
    """The value if it is a JSON object."""
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]


def as_list(value: Any) -> list[Any] | None:
    """The value if it is a JSON array."""
    return value if isinstance(value, list) else None  # pyright: ignore[reportUnknownVariableType]


def _invalid_duration(text: str) -> VllamaError:
    return _refuse(f'time: invalid duration "{text}"')


def _refuse(message: str) -> VllamaError:
    return VllamaError(
        Reason.INVALID_REQUEST,
        message,
        'keep_alive is seconds as a number, or a duration like "5m"; negative: for ever',
    )
