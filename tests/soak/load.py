"""Clients that ask all the time: streams and whole answers, on two faces, of several models; some leave in the middle.

What each client asks is drawn from its own generator, so the same seed asks the same questions in the same order.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.soak.checks import Checks
from tests.soak.questions import Kind, Outcome, Question, Wire
from tests.soak.world import World

DEADLINE_S = 150.0
"""Generous: a hung engine is found after a minute, its successor loads, and others may be first in the queue."""
LEAVES = 0.12
RARELY = 0.06
"""How often the last model is asked for, which is one too many: another one has to leave for it."""


class Load:
    """``on_violation`` is told at once, while the daemon can still be looked at."""

    def __init__(
        self, world: World, checks: Checks, seed: int, clients: int, on_violation: Callable[[str], Awaitable[None]]
    ) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.longest_s = 0.0
        self.in_flight: set[Question] = set()
        self.avoided = ""
        """A model that hangs: enough of the clients wait for it already."""
        self._world = world
        self._checks = checks
        self._on_violation = on_violation
        self._asks = asyncio.Event()
        self._random = [random.Random(f"{seed} client {at}") for at in range(clients)]
        self._count = 0
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def requests(self) -> int:
        return self.outcomes.total()

    def count(self, kind: Kind) -> int:
        return sum(number for (_, name), number in self.outcomes.items() if name == kind.value)

    def resume(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._client(each)) for each in self._random]
        self._asks.set()

    async def pause(self) -> None:
        """Ask nothing new, and wait for what is in flight: every request has its deadline."""
        self._asks.clear()
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        await self.pause()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _client(self, dice: random.Random) -> None:
        while True:
            await self._asks.wait()
            question = self._draw(dice)
            leave_after = dice.randint(1, 6) if dice.random() < LEAVES else None
            leave_s = dice.uniform(0.0, 1.0) if dice.random() < LEAVES / 2 else None
            pause_s = dice.uniform(0.0, 0.4)
            self.in_flight.add(question)
            outcome = await self._ask(question, leave_after, leave_s)
            self.in_flight.discard(question)
            self._idle.set()
            # Nobody hammers on a door that is closed.
            await asyncio.sleep(pause_s + (0.2 if outcome.kind is Kind.REFUSED else 0.0))

    def _draw(self, dice: random.Random) -> Question:
        models = list(self._world.models.values())
        model = (
            models[-1]
            if dice.random() < RARELY
            else dice.choice([one for one in models[:-1] if one.name != self.avoided])
        )
        wire = dice.choice(list(Wire))
        limit = dice.randint(2, model.tokens) if dice.random() < 0.5 else None
        self._count += 1
        return model.asked(f"question-{self._count}-{dice.getrandbits(24):06x}", wire, limit)

    async def _ask(self, question: Question, leave_after: int | None, leave_s: float | None) -> Outcome:
        ask = self._world.ask(question, DEADLINE_S, leave_after)
        if leave_s is not None:
            await asyncio.sleep(leave_s)
            ask.leave()
        outcome = await ask.outcome()
        self.outcomes[question.wire.name, outcome.kind.value] += 1
        self.longest_s = max(self.longest_s, outcome.ended_at - outcome.began_at)
        before = len(self._checks.violations)
        self._world.judge(self._checks, question, outcome)
        for text in self._checks.violations[before:]:
            await self._on_violation(text)
        return outcome
