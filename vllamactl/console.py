"""The two streams of a command line program (floor 4): data on stdout, talk on stderr, what each can show."""

import io
import os
import sys
from collections.abc import Mapping
from typing import TextIO

DIM = "2"
RED = "31"
GREEN = "32"
YELLOW = "33"
CYAN = "36"

# Escape sequences in a model's answer or in a log must not drive the reader's terminal.
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


class ReaderLeft(Exception):
    """The program that read our stdout is gone; there is nobody to tell. (Not an OSError: click would exit on it.)"""


class Console:
    """Where output goes. ``data`` is what a script reads; ``say`` is for people and silent with ``--quiet``."""

    def __init__(self, out: TextIO, err: TextIO, env: Mapping[str, str]) -> None:
        self.out = out
        self.err = err
        for stream in (out, err):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        has_colors = not env.get("NO_COLOR") and env.get("TERM", "dumb") != "dumb"
        self.is_out_terminal = out.isatty()
        self.is_err_terminal = err.isatty()
        self.colors_out = has_colors and self.is_out_terminal
        self.colors_err = has_colors and self.is_err_terminal
        self.can_draw = self.is_err_terminal and env.get("TERM", "dumb") != "dumb"
        self.is_quiet = False
        self.is_json = False
        self.is_unicode = "utf" in (err.encoding or "ascii").lower()

    @classmethod
    def standard(cls) -> "Console":
        return cls(sys.stdout, sys.stderr, os.environ)

    @property
    def width(self) -> int | None:
        """Columns of the terminal behind stdout; None if nobody looks: then nothing is cut."""
        return columns(self.out) if self.is_out_terminal else None

    @property
    def err_width(self) -> int:
        return columns(self.err)

    def data(self, text: str) -> None:
        """Write a line of what was asked for."""
        self.write(self.printable(text) + "\n")

    def write(self, text: str, flush: bool = False) -> None:
        """Write to stdout as it is. Raises ReaderLeft if nobody reads it any more (`vllamactl list | head -1`)."""
        try:
            self.out.write(text)
            if flush:
                self.out.flush()
        except BrokenPipeError as error:
            raise ReaderLeft from error

    def document(self, value: object) -> None:
        """Write one JSON document on a line of its own, at once: a reader may follow."""
        import json

        self.write(json.dumps(value, ensure_ascii=False) + "\n", flush=True)

    def say(self, text: str, symbol: str = "", color: str = "") -> None:
        """Tell a person something, unless ``--quiet`` or ``--json`` asked for silence."""
        if self.is_quiet or self.is_json:
            return
        mark = self.paint_err(self.symbol(symbol), color) + " " if symbol else ""
        self.err.write(f"{mark}{text}\n")
        self.err.flush()

    def done(self, text: str) -> None:
        self.say(text, "✓", GREEN)

    def warn(self, text: str) -> None:
        """Tell a person something that even ``--quiet`` must not hide."""
        self.err.write(text + "\n")
        self.err.flush()

    def printable(self, text: str) -> str:
        """Return text without control characters if a terminal would act on them."""
        return text.translate(_CONTROLS) if self.is_out_terminal else text

    def paint(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if color and self.colors_out else text

    def paint_err(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if color and self.colors_err else text

    def symbol(self, symbol: str) -> str:
        """Return ``→ • ✓ ✗`` or what stands for them where the encoding has none."""
        return symbol if self.is_unicode else {"→": "->", "•": "*", "✓": "ok", "✗": "failed"}.get(symbol, symbol)


def columns(stream: TextIO) -> int:
    """Return the width of a terminal; 80 if it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
