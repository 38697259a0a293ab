"""What holds over any history of gate, supervisor and ledger together: requests, faults and time in any order."""

import asyncio
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.house import HOUSEKEEPING_S, Complaints, House, Setting, Spec
from tests.fakes.loop import MadeUpLoop, run
from vllamad.domain.planning import plan
from vllamad.domain.worker import Held, State, deadline_of
from vllamad.domain.workload import Limits, Wait
from vllamad.gate import gate as gate_module

Event = tuple[Any, ...]

TICK_S = 5.0
LONGEST_S = 3 * 3600.0
"""Nobody waits for longer once all is well. Each of some models may be protected for the ten minutes that its load may
have taken, and a claim may have to outlive it; a lost wake-up takes for ever."""

LOADING = {State.STARTING, State.RESUMING, State.SUSPENDING, State.STOPPING, State.KILLING}


class Checks:
    """Looks at a house after every event."""

    def __init__(self, house: House, complaints: Complaints) -> None:
        self.house = house
        self.complaints = complaints
        self.loads = 0
        self._watch_planner()

    def _watch_planner(self) -> None:
        """Nobody busy or pinned is stopped for others, and nothing is given that is not there."""
        house, supervisor = self.house, self.house.supervisor
        make_room, start = supervisor.make_room, supervisor.start

        def making_room(holder: str) -> None:
            handle = supervisor.get(holder)
            assert handle is not None
            assert handle.record.leases == 0, f"{holder} is busy and has to make room"
            assert not handle.is_pinned, f"{holder} is pinned and has to make room"
            make_room(holder)

        def starting(*args: Any, **more: Any) -> Any:
            self.loads += 1
            refused = start(*args, **more)
            ledger = house.memory.ledger
            placement = args[2]
            for index in placement.devices if placement is not None and refused is None else ():
                assert ledger.held(index) <= ledger.budget(index), f"{args[1]} got more than there is"
            bound = house.setting.limits.max_loaded
            assert placement is None or not bound or len(ledger.reservations) <= bound
            return refused

        supervisor.make_room = making_room  # type: ignore[method-assign]
        supervisor.start = starting  # type: ignore[method-assign]

    def all_is_well(self) -> None:
        self._ledger_and_records_agree()
        self._leases_are_those_of_requests()
        self._whoever_moves_has_a_deadline()
        self._the_gate_is_not_behind()
        assert self.complaints.heard == []

    def _ledger_and_records_agree(self) -> None:
        house = self.house
        ledger = house.memory.ledger
        handles = {handle.holder: handle for handle in house.supervisor.handles()}
        for holder, mine in ledger.reservations.items():
            assert not mine.is_promise
            if " (leak " in holder:
                assert mine.held is Held.LEAKED
                continue
            assert holder in handles, f"{holder} has no worker, and holds {mine}"
            assert mine.held is handles[holder].record.held, f"{mine} of {handles[holder].record}"
            if mine.is_loading:
                assert handles[holder].state in LOADING, f"{holder} loads in {handles[holder].state}"
        for handle in handles.values():
            if handle.record.held is not Held.NONE:
                assert handle.holder in ledger.reservations, f"{handle.record} holds nothing"
        for index in ledger.devices:
            loaders = [one.holder for one in ledger.reservations.values() if one.is_loading and index in one.full_on]
            assert len(loaders) <= 1 or index < 0, f"{loaders} load on one device"

    def _leases_are_those_of_requests(self) -> None:
        handles = self.house.supervisor.handles()
        leased = {lease for handle in handles for lease in handle._leases}
        for handle in handles:
            assert handle.record.leases == len(handle._leases), handle.name
            assert handle.record.leases == 0 or handle.state in {State.READY, State.DRAINING}, handle.record
        served = [request for request in self.house.requests if request.is_served]
        held = {request.lease for request in served if request.lease is not None and request.lease.broken is None}
        assert leased == held
        assert self.house.gate.active == len(served)
        assert self.house.gate.waiting == sum(request.waits for request in self.house.requests)

    def _whoever_moves_has_a_deadline(self) -> None:
        now = self.house.clock.now()
        for handle in self.house.supervisor.handles():
            timer = handle._deadline
            if deadline_of(handle.record) is None:
                assert timer is None, f"{handle.name} rests in {handle.state} and has a deadline"
            else:
                assert timer is not None, f"{handle.name} is {handle.state} for ever"
                assert not timer.cancelled()
                assert timer.when() >= now

    def _the_gate_is_not_behind(self) -> None:
        """Asked anew, the planner has nothing to do, and what it would come back to is remembered."""
        gate, now = self.house.gate, self.house.clock.now()
        load = gate.workload()
        if not load.waiting:
            return  # another replica may be due: that is looked at with the next request
        planned = plan(load, now)
        assert all(isinstance(one, Wait) for one in planned.decisions), f"the gate is behind: {planned.decisions}"
        assert {one.key for one in planned.decisions} == {one.key for one in load.waiting}
        assert planned.look_again_at is not None
        assert gate._timer is not None, f"nobody comes back to it at {planned.look_again_at}: {planned}"
        assert gate._timer.when() <= planned.look_again_at + 1e-6


async def play(house: House, checks: Checks, history: Sequence[Event]) -> None:
    for event in history:
        match event:
            case ("time", float(seconds)):
                await asyncio.sleep(seconds)
            case (str(name), *arguments):
                getattr(house, name)(*arguments)
            case _:
                raise AssertionError(event)
        await house.settle()
        checks.all_is_well()


async def end_well(house: House, checks: Checks) -> None:
    """All faults are healed, and everyone is served; then everything is stopped, and nothing is held any more."""
    house.heal()
    loop = house.loop
    began, loads = loop.time(), checks.loads
    waiting = [request for request in house.requests if request.waits]
    while any(not request.is_over for request in house.requests) or house.unloads:
        house.serve()
        await asyncio.sleep(TICK_S)
        await house.settle()
        checks.all_is_well()
        left = [request.model.name for request in house.requests if request.waits]
        assert loop.time() - began < LONGEST_S, f"{left} wait for ever: {house.gate.waits}, {house.said()[-5:]}"
    most = 10 + 4 * (len(waiting) + len(house.supervisor.handles()))
    assert checks.loads - loads <= most, f"{len(waiting)} waited for {checks.loads - loads} loads: {house.said()}"
    house.gate.close()
    async with asyncio.timeout(120.0):
        await house.supervisor.stop_all(0.0)
    await house.settle()
    checks.all_is_well()
    await asyncio.sleep(10 * HOUSEKEEPING_S)
    await house.settle()
    assert house.memory.ledger.reservations == {}, "it is not given back"
    assert all(state in {State.STOPPED, State.FAILED} for state in (one.state for one in house.supervisor.handles()))
    assert not house.children


@contextmanager
def complaints() -> Iterator[Complaints]:
    handler, log = Complaints(), logging.getLogger("vllamad")
    log.addHandler(handler)
    propagates, log.propagate = log.propagate, False
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.propagate = propagates


@contextmanager
def looks_that_take(seconds: float) -> Iterator[None]:
    """The gate measures its looks by real time: here they take this long."""
    ticks = iter(range(1 << 62))
    real = gate_module.time
    gate_module.time = SimpleNamespace(perf_counter=lambda: next(ticks) * seconds)  # type: ignore[assignment]
    try:
        yield
    finally:
        gate_module.time = real


def live_through(setting: Setting, *history: Event) -> None:
    """A house in which all this happens, checked after each of it, and its good end."""

    async def main(loop: MadeUpLoop) -> None:
        house = House(loop, Path(folder), setting)
        checks = Checks(house, heard)
        started = asyncio.Event()
        running = asyncio.create_task(house.supervisor.run(started))
        await started.wait()
        await house.open()
        keeping = asyncio.create_task(house.keep())
        await play(house, checks, history)
        await end_well(house, checks)
        for task in (keeping, running):
            assert not task.done(), "a branch of the daemon has ended"
            task.cancel()
        await asyncio.wait([keeping, running])

    with TemporaryDirectory() as folder, complaints() as heard, looks_that_take(0.003 if setting.is_slow else 0.0):
        run(main)


# --- any history -------------------------------------------------------------------------------------------------

choices = st.integers(0, 11)
specs = st.builds(
    Spec,
    gib=st.sampled_from([5, 20, 34, 40, 60, 70]),
    devices=st.sampled_from([1, 1, 1, 2]),
    replicas=st.sampled_from([1, 1, 2]),
    is_pinned=st.sampled_from([False, False, False, True]),
    priority=st.sampled_from([0, 0, 0, 2]),
    idle_s=st.sampled_from([300.0, 300.0, 0.0, 30.0, math.inf]),
)
limits = st.builds(
    Limits,
    max_loaded=st.sampled_from([0, 0, 0, 1, 2]),
    parallel=st.sampled_from([0, 0, 1, 2]),
    queue_per_model=st.sampled_from([0, 0, 3]),
    queue=st.sampled_from([100, 100, 6]),
    crowd=st.just(2),
)
some_settings = st.builds(
    Setting,
    specs=st.lists(specs, min_size=2, max_size=5).map(tuple),
    gpus=st.sampled_from([1, 1, 2, 3]),
    limits=limits,
    can_sleep=st.booleans(),
    host_gib=st.sampled_from([200, 40]),
    late_reads=st.sampled_from([0, 0, 3]),
    read_s=st.sampled_from([0.0, 0.05]),
    tells=st.sampled_from([True, True, False]),
    is_slow=st.sampled_from([False, False, True]),
    wait_s=st.sampled_from([1e7, 1e7, 120.0]),
)
arrivals = st.tuples(
    st.just("arrive"), choices, st.sampled_from([None, None, None, 0.0, 5.0, math.inf]), st.sampled_from("xyz")
)
wishes = st.tuples(st.just("arrive"), choices, st.just(None), st.just("w"), st.booleans(), st.booleans())
loads = st.tuples(st.just("load"), choices)
ends = st.tuples(st.just("finish"), choices)
times = st.tuples(st.just("time"), st.sampled_from([0.05, 1.0, 6.0, 12.0, 25.0, 70.0, 310.0, 700.0]))
faults = st.one_of(
    st.tuples(st.just("die"), choices, st.sampled_from([0, 1, -9])),
    st.tuples(st.sampled_from(["hang", "deafen", "cling", "grow", "suspect", "leave"]), choices),
    st.tuples(st.just("stay_awake"), choices, st.sampled_from(["sleep", "wake", "canary", "hang"])),
    st.tuples(st.sampled_from(["refuse_to_start", "fall_silent", "stick", "withdraw"])),
    st.tuples(st.just("lose"), choices),
    st.tuples(st.just("intrude"), choices, st.sampled_from([3, 20, 60])),
)
people = st.one_of(
    wishes,
    st.tuples(st.just("stop"), choices, st.booleans()),
    st.tuples(st.sampled_from(["remove", "replace"]), choices),
    st.tuples(st.just("keep_alive"), choices, st.sampled_from([0.0, 10.0, math.inf])),
)
nothing = st.none()
"""A long history shrinks to one of these, and they are left out: lists that may be short mostly are."""
events = st.one_of(nothing, arrivals, arrivals, arrivals, loads, loads, loads, ends, ends, times, times, faults, people)
histories = st.lists(events, min_size=60, max_size=90).map(lambda parts: [one for one in parts if one is not None])


@given(some_settings, histories)
@settings(deadline=None, derandomize=True)
def test_the_rules_hold_over_any_history_and_everyone_comes_to_an_end(setting: Setting, history: list[Event]) -> None:
    live_through(setting, *history)
