"""Carries decisions out on a made-up clock, and counts what came of it."""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.day_traffic import ENGINE_START_S, GIB, Model, Request
from vllamad.domain.budget import Device, Ledger, open_ledger
from vllamad.domain.placement import Placement
from vllamad.domain.worker import Goal, Held, State
from vllamad.domain.workload import Decision, Grant, Limits, Plan, Refuse, Start, Stop, Waiter, Worker, Workload

Policy = Callable[[Workload, float], Plan]

PATIENCE_S = 900.0
STOP_S = 4.0
"""From SIGTERM until the driver shows the memory again."""


@dataclass
class Outcome:
    """What a day was like."""

    waits: list[float] = field(default_factory=list[float])
    hits: int = 0
    evictions: int = 0
    loads: int = 0
    refused: int = 0

    @property
    def hit_rate(self) -> float:
        return self.hits / len(self.waits) if self.waits else 1.0

    @property
    def mean_wait_s(self) -> float:
        return sum(self.waits) / max(1, len(self.waits))

    def wait_s(self, share: float) -> float:
        """The wait that this share of the requests does not exceed."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Machine:
    """Carries a policy's decisions out, by events on a made-up clock."""

    def __init__(self, models: Mapping[str, Model], devices: int, policy: Policy, limits: Limits) -> None:
        # Linked in fours, as two halves of a board are.
        gpus = [
            Device(
                index, f"GPU {index}", 80 * GIB, "gpu", frozenset(range(index // 4 * 4, index // 4 * 4 + 4)) - {index}
            )
            for index in range(devices)
        ]
        self.outcome = Outcome()
        self._models = models
        self._wanted = {key: model.wanted for key, model in models.items()}
        self._policy = policy
        self._limits = limits
        self._ledger = open_ledger(gpus)
        self._workers: dict[str, Worker] = {}
        self._waiting: dict[int, tuple[Waiter, Request]] = {}
        self._served_at: dict[tuple[str, str], float] = {}
        self._room_made_for: frozenset[str] = frozenset()
        self._last_at: dict[str, float] = {}
        self._gaps: dict[str, float] = {}
        self._events: list[tuple[float, int, str, str]] = []
        self._number = 0
        self._look_at = math.inf

    def run(self, requests: Sequence[Request]) -> Outcome:
        """The whole day, and on until nobody waits."""
        coming = 0
        while coming < len(requests) or self._waiting:
            at = min(
                requests[coming].at if coming < len(requests) else math.inf,
                self._events[0][0] if self._events else math.inf,
                self._look_at,
            )
            assert at < math.inf, "somebody waits, and nothing will happen"
            if coming < len(requests) and requests[coming].at == at:
                self._arrive(requests[coming])
                coming += 1
            elif self._events and self._events[0][0] == at:
                _at, _number, what, holder = heapq.heappop(self._events)
                self._happen(at, what, holder)
            if self._waiting:
                self._look(at)
            else:
                self._look_at = math.inf
        return self.outcome

    def _arrive(self, request: Request) -> None:
        self._number += 1
        last = self._last_at.get(request.key)
        if last is not None:
            gap = request.at - last
            before = self._gaps.get(request.key, gap)
            self._gaps[request.key] = before + (gap - before) / 8
        self._last_at[request.key] = request.at
        worker = self._workers.get(request.key)
        if worker is not None:
            worker = self._workers[request.key] = replace(worker, gap_s=self._gaps.get(request.key, 0.0))
        waiter = Waiter(self._number, request.key, request.at, request.at + PATIENCE_S, request.caller)
        if worker is not None and worker.takes_requests and not self._waiting:
            self._grant(request.at, worker, waiter, request)
        else:
            self._waiting[self._number] = (waiter, request)

    def _look(self, now: float) -> None:
        while True:
            waiters = tuple(waiter for waiter, _request in self._waiting.values())
            load = Workload(
                waiters,
                self._workers,
                self._wanted,
                self._ledger,
                self._limits,
                self._served_at,
                self._room_made_for,
            )
            made = self._policy(load, now)
            self._room_made_for = made.room_made_for
            is_changed = False
            for decision in made.decisions:
                is_changed |= self._carry_out(now, decision)
            self._look_at = made.look_again_at or math.inf
            if not is_changed or not self._waiting:
                return

    def _carry_out(self, now: float, decision: Decision) -> bool:
        match decision:
            case Grant(number, holder):
                waiter, request = self._waiting.pop(number)
                self._grant(now, self._workers[holder], waiter, request)
            case Refuse(number):
                waiter, _request = self._waiting.pop(number)
                self.outcome.refused += 1
                self.outcome.waits.append(now - waiter.since)
            case Start(key, holder, None):
                assert self._workers[holder].goal is Goal.STOP
                self._workers[holder] = replace(self._workers[holder], goal=Goal.RUN)
            case Start(key, holder, Placement() as placement):
                after = self._ledger.reserve(holder, placement.bytes_on)
                assert isinstance(after, Ledger), after
                self._ledger = after
                cost_s = self._load_s(key, placement)
                self._workers[holder] = Worker(
                    holder,
                    key,
                    key,
                    State.STARTING,
                    Goal.RUN,
                    Held.FULL,
                    load_cost_s=cost_s,
                    gap_s=self._gaps.get(key, 0.0),
                )
                self.outcome.loads += 1
                self._later(now + cost_s, "loaded", holder)
            case Stop(holder):
                worker = self._workers[holder]
                assert worker.leases == 0
                self._workers[holder] = replace(worker, state=State.STOPPING, goal=Goal.STOP)
                self.outcome.evictions += 1
                self._later(now + STOP_S, "gone", holder)
            case _:
                return False
        return True

    def _load_s(self, key: str, placement: Placement) -> float:
        """Several GPUs read their parts at the same time."""
        return ENGINE_START_S + (self._wanted[key].load_cost_s - ENGINE_START_S) / len(placement.devices)

    def _grant(self, now: float, worker: Worker, waiter: Waiter, request: Request) -> None:
        assert worker.takes_requests, worker
        self.outcome.waits.append(now - waiter.since)
        self.outcome.hits += now == waiter.since
        self._served_at[waiter.key, waiter.caller] = now
        self._workers[worker.holder] = replace(worker, leases=worker.leases + 1)
        self._later(now + request.seconds, "returned", worker.holder)

    def _happen(self, now: float, what: str, holder: str) -> None:
        worker = self._workers[holder]
        if what == "loaded":
            self._ledger = self._ledger.end_load(holder)
            self._workers[holder] = replace(worker, state=State.READY, ready_since=now, idle_since=now)
        elif what == "returned":
            self._workers[holder] = replace(worker, leases=worker.leases - 1, idle_since=now)
        else:
            after = self._ledger.release(holder)
            assert isinstance(after, Ledger)
            self._ledger = after
            del self._workers[holder]

    def _later(self, at: float, what: str, holder: str) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, what, holder))
