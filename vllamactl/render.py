"""Tables and pages as text (floor 4). Pure: rows in, lines out."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One column. In a terminal too narrow for all, those with ``drop`` go first, the highest number before the others;
    then the one with ``is_elastic`` is cut."""

    title: str
    drop: int = 0
    is_elastic: bool = False


GAP = 4
NARROW_GAP = 2
ELASTIC_MIN = 16


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Return a table in Ollama's form: left aligned, no borders, the header always there. ``width`` None: not cut."""
    kept = list(range(len(columns)))
    widths = [max([len(c.title), *(len(row[i]) for row in rows)]) for i, c in enumerate(columns)]
    gap = GAP

    def need() -> int:
        return sum(widths[i] for i in kept) + gap * (len(kept) - 1)

    if width is not None and need() > width:
        gap = NARROW_GAP
        elastic = next((i for i, c in enumerate(columns) if c.is_elastic), None)
        while need() > width and any(columns[i].drop for i in kept):
            kept.remove(max(kept, key=lambda i: columns[i].drop))
        if elastic is not None and need() > width:
            widths[elastic] = max(ELASTIC_MIN, widths[elastic] - (need() - width))
    lines = [[columns[i].title for i in kept], *([row[i] for i in kept] for row in rows)]
    return [
        (" " * gap).join(cut(cell, widths[i]).ljust(widths[i]) for cell, i in zip(line, kept, strict=True)).rstrip()
        for line in lines
    ]


def pairs(rows: Sequence[tuple[str, str]], indent: int = 2) -> list[str]:
    """Return "name  value" lines, values aligned; rows without a value are left out."""
    shown = [(name, value) for name, value in rows if value]
    wide = max((len(name) for name, _ in shown), default=0)
    return [f"{' ' * indent}{name.ljust(wide)}{' ' * GAP}{value}" for name, value in shown]


def cut(text: str, width: int) -> str:
    """Shorten a text in its middle: both the family and the tag of a model's name tell something."""
    if len(text) <= width:
        return text
    if width < 2:
        return text[:width]
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "…" + (text[-tail:] if tail else "")
