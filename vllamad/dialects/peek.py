"""Reading a request's body once (floor 1), with the rules and the words of Ollama's decoder.

Only the first JSON value counts, whatever follows it; names of fields match in any case; ``null`` is an empty object;
the Content-Type is never looked at.
"""

import json
import re
from typing import Any, NoReturn

import orjson

from vllama.reasons import Reason
from vllamad.dialects.go_values import as_dict, as_list, go_kind
from vllamad.domain.errors import VllamaError

_SPACE = b" \t\r\n"
_CONTEXT = {
    "Expecting value": "looking for beginning of value",
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Expecting ':' delimiter": "after object key",
    "Expecting ',' delimiter": "after object key:value pair or array element",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Illegal trailing comma before end of array": "looking for beginning of value",
}
_CUT_LITERAL = re.compile(r"-|t(r(u)?)?|f(a(l(s)?)?)?|n(u(l)?)?")


def read_object(body: bytes, struct: str) -> dict[str, Any]:
    """Return the object that ``body`` begins with. Raises INVALID_REQUEST; ``struct`` names the request in the text."""
    value = read_value(body)
    if value is None:
        return {}
    fields = as_dict(value)
    if fields is None:
        raise bad_request(f"json: cannot unmarshal {go_kind(value)} into Go value of type api.{struct}")
    return fold(fields)


def read_value(body: bytes) -> object:
    """Return the JSON value that ``body`` begins with. Raises INVALID_REQUEST."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _read_first(body)


def fold(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields under lower-case names; the last of two that differ in case only wins."""
    if all(name.islower() or not name.isascii() for name in fields):
        return fields
    return {name.lower(): value for name, value in fields.items()}


class Fields:
    """Typed reading of an object. Absent and ``null`` are the same; a wrong type raises INVALID_REQUEST in the words of
    Go's decoder, which name ``struct`` and the field."""

    __slots__ = ("_fields", "_struct")

    def __init__(self, fields: dict[str, Any], struct: str) -> None:
        self._fields = fields
        self._struct = struct

    def raw(self, name: str) -> Any:
        """Whatever is there."""
        return self._fields.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            self._wrong(name, value, "string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._wrong(name, value, "bool")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        """An integer; a number with a fraction is a wrong type here."""
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            self._wrong(name, value, "int")
        return value

    def items(self, name: str, kind: str) -> list[Any]:
        """An array; ``kind`` is its Go type."""
        value = self._fields.get(name)
        if value is None:
            return []
        items = as_list(value)
        if items is None:
            self._wrong(name, value, kind)
        return items

    def mapping(self, name: str, kind: str) -> dict[str, Any]:
        """An object; ``kind`` is its Go type."""
        value = self._fields.get(name)
        if value is None:
            return {}
        mapping = as_dict(value)
        if mapping is None:
            self._wrong(name, value, kind)
        return mapping

    def integers(self, name: str) -> list[int]:
        """An array of integers."""
        items = self.items(name, "[]int")
        for item in items:
            if not isinstance(item, int) or isinstance(item, bool):
                self._wrong(name, item, "int")
        return items

    def wrong(self, name: str, value: object, kind: str) -> VllamaError:
        """The error for a field of a wrong type."""
        return bad_request(
            f"json: cannot unmarshal {go_kind(value)} into Go struct field {self._struct}.{name} of type {kind}"
        )

    def _wrong(self, name: str, value: object, kind: str) -> NoReturn:
        raise self.wrong(name, value, kind)


def bad_request(message: str) -> VllamaError:
    """A malformed request, with a text that clients may compare."""
    return VllamaError(Reason.INVALID_REQUEST, message)


def _read_first(body: bytes) -> object:
    """The first JSON value of a body that is not exactly one; the slow way."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not body.strip(_SPACE):
        raise bad_request("missing request body")
    try:
        value, _ = json.JSONDecoder(parse_constant=_no_constant).raw_decode(text)
        # Lone surrogates, which cannot be sent on, become question marks.
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        raise bad_request(_explain(text, error)) from error
    except (RecursionError, OverflowError, orjson.JSONDecodeError) as error:
        raise bad_request("invalid JSON: exceeded max depth or range of numbers") from error


def _explain(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].rstrip()
    is_cut = not rest or error.msg.startswith("Unterminated string") or _CUT_LITERAL.fullmatch(rest) is not None
    if is_cut or (error.msg.startswith("Invalid \\") and len(rest) < 7):
        return "unexpected EOF"
    character = rest[0]
    shown = "'\\''" if character == "'" else f"'{character}'"
    where = _CONTEXT.get(error.msg, "in string literal")
    return f"invalid character {shown} {where}"


def _no_constant(name: str) -> NoReturn:
    raise bad_request(f"invalid character '{name[0]}' looking for beginning of value")
