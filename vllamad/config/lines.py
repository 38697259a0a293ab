"""Where in a TOML file a key stands (floor 2), which the parser does not tell.

A lexer for text that the parser has accepted already: it only has to step over strings, brackets and comments. Keys
inside inline tables are not found; the line of the table is then the answer.
"""

import re

Path = tuple[str | int, ...]

_KEY = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*(\.?)""")
_VALUE = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|'
    r"'''.*?'{3,5}|"
    r'"(?:[^"\\\n]|\\.)*"|'
    r"'[^'\n]*'|"
    r"#[^\n]*|"
    r"[\[\]{}\n]|"
    r"[^\"'#\[\]{}\n]+",
    re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """Line numbers from 1 by path; rows of an array of tables are counted from 0: ``("model", 0, "match")``."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    prefix: Path = ()
    at = 0
    while at < len(text):
        if text[at] in " \t\r\n\ufeff":
            at += 1
        elif text[at] == "#":
            at = _end_of_line(text, at)
        elif text[at] == "[":
            is_array = text.startswith("[[", at)
            prefix, _ = _key(text, at + 2 if is_array else at + 1)
            if is_array:
                counts[prefix] = number = counts.get(prefix, -1) + 1
                prefix = (*prefix, number)
            lines.setdefault(prefix, _line(text, at))
            at = _end_of_line(text, at)
        else:
            key, end = _key(text, at)
            for length in range(1, len(key) + 1):
                lines.setdefault(prefix + key[:length], _line(text, at))
            at = _end_of_value(text, end)
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of a path, or of the nearest table around it; 0 if nothing is known."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def _key(text: str, at: int) -> tuple[Path, int]:
    parts: list[str | int] = []
    while match := _KEY.match(text, at):
        parts.append(next(part for part in match.group(1, 2, 3) if part is not None))
        at = match.end()
        if not match[4]:
            break
    return tuple(parts), max(at, 1)


def _end_of_value(text: str, at: int) -> int:
    depth = 0
    while match := _VALUE.match(text, at):
        at = match.end()
        piece = match[0]
        depth += (piece in ("[", "{")) - (piece in ("]", "}"))
        if piece == "\n" and depth <= 0:
            return at
    return len(text)


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
