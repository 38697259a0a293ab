"""What another configuration means for models that are loaded: foreseen, then carried out, over fakes."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.world import FakeDevice, FakeEngine, FakeLauncher, FakeRing, FakeSizing, make_model
from vllama.reasons import Reason
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import Model
from vllamad.domain.names import ModelRef
from vllamad.domain.worker import State
from vllamad.domain.workload import Limits
from vllamad.gate.gate import Gate, GateLimits, ModelRules
from vllamad.models.catalog import Catalog
from vllamad.models.reconciling import Consequence, Reconciling, Terms, What
from vllamad.models.sizing import Sizing
from vllamad.supervisor.lease import Lease
from vllamad.supervisor.limits import WorkerLimits
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.supervisor import Supervisor
from vllamad.supervisor.worker import WorkerHandle

A, B = make_model("a"), make_model("b")
PATIENCE_S = 5.0
FIVE_MINUTES = ModelRules(300.0)


class Engine(FakeEngine):
    """One whose workers also depend on what is configured for a model."""

    def __init__(self, launcher: FakeLauncher) -> None:
        super().__init__(launcher)
        self.chosen: Mapping[str, str] = {}

    def identity(self, model: Model) -> str:
        return f"{super().identity(model)} {self.chosen.get(model.name, '')}"


class Shelf:
    """A catalogue that is only a list."""

    def __init__(self, *models: Model) -> None:
        self.models = {model.ref.key: model for model in models}

    def plain(self) -> list[Model]:
        return list(self.models.values())

    def resolve(self, name: str) -> Model:
        found = self.models.get(ModelRef.parse(name).key)
        if found is None:
            raise ModelNotFound(name)
        return found


class House:
    """A supervisor, a gate and what reconciles them with another configuration."""

    def __init__(self, folder: Path, *models: Model) -> None:
        self.clock, self.launcher = FakeClock(), FakeLauncher()
        self.engine = Engine(self.launcher)
        self.memory = DeviceMemory()
        self.limits = WorkerLimits()
        self.rules = FIVE_MINUTES
        self.loads: list[tuple[str, bool]] = []
        self.supervisor = Supervisor(self.clock, self.engine, self.launcher, self.memory, folder, self.limits, FakeRing)
        self.sizing = FakeSizing(self.engine)
        sizing = cast(Sizing, self.sizing)
        self.gate = Gate(self.clock, self.supervisor, self.memory, sizing, GateLimits(), lambda _model: self.rules)
        self.reconciling = Reconciling(
            cast(Catalog, Shelf(*models)), self.supervisor, lambda name, may_evict: self.loads.append((name, may_evict))
        )

    def terms(
        self, rules: ModelRules = FIVE_MINUTES, chosen: Mapping[str, str] | None = None, preload: tuple[str, ...] = ()
    ) -> Terms:
        then = Engine(self.launcher)
        then.chosen = chosen or {}
        return Terms(then.identity, lambda _model: rules, preload)

    def reload(
        self, now: Terms, then: Terms, chosen: Mapping[str, str] | None = None, *, is_outdated: bool = False
    ) -> tuple[Consequence, ...]:
        """As the daemon does it: in one step."""
        foreseen = self.reconciling.foresee(now, then, is_outdated=is_outdated)
        self.engine.chosen = chosen or {}
        self.gate.use(GateLimits())
        self.reconciling.carry_out(foreseen)
        return foreseen

    async def lease(
        self, model: Model, keep_alive_s: float | None = None
    ) -> tuple[Lease, Callable[[], Awaitable[None]]]:
        """Load it, or have it at once; the lease is held until the second of these is called."""
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        go = asyncio.Event()

        async def request() -> None:
            async with self.gate.lease(model, keep_alive_s=keep_alive_s) as lease:
                granted.set_result(lease)
                await go.wait()

        task = asyncio.create_task(request())
        while not granted.done():
            starting = [one for one in self.supervisor.handles() if one.state is State.STARTING]
            if starting:
                self.launcher.last.healthy.set()
            await asyncio.sleep(0)

        async def leave() -> None:
            go.set()
            await task

        return granted.result(), leave

    async def load(self, model: Model, keep_alive_s: float | None = None) -> WorkerHandle:
        _, leave = await self.lease(model, keep_alive_s)
        (handle,) = self.supervisor.of(model)
        await leave()
        return handle

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.supervisor.wait_until(is_true)


def in_house(scene: Callable[[House], Awaitable[None]], *models: Model) -> None:
    async def run() -> None:
        with TemporaryDirectory() as folder:
            house = House(Path(folder), *models)
            started = asyncio.Event()
            running = asyncio.create_task(house.supervisor.run(started))
            await started.wait()
            await house.memory.use(FakeDevice(), 0.0)
            house.gate.open()
            try:
                async with asyncio.timeout(2 * PATIENCE_S):
                    await scene(house)
            finally:
                await house.supervisor.stop_all(0.0)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run(), debug=True)


def told(consequences: tuple[Consequence, ...]) -> list[tuple[What, str]]:
    return [(one.what, one.model) for one in consequences]


def test_a_model_that_is_loaded_as_it_would_be_now_is_not_touched() -> None:
    async def scene(house: House) -> None:
        handle = await house.load(A)
        before = (handle.record, handle.view().expire_time)
        house.clock.advance(10)
        assert house.reload(house.terms(), house.terms()) == ()
        assert (handle.record, handle.view().expire_time) == before

    in_house(scene, A)


def test_a_model_with_other_settings_leaves_when_its_requests_are_done_and_others_stay() -> None:
    async def scene(house: House) -> None:
        _, leave = await house.lease(A)
        (mine,) = house.supervisor.of(A)
        bystander = await house.load(B)
        chosen = {A.name: "short"}
        foreseen = house.reload(house.terms(), house.terms(chosen=chosen), chosen)
        assert told(foreseen) == [(What.LOADED_ANEW, A.name)]
        assert "leaves when its 1 request has finished" in foreseen[0].text
        assert "with the next request" in foreseen[0].text
        assert foreseen[0].text in [one.text for one in house.supervisor.decisions]
        assert mine.state is State.DRAINING, "the request goes on"
        assert bystander.state is State.READY
        again = await house.load(A)
        assert again is not mine and again.key.endswith("short"), "where memory is free it need not wait for the old"
        await leave()
        await house.until(lambda: mine.state is State.STOPPED)
        assert house.loads == []

    in_house(scene, A, B)


def test_a_dry_run_changes_nothing() -> None:
    async def scene(house: House) -> None:
        handle = await house.load(A)
        before = handle.record
        then = house.terms(ModelRules(math.inf, is_pinned=True), {A.name: "short"}, ("b",))
        foreseen = house.reconciling.foresee(house.terms(), then, is_outdated=True)
        assert told(foreseen) == [(What.LOADED_ANEW, A.name), (What.LOADED, B.name)]
        assert "loaded anew at once" in foreseen[0].text, "a pinned model is not left to the next request"
        assert (handle.record, handle.is_pinned, handle.is_outdated, house.loads) == (before, False, False, [])

    in_house(scene, A, B)


def test_what_is_wanted_without_a_request_is_loaded_anew_at_once_and_takes_its_own_place() -> None:
    async def scene(house: House) -> None:
        await house.load(A)
        chosen = {A.name: "short"}
        house.reload(house.terms(preload=("a",)), house.terms(chosen=chosen, preload=("a", "b", "nobody")), chosen)
        assert house.loads == [(A.name, True), (B.name, False), ("nobody", False)]

    in_house(scene, A, B)


def test_a_worker_stays_for_another_model_that_it_serves() -> None:
    twin = replace(A, ref=ModelRef.parse("twin"))

    async def scene(house: House) -> None:
        handle = await house.load(A)
        chosen = {A.name: "short"}
        assert house.reload(house.terms(), house.terms(chosen=chosen), chosen) == ()
        assert handle.state is State.READY and house.supervisor.of(twin) == [handle]

    in_house(scene, A, twin)


def test_a_pin_holds_at_once_and_its_end_begins_the_keep_alive() -> None:
    async def scene(house: House) -> None:
        handle = await house.load(A)
        unpinned, pinned = house.terms(), house.terms(ModelRules(math.inf, is_pinned=True))
        assert told(house.reload(unpinned, pinned)) == [(What.KEEP_ALIVE, A.name)]
        house.clock.advance(10_000)
        assert handle.state is State.READY and handle.view().is_pinned
        (back,) = house.reload(pinned, unpinned)
        assert "300 s from now" in back.text
        house.clock.advance(299)
        assert handle.state is State.READY
        house.clock.advance(2)
        assert handle.state is not State.READY

    in_house(scene, A)


@pytest.mark.parametrize(("asked_s", "is_changed"), [(None, True), (60.0, False), (math.inf, False)])
def test_a_keep_alive_that_somebody_asked_for_stays(asked_s: float | None, is_changed: bool) -> None:
    async def scene(house: House) -> None:
        handle = await house.load(A, asked_s)
        foreseen = house.reload(house.terms(), house.terms(ModelRules(20.0)))
        assert bool(foreseen) is is_changed
        assert handle.keep_alive_s == (20.0 if is_changed else asked_s)

    in_house(scene, A)


def test_a_worker_of_before_is_placed_anew_after_a_crash() -> None:
    """Its place was reckoned for what its engine was started with, and it would be started otherwise."""

    async def scene(house: House) -> None:
        handle = await house.load(A)
        assert told(house.reload(house.terms(), house.terms(), is_outdated=True)) == [(What.NEXT_LOAD, A.name)]
        assert house.reload(house.terms(), house.terms(), is_outdated=True) == (), "it is known already"
        assert handle.state is State.READY
        house.launcher.last.exit(1)
        await house.until(lambda: handle.state is State.STOPPED)
        assert "configured otherwise" in house.supervisor.decisions[-1].text
        assert not (await house.load(A)).is_outdated

    in_house(scene, A)


def test_a_worker_that_failed_and_is_started_again_is_as_it_would_be_loaded_now() -> None:
    async def scene(house: House) -> None:
        asking = asyncio.create_task(house.gate.lease(A).__aenter__())
        await house.until(lambda: house.launcher.children != [])
        (handle,) = house.supervisor.handles()
        house.reload(house.terms(), house.terms(), is_outdated=True)
        await asyncio.sleep(0)
        house.launcher.last.exit(1)
        with pytest.raises(VllamaError):
            await asking
        assert handle.state is State.FAILED and handle.is_outdated
        wish = house.gate.lease(A, is_wish=True)
        asking = asyncio.create_task(wish.__aenter__())
        await house.until(lambda: handle.state is State.STARTING)
        assert not handle.is_outdated
        house.launcher.last.healthy.set()
        await asking
        await wish.__aexit__(None, None, None)

    in_house(scene, A)


def test_who_waits_keeps_its_turn_and_gets_what_is_configured_now() -> None:
    async def scene(house: House) -> None:
        managers = [house.gate.lease(A) for _ in range(3)]
        waiting = [asyncio.create_task(one.__aenter__()) for one in managers]
        await house.until(lambda: bool(house.supervisor.handles()))
        (old,) = house.supervisor.handles()
        chosen = {A.name: "short"}
        house.reload(house.terms(), house.terms(chosen=chosen), chosen)
        await house.until(lambda: any(one.key.endswith("short") for one in house.supervisor.handles()))
        house.launcher.last.healthy.set()
        await asyncio.gather(*waiting)
        (new,) = house.supervisor.of(A)
        assert new.record.leases == 3 and old.state is not State.READY
        for one in managers:
            await one.__aexit__(None, None, None)

    in_house(scene, A)


def test_a_queue_that_is_made_shorter_refuses_who_comes_and_not_who_waits() -> None:
    async def scene(house: House) -> None:
        managers = [house.gate.lease(A) for _ in range(6)]
        waiting = [asyncio.create_task(one.__aenter__()) for one in managers]
        await house.until(lambda: bool(house.supervisor.handles()))
        house.gate.use(GateLimits(Limits(queue=2, queue_per_model=1), wait_s=1.0))
        await asyncio.sleep(0.01)
        with pytest.raises(VllamaError) as refused:
            await house.gate.lease(A).__aenter__()
        assert refused.value.reason is Reason.QUEUE_FULL
        house.launcher.last.healthy.set()
        await asyncio.gather(*waiting)
        for one in managers:
            await one.__aexit__(None, None, None)
        assert house.gate.workload().limits == Limits(queue=2, queue_per_model=1), "it is as short as it says again"

    in_house(scene, A)


def test_other_limits_count_from_the_next_deadline_on() -> None:
    async def scene(house: House) -> None:
        handle = await house.load(A)
        house.supervisor.use(replace(house.limits, term_s=1.0))
        house.launcher.last.ignores_term = True
        house.supervisor.stop(handle.holder)
        assert handle.state is State.STOPPING
        house.clock.advance(1.1)
        assert handle.state is not State.STOPPING

    in_house(scene, A)


def test_replicas_follow_once_what_is_loaded_was_reckoned_anew() -> None:
    async def scene(house: House) -> None:
        house.sizing.replicas = 2
        await house.load(A)
        key = house.supervisor.key(A)
        house.sizing.replicas = 3
        house.gate.use(GateLimits())
        assert house.gate.workload().models[key].replicas == 1, "none is started by what was reckoned before"
        await house.gate.reckon_anew()
        assert house.gate.workload().models[key].replicas == 3

    in_house(scene, A)
