"""The report as text and as JSON (floor 4). Pure."""

import textwrap
from collections.abc import Callable, Sequence

from vllamactl.doctor.finding import Finding, State

WIDTH = 80
"""At most, and where nobody looks."""

ORDER = (State.FAIL, State.WARN, State.SKIPPED, State.OK)
"""Problems first."""

MARKS = {State.FAIL: "✗", State.WARN: "!", State.SKIPPED: "-", State.OK: "✓"}


def _wrap(text: str, width: int) -> list[str]:
    """Whole words only: paths and commands are to be copied."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def page(
    findings: Sequence[Finding],
    *,
    mark: Callable[[State], str] = MARKS.__getitem__,
    arrow: str = "→",
    width: int | None = WIDTH,
    only_problems: bool = False,
) -> list[str]:
    """Return the lines: problems first, each with its remedy, the rest in the order of the checks, and a last line that
    counts. ``only_problems`` leaves out the rest, and says nothing at all if there are none."""
    names = max((len(one.check) for one in findings), default=0)
    room = max(40, min(width or WIDTH, WIDTH))
    lines: list[str] = []
    for state in ORDER:
        if only_problems and state not in {State.FAIL, State.WARN}:
            continue
        told: dict[str, str] = {}
        for one in findings:
            if one.state is not state:
                continue
            first = told.setdefault(one.text, one.check)
            same = one if first == one.check else Finding(one.check, state, f"as for {first}")
            lines += _lines(same, mark(state), arrow, names, room)
    if only_problems and not lines:
        return []
    return [*lines, summary(findings)]


def _lines(one: Finding, mark: str, arrow: str, names: int, width: int) -> list[str]:
    indent = " " * (names + 4)
    first = f"{mark} {one.check.ljust(names)}  "
    # The mark may carry colours, which take no room.
    body = _wrap(one.text, width - len(indent))
    lines = [f"{first}{body[0]}", *(f"{indent}{line}" for line in body[1:])]
    if one.remedy and one.state is not State.OK:
        remedy = _wrap(one.remedy, width - len(indent) - len(arrow) - 1)
        lines += [f"{indent}{arrow if not n else ' ' * len(arrow)} {line}" for n, line in enumerate(remedy)]
    return lines


def summary(findings: Sequence[Finding]) -> str:
    """``2 problems, 1 warning; 3 skipped``, or ``no problems``."""
    counts = {state: sum(one.state is state for one in findings) for state in State}
    parts = [_count(counts[State.FAIL], "problem")] if counts[State.FAIL] else ["no problems"]
    if counts[State.WARN]:
        parts.append(_count(counts[State.WARN], "warning"))
    text = ", ".join(parts)
    return f"{text}; {counts[State.SKIPPED]} skipped" if counts[State.SKIPPED] else text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def document(findings: Sequence[Finding]) -> dict[str, object]:
    """The report as one JSON document, checks in their own order."""
    return {
        "checks": [
            {"id": one.check, "state": one.state.value, "text": one.text, "remedy": one.remedy} for one in findings
        ],
        "failed": sum(one.state is State.FAIL for one in findings),
        "warnings": sum(one.state is State.WARN for one in findings),
        "skipped": sum(one.state is State.SKIPPED for one in findings),
    }


def has_failed(findings: Sequence[Finding]) -> bool:
    return any(one.state is State.FAIL for one in findings)
