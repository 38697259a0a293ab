"""Modelfiles, Ollama's recipe of a model: read, written, and their parameters shown (floor 1).

One command a line; the word in any case. A value is the rest of its line, or stands in ``"`` or three of them and then
ends at the first line whose end closes it, so that quotes inside need no escape. There are no escapes at all: a text
with a line break and, before one, a line that ends with three quotes cannot be written down.

Where Ollama's reader garbles, this one does not: characters without a glyph (the joiners in emoji, the no-break space)
stay, more than one blank may follow PARAMETER and MESSAGE, and CRLF is one line in the numbers of errors.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vllama.reasons import Reason
from vllamad.dialects.go_values import as_list
from vllamad.dialects.ollama_options import FLAG, INTEGER, OPTIONS, TEXTS
from vllamad.domain.errors import VllamaError

Parameter = int | float | bool | tuple[str, ...]
"""An option's value, of the kind in ``OPTIONS``."""

ROLES = ("system", "user", "assistant")

_COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
)  # fmt: skip
_DEPRECATED = {
    "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau",
    "mirostat_eta",
}  # fmt: skip
"""Skipped, whatever their value."""

_BLANK = " \t"
_GAP = re.compile(r"(?:[ \t\r\n]+|#[^\r\n]*)*")
_BLANKS = re.compile(r"[ \t]*")
_LINE = re.compile(r"[^\r\n]*")
_LINE_BREAK = re.compile(r"\r\n?|\n")
_WORD = re.compile(r"[A-Za-z]*")
_NAME = re.compile(r"[A-Za-z0-9_]*")

_INTEGER = re.compile(r"([+-]?)0*([0-9]{1,19})")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_FLAGS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)
_INT64_MAX = 2**63 - 1
_FLOAT32_MAX = 3.4028234663852886e38

_VERSION_PART = r"(?:0|[1-9][0-9]*)"
_IDENTIFIERS = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
_VERSION = re.compile(
    rf"v?({_VERSION_PART}(?:\.{_VERSION_PART}(?:\.{_VERSION_PART}"
    rf"(?:-(?!(?:[^+]*\.)?0[0-9]+(?:[.+]|$)){_IDENTIFIERS})?(?:\+{_IDENTIFIERS})?)?)?)"
)
"""Semantic versions, also shortened; a number in the pre-release part has no leading zero."""

_GO_ESCAPES = {
    "\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v", "\\": r"\\", '"': r"\"",
}  # fmt: skip
_KEY_WIDTH = 30


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says; "" and empty: nothing. Texts are as written between the quotes, their line breaks too."""

    sources: tuple[str, ...]
    """The values of FROM, as written: a model's name, a file or a folder."""

    adapters: tuple[str, ...] = ()
    template: str = ""
    system: str = ""
    licenses: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    """(role, text)."""

    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])
    """Never a deprecated one. An empty ``stop`` is the wish for none."""

    renderer: str = ""
    parser: str = ""
    requires: str = ""
    """A version without the "v"."""

    draft: str = ""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """About the text that was read, not about what it says."""


def decode(data: bytes) -> str:
    """Read UTF-8 or, if a byte order mark says so, UTF-16. What is neither becomes replacement characters."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def parse(text: str) -> Modelfile:
    """Read a Modelfile. Of a command that cannot repeat the last one counts. Raises INVALID_REQUEST in Ollama's words,
    with the line in the hint where the words lack it."""
    lists: dict[str, list[str]] = {"from": [], "adapter": [], "license": []}
    texts = dict.fromkeys(("template", "system", "renderer", "parser", "requires", "draft"), "")
    messages: list[tuple[str, str]] = []
    parameters: dict[str, Parameter] = {}
    warnings: list[str] = []
    text = text.removeprefix("\ufeff")
    for command in _commands(text):
        where = f"line {command.line} of the Modelfile"
        match command:
            case _Command("message", role, value):
                messages.append((role, value))
            case _Command("parameter", name, value):
                if name in _DEPRECATED:
                    warnings.append(f"parameter {name} is deprecated")
                else:
                    _add(parameters, name, value, where)
            case _Command("requires", _, value):
                texts["requires"] = _version(value, where)
            case _Command(word, _, value) if word in texts:
                texts[word] = value
            case _Command(word, _, value):
                lists[word].append(value)
    sources = tuple(source for source in lists["from"] if source)
    if not sources:
        raise _refuse("no FROM line", "name the model, file or folder to begin with: FROM qwen3:0.6b")
    return Modelfile(
        sources=sources,
        adapters=tuple(lists["adapter"]),
        licenses=tuple(lists["license"]),
        messages=tuple(messages),
        parameters=parameters,
        warnings=tuple(warnings),
        **texts,
    )


def render(modelfile: Modelfile) -> str:
    """Write it in the order and with the quotes of Ollama's ``show``, without its heading; ``parse`` gives the same
    back. Quotes that Ollama leaves out although its own reader needs them are written.

    Raises INVALID_REQUEST for a text that no quotes can hold, and for a message of a role that MESSAGE lacks.
    """
    lines = [_command("FROM", source) for source in modelfile.sources]
    lines += [_command("ADAPTER", adapter) for adapter in modelfile.adapters]
    for word, text in (
        ("DRAFT", modelfile.draft),
        ("TEMPLATE", modelfile.template),
        ("SYSTEM", modelfile.system),
        ("RENDERER", modelfile.renderer),
        ("PARSER", modelfile.parser),
        ("REQUIRES", modelfile.requires),
    ):
        if text:
            lines.append(_command(word, text))
    for name, value in modelfile.parameters.items():
        # An empty text is no stop word: so it can stand for "none".
        texts = (value or ("",)) if isinstance(value, tuple) else (_plain(value),)
        lines += [_command(f"PARAMETER {name}", text) for text in texts]
    lines += [_command("LICENSE", text) for text in modelfile.licenses]
    for role, text in modelfile.messages:
        if role not in ROLES:
            raise _refuse(f"message role must be {_one_of(ROLES)}", f"a Modelfile has no messages of role {role!r}")
        lines.append(_command(f"MESSAGE {role}", text))
    return "".join(f"{line}\n" for line in lines)


def show_parameters(parameters: Mapping[str, Parameter]) -> str:
    """The ``parameters`` of ``/api/show``: name and value in two columns, a line for each stop word."""
    rows: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if isinstance(value, tuple):
            rows += [(name, _go_quoted(text)) for text in value]
        else:
            rows.append((name, _plain(value)))
    return "\n".join(f"{name:<{_KEY_WIDTH}} {shown}" for name, shown in rows)


def read_parameters(values: Mapping[str, Any]) -> dict[str, Parameter]:
    """Read the ``parameters`` of ``/api/create``, with the rules of a request's options: a fraction is cut off an
    integer, ``null`` is nothing. As in a Modelfile deprecated ones are left out and unknown ones refused; Ollama would
    keep both. Raises INVALID_REQUEST."""
    parameters: dict[str, Parameter] = {}
    for name, value in values.items():
        if value is not None and name not in _DEPRECATED:
            parameters[name] = _from_json(name, value)
    return parameters


class _Command(NamedTuple):
    """``key`` is a parameter's name or a message's role."""

    word: str
    key: str
    value: str
    line: int


def _commands(text: str) -> Iterator[_Command]:
    at, line = 0, 1
    while (start := _skip(_GAP, text, at)) < len(text):
        line += _line_breaks(text, at, start)
        at = start
        end = _skip(_WORD, text, at)
        word, key = text[at:end].lower(), ""
        if word not in _COMMANDS or (end < len(text) and text[end] not in _BLANK):
            hint = f"{word.upper()} and its value stand on one line" if word in _COMMANDS else None
            raise _refuse(f"(line {line}): command must be {_one_of(_COMMANDS)}", hint)
        if word in {"parameter", "message"}:
            start = _skip(_BLANKS, text, end)
            end = _skip(_NAME if word == "parameter" else _WORD, text, start)
            key = text[start:end]
        if text[end : end + 1] not in {" ", "\t"}:
            raise _refuse(
                f"unexpected EOF: {key}" if key else "unexpected EOF",
                f"line {line} of the Modelfile is cut short: {word.upper()} needs more after it",
            )
        if word == "message" and key not in ROLES:
            raise _refuse(f"(line {line}): message role must be {_one_of(ROLES)}")
        value, end = _value(text, _skip(_BLANKS, text, end))
        yield _Command(word, key, value, line)
        line += _line_breaks(text, at, end)
        at = end


def _value(text: str, start: int) -> tuple[str, int]:
    """The value that begins at ``start``, and where its last line ends."""
    end = _skip(_LINE, text, start)
    quote = _opening(text, start)
    if not quote:
        return text[start:end].rstrip(_BLANK), end
    inner = start + len(quote)
    at = start
    while True:
        closed = at + len(text[at:end].rstrip(_BLANK))
        if text.endswith(quote, inner, closed):
            return text[inner : closed - len(quote)], end
        if end == len(text):
            raise _refuse(
                "unexpected EOF",
                f"the {quote} opened in line {1 + _line_breaks(text, 0, start)} is closed at no line's end",
            )
        at = end + 1
        end = _skip(_LINE, text, at)


def _opening(text: str, start: int = 0) -> str:
    if text.startswith('"""', start):
        return '"""'
    return '"' if text.startswith('"', start) else ""


def _command(word: str, text: str) -> str:
    if text and text == text.strip(" \t\r\n") and "\n" not in text and "\r" not in text and not _opening(text):
        return f"{word} {text}"
    quote = '"""' if '"' in text else '"'
    quoted = quote + text + quote
    if _value(quoted, 0) != (text, len(quoted)):
        raise _refuse(
            f'cannot write {word} into a Modelfile: one of its lines ends with """',
            "add a character to that line, after the quotes",
        )
    return f"{word} {quoted}"


def _plain(value: float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value).removesuffix(".0")


def _go_quoted(text: str) -> str:
    return f'"{"".join(map(_go_character, text))}"'


def _go_character(character: str) -> str:
    code = ord(character)
    if character in _GO_ESCAPES:
        return _GO_ESCAPES[character]
    if character.isprintable():
        return character
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _add(parameters: dict[str, Parameter], name: str, text: str, where: str) -> None:
    """The value of one PARAMETER line, on top of those before it."""
    kind = _kind(name, where)
    if kind == TEXTS:
        earlier = parameters.get(name)
        parameters[name] = (earlier if isinstance(earlier, tuple) else ()) + ((text,) if text else ())
    elif kind == FLAG:
        if text not in _FLAGS:
            raise _refuse(f"invalid bool value [{text}]", where)
        parameters[name] = _FLAGS[text]
    elif kind == INTEGER:
        found = _INTEGER.fullmatch(text)
        number = int(found[1] + found[2]) if found else None
        if number is None or not -_INT64_MAX - 1 <= number <= _INT64_MAX:
            raise _refuse(f"invalid int value [{text}]", where)
        parameters[name] = number
    else:
        number = float(text) if _NUMBER.fullmatch(text) else None
        if number is None or abs(number) > _FLOAT32_MAX:
            raise _refuse(f"invalid float value [{text}]", where)
        parameters[name] = number


def _from_json(name: str, value: object) -> Parameter:
    kind = _kind(name)
    if kind == FLAG:
        if isinstance(value, bool):
            return value
    elif kind == TEXTS:
        texts = as_list(value)
        if texts is not None:
            if not all(isinstance(text, str) for text in texts):
                raise _refuse(f'option "{name}" must be of an array of strings')
            return tuple(text for text in texts if text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if kind == INTEGER and -_INT64_MAX - 1 <= value <= _INT64_MAX:
            return int(value)
        if kind != INTEGER and -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
            return float(value)
    raise _refuse(f'option "{name}" must be of type {kind}')


def _kind(name: str, hint: str | None = None) -> str:
    if name not in OPTIONS:
        raise _refuse(f"unknown parameter '{name}'", hint)
    return OPTIONS[name].kind


def _version(text: str, where: str) -> str:
    found = _VERSION.fullmatch(text)
    if found is None:
        raise _refuse("requires must be a valid semver (e.g. 0.14.0)", where)
    return found[1]


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a pattern ends that may match nothing."""
    found = pattern.match(text, at)
    return found.end() if found else at


def _line_breaks(text: str, start: int, end: int) -> int:
    return sum(1 for _ in _LINE_BREAK.finditer(text, start, end))


def _one_of(names: tuple[str, ...]) -> str:
    *first, last = (f'"{name}"' for name in names)
    return f"one of {', '.join(first)}, or {last}"


def _refuse(message: str, hint: str | None = None) -> VllamaError:
    return VllamaError(Reason.INVALID_REQUEST, message, hint)
