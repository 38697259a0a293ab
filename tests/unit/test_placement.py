"""What fits where, with how much cache, and who would have to leave."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllamad.domain.budget import HOST_KIND, Device, Ledger, Observed, open_ledger
from vllamad.domain.placement import Demand, Lack, Need, NoPlace, Placement, demand_of, place
from vllamad.domain.worker import Held

GIB = 1 << 30


def gpus(count: int, *, pairs: bool = False, kinds: str = "", total: int = 100) -> Ledger:
    """GPUs with nothing on them and no margin; with ``pairs`` 0-1, 2-3 and so on are linked."""
    return open_ledger(
        [
            Device(
                index,
                f"GPU {index}",
                total * GIB,
                kinds[index] if kinds else "x",
                frozenset({index ^ 1}) if pairs else frozenset(),
            )
            for index in range(count)
        ],
        margin_share=0.0,
    )


def holding(ledger: Ledger, holder: str, on: Mapping[int, int], *, is_loading: bool = False) -> Ledger:
    after = ledger.reserve(holder, {index: count * GIB for index, count in on.items()})
    assert isinstance(after, Ledger), after
    return after if is_loading else after.end_load(holder)


def demand(weights: int, *, least: int = 0, wanted: int = 0, sizes: tuple[int, ...] = (1, 2, 4)) -> Demand:
    """Whole GiB; a token of cache takes one, all together."""
    return demand_of(weights * GIB, 0, GIB, heads=32, kv_heads=8, least_tokens=least, wanted_tokens=wanted, sizes=sizes)


def placed(result: Placement | NoPlace) -> Placement:
    assert isinstance(result, Placement), result
    return result


def missing(result: Placement | NoPlace) -> NoPlace:
    assert isinstance(result, NoPlace), result
    return result


# --- demands -----------------------------------------------------------------------------------------------------


def test_sizes_divide_the_heads_and_few_kv_heads_are_copied() -> None:
    split = demand_of(90, 5, 12, heads=12, kv_heads=2, least_tokens=1, wanted_tokens=2, sizes=(4, 1, 2, 3, 8))
    assert split.needs == (Need(1, 95, 12), Need(2, 50, 6), Need(4, 28, 6))
    # 3 divides the heads, but neither 2 key-value heads over 3 devices nor 3 devices over 2 heads are whole.
    assert split.least_bytes(split.needs[2]) == 34


def test_unknown_heads_mean_one_device() -> None:
    assert [need.size for need in demand_of(9, 1, 1, 0, 0, least_tokens=0, wanted_tokens=0).needs] == [1]


# --- one device --------------------------------------------------------------------------------------------------


def test_company_before_solitude_so_that_large_models_keep_whole_devices() -> None:
    ledger = holding(gpus(3), "a", {1: 30})
    assert placed(place(demand(20), ledger)).devices == (1,)


def test_the_smallest_rest_is_used_up_first() -> None:
    ledger = holding(holding(gpus(3), "a", {0: 30}), "b", {2: 75})
    assert placed(place(demand(20), ledger)).devices == (2,)


def test_an_empty_device_before_a_squeeze() -> None:
    ledger = holding(gpus(2), "a", {0: 70})
    found = placed(place(demand(20, least=2, wanted=20), ledger))
    assert (found.devices, found.tokens) == ((1,), 20)
    squeezed = placed(place(demand(20, least=2, wanted=20), holding(ledger, "b", {1: 75})))
    assert (squeezed.devices, squeezed.tokens) == ((1,), 3), "the least, and half of what is left beyond it"


def test_the_cache_takes_a_rest_that_nobody_could_use() -> None:
    assert placed(place(demand(50, least=1, wanted=30), gpus(1))).tokens == 30
    assert placed(place(demand(50, least=1, wanted=49), gpus(1))).tokens == 50
    assert placed(place(demand(99, least=1, wanted=30), gpus(1))).tokens == 1


def test_a_model_without_cache_costs_its_weights() -> None:
    found = placed(place(Demand((Need(1, 5 * GIB),), 0, 512), gpus(1)))
    assert (found.device_bytes, found.cache_bytes) == (5 * GIB, 0)


def test_pinned_devices_are_the_only_ones_and_the_host_is_none() -> None:
    ledger = open_ledger([*gpus(2).devices.values(), Device(-1, "memory", 900 * GIB, HOST_KIND)], 0.0)
    small = demand(20)
    assert placed(place(Demand(small.needs, pinned=(1,)), holding(ledger, "a", {0: 30}))).devices == (1,)
    assert missing(place(demand(300, sizes=(1,)), ledger)).lack is Lack.NEVER


# --- several devices ---------------------------------------------------------------------------------------------


def test_one_device_if_one_can_ever_hold_it_though_crumbs_would_do() -> None:
    ledger = holding(holding(gpus(2), "a", {0: 50}), "b", {1: 50})
    found = missing(place(demand(80), ledger, {"a": 1.0, "b": 2.0}))
    assert found.would_fit_after == ("a",)
    assert found.then == Placement((0,), 80 * GIB, 0, 0)


def test_the_smallest_size_that_fits() -> None:
    found = placed(place(demand(150, wanted=8), gpus(4)))
    assert (found.devices, found.device_bytes, found.tokens) == ((0, 1), 79 * GIB, 8)
    assert len(placed(place(demand(250), gpus(4))).devices) == 4


def test_linked_pairs_before_better_filled_strangers() -> None:
    ledger = holding(holding(gpus(4, pairs=True), "a", {0: 20}), "b", {2: 20})
    assert placed(place(demand(150), ledger)).devices == (0, 1)
    assert placed(place(demand(150), holding(ledger, "c", {1: 60}))).devices == (2, 3)
    strangers = holding(holding(ledger, "c", {1: 60}), "d", {2: 60})
    assert placed(place(demand(150), strangers)).devices == (0, 3), "better than not at all"


def test_devices_of_one_kind_only() -> None:
    ledger = gpus(4, kinds="xyxy")
    assert placed(place(demand(150), ledger)).devices == (0, 2)
    never = missing(place(demand(350), ledger))
    assert never.lack is Lack.NEVER
    assert "needs 87.5 GiB on each of 4 devices of one kind" in never.numbers


def test_all_keep_as_much_cache_as_the_fullest_can() -> None:
    ledger = holding(gpus(2), "a", {0: 20})
    found = placed(place(demand(140, least=2, wanted=100), ledger))
    assert found.tokens == 11, "0 has 10 GiB beyond the weights for 20 half-tokens: the least, and half of the rest"


# --- who is in the way -------------------------------------------------------------------------------------------


def test_a_device_that_loads_is_waited_for_or_avoided() -> None:
    ledger = holding(gpus(2), "a", {0: 30}, is_loading=True)
    assert placed(place(demand(20), ledger)).devices == (1,)
    found = missing(place(demand(20), holding(ledger, "b", {1: 90}), {"b": 0.0}))
    assert found.lack is Lack.LOADING
    assert found.numbers == "GPU 0 loads a: one load at a time"
    assert found.would_fit_after == ()
    assert found.then is not None
    assert found.then.devices == (0,)


def test_the_cheapest_leave_and_nobody_needlessly() -> None:
    ledger = gpus(1)
    for holder, count in (("a", 10), ("b", 30), ("c", 40)):
        ledger = holding(ledger, holder, {0: count})
    costs = {"a": 1.0, "b": 2.0, "c": 4.0}
    assert missing(place(demand(40), ledger, costs)).would_fit_after == ("b",), "a goes first, but b suffices alone"
    assert missing(place(demand(60), ledger, costs)).would_fit_after == ("a", "b")
    assert missing(place(demand(60), ledger, costs | {"c": 2.5})).would_fit_after == ("c",)
    found = missing(place(demand(90), ledger, {"a": 1.0}))
    assert (found.would_fit_after, found.then) == ((), None)
    assert found.numbers == "needs 90.0 GiB, free 20.0 GiB on GPU 0"


def test_for_two_devices_a_holder_on_both_is_asked_once() -> None:
    ledger = holding(holding(gpus(2), "a", {0: 30, 1: 30}), "b", {0: 40, 1: 1})
    found = missing(place(demand(160), ledger, {"a": 1.0, "b": 1.5}))
    assert found.would_fit_after == ("a", "b")
    assert found.then is not None
    assert found.then.devices == (0, 1)


def test_never_means_whoever_leaves() -> None:
    ledger = holding(gpus(1), "a", {0: 60})
    assert missing(place(demand(50), ledger)).lack is Lack.FULL
    assert missing(place(demand(50), ledger, stays={"a"})).lack is Lack.NEVER
    assert missing(place(demand(50), ledger.quarantine("a"))).lack is Lack.NEVER
    crowded = missing(place(demand(50), gpus(1).observe([Observed(0, 60 * GIB)])))
    assert crowded.numbers.endswith("(GPU 0) can give 40.0 GiB, others hold 60.0 GiB there")
    assert missing(place(Demand((Need(1, 1),), pinned=(4,)), gpus(1))).numbers == "no device may be used for it"


# --- on any ledger -----------------------------------------------------------------------------------------------


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[Ledger, dict[str, float]]:
    ledger = gpus(4, pairs=draw(st.booleans()), kinds=draw(st.sampled_from(["xxxx", "xxyy"])))
    costs: dict[str, float] = {}
    for holder in "abcdefgh"[: draw(st.integers(0, 8))]:
        on = draw(st.dictionaries(st.integers(0, 3), st.integers(1, 60), min_size=1, max_size=2))
        after = ledger.reserve(holder, {index: count * GIB for index, count in on.items()})
        if isinstance(after, Ledger):
            fate = draw(st.sampled_from(["serves", "serves", "moves", "moves", "moves", "loads", "leaks"]))
            ledger = after if fate == "loads" else after.end_load(holder)
            ledger = ledger.quarantine(holder) if fate == "leaks" else ledger
            if fate == "moves":
                costs[holder] = draw(st.floats(0, 10))
    return ledger, costs


@given(ledgers(), st.integers(1, 300), st.integers(0, 10), st.integers(0, 60))
@settings(max_examples=120, deadline=None)
def test_what_is_found_can_be_reserved(
    world: tuple[Ledger, dict[str, float]], weights: int, least: int, wanted: int
) -> None:
    ledger, costs = world
    asked = demand(weights, least=least, wanted=wanted)
    found = place(asked, ledger, costs)
    assert found == place(asked, ledger, costs)
    match found:
        case Placement():
            after = ledger.reserve("new", found.bytes_on)
            assert isinstance(after, Ledger)
            assert found.tokens >= least
            assert len({ledger.devices[index].kind for index in found.devices}) == 1
        case NoPlace(Lack.FULL, _numbers, leavers, then) if then is not None:
            assert leavers
            assert set(leavers) <= costs.keys()
            assert isinstance(ledger.without(leavers).reserve("new", then.bytes_on), Ledger)
            for spared in leavers:
                fewer = ledger.without(set(leavers) - {spared})
                (need,) = (need for need in asked.needs if need.size == len(then.devices))
                enough = asked.least_bytes(need)
                assert any(fewer.free(index) < enough for index in then.devices), "nobody is asked needlessly"
        case NoPlace(Lack.NEVER):
            stuck = [one.holder for one in ledger.reservations.values() if one.held is not Held.LEAKED]
            assert isinstance(place(asked, ledger.without(stuck)), NoPlace)
        case _:
            pass


@pytest.mark.parametrize("weights", [10, 60, 90, 150])
def test_the_order_of_devices_does_not_matter(weights: int) -> None:
    ledger = holding(holding(gpus(4), "a", {1: 30}), "b", {2: 50})
    turned = Ledger(dict(reversed(list(ledger.devices.items()))), 0.0, ledger.reservations)
    assert place(demand(weights), ledger) == place(demand(weights), turned)
