"""How long a model takes to be there (floor 4): from a request that does not find it loaded to the first token.

The request is a client's, over HTTP; the load that it causes is watched over the control socket meanwhile, so that its
phases are those that the daemon tells. Snapshots come ten times a second at most: phases are known to a tenth of a
second, the whole is not bound by that.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from vllama.control.v1.models_pb2 import Model
from vllama.control.v1.operations_pb2 import Operation
from vllama.control.v1.workers_pb2 import Worker
from vllamactl.bench.answers import Sample, body, read_exchange
from vllamactl.bench.figures import Spread
from vllamactl.bench.http import Server
from vllamactl.bench.report import seconds
from vllamactl.bench.workload import Ask
from vllamactl.client import Client
from vllamactl.exits import CtlError
from vllamactl.follow import cancel_unwatched, failed
from vllamactl.plain import seconds_of
from vllamactl.render import Column, table

_GONE = frozenset({Worker.STOPPED, Worker.FAILED})

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Start:
    """One measurement. ``kind``: "cold", "wake", or "failed wake", after which it was loaded anew.

    ``phases`` are in their order, in seconds; they end when the worker was ready, and ``answer_s`` is the rest until
    the first token. ``vacate_s``: how long it took to leave before. ``engine_s``: from spawn to READY, as the daemon
    measured it. ``loaded_s``: the first token of the next request, which found the model loaded.
    """

    kind: str
    vacate_s: float
    first_token_s: float
    phases: tuple[tuple[str, float], ...]
    answer_s: float
    engine_s: float | None
    loaded_s: float


@dataclass(frozen=True, slots=True)
class Before:
    """How the model was found, to leave it so."""

    is_loaded: bool
    is_for_ever: bool


@dataclass
class Starts:
    """Measures one model's starts. What has come is in ``found`` also if this is cancelled."""

    client: Client
    server: Server
    model: Model
    swap_with: str
    say: Say
    begin: Callable[[str, int], None]
    found: list[Start] = field(default_factory=list[Start])
    _loading: str = ""
    """The operation of a load that has begun and not ended."""

    async def run(self, count: int, ask: Callable[[int], Ask]) -> None:
        """Measure ``count`` starts; ``ask`` makes requests that no cache knows, of one token. Raises CtlError."""
        for number in range(count):
            self.begin(f"start {number + 1} of {count}", 0)
            vacate_s = await self._vacate()
            start = await self._start(vacate_s, ask(2 * number), ask(2 * number + 1))
            self.found.append(start)
            self.say(f"{start.kind} start {number + 1} of {count}: {seconds(start.first_token_s)} to the first token")

    async def look(self) -> Before:
        """See how the model is. Raises MODEL_IN_USE if somebody uses it: he would be in the way, and we in his."""
        workers = await self._workers()
        users = sum(worker.leases + worker.waiting for worker in workers)
        if users:
            raise CtlError(
                "MODEL_IN_USE",
                f"cannot bench the start of {self.model.name}: {users} requests use it",
                "it has to be unloaded for that: try again when nobody asks it",
            )
        loaded = [worker for worker in workers if worker.state not in {*_GONE, Worker.SUSPENDED}]
        return Before(bool(loaded), any(not worker.HasField("expire_time") for worker in loaded))

    async def restore(self, before: Before) -> None:
        """Leave the model as it was found, without waiting for that."""
        if self._loading:  # as long as that is wanted, a model that was stopped comes back
            await cancel_unwatched(self.client, self._loading)
        if not before.is_loaded:
            await self.client.stop_worker(self.model.name, force=False)
        else:
            await self.client.start_worker(self.model.name, -1.0 if before.is_for_ever else None)

    async def _vacate(self) -> float:
        """Have the model leave; returns how long that took."""
        began = time.perf_counter()
        if not self.swap_with:
            await self._finish(await self.client.stop_worker(self.model.name, force=False))
            return time.perf_counter() - began
        operation = await self.client.start_worker(self.swap_with, None)
        self._loading = operation.name
        await self._finish(operation)
        self._loading = ""
        spent_s = time.perf_counter() - began
        if any(worker.state == Worker.READY for worker in await self._workers()):
            raise CtlError(
                "INVALID_REQUEST",
                f"cannot swap {self.model.name} with {self.swap_with}: both are loaded side by side",
                "name a model that does not fit beside it, or leave --swap-with out",
            )
        return spent_s

    async def _start(self, vacate_s: float, first: Ask, second: Ask) -> Start:
        asleep = _lives([worker for worker in await self._workers() if worker.state == Worker.SUSPENDED])
        began = time.perf_counter()
        asking = asyncio.create_task(self._ask(first, began))
        try:
            steps = await self._watch(began)
            sample = await asking
        finally:
            asking.cancel()
            # What it failed of is told by the load, or was raised above.
            await asyncio.gather(asking, return_exceptions=True)
        phases, ready_s = _phases(steps, sample.first_s)
        workers = [worker for worker in await self._workers() if worker.state not in _GONE]
        kind = "cold" if not asleep else "wake" if asleep & _lives(workers) else "failed wake"
        engine_s = [seconds_of(worker.load_duration) for worker in workers if worker.HasField("load_duration")]
        loaded = await self._ask(second, time.perf_counter())
        return Start(
            kind,
            vacate_s,
            sample.first_token_s,
            phases,
            sample.first_s - ready_s,
            engine_s[0] if engine_s and kind != "wake" else None,
            loaded.first_token_s,
        )

    async def _ask(self, ask: Ask, began: float) -> Sample:
        target = self.server.target
        # Due at the very beginning: what it takes to get going belongs to the whole.
        exchange = await self.server.ask(body(target.api, target.model, ask), began, intended_s=0.0)
        sample = read_exchange(target.api, exchange)
        if sample.fault is not None:
            raise CtlError(
                sample.fault.reason,
                f"cannot bench the start of {target.model}: its first request failed ({sample.fault.kind}): "
                f"{sample.fault.words}",
                f"see its last lines: vllamactl logs {target.model}",
            )
        return sample

    async def _watch(self, began: float) -> list[tuple[str, float]]:
        """Join the load that the request causes, or cause it; returns when which phase was seen first."""
        steps: list[tuple[str, float]] = []
        operation = await self.client.start_worker(self.model.name, None)
        self._loading = operation.name
        async with aclosing(self.client.watch_operation(operation.name)) as snapshots:
            async for snapshot in snapshots:
                operation = snapshot
                phase = operation.progress.phase or "start of its process"
                if not steps or steps[-1][0] != phase:
                    steps.append((phase, time.perf_counter() - began))
        self._loading = ""
        _check(operation)
        return steps

    async def _finish(self, operation: Operation) -> None:
        last = operation
        async with aclosing(self.client.watch_operation(operation.name)) as snapshots:
            async for snapshot in snapshots:
                last = snapshot
        _check(last)

    async def _workers(self) -> list[Worker]:
        """Those that serve the model; one may go by the name of another model of the same files."""
        model = self.model
        return [
            worker
            for worker in await self.client.list_workers()
            if model.name == worker.model or (model.digest and model.digest == worker.model_digest)
        ]


def _lives(workers: Sequence[Worker]) -> set[tuple[str, int]]:
    """The processes behind workers: one that did not wake is replaced, and must not pass for one that did."""
    return {(worker.name, worker.incarnation) for worker in workers}


def _check(operation: Operation) -> None:
    if operation.HasField("failure"):
        raise failed(operation.failure)


def _phases(steps: Sequence[tuple[str, float]], first_s: float) -> tuple[tuple[tuple[str, float], ...], float]:
    """Turn instants into spans; a phase that comes again is added to the first. The snapshot that says ready may come
    after the first token; then it was ready with that."""
    ready_s = min((at_s for phase, at_s in steps if phase == "ready"), default=first_s)
    ready_s = min(ready_s, first_s)
    ends = [*(at_s for _, at_s in steps[1:]), ready_s]
    spans: dict[str, float] = {}
    for number, ((phase, at_s), end_s) in enumerate(zip(steps, ends, strict=True)):
        if phase != "ready":
            # What passed before the first snapshot belongs to it.
            spans[phase] = spans.get(phase, 0.0) + max(0.0, min(end_s, ready_s) - (at_s if number else 0.0))
    return tuple(spans.items()), ready_s


def start_page(model: str, starts: Sequence[Start], device: str) -> list[str]:
    """Return the starts of one model, the two kinds apart: a row for each part, with its share of the whole."""
    lines: list[str] = []
    for kind, title in (("cold", "loaded"), ("wake", "woken"), ("failed wake", "loaded after it did not wake")):
        mine = [start for start in starts if start.kind == kind]
        if mine:
            times = "once" if len(mine) == 1 else f"{len(mine)} times"
            lines += [f"{model} {title} {times}" + (f", on {device}" if device else ""), *_table(mine), ""]
    if len(starts) < 2:
        return lines[:-1] or [f"{model}: nothing was measured"]
    return [*lines, "note: the first start may read from the disk what later ones find in the system's page cache"]


def _table(starts: Sequence[Start]) -> list[str]:
    whole = _median([start.first_token_s for start in starts])
    rows: list[tuple[str, str, str, str]] = []

    def row(name: str, values: Sequence[float], *, has_share: bool = False) -> None:
        if spread := Spread.of(values):
            several = f"{seconds(spread.least)} to {seconds(spread.most)}" if len(values) > 1 else ""
            share = f"{100 * spread.median / whole:.0f} %" if has_share and whole else ""
            rows.append((name, seconds(spread.median), several, share))

    row("request to first token", [start.first_token_s for start in starts], has_share=True)
    for name in _in_order(starts):
        row(f"  {name}", [dict(start.phases).get(name, 0.0) for start in starts], has_share=True)
    row("  answering", [start.answer_s for start in starts], has_share=True)
    row("engine's start, as the daemon measured it", [s.engine_s for s in starts if s.engine_s is not None])
    row("once loaded: request to first token", [start.loaded_s for start in starts])
    row("leaving, before", [start.vacate_s for start in starts])
    return table([Column(""), Column("median"), Column("least to most"), Column("share")], rows)


def _in_order(starts: Sequence[Start]) -> list[str]:
    """All phases, as they follow each other; a short one is not seen in every start."""
    places: dict[str, list[int]] = {}
    for start in starts:
        for place, (name, _) in enumerate(start.phases):
            places.setdefault(name, []).append(place)
    return sorted(places, key=lambda name: sum(places[name]) / len(places[name]))


def _median(values: Sequence[float]) -> float:
    spread = Spread.of(values)
    return spread.median if spread else 0.0


def start_document(
    model: str, starts: Sequence[Start], environment: dict[str, Any], *, is_partial: bool
) -> dict[str, Any]:
    """Return the starts as JSON."""
    shown = [
        {
            "kind": start.kind,
            "first_token_s": start.first_token_s,
            "phases": [{"phase": phase, "duration_s": span_s} for phase, span_s in start.phases],
            "answer_s": start.answer_s,
            "engine_s": start.engine_s,
            "loaded_first_token_s": start.loaded_s,
            "vacate_s": start.vacate_s,
        }
        for start in starts
    ]
    return {"is_partial": is_partial, "environment": environment, "model": model, "starts": shown}
