"""What a bench found, as a page to read (floor 4). Pure: results in, lines out."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from vllamactl.bench.comparing import FEWEST_PAIRS, Comparison, Row, compare
from vllamactl.bench.figures import Figures, Limits, Spread, figures
from vllamactl.bench.workload import longest
from vllamactl.render import Column, table

if TYPE_CHECKING:
    from vllamactl.bench.plan import Level
    from vllamactl.bench.running import Bench, Results

BUSY_SHARE = 0.5
"""A process that is busy for so much of the time is late for what it should note at once."""
LATE_SHARE = 0.1
"""Of the time to the first token: a client that is late by more adds to what it measures."""
GROWTH = 1.5
"""Requests at the end of a run that take so much longer than those at its beginning found a queue that grows."""

PERCENTS = (90.0, 99.0)


def seconds(value: float) -> str:
    """``0.52 ms``, ``210 ms``, ``6.31 s``, ``1210 s``: three digits that mean something."""
    if value < 0.9995:
        return f"{_three(value * 1000)} ms"
    return f"{_three(value)} s"


def rate(value: float) -> str:
    """Three digits that mean something."""
    return _three(value)


def _three(value: float) -> str:
    for least, digits in ((99.95, 0), (9.995, 1), (0.0995, 2)):
        if value >= least:
            return f"{value:.{digits}f}"
    return f"{value:.3f}" if value else "0"


def page(results: "Results") -> list[str]:
    """Return everything: what was measured, each side's figures, how they compare, and what to know about them."""
    bench = results.bench
    lines = [*_heads(results), *_conditions(bench), ""]
    if results.is_partial:
        lines += ["PARTIAL: interrupted before the end; requests under way are not in the figures", ""]
    for side, target in enumerate(bench.targets):
        found = [(level, figures(played, bench.limits or Limits())) for level, played in _played(results, side)]
        if not found:
            lines += [f"{target.name}: nothing was measured", ""]
            continue
        if len(bench.targets) > 1:
            lines.append(target.name)
        lines += [*side_table(found, bench.limits), ""]
    if len(bench.targets) > 1:
        lines += _comparisons(results)
    notes = _notes(results)
    lines += [f"note: {note}" for note in notes]
    return lines if notes else lines[:-1]


def _played(results: "Results", side: int) -> "list[tuple[Level, Any]]":
    found = [(level, results.of(level, side)) for level in results.bench.levels]
    return [(level, played) for level, played in found if played]


def _heads(results: "Results") -> list[str]:
    from vllamactl.bench.answers import PATHS

    heads: list[str] = []
    for at, target in enumerate(results.bench.targets):
        told = results.facts[at] if at < len(results.facts) else {}
        parts = [precision(told) or "precision not told", *_details(told, "parameter_size")]
        version = f" {target.version or told.get('version') or ''}".rstrip()
        heads += [
            f"{target.name}{version}",
            f"  {target.model} ({', '.join(parts)}) at {target.url}{PATHS[target.api]}",
        ]
    return heads


def precision(told: dict[str, Any]) -> str:
    """What a side tells of its weights: "BF16", "Q4_0"; "" if nothing."""
    return next(iter(_details(told, "quantization_level")), "")


def _details(told: dict[str, Any], name: str) -> list[str]:
    details = cast("dict[str, object]", told.get("details") or {})
    value = details.get(name)
    return [value] if isinstance(value, str) and value and value != "unknown" else []


def _conditions(bench: "Bench") -> list[str]:
    workload = bench.workload
    counts = sorted(set(bench.requests))
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    rounds = f"{bench.rounds} rounds of {each} requests" if bench.rounds > 1 else f"{each} requests"
    prompts = f"{workload.source}, {'a mark of its own before each' if workload.is_distinct else 'sent as they are'}"
    loop = "open loop, Poisson arrivals" if bench.levels[0].rate else "closed loop"
    return [
        f"{prompts}; at most {longest(workload.asks)} tokens, temperature 0",
        f"{loop}; {rounds} at each level, {bench.usual_warmups} to warm up",
    ]


def side_table(found: "Sequence[tuple[Level, Figures]]", limits: Limits | None) -> list[str]:
    """Return one side's figures, a column for each level."""
    rows: list[tuple[str, ...]] = []

    def row(name: str, cell: Callable[[Figures], str]) -> None:
        cells = [cell(each) for _, each in found]
        if any(cell not in ("", "-") for cell in cells):
            rows.append((name, *(cell or "-" for cell in cells)))

    row("answered", lambda f: str(f.answered) if not f.failed else f"{f.answered} of {f.answered + f.failed}")
    row("unfinished", lambda f: str(f.unfinished) if f.unfinished else "")
    row("duration", lambda f: seconds(f.duration_s))
    row("requests", lambda f: f"{rate(f.requests_per_s)}/s")
    row("tokens", lambda f: f"{rate(f.tokens_per_s)}/s")
    for name, of in _SPREADS:
        row(f"{name}, median", lambda f, of=of: _cell(of(f), lambda s: s.median))
        for percent in PERCENTS:
            row(f"  p{percent:g}", lambda f, of=of, p=percent: _cell(of(f), lambda s: s.at(p)))
        row("  max", lambda f, of=of: _cell(of(f), lambda s: s.most))
    if limits is not None:
        row("goodput", lambda f: f"{100 * f.good_share:.0f} %, {rate(f.good_per_s)}/s")
    row("tokens of a prompt", lambda f: _counts(f.prompt_tokens))
    row("tokens of an answer", lambda f: _counts(f.tokens))
    lines = table([Column(""), *(Column(level.label) for level, _ in found)], rows)
    return lines + ([f"goodput: requests within {limits}, of all that were sent"] if limits is not None else [])


_SPREADS: tuple[tuple[str, Callable[[Figures], Spread | None]], ...] = (
    ("latency", lambda f: f.latency),
    ("first token", lambda f: f.first_token),
    ("per token", lambda f: f.per_token),
)


def _cell(spread: Spread | None, of: Callable[[Spread], float | None]) -> str:
    value = of(spread) if spread is not None else None
    return "-" if value is None else seconds(value)


def _counts(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.least == spread.most:
        return f"{spread.median:.0f}"
    return f"{spread.median:.0f} ({spread.least:.0f} to {spread.most:.0f})"


def _comparisons(results: "Results") -> list[str]:
    bench = results.bench
    names = bench.targets[0].name, bench.targets[1].name
    lines: list[str] = []
    for level in bench.levels:
        pairs = results.pairs(level)
        if not pairs:
            lines += [f"{level.label}: no round was played by both sides", ""]
            continue
        found = compare(pairs, bench.limits, names)
        lines += [*comparison_table(found, level.label, names, len(pairs)), ""]
    return lines


def comparison_table(found: Comparison, label: str, names: tuple[str, str], pairs: int) -> list[str]:
    """Return one level's table, and its notes below."""
    ratio = f"ratio ({pairs} {'pair' if pairs == 1 else 'pairs'})"
    columns = [Column(title) for title in (label, *names, ratio, "better")]
    rows = [_compared(row, names) for row in found.rows]
    lines = table(columns, rows)
    if found.same_texts is not None:
        lines.append(f"answers of the same text: {100 * found.same_texts:.0f} %")
    return lines + [f"note: {note}" for note in found.notes]


def _compared(row: Row, names: tuple[str, str]) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        if value is None:
            return "-"
        return seconds(value) if row.measure.unit == "s" else f"{rate(value)}{row.measure.unit}"

    ratio = row.ratio
    words = row.why
    if ratio is not None:
        words = f"{ratio.median:.2f}"
        words += f" ({ratio.least:.2f} to {ratio.most:.2f})" if len(ratio.pairs) > 1 else ""
    verdict = names[row.better] if row.better is not None else ("unclear" if ratio is not None else "")
    return (row.measure.name, *(shown(value) for value in row.values), words, verdict)


def _notes(results: "Results") -> list[str]:
    bench = results.bench
    notes: list[str] = []
    for side, target in enumerate(bench.targets):
        for level, played in _played(results, side):
            name = f"{target.name}, {level.label}" if len(bench.targets) > 1 else level.label
            notes += [f"{name}: {note}" for note in _about(figures(played, Limits()), level)]
    total = bench.rounds * sum(bench.requests)
    repeated = bench.workload.repeats(total)
    if repeated:
        notes.append(
            f"{repeated} of {total} prompts were asked before in this run: engines answer such from a prefix cache"
        )
    if len(bench.targets) > 1:
        notes += _about_both(results)
    return notes


def _about(found: Figures, level: "Level") -> list[str]:
    notes = [f"{count} failed: {kind}" for kind, count in found.faults]
    if found.faults:
        notes.append("the times are those of whole answers alone")
    if found.stopped:
        notes.append(f"{found.stopped} of {found.answered} answers were ended by the model, not by their limit")
    if found.cpu_share > BUSY_SHARE:
        notes.append(f"this program was busy for {100 * found.cpu_share:.0f} % of a core: it may be what is measured")
    if found.first_token is not None and found.most_late_s > LATE_SHARE * found.first_token.median:
        notes.append(f"requests were sent up to {seconds(found.most_late_s)} late; the times count from when due")
    if level.rate and found.trend is not None and found.trend[1] > GROWTH * found.trend[0]:
        notes.append(
            f"the server does not keep up with {level.rate:g} requests a second: latency grew from "
            f"{seconds(found.trend[0])} to {seconds(found.trend[1])} (median of the first and the last third)"
        )
    return notes


def _about_both(results: "Results") -> list[str]:
    one, other = results.bench.targets
    notes: list[str] = []
    if len(results.facts) == 2:
        levels = [precision(told) for told in results.facts]
        for target, level in zip((one, other), levels, strict=True):
            if not level:
                notes.append(
                    f"{target.name} does not tell its precision: weights of fewer bits are quicker, and coarser"
                )
        if all(levels) and levels[0].upper() != levels[1].upper():
            notes.append(
                f"different precision: {one.name} has {levels[0]}, {other.name} {levels[1]}; the ratios say what "
                "each of these two gives, not which server is quicker"
            )
        sizes = [next(iter(_details(told, "parameter_size")), "") for told in results.facts]
        if all(sizes) and sizes[0] != sizes[1]:
            notes.append(f"different sizes: {one.name}'s model has {sizes[0]} parameters, {other.name}'s {sizes[1]}")
    if one.place == other.place:
        notes.append("both sides are the same server: who asks second finds the prompts in its prefix cache")
    if results.bench.rounds < FEWEST_PAIRS:
        notes.append(f"fewer than {FEWEST_PAIRS} pairs of rounds do not tell who is better from chance: --rounds")
    return notes
