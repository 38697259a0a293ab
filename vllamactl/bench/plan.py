"""When it is asked (floor 3). Pure: a seed in, instants out.

A *closed* loop is some users of whom each sends the next request when the last one is answered: a server that stalls is
asked less while it stalls, and hides the stall. An *open* loop sends at instants that were drawn before, whatever the
server does, and counts from those instants.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

PER_USER = 10
"""Requests of one user in a round, unless somebody says how many: a round of the first and the last answer alone would
measure how a round begins and ends."""
OPEN_LOOP_S = 30.0
OPEN_LEAST = 20


@dataclass(frozen=True, slots=True)
class Level:
    """How hard the server is driven: by so many users (closed loop), or at so many requests a second (open loop)."""

    users: int = 0
    rate: float = 0.0

    def __post_init__(self) -> None:
        if (self.users > 0) == (self.rate > 0):
            raise ValueError("a level is either users or a rate")

    @property
    def label(self) -> str:
        """``4 users``, ``2.5/s``"""
        if self.rate:
            return f"{self.rate:g}/s"
        return "1 user" if self.users == 1 else f"{self.users} users"

    @property
    def usual_requests(self) -> int:
        """The requests of a round, unless somebody says how many."""
        return PER_USER * self.users if self.users else max(OPEN_LEAST, round(self.rate * OPEN_LOOP_S))


@dataclass(frozen=True, slots=True)
class Turn:
    """One side's part in a round at a level; ``first_request`` counts through the whole run."""

    round: int
    level: Level
    side: int
    requests: int
    first_request: int


def turns(levels: tuple[Level, ...], requests: tuple[int, ...], rounds: int, sides: int) -> Iterator[Turn]:
    """The order of everything. Machines drift: they warm up, other programs come and go. So each round goes through all
    levels, the sides stand beside each other, and the one that goes first changes. Both are asked the same."""
    first_request = swaps = 0
    for round_ in range(rounds):
        for level, count in zip(levels, requests, strict=True):
            order = range(sides) if swaps % 2 == 0 else reversed(range(sides))
            for side in order:
                yield Turn(round_, level, side, count, first_request)
            first_request += count
            swaps += 1
        # With an even number of levels the same side would go first at the same level in every round.
        swaps += 1 if len(levels) % 2 == 0 else 0


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Instants of a Poisson process in seconds from the beginning: the gaps are exponential, as those of many clients
    who do not know of each other."""
    dice = random.Random(seed)
    at_s = 0.0
    instants: list[float] = []
    for _ in range(count):
        at_s += dice.expovariate(rate)
        instants.append(at_s)
    return instants
