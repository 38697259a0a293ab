"""The stopwatch (floor 3): requests are sent as the plan says, and their bytes kept until all are there."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllamactl.bench.answers import Exchange, body, read_exchange
from vllamactl.bench.figures import Played
from vllamactl.bench.http import Server
from vllamactl.bench.plan import Level, arrivals
from vllamactl.bench.workload import Ask

Watch = Callable[[Exchange], None]


@dataclass
class Turnout:
    """One side's turn while it is played: what has come so far is here also if it is cancelled."""

    server: Server
    asks: Sequence[Ask]
    watch: Watch
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    in_flight: int = 0
    most_in_flight: int = 0
    began: float = 0.0
    _cpu_began: float = 0.0
    _bodies: list[bytes] = field(default_factory=list[bytes])
    _dues: list[float] = field(default_factory=list[float])

    async def play(self, level: Level, seed: int) -> None:
        """Send all requests and return when all are over."""
        target = self.server.target
        self._bodies = [body(target.api, target.model, ask) for ask in self.asks]
        self._cpu_began = time.process_time()
        self.began = time.perf_counter()
        if level.users:
            await self._closed(level.users)
        else:
            self._dues = arrivals(level.rate, len(self._bodies), seed)
            await self._open()

    def result(self) -> Played:
        """Read what has come. Requests under way are counted, and nothing is said of them."""
        ended_s = max((each.end_s for each in self.exchanges), default=0.0)
        if self.in_flight:
            ended_s = max(ended_s, time.perf_counter() - self.began)
        starts = [each.intended_s for each in self.exchanges]
        cpu_s = time.process_time() - self._cpu_began  # before anything is read
        return Played(
            tuple(sorted((read_exchange(self.server.target.api, e) for e in self.exchanges), key=lambda s: s.index)),
            ended_s - min(starts, default=0.0),
            cpu_s,
            self.most_in_flight,
            self.in_flight,
        )

    async def _closed(self, users: int) -> None:
        numbers = iter(range(len(self._bodies)))

        async def user() -> None:
            for number in numbers:
                await self._ask(number, None)

        await self._all([user() for _ in range(min(users, len(self._bodies)))])

    async def _open(self) -> None:
        async def arrival(number: int) -> None:
            # Each sleeps by itself: a loop that sent them in turn would be late for the next one by what it spent on
            # the last.
            await asyncio.sleep(self.began + self._dues[number] - time.perf_counter())
            await self._ask(number, self._dues[number])

        await self._all([arrival(number) for number in range(len(self._bodies))])

    async def _ask(self, number: int, due_s: float | None) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        exchange = await self.server.ask(self._bodies[number], self.began, number, due_s)
        # Not in a finally: one that was cancelled is the one that is unfinished.
        self.in_flight -= 1
        self.exchanges.append(exchange)
        self.watch(exchange)

    async def _all(self, work: Sequence[Coroutine[Any, Any, None]]) -> None:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
