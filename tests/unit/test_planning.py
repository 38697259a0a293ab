"""The planner: its decisions one by one, and what holds over any history."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from vllama.reasons import Reason
from vllamad.domain.budget import Device, Ledger, Observed, open_ledger
from vllamad.domain.eviction import protected_for
from vllamad.domain.placement import Demand, Need, Placement, place
from vllamad.domain.planning import plan
from vllamad.domain.turns import order_requests
from vllamad.domain.worker import Goal, Held, State
from vllamad.domain.workload import (
    Decision,
    Grant,
    Limits,
    Plan,
    Refuse,
    Start,
    Stop,
    Wait,
    Waiter,
    Wanted,
    Worker,
    Workload,
)

GIB = 1 << 30
LATER = 1e9
"""A deadline that never comes."""


def wanted(key: str, size: int = 40, *, devices: int = 1, replicas: int = 1, load_cost_s: float = 10.0) -> Wanted:
    return Wanted(key, key, Demand((Need(devices, size * GIB),)), load_cost_s, replicas)


@dataclass
class Scene:
    """A workload that is put together step by step. GPUs have 100 GiB and no margin."""

    gpus: int = 1
    limits: Limits = field(default_factory=Limits)
    models: dict[str, Wanted] = field(default_factory=dict[str, Wanted])
    workers: dict[str, Worker] = field(default_factory=dict[str, Worker])
    waiting: list[Waiter] = field(default_factory=list[Waiter])
    served_at: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    room_made_for: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        devices = [Device(index, f"GPU {index}", 100 * GIB, "x") for index in range(self.gpus)]
        self.ledger: Ledger = open_ledger(devices, 0.0)

    def model(self, model: Wanted) -> "Scene":
        self.models[model.key] = model
        return self

    def worker(
        self, key: str, on: Mapping[int, int], state: State = State.READY, goal: Goal = Goal.RUN, **more: object
    ) -> "Scene":
        holder = str(more.pop("holder", key))
        ledger = self.ledger.reserve(holder, {index: size * GIB for index, size in on.items()}, {})
        assert isinstance(ledger, Ledger)
        self.ledger = ledger if state is State.STARTING else ledger.end_load(holder)
        self.models.setdefault(key, wanted(key, max(on.values())))
        worker = Worker(holder, key, key, state, goal, Held.FULL, load_cost_s=10.0, ready_since=-1000.0)
        self.workers[holder] = replace(worker, **more)
        if self.workers[holder].held is Held.LEAKED:
            self.ledger = self.ledger.quarantine(holder)
        return self

    def wait(
        self, *keys: str, since: float = 0.0, caller: str = "", priority: int = 0, until: float = LATER
    ) -> "Scene":
        for key in keys:
            self.models.setdefault(key, wanted(key))
            self.waiting.append(Waiter(len(self.waiting), key, since, until, caller, priority))
        return self

    def plan(self, now: float = 0.0) -> Plan:
        """One look, which remembers what the next one is to be told."""
        load = Workload(
            tuple(self.waiting),
            self.workers,
            self.models,
            self.ledger,
            self.limits,
            self.served_at,
            self.room_made_for,
        )
        made = plan(load, now)
        self.room_made_for = made.room_made_for
        return made

    def gone(self, holder: str) -> "Scene":
        del self.workers[holder]
        after = self.ledger.release(holder)
        assert isinstance(after, Ledger)
        self.ledger = after
        return self

    def decide(self, now: float = 0.0) -> tuple[Decision, ...]:
        return self.plan(now).decisions


def starts(decisions: tuple[Decision, ...]) -> list[str]:
    return [one.holder for one in decisions if isinstance(one, Start)]


def stops(decisions: tuple[Decision, ...]) -> list[str]:
    return [one.holder for one in decisions if isinstance(one, Stop)]


def grants(decisions: tuple[Decision, ...]) -> list[tuple[int, str]]:
    return [(one.number, one.holder) for one in decisions if isinstance(one, Grant)]


def waits(decisions: tuple[Decision, ...]) -> list[str]:
    return [one.why for one in decisions if isinstance(one, Wait)]


def refusals(decisions: tuple[Decision, ...]) -> list[tuple[int, Reason]]:
    return [(one.number, one.reason) for one in decisions if isinstance(one, Refuse)]


# --- granting and starting ---------------------------------------------------------------------------------------


def test_a_model_is_started_once_however_many_wait() -> None:
    (start,) = Scene().wait("a", "a", "a").decide()
    assert start == Start(
        "a",
        "a",
        Placement((0,), 40 * GIB, 0, 0),
        "start a on GPU 0: 3 waiting, takes 40.0 GiB of 100.0 GiB free",
    )


def test_several_devices_are_all_named() -> None:
    (start,) = Scene(2).model(wanted("a", 80, devices=2)).wait("a").decide()
    assert isinstance(start, Start)
    assert start.why == ("start a on GPU 0, GPU 1: 1 waiting, takes 80.0 GiB each of 100.0 GiB, 100.0 GiB free")


def test_small_models_share_a_device_but_load_one_after_the_other() -> None:
    decisions = Scene().wait("a", "b").decide(5.0)
    assert starts(decisions) == ["a"]
    assert waits(decisions) == ["b waits (1, 5 s): GPU 0 loads a: one load at a time"]
    assert starts(Scene(2).wait("a", "b").decide()) == ["a", "b"]


def test_requests_go_to_the_worker_with_the_fewest() -> None:
    scene = Scene(2).worker("a", {0: 40}, leases=2).worker("a", {1: 40}, holder="a#2")
    assert grants(scene.wait("a", "a", "a").decide()) == [(0, "a#2"), (1, "a#2"), (2, "a")]


def test_parallel_bounds_each_worker() -> None:
    scene = Scene(limits=Limits(parallel=2)).worker("a", {0: 40}, leases=1).wait("a", "a")
    decisions = scene.decide()
    assert grants(decisions) == [(0, "a")]
    assert waits(decisions) == ["a waits (1, 0 s): each of its 1 worker(s) has 2 requests"]


def test_a_crowded_model_gets_a_replica_but_nobody_leaves_for_it() -> None:
    popular = wanted("a", 60, replicas=2)
    for leases, crowd, more in ((2, 2, ["a#2"]), (1, 2, [])):
        scene = Scene(2, Limits(crowd=crowd)).model(popular).worker("a", {0: 60}, leases=leases)
        assert starts(scene.decide()) == more
        assert starts(scene.worker("b", {1: 60}).decide()) == []
    assert starts(Scene(2, Limits(parallel=1)).model(popular).worker("a", {0: 60}, leases=1).wait("a").decide()) == [
        "a#2"
    ]


def test_a_suspect_worker_is_sent_nobody() -> None:
    decisions = Scene().worker("a", {0: 40}, is_suspect=True).wait("a").decide()
    assert "whether it lives" in waits(decisions)[0]


# --- making room -------------------------------------------------------------------------------------------------


def test_an_eviction_is_a_sentence_with_its_numbers() -> None:
    scene = Scene().worker("qwen", {0: 70}, idle_since=10.0, load_cost_s=9.0).wait("llama", since=320.0)
    (stop,) = scene.decide(322.0)
    assert stop == Stop(
        "qwen",
        "evict qwen (idle 312 s, 9 s to come back) to fit llama: needs 40.0 GiB, free 30.0 GiB on GPU 0",
    )


def test_who_is_cheap_to_bring_back_goes_before_who_is_idle_longer() -> None:
    scene = Scene().worker("slow", {0: 40}, idle_since=0.0, load_cost_s=100.0)
    scene.worker("quick", {0: 40}, idle_since=100.0, load_cost_s=5.0)
    assert stops(scene.wait("a").decide(200.0)) == ["quick"]


def test_a_moment_of_idleness_does_not_make_a_rare_one_hot() -> None:
    scene = Scene().worker("rare", {0: 40}, idle_since=190.0, gap_s=3600.0).worker("hot", {0: 40}, idle_since=150.0)
    assert stops(scene.wait("a").decide(200.0)) == ["rare"]


def test_one_large_victim_or_several_small_ones_whatever_is_cheaper() -> None:
    for load_cost_s, victims in ((25.0, ["large"]), (35.0, ["one", "two"])):
        scene = Scene().worker("large", {0: 50}, load_cost_s=load_cost_s)
        scene.worker("one", {0: 25}, load_cost_s=15.0).worker("two", {0: 25}, load_cost_s=15.0)
        assert stops(scene.model(wanted("a", 50)).wait("a").decide(1000.0)) == victims


def test_busy_ones_are_not_stopped_but_get_nobody_new() -> None:
    scene = Scene().worker("a", {0: 70}, leases=2).wait("b").wait("a", since=1.0)
    decisions = scene.decide(2.0)
    assert stops(decisions) == []
    assert grants(decisions) == []
    assert waits(decisions) == [
        "b waits (1, 2 s): needs 40.0 GiB, free 30.0 GiB on GPU 0; waits for a (2 requests) to finish",
        "a waits (1, 1 s): its place goes to who has waited longer",
    ]


def test_who_is_older_than_the_claim_is_still_granted() -> None:
    assert grants(Scene().worker("a", {0: 70}, leases=1).wait("a", "b").decide()) == [(0, "a")]


def test_an_idle_one_stays_until_the_busy_one_beside_it_can_leave_too() -> None:
    scene = Scene().worker("a", {0: 50}, leases=1).worker("b", {0: 50}).model(wanted("c", 90)).wait("c")
    assert stops(scene.decide(1.0)) == []
    scene.workers["a"] = replace(scene.workers["a"], leases=0)
    assert sorted(stops(scene.decide(1.0))) == ["a", "b"]


def test_who_leaves_anyway_is_waited_for() -> None:
    scene = Scene().worker("a", {0: 50}, State.STOPPING, Goal.STOP).worker("b", {0: 50}).wait("c")
    decisions = scene.decide(1.0)
    assert stops(decisions) == []
    assert waits(decisions)[0].endswith("waits for a to be gone")


def test_who_leaves_is_taken_back_unless_its_place_is_claimed() -> None:
    scene = Scene().worker("a", {0: 70}, State.DRAINING, Goal.STOP, leases=1).wait("a")
    assert starts(scene.decide()) == ["a"]
    older = Scene().worker("a", {0: 70}, State.DRAINING, Goal.STOP, leases=1).wait("b", "a")
    assert starts(older.decide()) == []
    between = Scene().worker("a", {0: 70}, State.DRAINING, Goal.STOP, leases=1).wait("a", "b")
    assert starts(between.decide()) == ["a"], "and then it is no victim of the next one"
    assert stops(between.decide()) == []


def test_no_second_one_leaves_because_the_first_is_wanted_again_too_late() -> None:
    """Seen with real engines: a request for the victim came while its engine ended, so another was evicted in its place
    that had loaded for 42 s and served for a third of a second, and the first was gone all the same."""
    for state in (State.STOPPING, State.KILLING, State.RELEASING):
        scene = Scene().worker("a", {0: 50}, state, Goal.STOP).worker("b", {0: 50}).wait("c").wait("a", since=44.0)
        decisions = scene.decide(45.0)
        assert (stops(decisions), starts(decisions)) == ([], [])
        assert waits(decisions)[0].endswith("waits for a to be gone")
        assert waits(decisions)[1].endswith("its place goes to who has waited longer")


def test_a_promised_place_is_not_given_to_the_next() -> None:
    scene = Scene().worker("a", {0: 50}, leases=1).model(wanted("big", 90)).model(wanted("small", 20))
    decisions = scene.wait("big", "small").decide()
    assert starts(decisions) == []
    assert len(waits(decisions)) == 2


def test_the_freshly_loaded_are_protected_but_not_from_who_has_waited_as_long() -> None:
    twice = Limits(hysteresis=2.0)
    scene = Scene(limits=twice).worker("a", {0: 70}, ready_since=90.0, idle_since=95.0).wait("b", since=99.0)
    looked = scene.plan(100.0)
    assert stops(looked.decisions) == []
    assert waits(looked.decisions)[0].endswith("free 30.0 GiB on GPU 0; a stays for 10 s more")
    assert looked.look_again_at == 110.0
    assert stops(scene.decide(110.0)) == ["a"]
    waited = Scene(limits=twice).worker("a", {0: 70}, ready_since=90.0, idle_since=95.0).wait("b", since=79.0)
    assert stops(waited.decide(100.0)) == ["a"]


def test_who_was_loaded_for_somebody_serves_them_first() -> None:
    """Two who had both waited for longer than any protection took the place from each other, and neither served."""
    limits = Limits(parallel=1, turn_s=0.0)
    scene = Scene(limits=limits).worker("a", {0: 70}, ready_since=100.0, idle_since=100.0).wait("b", "a", "a")
    assert grants(scene.decide(100.0)) == [(1, "a")]
    assert stops(scene.decide(120.0)) == ["a"]


def test_who_was_stopped_for_another_is_not_loaded_again_before_that_one() -> None:
    """Its own requests are older, and they counted for less only as long as its worker took requests."""
    scene = Scene(limits=Limits(parallel=1)).worker("a", {0: 70}, idle_since=44.0, leases=0)
    scene.wait("a", since=0.0).wait("b", since=10.0)
    assert stops(scene.decide(45.0)) == ["a"]
    assert scene.room_made_for == {"b"}
    scene.workers["a"] = replace(scene.workers["a"], state=State.STOPPING, goal=Goal.STOP)
    assert starts(scene.decide(45.1)) == [], "nobody is taken back"
    assert starts(scene.gone("a").decide(46.0)) == ["b"]
    assert scene.room_made_for == frozenset(), "from here on, having been loaded protects it"


def test_room_that_nobody_waits_for_any_more_is_for_everyone() -> None:
    scene = Scene().worker("a", {0: 70}).wait("b")
    assert stops(scene.decide(45.0)) == ["a"]
    scene.workers["a"] = replace(scene.workers["a"], state=State.STOPPING, goal=Goal.STOP)
    scene.waiting.clear()
    assert scene.wait("a", since=46.0).plan(46.0).room_made_for == frozenset()
    assert starts(scene.decide(46.0)) == ["a"]


def test_pinned_ones_stay_and_the_refusal_says_so() -> None:
    decisions = Scene().worker("a", {0: 70}, is_pinned=True).wait("b").decide()
    assert refusals(decisions) == [(0, Reason.WONT_FIT)]
    assert isinstance(decisions[0], Refuse)
    assert "needs 40.0 GiB" in decisions[0].why
    assert "can give 30.0 GiB" in decisions[0].why


def test_what_has_leaked_is_neither_waited_for_nor_used() -> None:
    def leaked() -> Scene:
        return Scene().worker("a", {0: 70}, State.FAILED, Goal.STOP, held=Held.LEAKED)

    assert refusals(leaked().wait("a").decide()) == [(0, Reason.WONT_FIT)]
    assert refusals(leaked().wait("b").decide()) == [(0, Reason.WONT_FIT)]
    assert starts(leaked().model(wanted("c", 30)).wait("c").decide()) == ["c"]


def test_foreign_use_is_no_room() -> None:
    scene = Scene().wait("a")
    scene.ledger = scene.ledger.observe([Observed(0, 70 * GIB)])
    (refusal,) = scene.decide()
    assert isinstance(refusal, Refuse)
    assert refusal.why.endswith("can give 30.0 GiB, others hold 70.0 GiB there")


def test_a_number_of_models_can_be_a_bound_too() -> None:
    scene = Scene(2, Limits(max_loaded=1)).worker("a", {0: 10}, idle_since=0.0).wait("b")
    (stop,) = scene.decide(60.0)
    why = "evict a (idle 60 s, 10 s to come back) to fit b: 1 of 1 models are loaded"
    assert stop == Stop("a", why, may_sleep=False)
    pinned = Scene(2, Limits(max_loaded=1)).worker("a", {0: 10}, is_pinned=True).wait("b")
    assert refusals(pinned.decide()) == [(0, Reason.WONT_FIT)]


def test_a_sleeper_wakes_on_its_own_devices_and_others_leave_for_it() -> None:
    def sleeping(beside: int) -> Scene:
        scene = Scene(2).worker("a", {0: 60})
        mine = replace(scene.ledger.reservations["a"], held=Held.SMALL, small_on={0: 2 * GIB})
        scene.ledger = replace(scene.ledger, reservations={"a": mine})
        scene.workers["a"] = replace(scene.workers["a"], state=State.SUSPENDED, goal=Goal.SUSPEND, held=Held.SMALL)
        return scene.worker("b", {0: beside}).wait("a")

    assert starts(sleeping(30).decide(1.0)) == ["a"]
    assert stops(sleeping(60).decide(1.0)) == ["b"]


def test_a_crashed_worker_that_nobody_wants_makes_room() -> None:
    scene = Scene().worker("a", {0: 70}, State.BACKOFF).wait("b")
    assert stops(scene.decide()) == ["a"]
    assert stops(scene.wait("a").decide()) == []


# --- turns -------------------------------------------------------------------------------------------------------


def test_priorities_go_first_until_age_has_made_up_for_it() -> None:
    limits = Limits(aging_s=60.0)
    both = Scene(limits=limits).wait("low", since=0.0).wait("high", since=59.0, priority=1)
    assert starts(both.decide(60.0)) == ["high"]
    late = Scene(limits=limits).wait("low", since=0.0).wait("high", since=61.0, priority=1)
    assert starts(late.decide(62.0)) == ["low"]


def test_a_long_queue_does_not_keep_its_place_for_as_long_as_it_is_long() -> None:
    limits = Limits(parallel=1, turn_s=30.0)
    scene = Scene(limits=limits).worker("flood", {0: 70}).wait(*["flood"] * 5, since=0.0).wait("b", since=1.0)
    assert grants(scene.decide(20.0)) == [(0, "flood")]
    assert stops(scene.decide(32.0)) == ["flood"]
    assert scene.plan(20.0).look_again_at == 30.0


def test_callers_take_turns_and_new_ones_do_not_starve_old_ones() -> None:
    def waiter(number: int, caller: str, since: float, priority: int = 0) -> Waiter:
        return Waiter(number, "a", since, LATER, caller, priority)

    queue = [waiter(0, "x", 0), waiter(1, "x", 0), waiter(2, "x", 0), waiter(3, "y", 5), waiter(4, "z", 60)]
    order = [one.number for one in order_requests(queue, {}, Limits(), 60.0)]
    assert order == [0, 3, 4, 1, 2]
    served = {("a", "x"): 50.0, ("a", "y"): 40.0}
    assert [one.number for one in order_requests(queue, served, Limits(), 60.0)] == [3, 0, 4, 1, 2]
    urgent = [*queue, waiter(5, "x", 70, priority=2)]
    assert order_requests(urgent, served, Limits(), 70.0)[0].number == 5
    aged = [one.number for one in order_requests(urgent, served, Limits(aging_s=30.0), 70.0)]
    assert aged.index(3) < aged.index(5), "who has waited two levels' time is among the urgent"


def test_a_crashed_worker_gives_up_its_place_and_a_pinned_one_keeps_it() -> None:
    scene = Scene().worker("a", {0: 70}, State.BACKOFF).wait("b", since=0.0)
    assert stops(scene.decide(500.0)) == ["a"]
    pinned = Scene().worker("a", {0: 70}, State.BACKOFF, is_pinned=True).wait("b", since=0.0)
    assert stops(pinned.decide(500.0)) == []


# --- queues and deadlines ----------------------------------------------------------------------------------------


def test_a_models_own_queue_is_bounded() -> None:
    scene = Scene(limits=Limits(queue_per_model=2)).wait("a", "a", "a", "b")
    (refusal,) = [one for one in scene.decide() if isinstance(one, Refuse)]
    assert refusal == Refuse(2, Reason.QUEUE_FULL, "server busy: 2 requests wait for a already", 10)


def test_the_bound_of_all_hits_the_flood_and_not_who_comes_after_it() -> None:
    scene = Scene(limits=Limits(queue=3)).wait("a", caller="calm").wait("a", "a", caller="flood").wait("b")
    assert refusals(scene.decide()) == [(2, Reason.QUEUE_FULL)]


def test_who_is_out_of_time_is_told() -> None:
    scene = Scene().wait("a", until=900.0)
    assert scene.plan(1.0).look_again_at == 900.0
    assert refusals(scene.decide(900.0)) == [(0, Reason.DEADLINE_EXCEEDED)]


# --- any history -------------------------------------------------------------------------------------------------

KEYS = "abcdefg"


class Machine:
    """Carries decisions out, in whatever order it is told, and checks each of them."""

    def __init__(self, sizes: list[tuple[int, int]], gpus: int, limits: Limits, pinned: frozenset[str]) -> None:
        devices = [Device(index, f"GPU {index}", 100 * GIB, "x") for index in range(gpus)]
        self.ledger: Ledger = open_ledger(devices, 0.1)
        self.limits = limits
        self.models = {
            key: wanted(key, size, devices=count, load_cost_s=float(size) / 4, replicas=1 + (size < 20))
            for key, (size, count) in zip(KEYS, sizes, strict=False)
        }
        self.pinned = pinned
        self.workers: dict[str, Worker] = {}
        self.waiting: dict[int, Waiter] = {}
        self.served_at: dict[tuple[str, str], float] = {}
        self.room_made_for: frozenset[str] = frozenset()
        self.now = 0.0
        self.arrived = 0

    def arrive(self, key: str, caller: str, priority: int) -> None:
        if key in self.models:
            self.arrived += 1
            self.waiting[self.arrived] = Waiter(self.arrived, key, self.now, LATER, caller, priority)

    def look(self) -> Plan:
        load = Workload(
            tuple(self.waiting.values()),
            self.workers,
            self.models,
            self.ledger,
            self.limits,
            self.served_at,
            self.room_made_for,
        )
        made = plan(load, self.now)
        assert made.room_made_for <= {waiter.key for waiter in self.waiting.values()}
        assert made == plan(load, self.now), "it is a function"
        self.room_made_for = made.room_made_for
        self._check_work_conserving(load, made)
        before = dict(self.workers)
        touched: set[int] = set()
        for one in made.decisions:
            assert not isinstance(one, Grant | Refuse) or one.number not in touched
            match one:
                case Grant(number, holder):
                    touched.add(number)
                    self._grant(number, holder)
                case Refuse(number, _reason, why):
                    touched.add(number)
                    assert why
                    del self.waiting[number]
                case Start(key, holder, placement):
                    self._start(key, holder, placement)
                case Stop(holder):
                    self._stop(holder, before[holder])
                case Wait(key):
                    assert any(waiter.key == key for waiter in self.waiting.values())
        self._check_budget()
        return made

    def settle(self, made: Plan) -> Plan:
        """Look until nothing more follows."""
        for _ in range(50):
            if all(isinstance(one, Wait) for one in made.decisions):
                return made
            made = self.look()
        raise AssertionError(f"it does not come to rest: {made.decisions}")

    # --- what the world does

    def step(self, choice: int) -> bool:
        """Something that is under way ends; False if nothing is."""
        moving = sorted(
            one.holder for one in self.workers.values() if one.leases or one.state in {State.STARTING, State.STOPPING}
        )
        if not moving:
            return False
        worker = self.workers[moving[choice % len(moving)]]
        if worker.leases:
            left = worker.leases - 1
            self.workers[worker.holder] = replace(worker, leases=left, idle_since=self.now)
        elif worker.state is State.STARTING:
            self.ledger = self.ledger.end_load(worker.holder)
            self.workers[worker.holder] = replace(worker, state=State.READY, ready_since=self.now, idle_since=self.now)
        else:
            self._gone(worker.holder)
        return True

    def crash(self, choice: int) -> None:
        if self.workers:
            holder = sorted(self.workers)[choice % len(self.workers)]
            if self.workers[holder].held is not Held.LEAKED:
                self._gone(holder)

    def leak(self, choice: int) -> None:
        ending = sorted(one.holder for one in self.workers.values() if one.state is State.STOPPING)
        if ending:
            holder = ending[choice % len(ending)]
            self.workers[holder] = replace(self.workers[holder], state=State.FAILED, goal=Goal.STOP, held=Held.LEAKED)
            self.ledger = self.ledger.quarantine(holder)

    def _gone(self, holder: str) -> None:
        del self.workers[holder]
        after = self.ledger.release(holder)
        assert isinstance(after, Ledger)
        self.ledger = after

    # --- what is decided

    def _grant(self, number: int, holder: str) -> None:
        waiter, worker = self.waiting.pop(number), self.workers[holder]
        assert worker.takes_requests
        assert worker.key == waiter.key
        assert self.limits.parallel == 0 or worker.leases < self.limits.parallel
        self.workers[holder] = replace(worker, leases=worker.leases + 1)
        self.served_at[waiter.key, waiter.caller] = self.now

    def _start(self, key: str, holder: str, placement: Placement | None) -> None:
        if placement is None:
            worker = self.workers[holder]
            assert worker.goal is Goal.STOP
            assert worker.held is Held.FULL
            self.workers[holder] = replace(worker, goal=Goal.RUN)
            return
        assert holder not in self.workers
        after = self.ledger.reserve(holder, placement.bytes_on)
        assert isinstance(after, Ledger), after
        self.ledger = after
        cost_s = self.models[key].load_cost_s
        self.workers[holder] = Worker(
            holder,
            key,
            key,
            State.STARTING,
            Goal.RUN,
            Held.FULL,
            load_cost_s=cost_s,
            is_pinned=key in self.pinned,
        )

    def _stop(self, holder: str, before: Worker) -> None:
        worker = self.workers[holder]
        assert worker.leases == 0, "busy"
        assert not worker.is_pinned
        assert before.goal is Goal.RUN
        longest_s = max(self.now - waiter.since for waiter in self.waiting.values() if waiter.key != worker.key)
        is_waited_for = any(waiter.key == worker.key for waiter in self.waiting.values())
        assert protected_for(worker, is_waited_for, longest_s, self.limits, self.now) == 0
        self.workers[holder] = replace(worker, state=State.STOPPING, goal=Goal.STOP)

    # --- what holds

    def _check_budget(self) -> None:
        for index in self.ledger.devices:
            assert self.ledger.held(index) <= self.ledger.budget(index)
        assert not any(one.is_promise for one in self.ledger.reservations.values())
        if self.limits.max_loaded:
            assert len(self.ledger.reservations) <= self.limits.max_loaded

    def _check_work_conserving(self, load: Workload, made: Plan) -> None:
        """Free memory is not left to nobody: if no device is promised or loading and somebody waits whose model is not
        here, it is started where it fits; and nobody waits for a worker that has room and was not claimed."""
        explained = {one.key for one in made.decisions if isinstance(one, Wait)}
        done = {one.number for one in made.decisions if isinstance(one, Grant | Refuse)}
        started = {one.key for one in made.decisions if isinstance(one, Start)}
        left = [waiter for waiter in load.waiting if waiter.number not in done]
        for waiter in left:
            assert waiter.key in explained | started or any(isinstance(one, Stop) for one in made.decisions)
        here = {one.key for one in load.workers.values()}
        absent = {waiter.key for waiter in left} - here
        if absent and not started and not load.limits.max_loaded:
            models = [load.models[key] for key in sorted(absent)]
            places = [place(model.demand, load.ledger) for model in models]
            if all(isinstance(found, Placement) for found in places):
                raise AssertionError(f"all of {sorted(absent)} fit, and none is started")


sizes = st.lists(st.tuples(st.integers(5, 95), st.sampled_from([1, 1, 1, 2])), min_size=2, max_size=7)
events = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from(KEYS), st.sampled_from("xyz"), st.integers(0, 2)),
    st.tuples(st.just("arrive"), st.sampled_from(KEYS[:2]), st.just("x"), st.just(0)),
    st.tuples(st.just("step"), st.integers(0, 99)),
    st.tuples(st.just("step"), st.integers(0, 99)),
    st.tuples(st.just("time"), st.sampled_from([0.1, 1.0, 10.0, 60.0])),
    st.tuples(st.sampled_from(["crash", "leak"]), st.integers(0, 99)),
)
bounds = st.builds(
    Limits,
    max_loaded=st.sampled_from([0, 0, 0, 1, 3]),
    parallel=st.integers(0, 3),
    queue_per_model=st.sampled_from([0, 4]),
    queue=st.sampled_from([6, 100]),
    crowd=st.just(3),
)


@given(
    sizes, st.integers(1, 3), bounds, st.frozensets(st.sampled_from(KEYS), max_size=2), st.lists(events, max_size=80)
)
@settings(max_examples=120, deadline=None)
def test_the_rules_hold_over_any_history_and_everyone_comes_to_an_end(
    weights: list[tuple[int, int]],
    gpus: int,
    limits: Limits,
    pinned: frozenset[str],
    history: list[tuple[object, ...]],
) -> None:
    machine = Machine(weights, gpus, limits, pinned)
    for event in history:
        match event:
            case ("arrive", str(key), str(caller), int(priority)):
                machine.arrive(key, caller, priority)
            case ("step", int(choice)):
                machine.step(choice)
            case ("time", float(seconds)):
                machine.now += seconds
            case ("crash", int(choice)):
                machine.crash(choice)
            case ("leak", int(choice)):
                machine.leak(choice)
            case _:
                raise AssertionError(event)
        machine.look()
    # Nobody comes any more. Each waiter costs at most one load and the leaving of all who are here, a few steps each.
    patience = (
        20 + len(machine.waiting) * (3 + 3 * len(machine.models)) + sum(w.leases for w in machine.workers.values())
    )
    made = machine.look()
    for round_ in range(patience):
        made = machine.settle(machine.look())
        if not machine.waiting:
            return
        if not machine.step(round_):
            assert made.look_again_at is not None, f"nothing moves, and nobody comes back to it: {made}"
            machine.now = max(machine.now, made.look_again_at)
        machine.now += 1.0
    raise AssertionError(f"{machine.waiting} still wait: {made}")


@given(st.integers(1, 3), st.integers(0, 2), st.lists(st.integers(0, 99), min_size=150, max_size=150))
@settings(max_examples=20, deadline=None)
def test_a_flood_starves_neither_a_model_nor_a_caller(parallel: int, priority: int, choices: list[int]) -> None:
    """Two requests come for the flooded model in every round, for ever, and its queue is long already."""
    machine = Machine([(60, 1), (60, 1)], 1, Limits(parallel=parallel, queue_per_model=40), frozenset())
    for _ in range(30):
        machine.arrive("a", "flood", priority)
    machine.arrive("b", "calm", 0)
    machine.arrive("a", "calm", 0)
    calm = {number for number, waiter in machine.waiting.items() if waiter.caller == "calm"}
    for choice in choices:
        machine.arrive("a", "flood", priority)
        machine.arrive("a", "flood", priority)
        machine.look()
        machine.step(choice)
        machine.now += 2.0
        if not calm & machine.waiting.keys():
            return
    raise AssertionError(f"{[machine.waiting[number] for number in calm & machine.waiting.keys()]} still wait")
