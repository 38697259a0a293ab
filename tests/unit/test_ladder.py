"""Where a worker goes that gives up its device: examples with their sentences, and what holds for every worker."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllamad.domain.ladder import (
    ASLEEP,
    KEPT_TIMES,
    Choice,
    Costs,
    Life,
    Rules,
    Rung,
    Sleeper,
    descend,
    estimated_costs,
    host_needs,
    relieve,
)

GIB = 1 << 30
ON = Rules(is_on=True)


def worker(weights_gib: float = 16, **more: Any) -> Sleeper:
    weights = int(weights_gib * GIB)
    defaults: dict[str, Any] = {"costs": estimated_costs(weights), "host_bytes": host_needs(weights)}
    return Sleeper("w", "llama3:8b", **(defaults | more))


def costs(level_1: float, level_2: float, stopped: float) -> Costs:
    return Costs({Rung.LEVEL_1: level_1, Rung.LEVEL_2: level_2, Rung.STOPPED: stopped})


# --- examples --------------------------------------------------------------------------------------------------------


def test_with_room_in_the_host_weights_stay_there() -> None:
    choice = descend(worker(), 64 * GIB, ON)
    assert choice.rung is Rung.LEVEL_1
    assert choice.why == (
        "put llama3:8b to sleep level 1: 2.6 s (estimated) to come back, 36.5 s (estimated) if it were stopped, "
        "takes 32.0 GiB of 64.0 GiB free in the host"
    )


def test_without_room_they_are_dropped_and_the_process_stays() -> None:
    choice = descend(worker(), 31 * GIB, ON)
    assert choice.rung is Rung.LEVEL_2
    assert choice.why.endswith("; no sleep level 1: needs 32.0 GiB, free 31.0 GiB in the host")


def test_small_models_take_nothing_of_the_host_for_what_nobody_notices() -> None:
    choice = descend(worker(1), 64 * GIB, ON)
    assert choice.rung is Rung.LEVEL_2
    assert "0.6 s (estimated) to come back is not much less than 1.2 s (estimated) from sleep level 2" in choice.why


@pytest.mark.parametrize(
    ("changes", "rules", "why"),
    [
        ({}, Rules(), "sleep is off"),
        ({}, replace(ON, device="cpu"), "engines give nothing back by sleeping on cpu"),
        ({"devices": 2}, ON, "it runs on 2 devices"),
        ({"life": Life(cycles=32)}, ON, "a fresh start after 32 sleeps"),
    ],
)
def test_who_never_sleeps_is_stopped(changes: Mapping[str, Any], rules: Rules, why: str) -> None:
    assert descend(worker(**changes), 99 * GIB, rules) == Choice("w", Rung.STOPPED, f"stop llama3:8b: {why}")


def test_several_devices_may_sleep_where_that_is_allowed() -> None:
    assert descend(worker(devices=2), 99 * GIB, replace(ON, allows_several=True)).rung is Rung.LEVEL_1


def test_weights_that_cannot_be_read_again_are_kept_or_the_worker_stopped() -> None:
    adapted = worker(can_reload=False)
    assert descend(adapted, 99 * GIB, ON).rung is Rung.LEVEL_1
    choice = descend(adapted, 0, ON)
    assert choice.rung is Rung.STOPPED
    assert "no sleep level 2: its weights cannot be read again in place" in choice.why


def test_a_rung_that_failed_is_barred_over_restarts_and_the_others_are_not() -> None:
    life = Life(cycles=3).failed(Rung.LEVEL_1).restarted()
    assert life == Life(cycles=0, barred=frozenset({Rung.LEVEL_1}))
    assert descend(worker(life=life), 99 * GIB, ON).rung is Rung.LEVEL_2
    assert descend(worker(life=life.failed(Rung.LEVEL_2)), 99 * GIB, ON).rung is Rung.STOPPED


def test_what_was_seen_beats_the_estimate() -> None:
    slow = estimated_costs(16 * GIB).after(Rung.LEVEL_1, 30.0).after(Rung.LEVEL_2, 34.0).after(Rung.STOPPED, 36.0)
    choice = descend(worker(costs=slow), 99 * GIB, ON)
    assert choice.rung is Rung.STOPPED
    assert choice.why == (
        "stop llama3:8b, 36.0 s to come back; "
        "no sleep level 2: 34.0 s to come back is not much less than 36.0 s from stopped; "
        "no sleep level 1: 30.0 s to come back is not much less than 36.0 s from stopped"
    )


def test_costs_are_the_median_of_the_last_few() -> None:
    seen = estimated_costs(GIB)
    for seconds in (1.0, 1.0, 1.0, 2.0, 90.0, 2.0, 2.0):
        seen = seen.after(Rung.LEVEL_2, seconds)
    assert len(seen.seen[Rung.LEVEL_2]) == KEPT_TIMES
    assert seen.seconds(Rung.LEVEL_2) == 2.0
    assert not seen.is_measured(Rung.LEVEL_1)


def test_a_load_that_was_seen_tells_how_long_weights_take_to_read() -> None:
    seen = estimated_costs(16 * GIB, weights_s=60.0)
    assert seen.seconds(Rung.LEVEL_2) == 60.5 and seen.seconds(Rung.STOPPED) == 85.0


def test_pinned_memory_of_an_earlier_sleep_is_there_already() -> None:
    slept = worker(host_bytes=host_needs(16 * GIB, base_bytes=2 * GIB, copy_bytes=20 * GIB, pool_bytes=20 * GIB))
    assert slept.host_bytes[Rung.RESIDENT] == 22 * GIB
    assert descend(slept, 0, ON).rung is Rung.LEVEL_1


# --- host memory wanted ----------------------------------------------------------------------------------------------


def asleep(holder: str, held_gib: int, idle_s: float = 100.0, rung: Rung = Rung.LEVEL_1, loss_s: float = 10) -> Sleeper:
    held = {rung: held_gib * GIB}
    return Sleeper(holder, holder, costs(1, 1, 1 + loss_s), held, rung=rung, idle_s=idle_s)


def test_the_longest_idle_goes_first() -> None:
    (choice,) = relieve([asleep("a", 10, 5), asleep("b", 10, 500), asleep("c", 10, 50)], 8 * GIB)
    assert choice == Choice(
        "b",
        Rung.STOPPED,
        "stop b (asleep, idle 500 s): holds 10.0 GiB of the host, 8.0 GiB wanted; "
        "11.0 s (estimated) to come back instead of 1.0 s (estimated)",
    )


def test_where_all_is_not_enough_all_of_it_is_better_than_nothing() -> None:
    choices = relieve([asleep("a", 10), asleep("b", 10)], 21 * GIB)
    assert {choice.holder for choice in choices} == {"a", "b"}
    assert relieve([], 1) == ()


def test_who_is_not_needed_any_more_stays() -> None:
    sleepers = [asleep("small", 2, 10_000), asleep("large", 30, 100)]
    assert [choice.holder for choice in relieve(sleepers, 25 * GIB)] == ["large"]


def test_the_awake_are_left_alone() -> None:
    awake = replace(worker(), host_bytes={Rung.RESIDENT: 50 * GIB})
    assert relieve([awake], GIB) == ()


# --- for every worker ------------------------------------------------------------------------------------------------

seconds = st.floats(0, 600, allow_nan=False)
sizes = st.integers(0, 400 * GIB)


@st.composite
def workers(draw: st.DrawFn, rungs: tuple[Rung, ...] = (Rung.RESIDENT,)) -> Sleeper:
    measured = draw(st.dictionaries(st.sampled_from(list(Rung)), st.lists(seconds, min_size=1, max_size=3).map(tuple)))
    return Sleeper(
        holder=draw(st.uuids()).hex,
        model="m",
        costs=replace(costs(draw(seconds), draw(seconds), draw(seconds)), seen=measured),
        host_bytes=host_needs(draw(sizes), draw(sizes), draw(sizes), draw(sizes)),
        rung=draw(st.sampled_from(rungs)),
        life=Life(draw(st.integers(0, 40)), draw(st.frozensets(st.sampled_from(ASLEEP)))),
        devices=draw(st.integers(1, 4)),
        can_reload=draw(st.booleans()),
        idle_s=draw(seconds),
    )


rules_of_any_kind = st.builds(
    Rules,
    is_on=st.booleans(),
    device=st.sampled_from(["cuda", "cpu"]),
    allows_several=st.booleans(),
    max_cycles=st.integers(0, 40),
)


@given(workers(), st.integers(-GIB, 800 * GIB), rules_of_any_kind)
def test_a_rung_is_allowed_paid_for_and_worth_it(one: Sleeper, free: int, rules: Rules) -> None:
    choice = descend(one, free, rules)
    assert choice.rung is not Rung.RESIDENT and one.model in choice.why
    if choice.rung is Rung.STOPPED:
        return
    assert rules.is_on and rules.device == "cuda"
    assert one.devices == 1 or rules.allows_several
    assert one.life.cycles < rules.max_cycles
    assert choice.rung not in one.life.barred
    assert one.can_reload or choice.rung is Rung.LEVEL_1
    assert one.host_bytes[choice.rung] - one.host_bytes[Rung.RESIDENT] <= max(0, free)
    back_s, stopped_s = one.costs.seconds(choice.rung), one.costs.seconds(Rung.STOPPED)
    assert stopped_s - back_s >= max(rules.least_s, rules.margin * stopped_s)


@given(workers(), st.integers(0, 800 * GIB))
def test_nothing_that_is_allowed_would_come_back_much_sooner(one: Sleeper, free: int) -> None:
    rules = replace(ON, allows_several=True, max_cycles=99)
    chosen = descend(one, free, rules).rung
    for rung in ASLEEP:
        is_allowed = rung not in one.life.barred and (one.can_reload or rung is Rung.LEVEL_1)
        fits = one.host_bytes[rung] - one.host_bytes[Rung.RESIDENT] <= free
        gain_s = one.costs.seconds(chosen) - one.costs.seconds(rung)
        if is_allowed and fits:
            assert gain_s <= max(rules.least_s, rules.margin * one.costs.seconds(chosen))


@given(st.lists(workers(tuple(Rung)), max_size=8), st.integers(1, 1000 * GIB))
def test_relief_frees_enough_and_takes_nobody_in_vain(sleepers: list[Sleeper], wanted: int) -> None:
    by_holder = {one.holder: one for one in sleepers}
    choices = relieve(sleepers, wanted)
    held = [by_holder[choice.holder].host_bytes[by_holder[choice.holder].rung] for choice in choices]
    assert all(choice.rung is Rung.STOPPED and by_holder[choice.holder].rung in ASLEEP for choice in choices)
    assert len({choice.holder for choice in choices}) == len(choices)
    everything = sum(one.host_bytes[one.rung] for one in sleepers if one.rung in ASLEEP)
    assert sum(held) >= min(wanted, everything)
    assert all(sum(held) - each < wanted for each in held)


@given(sizes, sizes, sizes, sizes)
def test_a_stop_gives_back_everything_and_no_rung_loses_the_pool(weights: int, base: int, copy: int, pool: int) -> None:
    needs = host_needs(weights, base, copy, pool)
    assert needs[Rung.STOPPED] == 0
    assert all(needs[rung] >= base + pool for rung in (Rung.RESIDENT, *ASLEEP))


@given(sizes, st.integers(1, 8))
def test_estimates_never_put_a_higher_rung_behind_a_lower_one(weights: int, devices: int) -> None:
    made = estimated_costs(weights, devices)
    times = [made.seconds(rung) for rung in Rung]
    assert times == sorted(times)
