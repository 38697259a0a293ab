"""The functions that a Go template may call (floor 1): those of text/template, and Ollama's own.

Each takes the context and its arguments, already evaluated and counted; what is wrong with them is a ValueError, which
the caller places in the source. ``and`` and ``or`` are here by name only: they do not evaluate all their arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Any, NoReturn

from vllamad.dialects.go_templates.printf import printf
from vllamad.dialects.go_templates.values import Bounds, Struct, TypeNames, is_true, json_text, kind_of, show
from vllamad.dialects.go_values import as_dict, as_list

_BASIC = {"bool", "int", "float64", "string"}
_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class Context:
    """What functions need besides their arguments. ``today`` is an ISO date."""

    today: str
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class Function:
    """``most`` None: any number."""

    call: Callable[[Context, list[Any]], Any]
    least: int
    most: int | None


def _not(_: Context, values: list[Any]) -> bool:
    return not is_true(values[0])


def _len(_: Context, values: list[Any]) -> int:
    value = values[0]
    if isinstance(value, str):
        return len(_bytes(value))
    if isinstance(value, list | dict):
        return len(value)  # pyright: ignore[reportUnknownArgumentType]
    raise ValueError("len of nil pointer" if value is None else f"len of type {kind_of(value)}")


def _index(_: Context, values: list[Any]) -> Any:
    item, *indexes = values
    if item is None:
        raise ValueError("index of untyped nil")
    for index in indexes:
        mapping = as_dict(item)
        if mapping is not None:
            if not isinstance(index, str):
                raise ValueError(f"value has type {kind_of(index)}; should be string")
            item = mapping.get(index)
            continue
        items = _bytes(item) if isinstance(item, str) else as_list(item)
        if items is None:
            raise ValueError("index of nil pointer" if item is None else f"can't index item of type {kind_of(item)}")
        item = items[_position(index, len(items) - 1)]
    return item


def _slice(context: Context, values: list[Any]) -> Any:
    item, *indexes = values
    whole = _bytes(item) if isinstance(item, str) else as_list(item)
    if whole is None:
        raise ValueError("slice of untyped nil" if item is None else f"can't slice item of type {kind_of(item)}")
    if isinstance(item, str) and len(indexes) == 3:
        raise ValueError("cannot 3-index slice a string")
    places = [_position(index, len(whole)) for index in indexes]
    for low, high in pairwise(places):
        if low > high:
            raise ValueError(f"invalid slice index: {low} > {high}")
    part = whole[places[0] if places else 0 : places[1] if len(places) > 1 else len(whole)]
    return context.bounds.take(part.decode("utf-8", "replace")) if isinstance(part, bytes) else part


def _eq(_: Context, values: list[Any]) -> bool:
    first, *others = values
    if not others:
        raise ValueError("missing argument for comparison")
    return any(_equal(first, other) for other in others)


def _ne(_: Context, values: list[Any]) -> bool:
    return not _equal(values[0], values[1])


def _lt(_: Context, values: list[Any]) -> bool:
    return _less(values[0], values[1])


def _le(_: Context, values: list[Any]) -> bool:
    return _less(values[0], values[1]) or values[0] == values[1]


def _gt(context: Context, values: list[Any]) -> bool:
    return not _le(context, values)


def _ge(context: Context, values: list[Any]) -> bool:
    return not _lt(context, values)


def _print(context: Context, values: list[Any]) -> str:
    pieces: list[str] = []
    for place, value in enumerate(values):
        if place and not isinstance(value, str) and not isinstance(values[place - 1], str):
            pieces.append(" ")
        pieces.append(show(value, context.bounds))
    return "".join(pieces)


def _println(context: Context, values: list[Any]) -> str:
    return " ".join([show(value, context.bounds) for value in values]) + "\n"


def _printf(context: Context, values: list[Any]) -> str:
    _need_texts(values[:1])
    return printf(values[0], values[1:], context.bounds)


def _json(context: Context, values: list[Any]) -> str:
    return json_text(values[0], context.bounds)


def _current_date(context: Context, values: list[Any]) -> str:
    _need_texts(values)
    return context.today


def _yesterday_date(context: Context, values: list[Any]) -> str:
    _need_texts(values)
    try:
        return (date.fromisoformat(context.today) - timedelta(days=1)).isoformat()
    except OverflowError as error:
        raise ValueError(str(error)) from error


def _typescript_type(context: Context, values: list[Any]) -> str:
    return context.bounds.take(_typescript(values[0], context.bounds))


FUNCTIONS: dict[str, Function] = {
    "not": Function(_not, 1, 1),
    "len": Function(_len, 1, 1),
    "index": Function(_index, 1, None),
    "slice": Function(_slice, 1, 4),
    "eq": Function(_eq, 1, None),
    "ne": Function(_ne, 2, 2),
    "lt": Function(_lt, 2, 2),
    "le": Function(_le, 2, 2),
    "gt": Function(_gt, 2, 2),
    "ge": Function(_ge, 2, 2),
    "print": Function(_print, 0, None),
    "println": Function(_println, 0, None),
    "printf": Function(_printf, 1, None),
    "json": Function(_json, 1, 1),
    "currentDate": Function(_current_date, 0, None),
    "yesterdayDate": Function(_yesterday_date, 0, None),
    "toTypeScriptType": Function(_typescript_type, 1, 1),
}

NAMES = frozenset({*FUNCTIONS, "and", "or"})


def _bytes(text: str) -> bytes:
    """Go's strings are bytes: lengths and places count them."""
    return text.encode("utf-8", "replace")


def _position(index: object, last: int) -> int:
    if not isinstance(index, int) or isinstance(index, bool):
        raise ValueError(f"cannot index slice/array with {'nil' if index is None else f'type {kind_of(index)}'}")
    if not 0 <= index <= last:
        raise ValueError(f"index out of range: {index}")
    return index


def _equal(left: object, right: object) -> bool:
    left_kind, right_kind = kind_of(left), kind_of(right)
    if left is None or right is None:
        # An empty list or map may be a nil one in Go.
        return all(value is None or (isinstance(value, list | dict) and not value) for value in (left, right))
    if left_kind in _BASIC or right_kind in _BASIC:
        if left_kind != right_kind:
            raise ValueError("incompatible types for comparison")
        return left == right
    raise ValueError(f"non-comparable types {left_kind}, {right_kind}")


def _less(left: Any, right: Any) -> bool:
    left_kind, right_kind = kind_of(left), kind_of(right)
    if not {left_kind, right_kind} <= _BASIC:
        _not_ordered()
    if left_kind != right_kind:
        raise ValueError("incompatible types for comparison")
    if left_kind == "bool":
        _not_ordered()
    return left < right


def _not_ordered() -> NoReturn:
    raise ValueError("invalid type for comparison")


def _need_texts(values: list[Any]) -> None:
    for value in values:
        if value is None:
            raise ValueError("invalid value; expected string")
        if not isinstance(value, str):
            raise ValueError(f"wrong type for value; expected string; got {kind_of(value)}")


def _typescript(value: object, bounds: Bounds) -> str:
    """What a property of a JSON schema is called in TypeScript."""
    bounds.step()
    if not isinstance(value, Struct) or not isinstance(value.fields.get("Type"), TypeNames):
        return "any"
    choices = as_list(value.fields.get("AnyOf"))
    if choices:
        return " | ".join([_typescript(choice, bounds) for choice in choices])
    return " | ".join([_TYPESCRIPT.get(name, "any") for name in value.fields["Type"]]) or "any"
