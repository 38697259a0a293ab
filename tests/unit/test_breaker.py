"""The breaker, driven by the worker's own machine: a model whose engine does what a test says, any requests."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.reasons import Reason
from vllamad.domain.breaker import (
    BUDGET_FAULTS,
    BUDGET_WINDOW_S,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    STABLE_S,
    Breaker,
    Status,
    pause_s,
    refusal,
)
from vllamad.domain.errors import VllamaError
from vllamad.domain.worker import Event, Kind, State, WorkerRecord, step

KEY = "k"
BACKOFF_S = 1.0
SERVES_FOR_EVER = 1e12


@dataclass
class Engine:
    """``load_s`` until it is ready, or until it fails if ``serves_s`` is None; then it serves so long and crashes."""

    load_s: float = 1.0
    serves_s: float | None = None


@dataclass
class House:
    """One model, its worker and its breaker; ``ask`` is a request at an instant."""

    engine: Engine
    attempts: int = 3
    breaker: Breaker = field(default_factory=Breaker)
    record: WorkerRecord = field(default_factory=WorkerRecord)
    now: float = 0.0
    due: float = SERVES_FOR_EVER
    loads: list[float] = field(default_factory=list[float])
    refused: list[float] = field(default_factory=list[float])
    decided: list[str] = field(default_factory=list[str])

    def post(self, kind: Kind, cause: Reason | None = None) -> None:
        before = self.record
        limit = self.breaker.attempts(KEY, self.attempts, self.now)
        self.record, _ = step(before, Event(kind, None, cause), limit)
        error = None
        if self.record.state is State.FAILED and self.record.cause:
            error = VllamaError(self.record.cause, "cannot load tiny: it fell", log="its last words")
        if decided := self.breaker.changed(KEY, "w1", before, self.record, error, self.now):
            self.decided.append(decided)
        if self.record.state is State.STARTING and before.state is not State.STARTING:
            self.loads.append(self.now)
            self.due = self.now + self.engine.load_s
        elif self.record.state is State.READY and before.state is not State.READY:
            self.due = self.now + (self.engine.serves_s or 0.0)
        elif self.record.state is State.BACKOFF:
            self.due = self.now + BACKOFF_S
        elif self.record.state in {State.FAILED, State.STOPPED}:
            self.due = SERVES_FOR_EVER

    def crash(self, cause: Reason | None = None) -> None:
        self.post(Kind.LEADER_EXITED, cause)
        self.post(Kind.TREE_GONE)
        self.post(Kind.MEMORY_BACK)

    def run_to(self, instant: float) -> None:
        """Let happen what is due until then."""
        while self.due <= instant:
            self.now = self.due
            if self.record.state is State.BACKOFF:
                self.post(Kind.DEADLINE)
            elif self.record.state is State.STARTING and self.engine.serves_s is not None:
                self.post(Kind.HEALTHY)
            else:
                if self.record.state is State.READY and (self.engine.serves_s or 0.0) >= STABLE_S:
                    self.post(Kind.STABLE)
                self.crash()
        self.now = instant

    def ask(self, instant: float) -> VllamaError | None:
        self.run_to(instant)
        if self.record.state not in {State.STOPPED, State.FAILED}:
            return None
        error = self.breaker.refuse(KEY, "tiny", self.now)
        if error is None:
            self.post(Kind.START)
        else:
            self.refused.append(self.now)
        return error

    def stop(self) -> None:
        for kind in (Kind.STOP, Kind.LEADER_EXITED, Kind.TREE_GONE, Kind.MEMORY_BACK):
            self.post(kind)


def most_in(instants: list[float], window_s: float) -> int:
    return max((sum(1 for each in instants if start <= each < start + window_s) for start in instants), default=0)


def pauses_in(window_s: float) -> int:
    """How many pauses, beginning with the shortest, fit into a window."""
    spent, count = 0.0, 0
    while spent < window_s:
        count += 1
        spent += pause_s(count)
    return count


gaps = st.lists(st.floats(0.0, 400.0), min_size=1, max_size=60)


@given(gaps, st.floats(0.0, 30.0), st.sampled_from([60.0, 600.0, 3600.0]))
def test_a_model_that_never_loads_is_loaded_a_bounded_number_of_times(
    waits: list[float], load_s: float, window_s: float
) -> None:
    house = House(Engine(load_s))
    instant = 0.0
    for wait in waits:
        instant += wait
        house.ask(instant)
    assert most_in(house.loads, window_s) <= 1 + pauses_in(window_s)


def test_the_bound_holds_for_a_request_every_tenth_of_a_second() -> None:
    house = House(Engine(0.0))
    for number in range(36_000):
        house.ask(number / 10)
    assert len(house.loads) <= 1 + pauses_in(3600.0) < 20
    assert len(house.loads) >= 10, "and it is tried again and again"


@given(st.floats(0.0, 200.0), st.floats(2.0, 60.0), st.integers(1, 10))
def test_a_model_that_keeps_crashing_is_loaded_a_bounded_number_of_times(
    serves_s: float, every_s: float, attempts: int
) -> None:
    house = House(Engine(1.0, serves_s), attempts)
    instant = 0.0
    while instant < 2.5 * BUDGET_WINDOW_S:
        house.ask(instant)
        instant += every_s
    # The budget, then the pauses; those may begin again while the budget is not spent.
    assert most_in(house.loads, BUDGET_WINDOW_S) <= 2 * BUDGET_FAULTS + pauses_in(BUDGET_WINDOW_S)


@given(gaps, st.integers(0, BUDGET_FAULTS - 2))
def test_a_healthy_model_is_never_refused(waits: list[float], crashes: int) -> None:
    """Stopped and loaded as often as anyone likes; a crash now and then, after it was stable, is none of a model that
    fails."""
    house = House(Engine(1.0, SERVES_FOR_EVER))
    instant = 0.0
    for wait in waits:
        instant += wait + 2.0
        assert house.ask(instant) is None
        house.run_to(instant + 1.0)
        if house.record.state is not State.READY:
            continue
        if crashes:
            crashes -= 1
            house.run_to(house.now + STABLE_S)
            house.post(Kind.STABLE)
            house.crash()
            instant = house.now
        else:
            house.stop()
    assert house.refused == []


@given(gaps, st.one_of(st.none(), st.floats(0.0, 100.0)))
def test_it_is_tried_again_in_the_end(waits: list[float], serves_s: float | None) -> None:
    house = House(Engine(1.0, serves_s))
    instant = 0.0
    for wait in waits:
        instant += wait
        house.ask(instant)
    house.run_to(instant)
    error = house.breaker.refuse(KEY, "tiny", house.now)
    if error is not None:
        after = error.facts["retry_after_s"]
        assert isinstance(after, int) and 1 <= after <= LONGEST_PAUSE_S
        assert house.ask(instant + after) is None, "asking when it said is let through"


def test_the_pause_doubles_up_to_five_minutes() -> None:
    assert [pause_s(count) for count in range(1, 8)] == [10, 20, 40, 80, 160, 300, 300]
    assert pause_s(10_000) == LONGEST_PAUSE_S


def test_open_half_open_closed() -> None:
    house = House(Engine(1.0))
    assert house.breaker.status(KEY, 0.0) is Status.CLOSED
    house.ask(0.0)
    house.run_to(1.0)
    assert house.record.state is State.FAILED
    assert house.breaker.status(KEY, 1.0) is Status.OPEN
    assert house.breaker.status(KEY, 1.0 + FIRST_PAUSE_S) is Status.HALF_OPEN
    house.engine.serves_s = SERVES_FOR_EVER
    house.ask(1.0 + FIRST_PAUSE_S)
    house.run_to(13.0)
    assert house.record.state is State.READY
    assert house.breaker.status(KEY, 13.0) is Status.CLOSED
    assert house.decided == [
        "is given up for 10 s: it failed once (ENGINE_START_FAILED)",
        "is no longer given up: it is ready, after it had failed once",
    ]


def test_failures_are_forgotten_only_after_it_was_stable() -> None:
    house = House(Engine(1.0), attempts=1)
    house.ask(0.0)
    house.run_to(1.0)
    house.engine.serves_s = STABLE_S - 1
    house.ask(11.0)
    house.run_to(12.0 + STABLE_S)
    assert house.record.state is State.FAILED
    error = house.breaker.refuse(KEY, "tiny", house.now)
    assert error is not None and "failed twice" in error.message
    house.engine.serves_s = STABLE_S
    house.ask(house.now + 20.0)
    house.run_to(house.now + 2.0 + STABLE_S)
    error = house.breaker.refuse(KEY, "tiny", house.now)
    assert error is not None and "failed once" in error.message


def test_a_crash_every_61_seconds_is_given_up_by_the_tenth() -> None:
    house = House(Engine(1.0, STABLE_S + 1.0))
    house.ask(0.0)
    while house.record.state is not State.FAILED:
        house.run_to(house.due)
    assert len(house.loads) == BUDGET_FAULTS
    assert house.breaker.status(KEY, house.now) is Status.OPEN
    assert house.decided == ["is given up for 10 s: it failed 10 times within an hour (ENGINE_DIED)"]


def test_a_spent_budget_makes_the_pauses_longer_though_it_was_stable() -> None:
    house = House(Engine(1.0, STABLE_S + 1.0))
    for second in range(3600):
        house.ask(float(second))
    given_up = [text for text in house.decided if "given up for" in text]
    assert [text.split()[4] for text in given_up[:6]] == ["10", "20", "40", "80", "160", "5"]
    assert len(house.loads) <= BUDGET_FAULTS + pauses_in(3600.0)


def test_more_attempts_than_the_budget_are_the_users_own_choice() -> None:
    house = House(Engine(0.5, 0.0), attempts=20)
    house.ask(0.0)
    while house.record.state is not State.FAILED:
        house.run_to(house.due)
    assert len(house.loads) == 20


def test_a_person_is_not_refused_but_failing_again_counts() -> None:
    house = House(Engine(1.0))
    house.ask(0.0)
    house.run_to(1.0)
    assert house.ask(2.0) is not None
    house.breaker.insist(KEY, 2.0)
    assert house.ask(2.0) is None
    house.run_to(3.0)
    error = house.breaker.refuse(KEY, "tiny", 3.0)
    assert error is not None and "failed twice" in error.message
    house.breaker.insist("unknown", 3.0)


@pytest.mark.parametrize("cause", [Reason.WONT_FIT, Reason.DRAINING])
def test_what_is_no_fault_of_the_engine_does_not_open_it(cause: Reason) -> None:
    house = House(Engine(1.0))
    for _ in range(20):
        house.post(Kind.START)
        house.post(Kind.SPAWN_FAILED, cause)
        house.post(Kind.MEMORY_BACK)
        assert house.record.state is State.FAILED
        assert house.breaker.status(KEY, house.now) is Status.CLOSED


@pytest.mark.parametrize("kinds", [[Kind.DEADLINE, Kind.LEADER_EXITED], [Kind.UNHEALTHY, Kind.LEADER_EXITED]])
def test_every_way_to_a_final_failure_opens_it_also_when_it_is_stopped_on_its_way_down(kinds: list[Kind]) -> None:
    for stops in (False, True):
        house = House(Engine(1.0))
        house.post(Kind.START)
        for kind in kinds:
            house.post(kind)
        house.post(Kind.TREE_GONE)
        if stops:
            house.post(Kind.STOP)
        house.post(Kind.MEMORY_BACK)
        assert house.breaker.status(KEY, house.now) is Status.OPEN
        error = house.breaker.refuse(KEY, "tiny", house.now)
        assert error is not None and error.message.startswith("cannot load tiny")


def test_a_load_that_somebody_stops_teaches_nothing() -> None:
    house = House(Engine(100.0))
    house.ask(0.0)
    house.stop()
    assert house.breaker.status(KEY, 0.0) is Status.CLOSED


def test_a_half_open_try_that_somebody_stops_leaves_it_half_open() -> None:
    house = House(Engine(5.0))
    house.ask(0.0)
    house.run_to(5.0)
    house.ask(20.0)
    house.stop()
    assert house.breaker.status(KEY, 20.0) is Status.HALF_OPEN


def test_a_refusal_says_what_how_often_and_when() -> None:
    cause = VllamaError(
        Reason.ENGINE_START_FAILED, "cannot load tiny: ValueError: no memory", "old", attempts=1, log="a\nb"
    )
    error = refusal("tiny", cause, "3 times in a row", 12.4, 27.2)
    assert error.reason is Reason.ENGINE_START_FAILED
    assert error.message == (
        "cannot load tiny: ValueError: no memory (failed 3 times in a row, last 12 s ago; tiny is tried again in 28 s)"
    )
    assert error.hint == "vllamactl load tiny tries at once; vllamactl logs tiny shows what it said"
    assert error.facts == {"attempts": 1, "log": "a\nb", "model": "tiny", "retry_after_s": 28}
    other = refusal("alias", cause, "once", 0.0, 300.0)
    assert other.message.startswith("cannot load alias: cannot load tiny: ValueError")
    assert "failed once, last 0 s ago; alias is tried again in 5 min" in other.message
