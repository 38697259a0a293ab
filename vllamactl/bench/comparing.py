"""One side against the other (floor 3). Pure.

The two were played beside each other, in pairs of rounds. What is compared are the two of a pair, which had the same
machine in the same minute; the ratio of all is the median of the ratios of pairs, and its least and most show how far
chance goes. Where the two did not do the same work, no ratio is given.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllamactl.bench.figures import Figures, Limits, Played, Spread, figures

FEWEST_PAIRS = 5
"""How many pairs must agree before one side is called better: of two that are the same, so many agree by chance once in
16 times; three would once in four."""

LENGTH_TOLERANCE = 0.02
"""By how much of all tokens the answers of the two may differ in length: less than that nobody sees in a ratio."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a turn. ``needs_same_length``: longer answers change it, whoever gives them."""

    name: str
    unit: str
    of: Callable[[Figures], float | None]
    more_is_better: bool
    needs_same_length: bool


def _median(spread: Spread | None) -> float | None:
    return spread.median if spread else None


MEASURES = (
    Measure("requests", "/s", lambda f: f.requests_per_s, more_is_better=True, needs_same_length=True),
    Measure("tokens", "/s", lambda f: f.tokens_per_s, more_is_better=True, needs_same_length=True),
    Measure("latency", "s", lambda f: _median(f.latency), more_is_better=False, needs_same_length=True),
    Measure("first token", "s", lambda f: _median(f.first_token), more_is_better=False, needs_same_length=False),
    Measure("per token", "s", lambda f: _median(f.per_token), more_is_better=False, needs_same_length=False),
)
GOODPUT = Measure("goodput", "/s", lambda f: f.good_per_s, more_is_better=True, needs_same_length=True)


@dataclass(frozen=True, slots=True)
class Ratio:
    """The measured side's number by the other's, over the pairs of rounds."""

    pairs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.pairs)

    @property
    def least(self) -> float:
        return min(self.pairs)

    @property
    def most(self) -> float:
        return max(self.pairs)

    @property
    def is_one_sided(self) -> bool:
        """All pairs, and enough of them, say the same of who has more."""
        return len(self.pairs) >= FEWEST_PAIRS and (self.least > 1 or self.most < 1)


@dataclass(frozen=True, slots=True)
class Row:
    """A measure of both sides, each over all its rounds. ``ratio`` is None where there is none to give: ``why`` says
    why. ``better`` is the index of the side that all of enough pairs call better, or None."""

    measure: Measure
    values: tuple[float | None, float | None]
    ratio: Ratio | None
    why: str
    better: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides at one level. ``notes`` tell what a reader must know before believing a ratio."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    same_texts: float | None
    """The share of answered requests that both sides answered with the same text; None if there are none."""


def compare(pairs: Sequence[tuple[Played, Played]], limits: Limits | None, names: tuple[str, str]) -> Comparison:
    """Compare two sides; at least one pair."""
    chosen = limits or Limits()
    totals = [figures([pair[side] for pair in pairs], chosen) for side in (0, 1)]
    rounds = [(figures([one], chosen), figures([other], chosen)) for one, other in pairs]
    failed = [f"{totals[side].failed} of {names[side]}'s" for side in (0, 1) if totals[side].failed]
    unequal = lengths_differ(pairs)
    rows: list[Row] = []
    for measure in (*MEASURES, *((GOODPUT,) if limits is not None else ())):
        values = measure.of(totals[0]), measure.of(totals[1])
        why = "not comparable" if failed or (unequal and measure.needs_same_length) else ""
        ratio = None if why else _ratio(measure, rounds)
        better = None
        if ratio is not None and ratio.is_one_sided:
            better = 0 if (ratio.median > 1) == measure.more_is_better else 1
        rows.append(Row(measure, values, ratio, why or ("" if ratio else "-"), better))
    notes: list[str] = []
    if failed:
        notes.append(f"not comparable: {' and '.join(failed)} requests failed, and who fails has less to do")
    if unequal:
        notes.append(f"not comparable where answers count whole: {unequal}")
    notes += _prompts(totals, names)
    return Comparison(tuple(rows), tuple(notes), _same_texts(pairs))


def lengths_differ(pairs: Sequence[tuple[Played, Played]]) -> str:
    """Say how the lengths of answers to the same requests differ, if they do so by more than nothing; else ""."""
    totals, compared, unlike = [0, 0], 0, 0
    apart = 0
    for one, other in pairs:
        others = {sample.index: sample for sample in other.samples if sample.fault is None}
        for sample in one.samples:
            if sample.fault is None and sample.index in others:
                counts = sample.tokens, others[sample.index].tokens
                totals = [total + count for total, count in zip(totals, counts, strict=True)]
                apart += abs(counts[0] - counts[1])
                unlike += counts[0] != counts[1]
                compared += 1
    if apart <= LENGTH_TOLERANCE * max(totals):
        return ""
    means = " and ".join(f"{total / compared:.1f}" for total in totals)
    return f"{unlike} of {compared} answers are not of the same length ({means} tokens in the mean)"


def _ratio(measure: Measure, rounds: Sequence[tuple[Figures, Figures]]) -> Ratio | None:
    found: list[float] = []
    for one, other in rounds:
        mine, theirs = measure.of(one), measure.of(other)
        if mine is None or not theirs:
            return None
        found.append(mine / theirs)
    return Ratio(tuple(found))


def _prompts(totals: Sequence[Figures], names: tuple[str, str]) -> list[str]:
    one, other = (_median(total.prompt_tokens) for total in totals)
    if not one or not other or abs(one - other) <= LENGTH_TOLERANCE * max(one, other):
        return []
    return [
        f"the same prompts are {one:.0f} tokens for {names[0]} and {other:.0f} for {names[1]} (median): "
        "their templates, or how they count, differ"
    ]


def _same_texts(pairs: Sequence[tuple[Played, Played]]) -> float | None:
    same: list[bool] = []
    for one, other in pairs:
        others = {sample.index: sample for sample in other.samples if sample.fault is None}
        same += [s.text == others[s.index].text for s in one.samples if s.fault is None and s.index in others]
    return sum(same) / len(same) if same else None
