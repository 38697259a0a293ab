"""Go's formatted printing, as far as templates have a use for it (floor 1): verbs, flags, width and precision."""

import re
from dataclasses import dataclass
from typing import Any

from vllamad.dialects.go_templates.values import (
    Bounds,
    Struct,
    float_text,
    kind_of,
    own_text,
    quote,
    show,
    sorted_items,
)
from vllamad.dialects.go_values import as_dict, as_list

_MAX_WIDTH = 1_000_000
"""Go's own."""

_VERB = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d*))?(.?)", re.DOTALL)
_BASES = {"b": "b", "o": "o", "O": "o", "x": "x", "X": "X", "d": "d"}
_PREFIXES = {"b": "0b", "o": "0", "x": "0x", "X": "0X", "d": ""}


@dataclass(frozen=True, slots=True)
class _Verb:
    letter: str
    flags: str
    width: int
    precision: int | None


def printf(form: str, values: list[Any], bounds: Bounds) -> str:
    """Format the values. What does not fit is said in the text, as Go does: ``%!d(string=a)``."""
    pieces: list[str] = []
    used = at = 0
    for found in _VERB.finditer(form):
        pieces.append(bounds.take(form[at : found.start()]))
        at = found.end()
        flags, width, precision, letter = found.groups()
        if len(width) > 6 or len(precision or "") > 6:
            raise ValueError(f"width or precision over {_MAX_WIDTH}")
        if letter in {"*", "["}:
            raise ValueError(f"%{letter} is not supported")
        if not letter:
            pieces.append("%!(NOVERB)")
        elif letter == "%":
            pieces.append("%")
        elif used == len(values):
            pieces.append(f"%!{letter}(MISSING)")
        else:
            exact = None if precision is None else int(precision or 0)
            pieces.append(_format(values[used], _Verb(letter, flags, int(width or 0), exact), bounds))
            used += 1
    pieces.append(bounds.take(form[at:]))
    if used < len(values):
        extra = [_with_type(value, bounds) for value in values[used:]]
        pieces.append(f"%!(EXTRA {', '.join(extra)})")
    return "".join(pieces)


def _format(value: Any, verb: _Verb, bounds: Bounds, *, is_inner: bool = False) -> str:
    bounds.step()
    if verb.letter == "T":
        return _pad(kind_of(value), verb, bounds)
    own = own_text(value, bounds) if verb.letter in "vsqxX" else None
    if own is not None:
        value = own
    text: str | None = None
    match value:
        case bool():
            text = str(value).lower() if verb.letter in "vt" else None
        case int():
            text = _integer(value, verb)
        case float():
            text = _float(value, verb)
        case str():
            text = _text(value, verb)
        case None:
            text = "<nil>" if verb.letter == "v" or is_inner else None
        case _:
            return _compound(value, verb, bounds)
    if text is not None:
        return _pad(text, verb, bounds, isinstance(value, int | float) and verb.letter not in "cqUt")
    return f"%!{verb.letter}({_with_type(value, bounds)})"


def _compound(value: object, verb: _Verb, bounds: Bounds) -> str:
    def inner(item: object) -> str:
        return _format(item, verb, bounds, is_inner=True)

    if isinstance(value, Struct):
        return "{" + " ".join([inner(item) for item in value.fields.values()]) + "}"
    items = as_list(value)
    if items is not None:
        return "[" + " ".join([inner(item) for item in items]) + "]"
    return "map[" + " ".join([f"{inner(key)}:{inner(item)}" for key, item in sorted_items(as_dict(value) or {})]) + "]"


def _integer(value: int, verb: _Verb) -> str | None:
    letter = "d" if verb.letter == "v" else verb.letter
    if letter in _BASES:
        digits = format(abs(value), _BASES[letter]).zfill(verb.precision or 0)
        prefix = "0o" if letter == "O" else _PREFIXES[letter] if "#" in verb.flags else ""
        return _sign(value < 0, verb) + prefix + digits
    is_character = 0 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000
    character = chr(value) if is_character else "\ufffd"
    match letter:
        case "c":
            return character
        case "q":
            return quote(character, "'")
        case "U":
            return f"U+{value:04X}" + (f" {quote(character, chr(39))}" if "#" in verb.flags else "")
        case _:
            return None


def _float(value: float, verb: _Verb) -> str | None:
    letter = "g" if verb.letter == "v" else verb.letter
    if letter not in "eEfFgG":
        return None
    magnitude = abs(value)
    if letter in "gG" and verb.precision is None:
        text = float_text(magnitude)
        text = text.upper() if letter == "G" else text
    else:
        text = format(magnitude, f".{6 if verb.precision is None else verb.precision}{letter}")
    return _sign(value < 0, verb) + text


def _text(value: str, verb: _Verb) -> str | None:
    cut = value if verb.precision is None else value[: verb.precision]
    match verb.letter:
        case "v":
            return quote(cut) if "#" in verb.flags else cut
        case "s":
            return cut
        case "q":
            return f"`{cut}`" if "#" in verb.flags and "`" not in cut and cut.isprintable() else quote(cut)
        case "x" | "X":
            data = value.encode("utf-8", "replace")[: verb.precision]
            text = data.hex(" ") if " " in verb.flags and data else data.hex()
            return text.upper() if verb.letter == "X" else text
        case _:
            return None


def _sign(is_negative: bool, verb: _Verb) -> str:
    if is_negative:
        return "-"
    return "+" if "+" in verb.flags else " " if " " in verb.flags else ""


def _pad(text: str, verb: _Verb, bounds: Bounds, is_number: bool = False) -> str:
    if "-" in verb.flags:
        text = text.ljust(verb.width)
    elif "0" in verb.flags and is_number:
        sign = text[:1] if text[:1] in {"+", "-", " "} else ""
        text = sign + text[len(sign) :].rjust(verb.width - len(sign), "0")
    else:
        text = text.rjust(verb.width)
    return bounds.take(text)


def _with_type(value: object, bounds: Bounds) -> str:
    return "<nil>" if value is None else f"{kind_of(value)}={show(value, bounds)}"
