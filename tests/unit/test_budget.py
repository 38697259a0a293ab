"""The ledger: what is given, what is refused, and what can never happen to it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vllamad.domain.budget import (
    CPU_KIND,
    HOST_KIND,
    NEWS_BYTES,
    Device,
    Ledger,
    Observed,
    Refused,
    foreign_news,
    open_ledger,
)
from vllamad.domain.worker import Held

GIB = 1 << 30


def two_gpus(margin_share: float = 0.1) -> Ledger:
    return open_ledger([Device(index, f"GPU {index}", 80 * GIB, "H100") for index in range(2)], margin_share)


def taken(result: Ledger | Refused) -> Ledger:
    assert isinstance(result, Ledger), result
    return result


def refused(result: Ledger | Refused) -> Refused:
    assert isinstance(result, Refused)
    return result


def test_the_budget_is_the_total_less_margin_less_what_others_hold() -> None:
    ledger = two_gpus()
    assert ledger.budget(0) == 72 * GIB
    assert ledger.observe([Observed(0, 12 * GIB)]).budget(0) == 60 * GIB
    assert ledger.observe([Observed(0, 90 * GIB)]).budget(0) == 0, "never negative"
    assert ledger.observe([Observed(7, GIB)]).foreign == {}, "a device that nobody asked about"


def test_a_refusal_carries_its_numbers() -> None:
    ledger = taken(two_gpus().reserve("a", {0: 60 * GIB})).end_load("a")
    why = refused(ledger.reserve("b", {0: 18 * GIB}))
    assert why == Refused(
        "needs 18.0 GiB, free 12.0 GiB on GPU 0", device=0, needs_bytes=18 * GIB, free_bytes=12 * GIB, holders=("a",)
    )
    assert "no device 5" in refused(ledger.reserve("b", {5: GIB})).why
    assert "-1 bytes" in refused(ledger.reserve("b", {1: -1})).why
    assert "holds 60.0 GiB on GPU 0 already" in refused(ledger.reserve("a", {1: GIB})).why


def test_one_load_at_a_time_per_device() -> None:
    ledger = taken(two_gpus().reserve("a", {0: GIB, 1: GIB}))
    assert refused(ledger.reserve("b", {1: GIB})).why == "GPU 1 loads a: one load at a time"
    ledger = taken(ledger.end_load("a").reserve("b", {1: GIB}))
    assert refused(ledger.begin_load("a")).holders == ("b",), "a crashed worker's next try waits too"
    assert isinstance(ledger.end_load("b").begin_load("a"), Ledger)
    assert ledger.end_load("nobody") is ledger


def test_a_sleeper_counts_small_and_wakes_only_if_its_place_is_still_free() -> None:
    devices = [Device(0, "GPU 0", 80 * GIB, "H100"), Device(-1, "memory", 100 * GIB, HOST_KIND)]
    ledger = taken(open_ledger(devices).reserve("a", {0: 60 * GIB}, {0: 2 * GIB, -1: 50 * GIB})).end_load("a")
    assert ledger.held(-1) == 0
    asleep = taken(ledger.shrink("a"))
    assert (asleep.held(0), asleep.held(-1)) == (2 * GIB, 50 * GIB)
    assert asleep.shrink("a") is asleep
    beside = taken(asleep.reserve("b", {0: 40 * GIB}))
    assert refused(beside.grow("a")).why == "GPU 0 loads b: one load at a time", "who loads looks at what is free"
    assert refused(beside.end_load("b").grow("a")).why == "needs 58.0 GiB, free 30.0 GiB on GPU 0"
    awake = taken(taken(beside.release("b")).grow("a"))
    assert (awake.held(0), awake.held(-1)) == (60 * GIB, 50 * GIB), "pinned memory stays pinned"
    assert awake.loader(0) == "a"
    assert awake.grow("a") is awake


def test_a_sleeper_needs_room_in_the_host() -> None:
    devices = [Device(0, "GPU 0", 80 * GIB, "H100"), Device(-1, "memory", 40 * GIB, HOST_KIND)]
    ledger = taken(open_ledger(devices).reserve("a", {0: 60 * GIB}, {-1: 50 * GIB}))
    assert refused(ledger.shrink("a")).device == -1


def test_what_has_leaked_is_never_given_again_until_it_is_proven_free() -> None:
    ledger = taken(two_gpus().reserve("a", {0: 60 * GIB})).quarantine("a")
    assert ledger.leaks() == ("a has leaked 60.0 GiB on GPU 0: nobody else gets it until it is proven free",)
    assert ledger.loader(0) is None, "it holds up no load"
    assert "not proven free" in refused(ledger.release("a")).why
    assert "has leaked" in refused(ledger.reserve("a", {0: GIB})).why
    assert isinstance(ledger.reserve("b", {0: 20 * GIB}), Refused)
    assert isinstance(ledger.prove_free("a").reserve("b", {0: 20 * GIB}), Ledger)


def test_a_second_release_changes_nothing() -> None:
    ledger = taken(two_gpus().release("a"))
    assert ledger.reservations == {}


def test_foreign_use_is_what_is_in_use_beyond_what_is_ours() -> None:
    ledger = taken(two_gpus().reserve("a", {0: 30 * GIB}))
    declared = ledger.observe([Observed(0, 34 * GIB)])
    assert declared.foreign[0] == 4 * GIB, "one that cannot be told apart is taken to use what it declared"
    measured = ledger.observe([Observed(0, 34 * GIB, {"a": 10 * GIB})])
    assert measured.foreign[0] == 24 * GIB, "a load that has only begun hides nobody"
    overdrawn = ledger.observe([Observed(0, 34 * GIB, {"a": 34 * GIB})])
    assert overdrawn.foreign[0] == 4 * GIB, "more than it declared cannot be given either"
    leaked = ledger.quarantine("a").observe([Observed(0, 34 * GIB, {"a": 0})])
    assert leaked.foreign[0] == 4 * GIB, "what leaked is counted once"
    assert measured.observe([Observed(1, GIB)]).foreign[0] == 24 * GIB, "not read: the last number stays"


def test_foreign_use_pushes_the_budget_below_what_is_held_without_a_debt() -> None:
    ledger = taken(two_gpus().reserve("a", {0: 60 * GIB})).end_load("a").observe([Observed(0, 80 * GIB)])
    assert ledger.free(0) == 0
    assert isinstance(ledger.reserve("b", {0: 1}), Refused)
    assert isinstance(ledger.shrink("a"), Ledger), "to give something back is always right"


def test_news_are_large_changes_only() -> None:
    ledger = two_gpus()
    after = ledger.observe([Observed(0, 12 * GIB), Observed(1, NEWS_BYTES - 1)])
    (line,) = foreign_news(ledger, after)
    assert line == "others hold 12.0 GiB on GPU 0, before it was 0.0 GiB: 60.0 GiB of 80.0 GiB can be given"


def test_what_comes_and_goes_on_the_host_is_no_news() -> None:
    ledger = open_ledger([Device(0, "CPU", 24 * GIB, CPU_KIND)])
    assert foreign_news(ledger, ledger.observe([Observed(0, 5 * GIB)])) == []
    assert len(foreign_news(ledger, ledger.observe([Observed(0, 6 * GIB)]))) == 1


# --- on any sequence of calls ------------------------------------------------------------------------------------

Call = tuple[str, str | int, dict[int, int], dict[int, int]]

holders = st.sampled_from("abcdef")
shares = st.dictionaries(st.integers(0, 2), st.integers(0, 40), min_size=1, max_size=3)
smalls = st.dictionaries(st.integers(0, 2), st.integers(0, 8))
nothing = st.just(dict[int, int]())
verbs = ["begin_load", "end_load", "shrink", "grow", "release", "quarantine", "prove_free"]
calls: st.SearchStrategy[Call] = st.one_of(
    st.tuples(st.just("reserve"), holders, shares, smalls),
    st.tuples(st.sampled_from(verbs), holders, nothing, nothing),
    st.tuples(st.just("observe"), st.integers(0, 2), shares, nothing),
)


@given(st.lists(calls, max_size=60))
@settings(max_examples=150, deadline=None)
def test_never_over_budget_never_negative_never_two_loads_never_a_leak_reused(todo: list[Call]) -> None:
    ledger = open_ledger([Device(index, f"GPU {index}", 100, "x") for index in range(3)])
    for call in todo:
        before, after = ledger, _do(ledger, call)
        if isinstance(after, Refused):
            assert after.why
            continue
        ledger = after
        for index in ledger.devices:
            assert 0 <= ledger.free(index) <= ledger.budget(index) <= 90
            assert ledger.held(index) >= 0
            if ledger.held(index) > before.held(index):
                assert ledger.held(index) <= ledger.budget(index), f"{call} gave what is not there"
            loading = [one for one in ledger.reservations.values() if one.is_loading and index in one.full_on]
            assert len(loading) <= 1
        for name, one in before.reservations.items():
            if one.held is Held.LEAKED and call[:2] != ("prove_free", name):
                assert ledger.reservations[name].bytes_on == one.bytes_on


def _do(ledger: Ledger, call: Call) -> Ledger | Refused:
    name, one, full, small = call
    if name == "reserve":
        return ledger.reserve(str(one), full, {index: count for index, count in small.items() if index in full})
    if name == "observe":
        return ledger.observe([Observed(int(one), full.get(0, 0) * 3)])
    mine = ledger.reservations.get(str(one))
    if mine is None or (mine.held is Held.LEAKED and name not in {"prove_free", "release", "end_load"}):
        return Refused("nothing to do that to")
    return getattr(ledger, name)(str(one))
