"""What models are said to need, over fakes: on which machine, for whom, and what changes while their files are read."""

import asyncio
from dataclasses import replace

from tests.fakes.world import FakeDevice, FakeEngine, FakeLauncher, make_model
from vllamad.domain.footprint import Footprint
from vllamad.domain.model import Recipe
from vllamad.domain.names import ModelRef
from vllamad.domain.shape import Shape
from vllamad.models.sizing import Sizing, SizingRules
from vllamad.supervisor.memory import DeviceMemory

A = make_model("a")


class NothingMeasured:
    """Footprints of a machine that has loaded nothing yet."""

    def find(self, key: str) -> Footprint | None:
        return None

    def record(self, key: str, footprint: Footprint, **_names: str) -> None:
        pass


def sizing_on(memory: DeviceMemory, rules: SizingRules) -> Sizing:
    engine = FakeEngine(FakeLauncher())
    return Sizing(engine, memory, NothingMeasured(), lambda _folder: Shape(heads=8), lambda _model: rules)


def test_on_cpu_a_model_that_is_to_be_spread_over_gpus_is_not() -> None:
    async def run() -> None:
        memory = DeviceMemory()
        await memory.use(FakeDevice(), 0.0)
        wanted = await sizing_on(memory, SizingRules(tensor_parallel=2)).wanted(A)
        assert [need.size for need in wanted.demand.needs] == [1]

    asyncio.run(run())


def test_what_was_reckoned_for_other_devices_is_not_kept() -> None:
    async def run() -> None:
        memory, device = DeviceMemory(), FakeDevice()
        await memory.use(device, 0.0)
        sizing = sizing_on(memory, SizingRules())
        reading = asyncio.create_task(sizing.wanted(A))
        await asyncio.sleep(0)
        device.total_bytes *= 2
        await memory.refresh()
        assert sizing.known(make_model("b")) is None
        await reading
        assert sizing.known(A) is None
        assert await sizing.wanted(A) is sizing.known(A)

    asyncio.run(run())


def test_models_that_share_a_worker_are_called_by_the_name_that_was_asked_for() -> None:
    async def run() -> None:
        memory = DeviceMemory()
        await memory.use(FakeDevice(), 0.0)
        sizing = sizing_on(memory, SizingRules())
        await sizing.wanted(A)
        child = replace(A, ref=ModelRef.parse("child"), recipe=Recipe(ancestors=("a:latest",), system="Be brief."))
        assert (await sizing.wanted(child)).name == "child:latest"

    asyncio.run(run())
