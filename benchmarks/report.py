"""What was measured, as a table to read and as a document to keep. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.samples import Samples

HEADER = ("what", "n", "measured (least to most)", "compared with", "ratio")


@dataclass(frozen=True, slots=True)
class Row:
    """One line. ``against`` names what ``compared`` is; ``ratio`` is measured by compared, or pairs of them."""

    what: str
    unit: str
    measured: Samples
    against: str = ""
    compared: Samples | None = None
    ratio: Samples | None = None

    def cells(self) -> tuple[str, ...]:
        """The line's columns."""
        compared = f"{self.against} {shown(self.compared.median)} {self.unit}" if self.compared else self.against
        ratio = spread(self.ratio) if self.ratio else ""
        return self.what, str(len(self.measured)), spread(self.measured, self.unit), compared, ratio

    def document(self) -> dict[str, Any]:
        """Everything, single numbers too."""
        found: dict[str, Any] = {"what": self.what, "unit": self.unit, "measured": _document(self.measured)}
        if self.against:
            found["against"] = self.against
        if self.compared:
            found["compared"] = _document(self.compared)
        if self.ratio:
            found["ratio"] = _document(self.ratio)
        return found


def shown(value: float) -> str:
    """Three digits that mean something."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def spread(samples: Samples, unit: str = "") -> str:
    """The median, and the least and the most of single numbers."""
    median = f"{shown(samples.median)} {unit}".rstrip()
    if len(samples) == 1:
        return median
    return f"{median} ({shown(samples.least)} to {shown(samples.most)})"


def streams_of(count: int) -> str:
    """In words."""
    return "1 stream" if count == 1 else f"{count} streams"


def table(rows: Iterable[Row]) -> str:
    """Lines of columns, as wide as they need to be."""
    cells = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _document(samples: Samples) -> dict[str, Any]:
    return {"median": samples.median, "min": samples.least, "max": samples.most, "samples": list(samples.values)}
