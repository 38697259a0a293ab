"""Decisions of the scheduler, and what holds for every decision."""

from hypothesis import given
from hypothesis import strategies as st

from vllama.reasons import Reason
from vllamad.domain.scheduler import Grant, Refuse, Slot, Start, Stop, Waiting, plan
from vllamad.domain.worker import Goal, Held, State


def ready(model: str, leases: int = 0, idle_since: float = 0.0, is_pinned: bool = False) -> Slot:
    return Slot(model, model, State.READY, Goal.RUN, Held.FULL, leases, idle_since, is_pinned)


def slots(*given_slots: Slot) -> dict[str, Slot]:
    return {slot.key: slot for slot in given_slots}


def wait(*models: str) -> list[Waiting]:
    return [Waiting(number, model, model, 0.0) for number, model in enumerate(models)]


def test_an_unloaded_model_is_started_once_however_many_wait() -> None:
    decisions = plan(wait("a", "a", "a"), {}, capacity=1, parallel=0, now=0)
    assert [type(one) for one in decisions] == [Start]


def test_a_ready_model_grants_everyone_in_order() -> None:
    assert plan(wait("a", "a"), slots(ready("a")), 1, 0, 0) == [Grant(0, "a"), Grant(1, "a")]


def test_parallel_bounds_the_grants() -> None:
    assert plan(wait("a", "a", "a"), slots(ready("a", leases=1)), 1, 2, 0) == [Grant(0, "a")]


def test_the_idle_model_is_evicted_with_a_sentence() -> None:
    (stop,) = plan(wait("b"), slots(ready("a", idle_since=10.0)), 1, 0, 322.0)
    assert stop == Stop("a", "evict a (idle 312 s) to load b: 1 of 1 slots are taken")


def test_the_longest_idle_is_the_victim() -> None:
    held = slots(ready("a", idle_since=50), ready("b", idle_since=20), ready("c", leases=1))
    decisions = plan(wait("d"), held, 3, 0, 100)
    assert [one.key for one in decisions if isinstance(one, Stop)] == ["b"]


def test_a_busy_model_is_not_evicted_but_gets_no_more_requests() -> None:
    decisions = plan(wait("b", "a"), slots(ready("a", leases=2)), 1, 0, 0)
    assert decisions == []


def test_requests_older_than_the_claim_are_still_granted() -> None:
    decisions = plan(wait("a", "b", "a"), slots(ready("a", leases=1)), 1, 0, 0)
    assert Grant(0, "a") in decisions


def test_a_model_on_its_way_out_is_taken_back_if_nobody_else_needs_its_slot() -> None:
    leaving = Slot("a", "a", State.STOPPING, Goal.STOP, Held.FULL, 0, 0)
    assert [type(one) for one in plan(wait("a"), slots(leaving), 1, 0, 0)] == [Start]


def test_a_slot_that_is_leaving_anyway_is_waited_for() -> None:
    leaving = Slot("a", "a", State.STOPPING, Goal.STOP, Held.FULL, 0, 0)
    assert plan(wait("b"), slots(leaving, ready("c")), 2, 0, 0) == []


def test_pinned_models_are_never_moved_and_the_refusal_says_so() -> None:
    (refusal,) = plan(wait("b"), slots(ready("a", is_pinned=True)), 1, 0, 0)
    assert isinstance(refusal, Refuse)
    assert refusal.reason is Reason.WONT_FIT
    assert "pinned" in refusal.why


def test_a_leaked_slot_is_neither_waited_for_nor_used_again() -> None:
    leaked = Slot("a", "a", State.FAILED, Goal.STOP, Held.LEAKED, 0, 0)
    for model in ("a", "b"):
        (refusal,) = plan(wait(model), slots(leaked), 1, 0, 0)
        assert isinstance(refusal, Refuse), model
    assert isinstance(plan(wait("b"), slots(leaked), 2, 0, 0)[0], Start)


models = st.sampled_from("abcde")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Waiting], dict[str, Slot], int, int]:
    held: dict[str, Slot] = {}
    capacity = draw(st.integers(1, 3))
    for model in draw(st.lists(models, unique=True, max_size=capacity)):
        state = draw(st.sampled_from([State.STARTING, State.READY, State.DRAINING, State.STOPPING, State.BACKOFF]))
        goal = Goal.STOP if state is State.DRAINING else draw(st.sampled_from([Goal.RUN, Goal.STOP]))
        if state in {State.READY, State.STARTING, State.BACKOFF}:
            goal = Goal.RUN
        leases = draw(st.integers(0, 3)) if state in {State.READY, State.DRAINING} else 0
        held[model] = Slot(model, model, state, goal, Held.FULL, leases, draw(st.floats(0, 100)), draw(st.booleans()))
    queue = [Waiting(number, model, model, 0.0) for number, model in enumerate(draw(st.lists(models, max_size=8)))]
    return queue, held, capacity, draw(st.integers(0, 3))


@given(worlds())
def test_every_plan_keeps_the_rules(world: tuple[list[Waiting], dict[str, Slot], int, int]) -> None:
    queue, held, capacity, parallel = world
    decisions = plan(queue, held, capacity, parallel, 100.0)
    starts = [one for one in decisions if isinstance(one, Start)]
    stops = [one for one in decisions if isinstance(one, Stop)]
    grants = [one for one in decisions if isinstance(one, Grant)]
    fresh = [one for one in starts if one.key not in held]
    assert len(held) + len(fresh) <= capacity
    assert len({one.key for one in starts}) == len(starts)
    assert all(held[one.key].leases == 0 and not held[one.key].is_pinned for one in stops)
    assert not {one.key for one in stops} & {one.key for one in grants}
    assert all(held[one.key].takes_requests for one in grants)
    assert len({one.number for one in grants}) == len(grants)


@given(worlds())
def test_the_oldest_request_is_never_passed_over(world: tuple[list[Waiting], dict[str, Slot], int, int]) -> None:
    """Work-conserving: if nothing is decided for the oldest request, something is on its way or busy."""
    queue, held, capacity, parallel = world
    if not queue:
        return
    oldest = queue[0]
    decisions = plan(queue, held, capacity, parallel, 100.0)
    if decisions:
        return
    own = held.get(oldest.model)
    pending = any(slot.state is not State.READY or slot.leases > 0 for slot in held.values())
    assert pending or (own is not None and own.takes_requests and parallel and own.leases >= parallel)
