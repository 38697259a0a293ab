"""Walk every reachable WorkerRecord and check the invariants of the worker machine."""

import pytest

from vllama.reasons import Reason
from vllamad.domain.worker import (
    WITH_PROCESS,
    Deadline,
    Effect,
    Event,
    Goal,
    Held,
    IllegalTransition,
    Kind,
    State,
    WorkerRecord,
    deadline_of,
    step,
)

MAX_LEASES = 2
STARTING_KINDS = (Kind.HEALTHY, Kind.UNHEALTHY, Kind.SPAWN_FAILED, Kind.LOADER_FAILED)
WISHES = (Kind.START, Kind.STOP, Kind.SUSPEND)


def possible(record: WorkerRecord) -> list[Event]:
    """What the world can really do to a record; the other pairs must raise (see below)."""
    now = record.incarnation
    events = [Event(kind) for kind in WISHES]
    if deadline_of(record) is not None:
        events.append(Event(Kind.DEADLINE, now))
    if record.state in WITH_PROCESS:
        events.append(Event(Kind.LEADER_EXITED, now))
    match record.state:
        case State.STARTING:
            events += [Event(kind, now) for kind in STARTING_KINDS]
        case State.READY:
            events += [Event(Kind.UNHEALTHY, now), Event(Kind.RETURNED, now), Event(Kind.STABLE, now)]
            if record.leases < MAX_LEASES:
                events.append(Event(Kind.LEASED, now))
        case State.DRAINING:
            events += [Event(Kind.UNHEALTHY, now)]
            if record.leases:
                events.append(Event(Kind.RETURNED, now))
        case State.SUSPENDING:
            events += [Event(kind, now) for kind in (Kind.SUSPEND_DONE, Kind.CALL_FAILED, Kind.UNHEALTHY)]
        case State.SUSPENDED:
            events.append(Event(Kind.UNHEALTHY, now))
        case State.RESUMING:
            events += [Event(kind, now) for kind in (Kind.RESUME_DONE, Kind.CALL_FAILED, Kind.UNHEALTHY)]
        case State.KILLING:
            events.append(Event(Kind.TREE_GONE, now))
        case State.RELEASING:
            events.append(Event(Kind.MEMORY_BACK, now))
        case State.FAILED:
            events.append(Event(Kind.TREE_GONE, now))
        case _:
            pass
    return events


def shape(record: WorkerRecord) -> WorkerRecord:
    """The record without its life counter, which grows for ever."""
    return WorkerRecord(
        record.state, record.goal, 0, record.leases, record.attempts, record.cause, record.is_final, record.held
    )


def reachable() -> list[WorkerRecord]:
    seen = {WorkerRecord()}
    frontier = [WorkerRecord()]
    while frontier:
        record = frontier.pop()
        for event in possible(record):
            after = shape(step(record, event)[0])
            if after not in seen:
                seen.add(after)
                frontier.append(after)
    return sorted(seen, key=str)


RECORDS = reachable()


def transitions() -> list[tuple[WorkerRecord, Event, WorkerRecord, tuple[Effect, ...]]]:
    return [(record, event, *step(record, event)) for record in RECORDS for event in possible(record)]


def test_the_walk_is_wide_enough_to_mean_something() -> None:
    assert len(RECORDS) > 80
    assert {record.state for record in RECORDS} == set(State)


def test_spawn_never_happens_over_a_live_tree() -> None:
    without_tree = {State.STOPPED, State.BACKOFF, State.FAILED}
    for record, event, _after, effects in transitions():
        if Effect.SPAWN in effects:
            assert record.state in without_tree, (record, event)
            assert record.held is not Held.LEAKED, (record, event)


def test_full_reservation_while_starting_resuming_or_ready() -> None:
    for record in RECORDS:
        if record.state in {State.STARTING, State.RESUMING, State.READY, State.DRAINING, State.BACKOFF}:
            assert record.held is Held.FULL, record


def test_stopped_holds_nothing_and_failed_nothing_but_a_leak() -> None:
    for record in RECORDS:
        if record.state is State.STOPPED:
            assert record.held is Held.NONE, record
            assert record.leases == 0, record
        if record.state is State.FAILED:
            assert record.held in {Held.NONE, Held.LEAKED}, record


def test_leases_only_while_ready_or_draining() -> None:
    for record in RECORDS:
        if record.leases:
            assert record.state in {State.READY, State.DRAINING}, record


def test_leases_never_vanish_unbroken() -> None:
    for record, event, after, effects in transitions():
        if after.leases < record.leases and event.kind is not Kind.RETURNED:
            assert Effect.BREAK_LEASES in effects, (record, event)


def test_what_resolves_by_itself_has_one_deadline_and_what_rests_has_none() -> None:
    for record in RECORDS:
        moves = record.state.endswith("ING") or record.state is State.BACKOFF
        assert (deadline_of(record) is not None) == moves, record


def test_stop_and_deadlines_alone_settle_every_record() -> None:
    """From anywhere, after Stop, three deadlines at most bring a worker to rest (four where leases drain first)."""
    for record in RECORDS:
        current, _ = step(record, Event(Kind.STOP))
        steps = 0
        while current.state not in {State.STOPPED, State.FAILED}:
            assert deadline_of(current) is not None, (record, current)
            current, _ = step(current, Event(Kind.DEADLINE, current.incarnation))
            steps += 1
            assert steps <= 3, (record, current)


def test_a_stop_does_not_wait_for_an_engine_to_fall_asleep_or_wake() -> None:
    for record in RECORDS:
        if record.state in {State.SUSPENDING, State.RESUMING}:
            stopped, effects = step(record, Event(Kind.STOP))
            assert (stopped.state, stopped.goal, effects) == (State.STOPPING, Goal.STOP, (Effect.TERM,)), record


def test_who_misses_health_checks_while_it_falls_asleep_or_wakes_is_stopped_and_started_again_if_wanted() -> None:
    for record in RECORDS:
        if record.state in {State.SUSPENDING, State.RESUMING}:
            down, effects = step(record, Event(Kind.UNHEALTHY, record.incarnation))
            assert (down.state, effects) == (State.STOPPING, (Effect.TERM,)), record
            assert (down.goal is Goal.RUN) == (record.goal is Goal.RUN), record


def test_every_way_down_ends_in_rest_without_a_deadline() -> None:
    """The kind world (leader exits, tree goes, memory returns) leads from STOPPING to rest as well."""
    for record in RECORDS:
        current, _ = step(record, Event(Kind.STOP))
        for kind in (Kind.RETURNED, Kind.RETURNED, Kind.LEADER_EXITED, Kind.TREE_GONE, Kind.MEMORY_BACK):
            allowed = {event.kind for event in possible(current)} | {Kind.LEADER_EXITED, Kind.TREE_GONE}
            if kind in allowed and current.state is not State.STOPPED:
                current, _ = step(current, Event(kind, current.incarnation))
        assert current.state in {State.STOPPED, State.FAILED}, (record, current)


def test_events_of_an_older_life_change_nothing() -> None:
    for record in RECORDS:
        newer = WorkerRecord(
            record.state, record.goal, 7, record.leases, record.attempts, record.cause, record.is_final, record.held
        )
        for kind in Kind:
            if kind not in WISHES:
                assert step(newer, Event(kind, 6)) == (newer, ())


def test_wishes_are_legal_everywhere() -> None:
    for record in RECORDS:
        for kind in WISHES:
            step(record, Event(kind))


def test_a_lease_on_what_is_not_ready_is_a_bug() -> None:
    for record in RECORDS:
        if record.state is not State.READY:
            with pytest.raises(IllegalTransition):
                step(record, Event(Kind.LEASED, record.incarnation))


def test_a_first_start_that_fails_is_final_and_tells_its_cause() -> None:
    record, _ = step(WorkerRecord(), Event(Kind.START))
    record, effects = step(record, Event(Kind.LEADER_EXITED, 1))
    assert effects == (Effect.BREAK_LEASES, Effect.KILL)
    record, _ = step(record, Event(Kind.TREE_GONE, 1))
    record, effects = step(record, Event(Kind.MEMORY_BACK, 1))
    assert record.state is State.FAILED
    assert record.cause is Reason.ENGINE_START_FAILED
    assert Effect.WAKE_WAITERS in effects


def test_a_crash_is_tried_again_until_the_attempts_are_used_up() -> None:
    record, _ = step(WorkerRecord(), Event(Kind.START))
    seen: list[State] = []
    for _ in range(10):
        record, _ = step(record, Event(Kind.HEALTHY, record.incarnation))
        for kind in (Kind.LEADER_EXITED, Kind.TREE_GONE, Kind.MEMORY_BACK):
            record, _ = step(record, Event(kind, record.incarnation))
        seen.append(record.state)
        if record.state is State.FAILED:
            break
        assert deadline_of(record) is Deadline.BACKOFF
        record, _ = step(record, Event(Kind.DEADLINE, record.incarnation))
    assert seen == [State.BACKOFF, State.BACKOFF, State.FAILED]
    assert record.cause is Reason.ENGINE_DIED


def test_wanted_again_while_stopping_is_readmitted_once_it_is_down() -> None:
    record, _ = step(WorkerRecord(), Event(Kind.START))
    record, _ = step(record, Event(Kind.HEALTHY, 1))
    record, _ = step(record, Event(Kind.STOP))
    record, _ = step(record, Event(Kind.START))
    assert (record.state, record.goal) == (State.STOPPING, Goal.RUN)
    for kind in (Kind.LEADER_EXITED, Kind.TREE_GONE):
        record, _ = step(record, Event(kind, 1))
    record, effects = step(record, Event(Kind.MEMORY_BACK, 1))
    assert record.state is State.STOPPED
    assert Effect.READMIT in effects
