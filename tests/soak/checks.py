"""Counting what was checked, and keeping what did not hold."""

from collections import Counter


class Checks:
    """Every claim counts once per time that it was looked at."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []

    @property
    def total(self) -> int:
        return self.counts.total()

    def that(self, is_true: object, claim: str, seen: object = "") -> bool:
        """``claim`` is its name in the table; ``seen`` is what was found instead."""
        self.counts[claim] += 1
        if not is_true:
            self.violations.append(f"{claim}: {seen}" if seen != "" else claim)
        return bool(is_true)

    def add(self, other: "Checks", where: str) -> None:
        """Take over what was checked somewhere else."""
        self.counts += other.counts
        self.violations += [f"{where}: {text}" for text in other.violations]
