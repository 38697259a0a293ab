"""The whole of a bench (floor 4): warm-up, then rounds in which the sides take turns, each turn recorded."""

import resource
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from vllamactl.bench.answers import body
from vllamactl.bench.figures import Limits, Played
from vllamactl.bench.http import Server, Target
from vllamactl.bench.plan import Level, Turn, turns
from vllamactl.bench.playing import Turnout
from vllamactl.bench.view import BenchView
from vllamactl.bench.workload import Ask, Workload, marks
from vllamactl.exits import CtlError

WARMUP_TOKENS = 32
"""A warm-up loads the model, opens connections and fills what an engine fills at its first requests; that is done after
a few tokens."""
MOST_WARMUPS = 16
_APART = 1 << 31
"""Marks of requests that are not measured are counted from here."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What to do. ``requests`` stand beside ``levels``: how many a turn has. ``nonce`` makes the marks of prompts
    differ from those of every other run, ``seed`` draws the arrivals of an open loop."""

    targets: tuple[Target, ...]
    workload: Workload
    levels: tuple[Level, ...]
    requests: tuple[int, ...]
    rounds: int
    warmups: int | None
    limits: Limits | None
    timeout_s: float
    seed: int
    nonce: int

    @property
    def usual_warmups(self) -> int:
        """As many as the most users, unless somebody says how many."""
        if self.warmups is not None:
            return self.warmups
        return min(MOST_WARMUPS, max(level.users or 1 for level in self.levels))


@dataclass(frozen=True, slots=True)
class Record:
    """A turn and what came of it."""

    turn: Turn
    played: Played


@dataclass
class Results:
    """What is there so far. ``facts`` are what each side told about itself."""

    bench: Bench
    facts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    records: list[Record] = field(default_factory=list[Record])
    is_partial: bool = False

    def of(self, level: Level, side: int) -> list[Played]:
        """One side's turns at a level, those in which nothing was over yet left out."""
        return [r.played for r in self.records if (r.turn.level, r.turn.side) == (level, side) and r.played.samples]

    def pairs(self, level: Level) -> list[tuple[Played, Played]]:
        """Rounds at a level that both sides have played to their end."""
        rounds: dict[int, dict[int, Played]] = {}
        for record in self.records:
            if record.turn.level == level and len(record.played.samples) == record.turn.requests:
                rounds.setdefault(record.turn.round, {})[record.turn.side] = record.played
        return [(sides[0], sides[1]) for _, sides in sorted(rounds.items()) if len(sides) == 2]


async def run(results: Results, view: BenchView) -> None:
    """Play everything; what has come is in ``results`` also if this is cancelled. Raises CtlError if a side answers
    none of its warm-up requests."""
    bench = results.bench
    _allow_sockets()
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Server(each, bench.timeout_s)) for each in bench.targets]
        results.facts += [await server.facts() for server in servers]
        await stack.enter_async_context(view.shown())
        mark = marks(bench.nonce)
        for server in servers:
            view.begin(f"warming up {server.target.name}", bench.usual_warmups)
            await _warm_up(server, _unmeasured(bench, mark(_APART), bench.usual_warmups, WARMUP_TOKENS), view)
        order = turns(bench.levels, bench.requests, bench.rounds, len(servers))
        for number, turn in enumerate(order):
            server = servers[turn.side]
            asks = bench.workload.round(turn.first_request, turn.requests, mark)
            view.begin(_title(bench, turn), len(asks))
            # One more that is not measured: the other side's turn may have been long enough to be unloaded.
            await _knock(server, _unmeasured(bench, mark(_APART + 1 + number), 1, 1))
            turnout = Turnout(server, asks, view.note)
            try:
                await turnout.play(turn.level, bench.seed + turn.round)
            finally:
                results.records.append(Record(turn, turnout.result()))
            view.end(_title(bench, turn), results.records[-1].played)


def _allow_sockets() -> None:
    """Many users need many sockets: more than a shell usually allows, and no more than the system does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _title(bench: Bench, turn: Turn) -> str:
    parts = [turn.level.label]
    if bench.rounds > 1:
        parts.append(f"round {turn.round + 1} of {bench.rounds}")
    if len(bench.targets) > 1:
        parts.append(bench.targets[turn.side].name)
    return ", ".join(parts)


def _unmeasured(bench: Bench, mark: str, count: int, tokens: int) -> list[Ask]:
    asks = [bench.workload.asks[number % len(bench.workload.asks)] for number in range(count)]
    if bench.workload.is_distinct:
        asks = [ask.marked(f"{mark} {number}") for number, ask in enumerate(asks)]
    return [replace(ask, max_tokens=min(ask.max_tokens, tokens)) for ask in asks]


async def _warm_up(server: Server, asks: Sequence[Ask], view: BenchView) -> None:
    if not asks:
        return
    turnout = Turnout(server, asks, view.note)
    await turnout.play(Level(users=len(asks)), 0)
    faults = [sample.fault for sample in turnout.result().samples if sample.fault is not None]
    if len(faults) == len(asks):
        target = server.target
        raise CtlError(
            faults[0].reason,
            f"cannot bench {target.model} at {target.url}: no warm-up request was answered ({faults[0].kind}): "
            f"{faults[0].words}",
            "the name of the model there: --against-model; an API key: VLLAMA_API_KEY, VLLAMA_AGAINST_API_KEY",
        )


async def _knock(server: Server, asks: Sequence[Ask]) -> None:
    target = server.target
    await server.ask(body(target.api, target.model, asks[0]), time.perf_counter())
