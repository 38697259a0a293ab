"""Bars as SVG, out of the rows of a run. Pure, and without a library: a chart of a page is a few rectangles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.report import Row, shown, streams_of
from benchmarks.samples import Samples

WIDTH, LABEL, VALUE = 760, 190, 190
"""Of the picture, of the names at the left, and of the numbers at the right, in pixels."""

BAR, GAP, HEAD = 18, 6, 26
COLOURS = ("#2f6f4f", "#4f8fbf", "#999999", "#c9a227", "#b05f3c")


@dataclass(frozen=True, slots=True)
class Bar:
    """One number, with how far single measurements went."""

    name: str
    samples: Samples


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars that share a scale."""

    title: str
    bars: Sequence[Bar]


def draw(title: str, unit: str, panels: Sequence[Panel]) -> str:
    """A picture of panels, one under the other. A bar is a median; the thin line goes from the least to the most."""
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(_names(panels))}
    parts: list[str] = []
    top = HEAD + 10
    for panel in panels:
        parts.append(_text(10, top + 14, panel.title, weight="bold"))
        top += HEAD
        most = max(bar.samples.most for bar in panel.bars)
        for bar in panel.bars:
            parts.append(_bar(bar, unit, top, (WIDTH - LABEL - VALUE) / most, colours[bar.name]))
            top += BAR + GAP
        top += GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}">\n'
        f'<title>{escape(title)}</title>\n<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>\n'
        + _text(10, 20, title, weight="bold", size=14)
        + "".join(parts)
        + "</svg>\n"
    )


def pictures(rows: Sequence[Row]) -> dict[str, str]:
    """The pictures that these rows are good for, by file name."""
    by_name = {row.what: row for row in rows}
    made: dict[str, str] = {}
    for file, title, unit, load, is_cpu in (
        ("cpu-alone.svg", "CPU for a token that arrives alone (less is better)", "µs", "tokens alone", True),
        ("cpu-flat.svg", "CPU for a token, flat out (less is better)", "µs", "flat out", True),
        ("speed-flat.svg", "Tokens a second, flat out (more is better)", "tokens/s", "flat out", False),
    ):
        if panels := _source_panels(by_name, load, is_cpu=is_cpu):
            made[file] = draw(title, unit, panels)
    if panels := _engine_panels(by_name):
        made["engine.svg"] = draw(
            "Tokens a second with a real engine on two cores (more is better)", "tokens/s", panels
        )
    return made


def _source_panels(rows: Mapping[str, Row], load: str, *, is_cpu: bool) -> list[Panel]:
    panels: list[Panel] = []
    for streams in (1, 16, 50):
        found: list[Bar] = []
        other: Row | None = None
        for name in ("Ollama face", "passthrough", "nginx"):
            what = f"fast source {load}, {streams_of(streams)}: " + (f"CPU of {name}" if is_cpu else name)
            if (row := rows.get(what)) is not None:
                found.append(Bar(name, row.measured))
                other = row
        if other is not None and other.compared is not None:
            panels.append(Panel(streams_of(streams), [*found, Bar(other.against, other.compared)]))
    return panels


def _engine_panels(rows: Mapping[str, Row]) -> list[Panel]:
    panels: list[Panel] = []
    for streams in (1, 16, 50):
        row = rows.get(f"/api/chat, {streams_of(streams)}")
        if row is not None and row.compared is not None:
            bars = [Bar("/api/chat", row.measured), Bar(row.against, row.compared)]
            panels.append(Panel(streams_of(streams), bars))
    return panels


def _names(panels: Sequence[Panel]) -> list[str]:
    return list(dict.fromkeys(bar.name for panel in panels for bar in panel.bars))


def _bar(bar: Bar, unit: str, top: int, scale: float, colour: str) -> str:
    samples, middle = bar.samples, top + BAR / 2
    left, width = LABEL, max(1.0, samples.median * scale)
    least, most = left + samples.least * scale, left + samples.most * scale
    return (
        _text(LABEL - 8, top + 13, bar.name, anchor="end")
        + f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>\n'
        + f'<path d="M{least:.1f} {middle}H{most:.1f}" stroke="#222222" stroke-width="1"/>\n'
        + _text(max(left + width, most) + 6, top + 13, f"{shown(samples.median)} {unit}")
    )


def _text(x: float, y: float, text: str, *, weight: str = "normal", anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
    style = f'font-family="sans-serif" font-size="{size}" font-weight="{weight}" fill="#222222"'
    return f"<text {place} {style}>{escape(text)}</text>\n"
