"""Numbers as people read and type them (floor 4), in Ollama's forms. Pure: the present comes in as a number."""

import re

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S
WEEK_S = 7 * DAY_S
MONTH_S = 30 * DAY_S
YEAR_S = 365 * DAY_S

_SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
_LONG_SPANS = ((2 * WEEK_S, DAY_S, "days"), (2 * MONTH_S, WEEK_S, "weeks"), (2 * YEAR_S, MONTH_S, "months"))
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": MINUTE_S, "h": HOUR_S}
_SPAN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def size(count_bytes: int) -> str:
    """``270 MB``, ``4.7 GB``, ``512 B``: decimal, one digit behind the point below ten."""
    for unit, name in _SIZES:
        if count_bytes >= unit:
            value = count_bytes / unit
            return f"{value:.0f} {name}" if value >= 10 or count_bytes % unit == 0 else f"{value:.1f} {name}"
    return f"{count_bytes} B"


def memory(count_bytes: int) -> str:
    """``18.2 GiB``, ``256 MiB``: binary, as drivers count memory and as the scheduler's sentences write it."""
    if count_bytes >= 1 << 30:
        return f"{count_bytes / (1 << 30):.1f} GiB"
    return f"{count_bytes / (1 << 20):.0f} MiB"


def span(seconds: float) -> str:
    """``4 minutes``, ``About an hour``, ``3 days``."""
    s = int(seconds)
    hours = round(seconds / HOUR_S)
    if s < 1:
        return "Less than a second"
    if s < MINUTE_S:
        return _count(s, "second")
    if s < HOUR_S:
        return "About a minute" if s < 2 * MINUTE_S else f"{s // MINUTE_S} minutes"
    if hours < 48:
        return "About an hour" if hours <= 1 else f"{hours} hours"
    for below, unit, name in (
        (2 * WEEK_S, DAY_S, "days"),
        (2 * MONTH_S, WEEK_S, "weeks"),
        (2 * YEAR_S, MONTH_S, "months"),
    ):
        if s < below:
            return f"{s // unit} {name}"
    return f"{s // YEAR_S} years"


def instant(when: float | None, now: float) -> str:
    """``3 days ago``, ``4 minutes from now``, ``Forever`` (over 20 years ahead), ``Never`` (None)."""
    if when is None:
        return "Never"
    if when - now > 20 * YEAR_S:
        return "Forever"
    return f"{span(when - now)} from now" if when > now else f"{span(now - when)} ago"


def short_span(seconds: float) -> str:
    """``52.1 ms``, ``7.3 s``, ``1 min 05 s``, ``2 h 10 min``: for progress and measured times."""
    if seconds < 10 and not isinstance(seconds, int):
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
    s = round(seconds)
    if s < MINUTE_S:
        return f"{s} s"
    if s < HOUR_S:
        return f"{s // MINUTE_S} min {s % MINUTE_S:02d} s"
    return f"{s // HOUR_S} h {s % HOUR_S // MINUTE_S:02d} min"


def parse_span(text: str) -> float:
    """Read seconds from ``5m``, ``1h30m``, ``-1`` (for ever), ``300``; raises ValueError. Ollama's keep-alive forms."""
    sign = -1 if text.startswith("-") else 1
    body = text.lstrip("+-")
    if re.fullmatch(r"\d+(\.\d*)?", body):
        return sign * float(body)
    parts = _SPAN.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise ValueError(f"{text!r} is not a duration such as 5m, 1h30m, 300 (seconds) or -1 (for ever)")
    return sign * sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
