"""The tokens of a Go template (floor 1): text, and between ``{{`` and ``}}`` the words of an action.

The end of the list is a token too: END, or ERROR with what is wrong as its text.
"""

import re
from enum import StrEnum
from typing import NamedTuple

from vllamad.dialects.go_templates.values import quote

SPACE = " \t\r\n"
LEFT, RIGHT = "{{", "}}"
KEYWORDS = frozenset({"if", "else", "end", "range", "with", "break", "continue", "define", "template", "block"})

_SPACES = re.compile(r"[ \t\r\n]*")
_RIGHT = re.compile(r"([ \t\r\n]-)?\}\}")
_WORD = re.compile(r"\w+")
_TERMINATOR = re.compile(r"[ \t\r\n.,|:()]|\}\}|\Z")
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?|0[oO][0-7_]*|0[bB][01_]*"
    r"|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)
_QUOTED = {mark: re.compile(rf"{mark}(?:[^{mark}\\\n]|\\[^\n])*{mark}") for mark in "\"'"}
_DIGITS = frozenset("0123456789")
_UNTERMINATED = {'"': "unterminated quoted string", "'": "unterminated character constant"}


class Kind(StrEnum):
    """What a token is."""

    TEXT = "text"
    LEFT = "left"
    RIGHT = "right"
    SPACE = "space"
    KEYWORD = "keyword"
    FUNCTION = "function"
    FIELD = "field"
    VARIABLE = "variable"
    DOT = "dot"
    NIL = "nil"
    BOOL = "bool"
    NUMBER = "number"
    CHAR_CONSTANT = "char constant"
    STRING = "string"
    RAW_STRING = "raw string"
    DECLARE = ":="
    ASSIGN = "="
    PIPE = "|"
    OPEN = "("
    CLOSE = ")"
    CHAR = "char"
    END = "end"
    ERROR = "error"


_SINGLE = {"=": Kind.ASSIGN, "|": Kind.PIPE, "(": Kind.OPEN, ")": Kind.CLOSE}


class Token(NamedTuple):
    """A piece of the source: where it begins, and in which line."""

    kind: Kind
    text: str
    at: int
    line: int

    def __str__(self) -> str:
        if self.kind is Kind.END:
            return "EOF"
        if self.kind is Kind.ERROR:
            return self.text
        if self.kind in {Kind.KEYWORD, Kind.DOT, Kind.NIL}:
            return f"<{self.text}>"
        return quote(self.text[:10]) + ("..." if len(self.text) > 10 else "")


def lex(source: str) -> list[Token]:
    """Cut the source into tokens."""
    return _Lexer(source).run()


class _Lexer:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._line = 1
        self._open = 0
        self._tokens: list[Token] = []

    def run(self) -> list[Token]:
        try:
            while self._text():
                while not self._right():
                    self._word()
        except ValueError as error:
            self._tokens.append(Token(Kind.ERROR, str(error), self._at, self._line))
        return self._tokens

    def _text(self) -> bool:
        """Take the text, and comments, up to and with the next left delimiter; say whether there is one."""
        source = self._source
        while (left := source.find(LEFT, self._at)) >= 0:
            inner = left + len(LEFT)
            is_trimmed = source.startswith("-", inner) and source[inner + 1 : inner + 2] in set(SPACE)
            end = self._at + len(source[self._at : left].rstrip(SPACE)) if is_trimmed else left
            if end > self._at:
                self._emit(Kind.TEXT, end)
            self._skip(left)
            if is_trimmed:
                inner += 2
            if not source.startswith("/*", inner):
                self._emit(Kind.LEFT, left + len(LEFT))
                self._skip(inner)
                self._open = 0
                return True
            self._skip(inner)
            self._comment()
        if self._at < len(source):
            self._emit(Kind.TEXT, len(source))
        self._emit(Kind.END, len(source))
        return False

    def _comment(self) -> None:
        close = self._source.find("*/", self._at + 2)
        if close < 0:
            raise ValueError("unclosed comment")
        right = _RIGHT.match(self._source, close + 2)
        if right is None:
            raise ValueError("comment ends before closing delimiter")
        self._skip(right.end())
        if right[1]:
            self._skip(self._past_spaces())

    def _right(self) -> bool:
        """Take the right delimiter if it is next, and the white space that its marker trims."""
        right = _RIGHT.match(self._source, self._at)
        if right is None:
            return False
        if self._open:
            raise ValueError("unclosed left paren")
        self._skip(right.end() - len(RIGHT))
        self._emit(Kind.RIGHT, right.end())
        if right[1]:
            self._skip(self._past_spaces())
        return True

    def _word(self) -> None:
        source, at = self._source, self._at
        character = source[at : at + 1]
        following = source[at + 1 : at + 2]
        if not character:
            raise ValueError("unclosed action")
        if character in SPACE:
            end = self._past_spaces()
            # The last blank belongs to a trim marker that follows it.
            self._emit(Kind.SPACE, end - 1 if source.startswith("-}}", end) else end)
        elif character == ":":
            if following != "=":
                raise ValueError("expected :=")
            self._emit(Kind.DECLARE, at + 2)
        elif character in _SINGLE:
            self._open += {"(": 1, ")": -1}.get(character, 0)
            self._emit(_SINGLE[character], at + 1)
        elif character in _QUOTED:
            literal = _QUOTED[character].match(source, at)
            if literal is None:
                raise ValueError(_UNTERMINATED[character])
            self._emit(Kind.STRING if character == '"' else Kind.CHAR_CONSTANT, literal.end())
        elif character == "`":
            close = source.find("`", at + 1)
            if close < 0:
                raise ValueError("unterminated raw quoted string")
            self._emit(Kind.RAW_STRING, close + 1)
        elif character == "$" or (character == "." and following and following not in _DIGITS):
            self._name(character)
        elif character in "+-." or character in _DIGITS:
            self._number()
        elif _WORD.match(character):
            self._name("")
        elif character.isascii() and character.isprintable():
            self._emit(Kind.CHAR, at + 1)
        else:
            raise ValueError(f"unrecognized character in action: {_shown(character)}")

    def _name(self, prefix: str) -> None:
        """A field, a variable, a keyword or a function's name."""
        start = self._at + len(prefix)
        found = _WORD.match(self._source, start)
        end = found.end() if found and not (prefix and _TERMINATOR.match(self._source, start)) else start
        if not _TERMINATOR.match(self._source, end):
            raise ValueError(f"bad character {_shown(self._source[end])}")
        name = self._source[start:end]
        if prefix:
            kind = Kind.VARIABLE if prefix == "$" else Kind.FIELD if name else Kind.DOT
        elif name in KEYWORDS:
            kind = Kind.KEYWORD
        else:
            kind = {"true": Kind.BOOL, "false": Kind.BOOL, "nil": Kind.NIL}.get(name, Kind.FUNCTION)
        self._emit(kind, end)

    def _number(self) -> None:
        found = _NUMBER.match(self._source, self._at)
        end = found.end() if found else self._at
        following = self._source[end : end + 1]
        if following in {"+", "-"} or _WORD.match(following):
            raise ValueError(f"bad number syntax: {quote(self._source[self._at : end + 1])}")
        self._emit(Kind.NUMBER, end)

    def _past_spaces(self) -> int:
        found = _SPACES.match(self._source, self._at)
        return found.end() if found else self._at

    def _emit(self, kind: Kind, end: int) -> None:
        self._tokens.append(Token(kind, self._source[self._at : end], self._at, self._line))
        self._skip(end)

    def _skip(self, end: int) -> None:
        self._line += self._source.count("\n", self._at, end)
        self._at = end


def _shown(character: str) -> str:
    code = f"U+{ord(character):04X}"
    return f"{code} '{character}'" if character.isprintable() else code
