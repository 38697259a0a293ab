"""Numbers of one kind from one run, and how two kinds are compared. Pure.

Machines drift while a benchmark runs: they warm up, other programs come and go. So two things are measured in turns,
and what is compared are neighbours in time, not sums.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Samples:
    """At least one number, in the order in which they were measured."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("nothing was measured")

    @classmethod
    def of(cls, values: Sequence[float]) -> "Samples":
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    def __len__(self) -> int:
        return len(self.values)


def pair_ratios(measured: Samples, compared: Samples) -> Samples:
    """Each number divided by the one that was measured beside it."""
    return Samples.of([one / other for one, other in zip(measured.values, compared.values, strict=True)])


def turns(pairs: int) -> Iterator[tuple[int, int]]:
    """The order of two sides, 0 and 1, over so many pairs. The side that goes first changes, or what drifts steadily
    would always be to the good of the same one."""
    for number in range(pairs):
        yield (0, 1) if number % 2 == 0 else (1, 0)
