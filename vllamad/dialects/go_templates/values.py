"""What a Go template computes with (floor 1): plain JSON values and structs; how they print, encode and count as true.

Also the bounds of a rendering. A template comes from outside, so each value that it makes is charged to them.
"""

import math
from collections.abc import Mapping
from typing import Any

import orjson

from vllama.reasons import Reason
from vllamad.dialects.go_values import as_dict, as_list, dumps
from vllamad.domain.errors import VllamaError

MAX_STEPS = 3_000_000
"""A few seconds. A chat template takes 20 to 100 per message."""
MAX_SIZE = 16 * 2**20
"""Characters made while rendering, which Python keeps in 64 MiB at most; the longest contexts hold a quarter of it."""

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


class TemplateError(VllamaError):
    """A template that cannot be read or run, in the words of Go's text/template."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.INVALID_REQUEST, message)


class Bounds:
    """What one rendering may still cost. Raises TemplateError when it is spent."""

    __slots__ = ("_size", "_steps")

    def __init__(self, steps: int = MAX_STEPS, size: int = MAX_SIZE) -> None:
        self._steps = steps
        self._size = size

    def step(self, count: int = 1) -> None:
        """Charge work."""
        self._steps -= count
        if self._steps < 0:
            raise TemplateError("template: rendering takes too many steps")

    def take(self, text: str) -> str:
        """Charge the text that was made, and return it."""
        self._size -= len(text)
        if self._size < 0:
            raise TemplateError("template: the rendered text is too long")
        return text


class Struct:
    """A value with fixed fields: any other name is an error when a template asks for it.

    ``kind`` is the type's name in errors. ``json`` is what it is in JSON, in that order. ``is_text_json``: it prints
    as its JSON too.
    """

    __slots__ = ("fields", "is_text_json", "json", "kind")

    def __init__(
        self, kind: str, fields: Mapping[str, Any], json: Mapping[str, Any], *, is_text_json: bool = False
    ) -> None:
        self.kind = kind
        self.fields = fields
        self.json = json
        self.is_text_json = is_text_json


class JsonList(list[Any]):
    """A list that prints as JSON."""


class JsonMap(dict[str, Any]):
    """A map that prints as JSON."""


class TypeNames(list[str]):
    """The types of a JSON schema: one prints, and is in JSON, as its bare name."""


def kind_of(value: object) -> str:
    """The type's name in Go. Raises ValueError for what no template can be given."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case Struct():
            return value.kind
        case list():
            return "[]interface {}"
        case dict():
            return "map[string]interface {}"
        case _:
            raise ValueError(f"unsupported type {type(value).__name__}")


def is_true(value: object) -> bool:
    """Zero values, nil and what is empty are false; a struct never is."""
    return bool(value)


def sorted_items(mapping: dict[str, Any]) -> list[tuple[str, Any]]:
    """The entries in the order in which Go shows them."""
    return sorted(mapping.items(), key=lambda item: str(item[0]))


def own_text(value: object, bounds: Bounds) -> str | None:
    """How a value prints that brings its own way; None for all others."""
    if isinstance(value, JsonList | JsonMap) or (isinstance(value, Struct) and value.is_text_json):
        return json_text(value, bounds)
    if isinstance(value, TypeNames) and len(value) < 2:
        return "".join(value)
    return None


def show(value: object, bounds: Bounds) -> str:
    """The text of a value, as ``%v`` has it."""
    bounds.step()
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case int():
            return bounds.take(str(value))
        case float():
            return bounds.take(float_text(value))
        case str():
            return bounds.take(value)
        case _:
            return _show_compound(value, bounds)


def json_text(value: object, bounds: Bounds) -> str:
    """Compact JSON as Go's encoder writes it: maps sorted, structs in the order of their fields."""
    try:
        return bounds.take(dumps(_plain(value, bounds)).decode())
    except orjson.JSONEncodeError as error:
        raise ValueError(f"json: {error}") from error


def float_text(value: float) -> str:
    """The shortest digits that mean the number, with an exponent below 1e-4 and from 1e6 on."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
    mantissa, _, exponent_text = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    exponent = len(whole) + int(exponent_text or 0) - 1 - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0") or "0"
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    if digits == "0":
        return sign + "0"
    if -4 <= exponent < 6:
        if exponent < 0:
            return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
        digits = digits.ljust(exponent + 1, "0")
        return sign + ".".join(part for part in (digits[: exponent + 1], digits[exponent + 1 :]) if part)
    return f"{sign}{'.'.join(part for part in (digits[0], digits[1:]) if part)}e{exponent:+03d}"


def quote(text: str, mark: str = '"') -> str:
    """A Go literal of the text."""
    return mark + "".join(_quoted(character, mark) for character in text) + mark


def _quoted(character: str, mark: str) -> str:
    if character in {mark, "\\"}:
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    long_form = f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return _ESCAPES.get(character, long_form)


def _show_compound(value: object, bounds: Bounds) -> str:
    text = own_text(value, bounds)
    if text is not None:
        return text
    bounds.take("[]")
    if isinstance(value, Struct):
        return "{" + " ".join(show(field, bounds) for field in value.fields.values()) + "}"
    items = as_list(value)
    if items is not None:
        return "[" + " ".join(show(item, bounds) for item in items) + "]"
    mapping = as_dict(value)
    if mapping is not None:
        entries = sorted_items(mapping)
        return "map[" + " ".join(f"{show(key, bounds)}:{show(item, bounds)}" for key, item in entries) + "]"
    raise ValueError(f"unsupported type {kind_of(value)}")


def _plain(value: object, bounds: Bounds) -> object:
    """What the JSON writer takes, already in the order to be written."""
    bounds.step()
    if isinstance(value, str):
        return bounds.take(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    if isinstance(value, Struct):
        return {name: _plain(item, bounds) for name, item in value.json.items()}
    if isinstance(value, TypeNames) and len(value) == 1:
        return value[0]
    items = as_list(value)
    if items is not None:
        return [_plain(item, bounds) for item in items]
    mapping = as_dict(value)
    if mapping is not None:
        return {str(name): _plain(item, bounds) for name, item in sorted_items(mapping)}
    return value
