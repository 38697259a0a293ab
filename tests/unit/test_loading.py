"""Loading and removal when several names share a worker, over fakes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.world import FakeDevice, FakeEngine, FakeLauncher, FakeRing, FakeSizing, make_model
from vllama.reasons import Reason
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import Model, Recipe
from vllamad.domain.names import ModelRef
from vllamad.domain.worker import State
from vllamad.gate.gate import Gate, GateLimits, ModelRules
from vllamad.models.catalog import Catalog
from vllamad.models.loading import Loading
from vllamad.models.sizing import Sizing
from vllamad.operations.registry import Operations
from vllamad.supervisor.limits import WorkerLimits
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.supervisor import Supervisor

BASE = make_model("base")
CHILD = replace(BASE, ref=ModelRef.parse("child"), recipe=Recipe(ancestors=("base:latest",), system="Be brief."))
PATIENCE_S = 5.0


class Shelf:
    """A catalogue that is only a list."""

    def __init__(self, *models: Model) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.models = {model.name: model for model in models}

    def list(self) -> list[Model]:
        return list(self.models.values())

    def resolve(self, name: str) -> Model:
        found = self.models.get(str(ModelRef.parse(name)))
        if found is None:
            raise ModelNotFound(name)
        return found

    def resolve_own(self, name: str) -> Model:
        return self.resolve(name)

    async def remove(self, name: str) -> int:
        del self.models[self.resolve(name).name]
        self.on_change()
        return 7

    def put(self, model: Model) -> None:
        self.models[model.name] = model
        self.on_change()


class House:
    """A supervisor, a gate and Loading over fakes."""

    def __init__(self, folder: Path, *models: Model) -> None:
        clock, self.launcher, self.shelf = FakeClock(), FakeLauncher(), Shelf(*models)
        engine = FakeEngine(self.launcher)
        self.memory = DeviceMemory()
        self.supervisor = Supervisor(clock, engine, self.launcher, self.memory, folder, WorkerLimits(), FakeRing)
        sizing = cast(Sizing, FakeSizing(engine))
        self.gate = Gate(clock, self.supervisor, self.memory, sizing, GateLimits(), lambda _model: ModelRules(300.0))
        self.operations = Operations(clock)
        self.loading = Loading(cast(Catalog, self.shelf), self.gate, self.supervisor, self.operations)

    async def load(self, model: Model) -> None:
        """Load it as a request would, and let that end."""

        async def request() -> None:
            async with self.gate.lease(model):
                pass

        asking = asyncio.create_task(request())
        await self.until(lambda: bool(self.supervisor.handles()))
        self.launcher.last.healthy.set()
        await asking

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
                await scene(house)
            finally:
                await house.supervisor.stop_all(0.0)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run(), debug=True)


def test_a_name_whose_worker_serves_another_too_is_removed_without_a_stop() -> None:
    async def scene(house: House) -> None:
        await house.load(BASE)
        assert await house.loading.remove("base", force=False) == 7
        (handle,) = house.supervisor.handles()
        assert handle.state is State.READY
        assert handle.model.name == "child:latest"  # what ps shows is there
        with pytest.raises(VllamaError) as caught:
            await house.loading.remove("child", force=False)
        assert caught.value.reason is Reason.MODEL_IN_USE

    in_house(scene, BASE, CHILD)


def test_the_last_name_takes_its_worker_along() -> None:
    async def scene(house: House) -> None:
        await house.load(BASE)
        await house.loading.remove("base", force=True)
        assert house.supervisor.handles() == []
        assert house.launcher.last.tree_is_gone

    in_house(scene, BASE)


def test_a_worker_whose_model_was_replaced_is_stopped_with_a_sentence() -> None:
    async def scene(house: House) -> None:
        await house.load(BASE)
        house.shelf.put(make_model("base", digest="e" * 64))
        await house.until(lambda: not house.supervisor.handles())
        assert "no model is served this way" in house.supervisor.decisions[-1].text

    in_house(scene, BASE)


def test_a_new_name_for_loaded_files_changes_nothing() -> None:
    async def scene(house: House) -> None:
        await house.load(BASE)
        house.shelf.put(CHILD)
        (handle,) = house.supervisor.handles()
        assert (handle.state, handle.model) == (State.READY, BASE)

    in_house(scene, BASE)
