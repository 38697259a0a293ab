"""What the samples say (floor 3). Pure.

Percentiles are of *nearest rank*: the smallest value that at least that share of all values does not exceed. So each is
a value that was measured, and none is shown that so few values cannot have: the 99th percentile of 20 values would be
their largest under a better-sounding name.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vllamactl.bench.answers import UNKNOWN, Sample

LIMITS = ("ttft", "tpot", "latency")
TREND_LEAST = 12
"""Fewer answers have thirds of which single ones decide."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values in ascending order, of which there is at least one."""
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[max(rank, 1) - 1]


def least_count(percent: float) -> int:
    """How many values it takes to tell a percentile from the largest value."""
    return math.ceil(round(100 / (100 - percent), 6))


@dataclass(frozen=True, slots=True)
class Spread:
    """Values in ascending order, at least one."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None where nothing was measured."""
        return cls(tuple(sorted(values))) if values else None

    def at(self, percent: float) -> float | None:
        """A percentile; None if there are too few values for it."""
        return percentile(self.values, percent) if len(self.values) >= least_count(percent) else None

    @property
    def median(self) -> float:
        return percentile(self.values, 50)

    @property
    def least(self) -> float:
        return self.values[0]

    @property
    def most(self) -> float:
        return self.values[-1]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request must keep to be a good one, in seconds; None: anything will do."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Read ``ttft:200,tpot:50`` (milliseconds). Raises ValueError with words for a person."""
        found: dict[str, float] = {}
        for part in text.split(","):
            name, colon, number = part.strip().partition(":")
            if name not in LIMITS or not colon:
                raise ValueError(f"{part.strip()!r} is no limit: write {', '.join(LIMITS)}, a colon and milliseconds")
            if name in found:
                raise ValueError(f"{name} is there twice")
            try:
                value = float(number)
            except ValueError:
                raise ValueError(f"{number!r} is no number of milliseconds") from None
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 ms, not {number}")
            found[name] = value / 1000
        return cls(found.get("ttft"), found.get("tpot"), found.get("latency"))

    def are_kept_by(self, sample: Sample) -> bool:
        """True for a whole answer within all limits. An answer of one token has no time between tokens to judge."""
        if sample.fault is not None:
            return False
        taken = (
            (sample.first_token_s, self.ttft_s),
            (sample.per_token_s or 0.0, self.tpot_s),
            (sample.latency_s, self.latency_s),
        )
        return all(limit is None or value <= limit for value, limit in taken)

    def __str__(self) -> str:
        named = zip(LIMITS, (self.ttft_s, self.tpot_s, self.latency_s), strict=True)
        return ", ".join(f"{name} ≤ {limit * 1000:g} ms" for name, limit in named if limit is not None)


@dataclass(frozen=True, slots=True)
class Played:
    """What one side did in one turn. ``duration_s`` from the first request that was due to the last byte of all;
    ``cpu_s`` is what this process spent meanwhile; ``unfinished`` requests were under way when somebody interrupted."""

    samples: tuple[Sample, ...]
    duration_s: float
    cpu_s: float
    most_in_flight: int
    unfinished: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """Some turns of one side at one level, taken together. Rates count whole answers only, over all the time that was
    spent, for failed requests as well; spreads are None where there was no whole answer."""

    answered: int
    failed: int
    unfinished: int
    duration_s: float
    requests_per_s: float
    tokens_per_s: float
    latency: Spread | None
    first_token: Spread | None
    per_token: Spread | None
    tokens: Spread | None
    prompt_tokens: Spread | None
    stopped: int
    """Answers that ended before their limit, by the model's own will."""
    good: int
    good_share: float
    good_per_s: float
    faults: tuple[tuple[str, int], ...]
    """Kinds of failures and how many of each, the most frequent first."""
    cpu_share: float
    """How busy this process was, of one core."""
    most_in_flight: int
    most_late_s: float
    """By how much this process was late with a request, at most. The times count from when it was due."""
    trend: tuple[float, float] | None
    """Median latency of the first and of the last third of each turn's answers, in the order in which they were due;
    None for fewer than ``TREND_LEAST`` answers."""


def figures(played: Sequence[Played], limits: Limits) -> Figures:
    """Take some turns together."""
    samples = [sample for each in played for sample in each.samples]
    whole = [sample for sample in samples if sample.fault is None]
    duration_s = sum(each.duration_s for each in played)
    good = sum(limits.are_kept_by(sample) for sample in whole)

    def rate(count: float) -> float:
        return count / duration_s if duration_s > 0 else 0.0

    return Figures(
        answered=len(whole),
        failed=len(samples) - len(whole),
        unfinished=sum(each.unfinished for each in played),
        duration_s=duration_s,
        requests_per_s=rate(len(whole)),
        tokens_per_s=rate(sum(sample.tokens for sample in whole)),
        latency=Spread.of([sample.latency_s for sample in whole]),
        first_token=Spread.of([sample.first_token_s for sample in whole]),
        per_token=Spread.of([value for sample in whole if (value := sample.per_token_s) is not None]),
        tokens=Spread.of([sample.tokens for sample in whole]),
        prompt_tokens=Spread.of([sample.prompt_tokens for sample in whole]),
        stopped=sum(sample.ending not in ("length", UNKNOWN) for sample in whole),
        good=good,
        good_share=good / len(samples) if samples else 0.0,
        good_per_s=rate(good),
        faults=tuple(Counter(s.fault.kind for s in samples if s.fault is not None).most_common()),
        cpu_share=rate(sum(each.cpu_s for each in played)),
        most_in_flight=max((each.most_in_flight for each in played), default=0),
        most_late_s=max((sample.sent_s - sample.intended_s for sample in samples), default=0.0),
        trend=_trend(played),
    )


def _trend(played: Sequence[Played]) -> tuple[float, float] | None:
    early: list[float] = []
    late: list[float] = []
    for each in played:
        whole = sorted((s.intended_s, s.latency_s) for s in each.samples if s.fault is None)
        if len(whole) >= TREND_LEAST:
            third = len(whole) // 3
            early += [latency_s for _, latency_s in whole[:third]]
            late += [latency_s for _, latency_s in whole[-third:]]
    return (percentile(sorted(early), 50), percentile(sorted(late), 50)) if early else None


def worst_reason(samples: Sequence[Sample]) -> str:
    """The reason of most failures; "" if there is none."""
    reasons = Counter(sample.fault.reason for sample in samples if sample.fault is not None)
    return reasons.most_common(1)[0][0] if reasons else ""
