"""Reading the tree of a Go template from its tokens (floor 1). Raises TemplateError in the words of Go's parser.

``define``, ``template`` and ``block`` are refused: a chat template is one text.
"""

import re
from dataclasses import replace

from vllamad.dialects.go_templates.functions import NAMES
from vllamad.dialects.go_templates.lexer import Kind, Token, lex
from vllamad.dialects.go_templates.tree import (
    Action,
    Branch,
    Chain,
    Command,
    Dot,
    Field,
    Function,
    Jump,
    Literal,
    Nil,
    Operand,
    Pipe,
    Statement,
    Text,
    Variable,
)
from vllamad.dialects.go_templates.values import TemplateError, quote

MAX_DEPTH = 100
"""Of blocks, parentheses and ``else if`` together; five Python frames each at most."""
MAX_SOURCE = 128 * 1024
"""Characters; the longest templates in Ollama's library have some 10 000."""
MAX_VARIABLES = 100
"""In scope at once; each look-up passes through them."""

_INT64 = 2**63
_OCTAL = re.compile(r"[+-]?0[0-7_]+")
_ESCAPE = re.compile(
    r"\\(?:(?P<plain>[abfnrtv\\\"'])|x(?P<byte>[0-9a-fA-F]{2})|(?P<octal>[0-3][0-7]{2})"
    r"|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8}))"
)
_PLAIN = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


_LAST = frozenset({Kind.END, Kind.ERROR})
_CLOSING = frozenset({Kind.RIGHT, Kind.CLOSE})
_SIGNS = frozenset({Kind.DECLARE, Kind.ASSIGN})
_OPERANDS = frozenset(
    {
        Kind.BOOL, Kind.CHAR_CONSTANT, Kind.DOT, Kind.FIELD, Kind.FUNCTION, Kind.NUMBER, Kind.NIL, Kind.RAW_STRING,
        Kind.STRING, Kind.VARIABLE, Kind.OPEN,
    }
)  # fmt: skip


def parse_tree(source: str) -> tuple[Statement, ...]:
    """Read a template."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"template: longer than {MAX_SOURCE} characters")
    return _Parser(lex(source)).template()


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._index = 0
        self._seen = 0
        self._action_line = 0
        self._variables = ["$"]
        self._depth = 0
        self._loops = 0

    def template(self) -> tuple[Statement, ...]:
        return self._statements(is_block=False)[0]

    def _statements(self, *, is_block: bool = True) -> tuple[tuple[Statement, ...], str]:
        """Read up to the end of the block; return its closing word too."""
        found: list[Statement] = []
        while True:
            token = self._next()
            if token.kind is Kind.END:
                if is_block:
                    raise self._error("unexpected EOF")
                return tuple(found), ""
            if token.kind is Kind.TEXT:
                found.append(Text(token.at, token.at, token.at + len(token.text), token.text))
                continue
            if token.kind is not Kind.LEFT:
                raise self._unexpected(token, "input")
            self._action_line = token.line
            statement = self._action()
            self._action_line = 0
            if isinstance(statement, str):
                if not is_block:
                    raise self._error(f"unexpected {{{{{statement}}}}}")
                return tuple(found), statement
            found.append(statement)

    def _action(self) -> Statement | str:
        """Read what is between the delimiters, and all of a block. A string is the word that closes one."""
        token = self._peek()
        word = token.text if token.kind is Kind.KEYWORD else ""
        if word:
            self._next()
        match word:
            case "if" | "with" | "range":
                return self._branch(token)
            case "end":
                self._right("end")
                return word
            case "else":
                if not self._is_next("if") and not self._is_next("with"):
                    self._right("else")
                return word
            case "break" | "continue":
                self._right(f"{{{{{word}}}}}")
                if not self._loops:
                    raise self._error(f"{{{{{word}}}}} outside {{{{range}}}}")
                return Jump(token.at, token.at, token.at + len(word), word)
            case "":
                pipe = self._pipeline("command", Kind.RIGHT)
                return Action(pipe.at, pipe.start, pipe.end, pipe)
            case _:
                raise self._error(f"{{{{{word}}}}} is not supported")

    def _branch(self, token: Token) -> Branch:
        word = token.text
        self._enter()
        scope = len(self._variables)
        pipe = self._pipeline(word, Kind.RIGHT)
        self._loops += word == "range"
        body, closing = self._statements()
        self._loops -= word == "range"
        otherwise: tuple[Statement, ...] = ()
        if closing == "else":
            if word != "range" and self._is_next(word):
                otherwise = (self._branch(self._next()),)
            else:
                otherwise, closing = self._statements()
                if closing != "end":
                    raise self._error(f"expected end; found {{{{{closing}}}}}")
        del self._variables[scope:]
        self._depth -= 1
        return Branch(token.at, pipe.start, pipe.end, word, pipe, body, otherwise)

    def _pipeline(self, context: str, closing: Kind) -> Pipe:
        start = self._peek().at
        declared, is_assignment = self._declarations(context)
        commands: list[Command] = []
        while True:
            token = self._peek()
            if token.kind in _OPERANDS:
                commands.append(self._command())
                continue
            self._next()
            if token.kind is not closing:
                raise self._unexpected(token, context)
            break
        if not commands:
            raise self._error(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], 2):
            if isinstance(command.operands[0], Literal | Nil | Dot):
                raise self._error(f"non executable command in pipeline stage {stage}")
        return Pipe(start, start, commands[-1].end, declared, is_assignment, tuple(commands))

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        """Read ``$x :=``, ``$x =`` or, for range, ``$i, $x :=``; return the names, and whether they are only set."""
        names: list[str] = []
        while (variable := self._peek()).kind is Kind.VARIABLE:
            mark = self._index
            self._next()
            sign = self._peek()
            is_comma = sign.kind is Kind.CHAR and sign.text == ","
            if not is_comma and sign.kind not in _SIGNS:
                self._index = mark
                break
            self._next()
            names.append(variable.text)
            self._variables.append(variable.text)
            if len(self._variables) > MAX_VARIABLES:
                raise self._error(f"more than {MAX_VARIABLES} variables")
            if not is_comma:
                return tuple(names), sign.kind is Kind.ASSIGN
            if context != "range" or len(names) > 1:
                raise self._error(f"too many declarations in {context}")
            if self._peek().kind not in {Kind.VARIABLE, *_CLOSING}:
                raise self._error("range can only initialize variables")
        return tuple(names), False

    def _command(self) -> Command:
        start = self._peek().at
        end = start
        operands: list[Operand] = []
        while True:
            self._peek()
            operand = self._operand()
            if operand is not None:
                operands.append(operand)
                end = self._tokens[self._index - 1].at + len(self._tokens[self._index - 1].text)
            token = self._raw_peek()
            if token.kind in _CLOSING:
                break
            self._index += token.kind not in _LAST
            if token.kind is Kind.PIPE:
                break
            if token.kind is not Kind.SPACE:
                raise self._unexpected(token, "operand")
        if not operands:
            raise self._error("empty command")
        return Command(start, start, end, tuple(operands))

    def _operand(self) -> Operand | None:
        """Read a term and the fields that follow it without a blank."""
        operand = self._term()
        if operand is None or self._raw_peek().kind is not Kind.FIELD:
            return operand
        at = self._raw_peek().at
        names: list[str] = []
        end = at
        while (token := self._raw_peek()).kind is Kind.FIELD:
            names.append(token.text[1:])
            end = token.at + len(token.text)
            self._index += 1
        match operand:
            case Field():
                return Field(at, operand.start, end, (*operand.names, *names))
            case Variable():
                return Variable(at, operand.start, end, operand.name, tuple(names))
            case Function() | Pipe():
                return Chain(at, operand.start, end, operand, tuple(names))
            case _:
                shown = self._text_of(operand)
                raise self._error(f"unexpected . after term {quote(shown)}")

    def _term(self) -> Operand | None:
        token = self._peek()
        if token.kind not in _OPERANDS:
            return None
        self._next()
        at, end = token.at, token.at + len(token.text)
        match token.kind:
            case Kind.FUNCTION:
                if token.text not in NAMES:
                    raise self._error(f"function {quote(token.text)} not defined")
                return Function(at, at, end, token.text)
            case Kind.VARIABLE:
                if token.text not in self._variables:
                    raise self._error(f"undefined variable {quote(token.text)}")
                return Variable(at, at, end, token.text, ())
            case Kind.OPEN:
                self._enter()
                pipe = self._pipeline("parenthesized pipeline", Kind.CLOSE)
                self._depth -= 1
                closing = self._tokens[self._index - 1]
                return replace(pipe, start=at, end=closing.at + 1)
            case Kind.DOT:
                return Dot(at, at, end)
            case Kind.NIL:
                return Nil(at, at, end)
            case Kind.FIELD:
                return Field(at, at, end, (token.text[1:],))
            case _:
                try:
                    return Literal(at, at, end, _literal(token))
                except ValueError as error:
                    raise self._error(str(error)) from error

    def _text_of(self, operand: Operand) -> str:
        return next((token.text for token in self._tokens if token.at == operand.at and token.text), "")

    def _is_next(self, word: str) -> bool:
        token = self._peek()
        return token.kind is Kind.KEYWORD and token.text == word

    def _right(self, context: str) -> None:
        token = self._next()
        if token.kind is not Kind.RIGHT:
            raise self._unexpected(token, context)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}")

    def _raw_peek(self) -> Token:
        if self._index > self._seen:
            self._seen = self._index
        return self._tokens[self._index]

    def _peek(self) -> Token:
        """Skip blanks and return what is next without taking it."""
        while (token := self._raw_peek()).kind is Kind.SPACE:
            self._index += 1
        return token

    def _next(self) -> Token:
        """Skip blanks and take what is next; the last token stays."""
        token = self._peek()
        self._index += token.kind not in _LAST
        return token

    def _unexpected(self, token: Token, context: str) -> TemplateError:
        if token.kind is not Kind.ERROR:
            return self._error(f"unexpected {token} in {context}")
        where = ""
        if self._action_line not in {0, token.line}:
            started = f"started at :{self._action_line}"
            where = f" {started}" if token.text.endswith(" action") else f" in action {started}"
        return self._error(token.text + where)

    def _error(self, why: str) -> TemplateError:
        return TemplateError(f"template: :{self._tokens[self._seen].line}: {why}")


def _literal(token: Token) -> str | int | float | bool:
    match token.kind:
        case Kind.BOOL:
            return token.text == "true"
        case Kind.RAW_STRING:
            return token.text[1:-1].replace("\r", "")
        case Kind.STRING:
            return _unquote(token.text)
        case Kind.CHAR_CONSTANT:
            character = _unquote(token.text)
            if len(character) > 1:
                raise ValueError(f"malformed character constant: {token.text}")
            if not character:
                raise ValueError("invalid syntax")
            return ord(character)
        case _:
            return _number(token.text)


def _unquote(literal: str) -> str:
    """The text of a quoted literal. Escapes may be single bytes of UTF-8."""
    mark, body = literal[0], literal[1:-1]
    text = bytearray()
    at = 0
    while (escape := body.find("\\", at)) >= 0:
        text += body[at:escape].encode()
        found = _ESCAPE.match(body, escape)
        if found is None or found["plain"] in {'"', "'"} - {mark}:
            raise ValueError("invalid syntax")
        at = found.end()
        if found["plain"]:
            text += _PLAIN.get(found["plain"], found["plain"]).encode()
        elif found["short"] or found["long"]:
            code = int(found["short"] or found["long"], 16)
            if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
                raise ValueError("invalid syntax")
            text += chr(code).encode()
        else:
            text.append(int(found["byte"], 16) if found["byte"] else int(found["octal"], 8))
    text += body[at:].encode()
    return text.decode("utf-8", "replace")


def _number(text: str) -> int | float:
    try:
        value = int(text, 8) if _OCTAL.fullmatch(text) else int(text, 0)
    except ValueError:
        return _float(text)
    if not -_INT64 <= value < _INT64:
        raise ValueError(f"integer overflow: {quote(text)}")
    return value


def _float(text: str) -> float:
    try:
        value = float.fromhex(text) if text.lower().lstrip("+-").startswith("0x") else float(text)
    except (ValueError, OverflowError):
        value = float("inf")
    if value in {float("inf"), float("-inf")} or not set(text) & set(".eEpP"):
        raise ValueError(f"illegal number syntax: {quote(text)}")
    return value
