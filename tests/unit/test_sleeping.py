"""Workers on GPUs that sleep instead of being stopped: gate, supervisor, ledger and ladder together, over fakes."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.devices import GIB, FakeGpus, cards
from tests.fakes.world import FakeChild, FakeDevice, FakeEngine, FakeLauncher, FakeRing, FakeSizing, make_model
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import HandedWorker
from vllamad.domain.ladder import Rules
from vllamad.domain.model import Model
from vllamad.domain.placement import Demand, Need
from vllamad.domain.restore import LoadedModel
from vllamad.domain.worker import Goal, Kind, State, WorkerRecord
from vllamad.domain.workload import Limits, Wanted
from vllamad.gate.gate import Gate, GateLimits, ModelRules
from vllamad.models.catalog import Catalog
from vllamad.models.loading import Loading
from vllamad.models.restoring import Restoring
from vllamad.models.sizing import Sizing
from vllamad.models.taking_over import TakenOver, TakingOver
from vllamad.operations.registry import Operations
from vllamad.supervisor.limits import WorkerLimits
from vllamad.supervisor.memory import HOST, DeviceMemory
from vllamad.supervisor.supervisor import Supervisor
from vllamad.supervisor.worker import WorkerHandle

A, B = make_model("a"), make_model("b")
PATIENCE_S = 5.0
SIZE = 60 * GIB
"""Two do not fit on one card."""
LEFT = 2 * GIB


class LargeModels(FakeSizing):
    """Each fills most of a card, and has weights that take long to load."""

    def known(self, model: Model) -> Wanted | None:
        return Wanted(
            self._engine.identity(model),
            model.name,
            Demand((Need(1, SIZE),)),
            60.0,
            weights_bytes=40 * GIB,
            left_bytes=LEFT,
            host_bytes=3 * GIB,
        )


class House:
    """One GPU, a host with room for a copy of one model, and sleep switched on."""

    def __init__(self, folder: Path, host_bytes: int, limits: Limits) -> None:
        self.gpus = FakeGpus(cards(1))
        self.host = FakeDevice()
        self.host.free_bytes = self.host.total_bytes = host_bytes
        self.clock = FakeClock()
        self.launcher = FakeLauncher()
        self.engine = FakeEngine(self.launcher)
        self._folder = folder
        self._limits = limits
        self.furnish()

    def furnish(self) -> None:
        """With a supervisor, a ledger and a gate that know nothing of any before them."""
        self.memory = DeviceMemory()
        folder, limits = self._folder, self._limits
        self.supervisor = Supervisor(
            self.clock, self.engine, self.launcher, self.memory, folder, WorkerLimits(), FakeRing, Rules(is_on=True)
        )
        sizing = cast(Sizing, LargeModels(self.engine))
        rules = ModelRules(3600.0)
        self.gate = Gate(self.clock, self.supervisor, self.memory, sizing, GateLimits(limits), lambda _model: rules)

    def worker(self, model: Model) -> WorkerHandle:
        (handle,) = self.supervisor.of(model)
        return handle

    def state(self, model: Model) -> State:
        handles = self.supervisor.of(model)
        return handles[0].state if handles else State.STOPPED

    async def until(self, model: Model, state: State) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.supervisor.wait_until(lambda: self.state(model) is state)
        except TimeoutError:
            pytest.fail(f"{model.name} is {self.state(model)}, never {state}: {self.said()}")

    def said(self) -> list[str]:
        return [decided.text for decided in self.supervisor.decisions]

    def told(self, beginning: str) -> str:
        """The first sentence that begins so; "" if there is none."""
        return next((text for text in self.said() if text.startswith(beginning)), "")

    async def ask(self, model: Model) -> None:
        """One request, whose answer is no concern here."""
        async with asyncio.timeout(PATIENCE_S), self.gate.lease(model):
            pass

    def started(self) -> FakeChild:
        """The newest engine takes its memory, and gives most of it up whenever it sleeps."""
        child = self.launcher.last
        self.gpus.start(child.pid, SIZE - GIB)
        child.switched = lambda level: self.gpus.start(child.pid, LEFT if level else SIZE - GIB)
        self.clock.advance(60.0)
        return child

    async def load(self, model: Model) -> FakeChild:
        """Load a model, as a request for it does."""
        asking = asyncio.create_task(self.ask(model))
        await self.until(model, State.STARTING)
        child = self.started()
        child.healthy.set()
        await asking
        self.clock.advance(120.0)  # its protection is over
        await self.memory.refresh()
        return child


@asynccontextmanager
async def supervised(house: House, margin_share: float = 0.0) -> AsyncIterator[None]:
    """With its supervisor running and its devices seen; the gate is still closed. Everything is ended afterwards."""
    started = asyncio.Event()
    running = asyncio.create_task(house.supervisor.run(started))
    await started.wait()
    await house.memory.use(house.gpus, margin_share, house.host)
    try:
        yield
    finally:
        house.gate.close()
        for child in house.launcher.children:
            house.gpus.end(child.pid)
        await asyncio.wait_for(house.supervisor.stop_all(0.0), PATIENCE_S)
        running.cancel()
        await asyncio.wait([running])


@asynccontextmanager
async def house_of(host_bytes: int, limits: Limits, margin_share: float) -> AsyncIterator[House]:
    with TemporaryDirectory() as folder:
        house = House(Path(folder), host_bytes, limits)
        async with supervised(house, margin_share):
            house.gate.open()
            yield house


def in_house(
    test: Callable[[House], Awaitable[None]],
    host_bytes: int = 200 * GIB,
    limits: Limits | None = None,
    margin_share: float = 0.0,
) -> None:
    async def run() -> None:
        async with asyncio.timeout(6 * PATIENCE_S), house_of(host_bytes, limits or Limits(), margin_share) as house:
            await test(house)

    asyncio.run(run(), debug=True)


@asynccontextmanager
async def succeeded(house: House, handed: Sequence[HandedWorker]) -> AsyncIterator[TakenOver]:
    """The same house under another daemon; what it took over of the workers of the first one."""
    house.furnish()
    async with supervised(house):
        catalog, sizing = cast(Catalog, Shelf()), cast(Sizing, LargeModels(house.engine))
        rules = ModelRules(3600.0)
        taking_over = TakingOver(handed, catalog, house.gate, house.supervisor, sizing, lambda _model: rules)
        taken = await taking_over.take_over()
        await house.memory.settle_in()
        house.gate.open()
        yield taken


class Shelf:
    """The models that there are."""

    def resolve(self, name: str) -> Model:
        found = {A.name: A, B.name: B}.get(name)
        if found is None:
            raise VllamaError(Reason.MODEL_NOT_FOUND, f"there is no {name}")
        return found


async def make_room(house: House, first: FakeChild) -> FakeChild:
    """B is wanted, and A's place with it; A sleeps."""
    asking = asyncio.create_task(house.ask(B))
    await house.until(B, State.STARTING)
    assert house.state(A) is State.SUSPENDED
    second = house.started()
    second.healthy.set()
    await asking
    house.clock.advance(120.0)
    await house.memory.refresh()
    return second


def test_who_has_to_make_room_sleeps_and_keeps_what_was_seen() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        assert not first.was_terminated
        assert house.engine.clients[0].asked == ["canary", "sleep 1"]
        mine = house.memory.ledger.reservations["a:latest"]
        assert mine.bytes_on == {0: LEFT, HOST: 83 * GIB}, "processes, and twice the weights until a copy was seen"
        assert any(text.startswith("put a:latest to sleep level 1") for text in house.said())

    in_house(test)


def test_a_sleeper_wakes_for_its_next_request_with_a_canary_and_its_memory() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        await house.ask(A)
        assert house.engine.clients[0].asked == ["canary", "sleep 1", "wake", "canary"]
        assert len(house.launcher.children) == 2, "nobody was started anew"
        assert house.memory.ledger.reservations["a:latest"].bytes_on[0] == SIZE
        assert house.memory.ledger.reservations["a:latest"].bytes_on[HOST] == 83 * GIB, "pinned memory stays pinned"

    in_house(test)


@pytest.mark.parametrize("what", ["sleep", "canary"])
def test_who_cannot_fall_asleep_is_stopped_and_not_tried_again(what: str) -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        first.fails_at = {what}
        asking = asyncio.create_task(house.ask(B))
        await house.until(A, State.RELEASING)
        house.gpus.end(first.pid)
        await house.until(B, State.STARTING)
        assert f"did not go to sleep level 1, and is not put there again: cannot {what}" in house.told("a:latest did")
        house.started().healthy.set()
        await asking

    in_house(test)


def test_one_that_says_it_sleeps_and_holds_its_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllamad.supervisor.incarnation.SLEEP_LOOKS", 2)

    async def test(house: House) -> None:
        first = await house.load(A)
        first.switched = lambda _level: None
        asking = asyncio.create_task(house.ask(B))
        await house.until(A, State.RELEASING)
        house.gpus.end(first.pid)
        await house.until(B, State.STARTING)
        assert any("asleep, it still holds 59.0 GiB of 59.0 GiB" in text for text in house.said())
        house.started().healthy.set()
        await asking

    in_house(test)


@pytest.mark.parametrize("what", ["wake", "canary"])
def test_who_does_not_wake_as_it_was_is_started_anew_for_those_who_wait(what: str) -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        first.fails_at = {what}
        asking = asyncio.create_task(house.ask(A))
        await house.until(A, State.RELEASING)
        assert first.was_terminated
        house.gpus.end(first.pid)
        await house.until(A, State.STARTING)
        house.started().healthy.set()
        await asking
        assert f"did not wake from sleep level 1, and is not put there again: cannot {what}" in house.told(
            "a:latest did"
        )

    in_house(test)


def test_awake_without_its_memory_it_is_not_trusted() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        first.switched = lambda _level: None  # A says that it is awake, and its card shows nothing of it
        asking = asyncio.create_task(house.ask(A))
        await house.until(A, State.RELEASING)
        assert any("awake, it holds 2.0 GiB" in text for text in house.said())
        house.gpus.end(first.pid)
        await house.until(A, State.STARTING)
        house.started().healthy.set()
        await asking

    in_house(test)


def test_a_host_without_room_leaves_level_2() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        assert house.engine.clients[0].asked == ["canary", "sleep 2"]
        said = next(text for text in house.said() if text.startswith("put a:latest"))
        assert "no sleep level 1: needs 83.0 GiB, free" in said or "no sleep level 1: needs 80.0 GiB, free" in said

    in_house(test, host_bytes=32 * GIB)


def test_asleep_its_keep_alive_goes_on() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        house.clock.advance(3301.0)
        await house.until(A, State.RELEASING)
        house.gpus.end(first.pid)
        await house.until(A, State.STOPPED)
        assert first.was_terminated
        assert "a:latest" not in house.memory.ledger.reservations

    in_house(test)


def test_an_engine_that_dies_asleep_is_cleared_away() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        house.gpus.end(first.pid)
        first.exit(-9)
        await house.until(A, State.STOPPED)
        assert house.memory.ledger.free(0) > 15 * GIB

    in_house(test)


def test_what_it_copied_into_the_host_is_not_asked_for_twice() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        usual = first.switched

        def copied(level: int) -> None:
            usual(level)
            house.host.free_bytes -= 70 * GIB if level else 0

        first.switched = copied
        await make_room(house, first)
        assert not first.was_terminated
        assert house.memory.ledger.foreign[HOST] == 0, "the copy is its own"

    in_house(test, host_bytes=128 * GIB)


def test_awake_with_more_than_its_own_it_is_not_trusted() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        second = await make_room(house, first)
        first.switched = lambda _level: house.gpus.start(first.pid, SIZE + 10 * GIB)
        second.switched = lambda _level: house.gpus.start(second.pid, LEFT)
        asking = asyncio.create_task(house.ask(A))
        await house.until(A, State.RELEASING)
        assert any("awake, it holds 70.0 GiB, and 60.0 GiB are its own" in text for text in house.said())
        house.gpus.end(first.pid)
        await house.until(A, State.STARTING)
        house.started().healthy.set()
        await asking

    in_house(test)


def test_who_is_stopped_while_it_wakes_may_sleep_another_time() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        first.switches.clear()
        first.ignores_term, first.fails_at = True, {"wake"}
        asking = asyncio.create_task(house.ask(A))
        await house.until(A, State.RESUMING)
        asking.cancel()
        house.supervisor.stop("a:latest")
        await house.until(A, State.STOPPING)
        first.switches.set()
        for _ in range(5):
            await asyncio.sleep(0)
        first.exit(0)
        await house.until(A, State.RELEASING)
        assert not any("did not" in text for text in house.said())

    in_house(test)


@pytest.mark.parametrize("keep_alive_s", [0.0, math.inf])
def test_keep_alive_can_be_changed_while_it_sleeps(keep_alive_s: float) -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        house.gate.set_keep_alive(A, keep_alive_s)
        house.clock.advance(0.0 if keep_alive_s == 0 else 7200.0)
        assert house.state(A) is (State.STOPPING if keep_alive_s == 0 else State.SUSPENDED)

    in_house(test)


def test_a_sleeper_whose_model_is_gone_is_stopped() -> None:
    class EmptyShelf:
        def list(self) -> list[Model]:
            return []

    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        operations = Operations(house.clock)
        Loading(cast(Catalog, EmptyShelf()), house.gate, house.supervisor, operations).tidy()
        assert house.state(A) is State.STOPPING

    in_house(test)


def test_who_can_never_wake_where_it_sleeps_is_started_elsewhere() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        second = await make_room(house, first)
        house.supervisor.stop("b:latest")
        house.gpus.end(second.pid)
        await house.until(B, State.STOPPED)
        house.gpus.start(999, 60 * GIB)  # others take the place that it left
        house.gpus.cards.append(cards(2)[1])
        await house.memory.refresh()
        asking = asyncio.create_task(house.ask(A))
        await house.until(A, State.RELEASING)
        house.gpus.end(first.pid)
        await house.until(A, State.STARTING)
        assert list(house.memory.ledger.reservations["a:latest"].bytes_on) == [1]
        house.launcher.last.healthy.set()
        await asking

    in_house(test)


def test_sleepers_are_stopped_when_others_take_the_hosts_memory() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        house.host.free_bytes -= 83 * GIB  # the copy
        await house.memory.refresh()
        assert house.state(A) is State.SUSPENDED
        house.host.free_bytes = 2 * GIB
        await house.memory.refresh()
        assert house.state(A) is State.STOPPING
        assert "of the host, 8.0 GiB wanted; " in house.told("stop a:latest (asleep, idle"), house.said()
        count = len(house.said())
        house.host.free_bytes = 1 * GIB
        await house.memory.refresh()
        assert len(house.said()) == count, "one that leaves is counted on"
        house.gpus.end(first.pid)

    in_house(test, margin_share=0.05)


def test_where_the_number_of_models_is_bounded_nobody_sleeps_to_make_room() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        asking = asyncio.create_task(house.ask(B))
        await house.until(A, State.RELEASING)
        house.gpus.end(first.pid)
        await house.until(B, State.STARTING)
        assert house.engine.clients[0].asked == []
        house.started().healthy.set()
        await asking

    in_house(test, limits=Limits(max_loaded=1))


def test_a_sleeper_is_woken_though_another_worker_of_its_model_was_given_up() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        ready = WorkerRecord(State.READY, Goal.RUN)
        failed = WorkerRecord(State.FAILED, Goal.STOP, cause=Reason.ENGINE_DIED, is_final=True)
        down = replace(failed, state=State.RELEASING, goal=Goal.RUN)
        breaker, key, now = house.supervisor.breaker, house.supervisor.key(A), house.clock.now()
        breaker.changed(key, "workers/a-9", ready, down, None, now)
        breaker.changed(key, "workers/a-9", down, failed, None, now)
        assert breaker.refuse(key, A.name, now) is not None
        await house.ask(A)
        assert house.engine.clients[0].asked[-2:] == ["wake", "canary"]

    in_house(test)


@pytest.mark.parametrize("ends", ["dies", "hangs"])
def test_an_engine_that_ends_while_it_falls_asleep_is_not_put_there_again(ends: str) -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        first.switches.clear()
        asking = asyncio.create_task(house.ask(B))
        await house.until(A, State.SUSPENDING)
        house.gpus.end(first.pid)
        if ends == "dies":
            first.exit(-9)
        else:
            life = house.worker(A)
            life.happened(life.record.incarnation, Kind.UNHEALTHY, None, "no answer to 6 health checks in a row")
        await house.until(B, State.STARTING)
        why = "it was ended by signal 9" if ends == "dies" else "no answer to 6 health checks in a row"
        assert house.told("a:latest did") == (
            f"a:latest did not go to sleep level 1, and is not put there again: {why}"
        )
        house.started().healthy.set()
        await asking

    in_house(test)


def test_who_sleeps_is_loaded_again_after_a_restart_and_who_leaves_is_not() -> None:
    class Record:
        def __init__(self) -> None:
            self.names: list[str] = []

        def load(self) -> list[LoadedModel]:
            return []

        def record(self, models: Iterable[LoadedModel]) -> None:
            self.names = [one.name for one in models]

    async def test(house: House) -> None:
        first = await house.load(A)
        await make_room(house, first)
        record, catalog, operations = Record(), cast(Catalog, None), Operations(house.clock)
        restoring = Restoring(record, catalog, house.gate, house.supervisor, operations, house.clock, is_on=True)
        await restoring.note()
        assert set(record.names) == {A.name, B.name}
        house.supervisor.stop("a:latest")
        await restoring.note()
        assert record.names == [B.name]

    in_house(test)


def test_a_successor_goes_on_with_sleepers_and_with_what_they_hold() -> None:
    async def test(house: House) -> None:
        first = await house.load(A)
        second = await make_room(house, first)
        before = house.memory.ledger.reservations
        handed = house.supervisor.hand_over()
        assert house.supervisor.handles() == []
        async with succeeded(house, handed) as taken:
            assert taken == TakenOver(frozenset({A.name, B.name}), 0)
            assert house.memory.ledger.reservations == before
            assert house.memory.ledger.foreign.get(0, 0) == 0, "what engines hold is not taken for others'"
            assert (house.state(A), house.state(B)) == (State.SUSPENDED, State.READY)
            assert house.worker(A).record.goal is Goal.SUSPEND
            # It wakes as it would have, and B goes to sleep for it.
            await house.ask(A)
            assert (house.state(A), house.state(B)) == (State.READY, State.SUSPENDED)
            assert len(house.launcher.children) == 2 and not (first.was_terminated or second.was_terminated)

    in_house(test)


def test_a_successor_ends_who_does_not_answer_and_gives_its_place_away() -> None:
    async def test(house: House) -> None:
        child = await house.load(A)
        handed = house.supervisor.hand_over()
        child.is_hung = True
        async with succeeded(house, handed) as taken:
            assert taken == TakenOver(frozenset(), 1)
            assert child.tree_is_gone and house.state(A) is State.STOPPED
            assert not house.memory.ledger.reservations
            house.gpus.end(child.pid)
            await house.memory.refresh()
            await house.load(B)

    in_house(test)


@pytest.mark.parametrize("what", ["device", "model", "key"])
def test_a_successor_ends_whose_card_model_or_configuration_is_not_there_any_more(what: str) -> None:
    async def test(house: House) -> None:
        child = await house.load(A)
        (handed,) = house.supervisor.hand_over()
        changed = {"device": {"devices": ("GPU-gone",)}, "model": {"model": "gone:latest"}, "key": {"key": "other"}}[
            what
        ]
        async with succeeded(house, [replace(handed, **changed)]) as taken:  # pyright: ignore[reportArgumentType]
            assert taken.ended == 1 and child.tree_is_gone and not house.memory.ledger.reservations

    in_house(test)


def test_a_successor_goes_on_with_a_load_and_nobody_loads_beside_it() -> None:
    async def test(house: House) -> None:
        asking = asyncio.create_task(house.ask(A))
        await house.until(A, State.STARTING)
        child, began = house.started(), house.clock.now() - 60.0
        (handed,) = house.supervisor.hand_over()
        asking.cancel()
        async with succeeded(house, [handed]):
            assert house.state(A) is State.STARTING
            assert house.memory.ledger.loader(0) == handed.holder
            child.healthy.set()
            await house.until(A, State.READY)
            assert house.memory.ledger.loader(0) is None
            assert house.worker(A).load_s == pytest.approx(house.clock.now() - began, abs=1.0)
            # Who dies from now on is seen by the one who took over.
            child.exit(1)
            house.gpus.end(child.pid)
            await house.until(A, State.BACKOFF)

    in_house(test)
