"""Kinds of values that settings have (floor 2): how each is read from TOML and from text, and written again.

A kind knows nothing of keys, files or layers. It raises ``Refused`` for what it does not take; whoever asked names the
key and the place, and quotes ``allowed``.
"""

import json
import math
import re
import shlex
from collections.abc import Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")
Check = Callable[[str], None]


class Refused(ValueError):
    """A value is not one of this kind; the text, if any, says more than ``allowed`` does."""


class Kind(Generic[T]):
    """A kind of value. ``name`` is its word in the reference, ``allowed`` what an error message offers instead."""

    name: str
    allowed: str

    def from_toml(self, value: object) -> T:
        """Take a value as a TOML parser gives it; raises Refused."""
        raise Refused from TypeError(type(self), value)

    def from_text(self, text: str) -> T:
        """Take a value of the environment or the command line; raises Refused."""
        return self.from_toml(text)

    def to_toml(self, value: T) -> str:
        """Write a value so that ``from_toml`` reads an equal one."""
        return quoted(str(value))


def quoted(text: str) -> str:
    """A TOML basic string. JSON's escapes are all TOML's; only DEL needs more."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class Text(Kind[str]):
    """Any string that passes ``check``."""

    def __init__(self, allowed: str = "a string", check: Check | None = None, name: str = "string") -> None:
        self.name = name
        self.allowed = allowed
        self._check = check

    def from_toml(self, value: object) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise Refused
        if value and self._check is not None:
            self._check(value)
        return value


class Choice(Kind[str]):
    """One word of a few. With ``is_switch``, true and false stand for "on" and "off"."""

    name = "choice"

    def __init__(self, *options: str, is_switch: bool = False) -> None:
        self.options = options
        self._is_switch = is_switch
        self.allowed = "one of " + ", ".join(quoted(option) for option in options)

    def from_toml(self, value: object) -> str:
        if self._is_switch and isinstance(value, bool):
            value = "on" if value else "off"
        if not isinstance(value, str):
            raise Refused
        word = value.strip().lower()
        if self._is_switch:
            word = {"true": "on", "1": "on", "false": "off", "0": "off"}.get(word, word)
        if word not in self.options:
            raise Refused
        return word


class Boolean(Kind[bool]):
    """true or false."""

    name = "boolean"
    allowed = "true or false"

    def from_toml(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise Refused
        return value

    def from_text(self, text: str) -> bool:
        word = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}.get(text.strip().lower())
        return self.from_toml(word)

    def to_toml(self, value: bool) -> str:
        return "true" if value else "false"


class Integer(Kind[int]):
    """A whole number in a range, both ends included."""

    name = "integer"

    def __init__(self, low: int, high: int | None = None) -> None:
        self.low = low
        self.high = high
        span = f"from {low} to {high}" if high is not None else f"of {low} or more"
        self.allowed = f"an integer {span}"

    def from_toml(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused
        if value < self.low or (self.high is not None and value > self.high):
            raise Refused
        return value

    def from_text(self, text: str) -> int:
        # Not int(): it takes "1_000" and digits of other scripts, which no file of ours would.
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
            raise Refused
        return self.from_toml(int(text))

    def to_toml(self, value: int) -> str:
        return str(value)


class Fraction(Kind[float]):
    """A share: above 0, at most 1."""

    name = "number"
    allowed = "a number above 0 and at most 1"

    def from_toml(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise Refused
        return float(value)

    def from_text(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise Refused from error
        return self.from_toml(value)

    def to_toml(self, value: float) -> str:
        return repr(float(value))


_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PIECE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
FOREVER = "forever"


class Duration(Kind[float]):
    """Seconds, from a number or a Go-style string ("5m", "1h30m", "300ms").

    Negative or "forever" is for ever: ``math.inf``. Where that would make the daemon wait without end for something
    that may never come, ``can_be_forever`` is False.
    """

    name = "duration"

    def __init__(self, can_be_forever: bool = True, can_be_zero: bool = True) -> None:
        self._can_be_forever = can_be_forever
        self._can_be_zero = can_be_zero
        least = "" if can_be_zero else ", above zero"
        endless = '; negative or "forever": without end' if can_be_forever else ", not without end"
        self.allowed = f'a number of seconds or a string like "90s", "5m", "1h30m"{least}{endless}'

    def from_toml(self, value: object) -> float:
        if isinstance(value, str):
            seconds = parse_duration(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            seconds = float(value)
        else:
            raise Refused
        if seconds < 0 or math.isinf(seconds):
            seconds = math.inf
        if (math.isinf(seconds) and not self._can_be_forever) or (seconds == 0 and not self._can_be_zero):
            raise Refused
        return seconds

    def to_toml(self, value: float) -> str:
        return quoted(write_duration(value))


def parse_duration(text: str) -> float:
    """Seconds of a duration in Go's syntax, of a bare number, or of "forever" (``math.inf``); may be negative."""
    rest = text.strip()
    if rest.lower() == FOREVER:
        return math.inf
    sign = -1.0 if rest.startswith("-") else 1.0
    rest = rest.removeprefix("-") if sign < 0 else rest.removeprefix("+")
    if _NUMBER.fullmatch(rest):
        return sign * float(rest)
    pieces = _PIECE.findall(rest)
    if not pieces or "".join(number + unit for number, unit in pieces) != rest:
        raise Refused
    return sign * sum(float(number) * _UNITS_S[unit] for number, unit in pieces)


def write_duration(seconds: float) -> str:
    """The shortest usual form: ``forever``, ``1h30m``, ``500ms``, ``0s``."""
    if math.isinf(seconds):
        return FOREVER
    if seconds != int(seconds):
        thousandths = seconds * 1000
        return f"{int(thousandths)}ms" if thousandths == int(thousandths) else f"{seconds:.9f}".rstrip("0") + "s"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = "".join(f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (left, "s")) if count)
    return text or "0s"


_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(ib|b)?", re.IGNORECASE)


class Size(Kind[int]):
    """Bytes, from an integer or a string: K, KiB and so on are powers of 1024, KB and so on powers of 1000."""

    name = "size"

    def __init__(self, low: int = 0) -> None:
        self.low = low
        self.allowed = f'bytes, or a string like "512MiB", "8G" or "2GB", of {write_size(low)} or more'

    def from_toml(self, value: object) -> int:
        if isinstance(value, str):
            value = parse_size(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < self.low:
            raise Refused
        return value

    def to_toml(self, value: int) -> str:
        return quoted(write_size(value)) if value and value % 1024 == 0 else str(value)


def parse_size(text: str) -> int:
    """Bytes of a size as people write it."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and match[3].lower() == "ib" and not match[2]):
        raise Refused
    base = 1000 if match[3] and match[3].lower() == "b" and match[2] else 1024
    scale = base ** _POWERS[match[2].lower()]
    return int(match[1]) * scale if match[1].isdigit() else int(float(match[1]) * scale)


def write_size(size_bytes: int) -> str:
    """A size in the largest power of 1024 that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        scale = 1024 ** _POWERS[unit[0].lower()]
        if size_bytes and size_bytes % scale == 0:
            return f"{size_bytes // scale}{unit}"
    return str(size_bytes)


class TextList(Kind[tuple[str, ...]]):
    """Several strings. As text they are separated by commas, or, with ``is_command_line``, written as for a shell."""

    name = "list of strings"

    def __init__(
        self, allowed: str = "a list of strings", check: Check | None = None, is_command_line: bool = False
    ) -> None:
        self.allowed = allowed
        self._check = check
        self._is_command_line = is_command_line

    def from_toml(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise Refused
        items: list[str] = []
        for item in cast("list[object]", value):
            if not isinstance(item, str) or not item or "\0" in item:
                raise Refused
            if self._check is not None:
                self._check(item)
            items.append(item)
        return tuple(items)

    def from_text(self, text: str) -> tuple[str, ...]:
        if self._is_command_line:
            try:
                return self.from_toml(shlex.split(text))
            except ValueError as error:
                raise Refused(str(error)) from error
        return self.from_toml([item.strip() for item in text.split(",") if item.strip()])

    def to_toml(self, value: tuple[str, ...]) -> str:
        return "[" + ", ".join(quoted(item) for item in value) + "]"


class IntegerList(Kind[tuple[int, ...]]):
    """Several whole numbers, none below ``low``, none twice. As text they are separated by commas."""

    name = "list of integers"

    def __init__(self, low: int) -> None:
        self._one = Integer(low)
        self.allowed = f"a list of integers of {low} or more, each once"

    def from_toml(self, value: object) -> tuple[int, ...]:
        if not isinstance(value, list | tuple):
            raise Refused
        numbers = tuple(self._one.from_toml(item) for item in cast("list[object]", value))
        if len(set(numbers)) != len(numbers):
            raise Refused
        return numbers

    def from_text(self, text: str) -> tuple[int, ...]:
        return self.from_toml([self._one.from_text(item) for item in text.split(",") if item.strip()])

    def to_toml(self, value: tuple[int, ...]) -> str:
        return "[" + ", ".join(str(number) for number in value) + "]"


class TextTable(Kind[tuple[tuple[str, str], ...]]):
    """Names with a string each. As text they are written ``name=value``, separated by commas."""

    name = "table"

    def __init__(self, allowed: str, check: Check | None = None) -> None:
        self.allowed = allowed
        self._check = check

    def from_toml(self, value: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict):
            raise Refused
        pairs: list[tuple[str, str]] = []
        for name, text in cast("dict[str, object]", value).items():
            if not name or not isinstance(text, str) or not text or "\0" in name + text:
                raise Refused
            if self._check is not None:
                self._check(name)
                self._check(text)
            pairs.append((name, text))
        return tuple(pairs)

    def from_text(self, text: str) -> tuple[tuple[str, str], ...]:
        pairs: dict[str, object] = {}
        for item in filter(None, (each.strip() for each in text.split(","))):
            name, equals, value = item.partition("=")
            if not equals:
                raise Refused(f"no = in {item}")
            pairs[name.strip()] = value.strip()
        return self.from_toml(pairs)

    def to_toml(self, value: tuple[tuple[str, str], ...]) -> str:
        inner = ", ".join(f"{quoted(name)} = {quoted(text)}" for name, text in value)
        return f"{{{inner}}}"
