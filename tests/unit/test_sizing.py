"""What models need, as the planner is told: estimated, then measured, and turned into demands."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tests.fakes.devices import GIB, FakeGpus, cards
from tests.fakes.world import FakeDevice, FakeEngine, FakeLauncher, make_model
from tests.unit.test_shapes import LLAMA_31_8B, llama_tensors
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.footprint import EngineSettings, Footprint
from vllamad.domain.model import Model, ModelDetails
from vllamad.domain.placement import NoPlace, Placement, place
from vllamad.domain.ports import Taken
from vllamad.hub.footprints import FootprintStore
from vllamad.hub.shapes import shape_of
from vllamad.models.sizing import Sizing, SizingRules
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.worker import WorkerHandle

LLAMA = replace(make_model("llama3.1:8b"), details=ModelDetails(context_length=131072))
SHAPE = shape_of(LLAMA_31_8B, list(llama_tensors(LLAMA_31_8B)))
TOKEN_BYTES = 2 * 32 * 8 * 128 * 2
"""Keys and values of 32 layers, 8 heads of 128, in 16 bits."""


class CudaEngine(FakeEngine):
    """An engine on GPUs."""

    def memory_settings(self, model: Model) -> EngineSettings:
        return EngineSettings(device="cuda")


class Loaded:
    """A ready worker, as far as a measurement looks at it."""

    is_outdated = False

    def __init__(self, model: Model, key: str, placement: Placement, device_bytes: int, memory_bytes: int) -> None:
        self.model, self.key, self.placement = model, key, placement
        self.device_bytes, self.memory_bytes = device_bytes, memory_bytes
        self.load_s = 33.0
        self.taken = Taken(weights_bytes=15 * GIB, cache_tokens=0)


class Desk:
    """Sizing over two GPUs or a CPU, with rules that the test changes."""

    def __init__(self, folder: Path, *, is_cpu: bool) -> None:
        self.rules = SizingRules()
        self.memory = DeviceMemory()
        self.reads = 0
        self.error: OSError | None = None
        self.store = FootprintStore(folder / "footprints.json")
        self.engine = (FakeEngine if is_cpu else CudaEngine)(FakeLauncher())
        self.sizing = Sizing(self.engine, self.memory, self.store, self._read, lambda _model: self.rules)

    def _read(self, _folder: Path) -> object:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return SHAPE


def at_desk(folder: Path, test: Callable[[Desk], Awaitable[None]], *, gpus: int = 2, is_cpu: bool = False) -> None:
    async def run() -> None:
        desk = Desk(folder, is_cpu=is_cpu)
        await desk.memory.use(FakeDevice() if is_cpu else FakeGpus(cards(gpus)), 0.1)
        await test(desk)

    asyncio.run(run(), debug=True)


def test_it_wants_its_weights_and_a_cache_on_one_gpu_or_half_of_them_on_two(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        assert desk.sizing.known(LLAMA) is None
        wanted = await desk.sizing.wanted(LLAMA)
        assert desk.sizing.known(LLAMA) is wanted
        assert desk.reads == 1
        one, two = wanted.demand.needs
        assert (one.size, two.size) == (1, 2)
        assert one.token_bytes == TOKEN_BYTES == 2 * two.token_bytes
        assert 15 * GIB < one.fixed_bytes < 24 * GIB
        assert (wanted.demand.least_tokens, wanted.demand.wanted_tokens) == (4096, 131_072)
        assert wanted.load_cost_s > 40
        placed = place(wanted.demand, desk.memory.ledger)
        assert isinstance(placed, Placement)
        assert placed.devices == (0,)
        assert placed.cache_bytes == 131_072 * TOKEN_BYTES

    at_desk(tmp_path, test)


def test_rules_say_which_gpus_how_many_and_how_much_cache(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        desk.rules = SizingRules(devices=(1,), cache_tokens=8192, context_length=32_768)
        demand = (await desk.sizing.wanted(LLAMA)).demand
        assert (demand.pinned, demand.least_tokens, demand.wanted_tokens) == ((1,), 32_768, 32_768)
        other = replace(LLAMA, path="/elsewhere")
        desk.rules = SizingRules(tensor_parallel=2, devices=(7,))
        demand = (await desk.sizing.wanted(other)).demand
        assert [need.size for need in demand.needs] == [2]
        nowhere = place(demand, desk.memory.ledger)
        assert isinstance(nowhere, NoPlace), "a pin to a GPU that is not there does not come to mean any GPU"
        assert nowhere.numbers == "no device may be used for it"

    at_desk(tmp_path, test)


def test_a_gpu_that_appears_changes_what_can_be_wanted(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        assert [need.size for need in (await desk.sizing.wanted(LLAMA)).demand.needs] == [1]
        await desk.memory.use(FakeGpus(cards(2)), 0.1)
        assert desk.sizing.known(LLAMA) is None
        assert [need.size for need in (await desk.sizing.wanted(LLAMA)).demand.needs] == [1, 2]

    at_desk(tmp_path, test, gpus=1)


def test_on_cpu_the_cache_is_what_was_configured(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        desk.rules = SizingRules(cpu_kv_bytes=3 << 30)
        less = (await desk.sizing.wanted(LLAMA)).demand.needs[0]
        desk.rules = SizingRules(cpu_kv_bytes=5 << 30)
        more = (await desk.sizing.wanted(replace(LLAMA, path="/elsewhere"))).demand.needs[0]
        assert more.fixed_bytes - less.fixed_bytes == 2 << 30
        assert (less.size, less.token_bytes) == (1, 0)
        explained = await desk.sizing.fit(LLAMA)
        assert explained.fit.sentence.startswith("not: needs ")
        assert "CPU has 14.4 GiB" in explained.fit.sentence

    at_desk(tmp_path, test, is_cpu=True)


def test_fit_names_the_gpus_and_the_cache_that_is_left(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        explained = await desk.sizing.fit(LLAMA)
        assert explained.fit.sentence.startswith("fits on GPU 0 with ")
        assert "; or on 2 GPUs with " in explained.fit.sentence
        assert explained.devices == ("GPU 0", "GPU 1")
        desk.rules = SizingRules(devices=(1,))
        assert (await desk.sizing.fit(LLAMA)).devices == ("GPU 1",)

    at_desk(tmp_path, test)


def test_what_was_measured_counts_from_then_on_and_is_kept_for_the_next_daemon(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        before = await desk.sizing.wanted(LLAMA)
        placed = place(before.demand, desk.memory.ledger)
        assert isinstance(placed, Placement)
        held = 15 * GIB + 2 * GIB + placed.cache_bytes
        seen = cast(WorkerHandle, Loaded(LLAMA, before.key, placed, held, 4 * GIB))
        await desk.sizing.measured(seen)
        after = await desk.sizing.wanted(LLAMA)
        assert after.load_cost_s == 33.0
        (now, _two) = (await desk.sizing.footprints(LLAMA)).values()
        assert now.origin.value == "measured"
        assert (now.weights_bytes, now.host_bytes) == (15 * GIB, 4 * GIB)
        guessed = before.demand.needs[0].fixed_bytes
        assert now.base_bytes < guessed, "what its largest batch took is not counted twice"
        again = Desk(tmp_path, is_cpu=False)
        await again.memory.use(FakeGpus(), 0.1)
        assert (await again.sizing.footprints(LLAMA))[1] == now
        assert (await again.sizing.wanted(LLAMA)).load_cost_s == 33.0
        other = replace(LLAMA, path="/other/files")
        assert (await again.sizing.footprints(other))[1].origin.value == "estimated"

    at_desk(tmp_path, test)


def test_only_a_larger_measurement_is_news(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        before = await desk.sizing.wanted(LLAMA)
        placed = place(before.demand, desk.memory.ledger)
        assert isinstance(placed, Placement)
        written: list[Footprint] = []
        keep = desk.store.record

        def record(key: str, footprint: Footprint, *, model: str = "", engine_version: str = "") -> None:
            written.append(footprint)
            keep(key, footprint, model=model, engine_version=engine_version)

        desk.store.record = record  # type: ignore[method-assign]
        for gib in (40, 40, 39, 42):
            await desk.sizing.measured(cast(WorkerHandle, Loaded(LLAMA, before.key, placed, gib * GIB, 0)))
        assert len(written) == 2

    at_desk(tmp_path, test)


def test_what_was_measured_under_other_settings_is_not_kept(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        before = await desk.sizing.wanted(LLAMA)
        placed = place(before.demand, desk.memory.ledger)
        assert isinstance(placed, Placement)
        for key, is_outdated in (("what it was loaded as", False), (before.key, True)):
            seen = Loaded(LLAMA, key, placed, 40 * GIB, 0)
            seen.is_outdated = is_outdated
            await desk.sizing.measured(cast(WorkerHandle, seen))
        assert (await desk.sizing.footprints(LLAMA))[1].origin.value == "estimated"

    at_desk(tmp_path, test)


def test_other_rules_count_once_the_old_ones_are_forgotten(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        desk.rules = SizingRules(cache_tokens=8192)
        reckoning = asyncio.create_task(desk.sizing.wanted(LLAMA))
        await asyncio.sleep(0)  # it has begun, and reads the files
        desk.rules = SizingRules(cache_tokens=16_384)
        desk.sizing.forget()
        assert (await reckoning).demand.wanted_tokens == 16_384, "also for what was being reckoned meanwhile"
        desk.rules = SizingRules(cache_tokens=65_536)
        assert (await desk.sizing.wanted(LLAMA)).demand.wanted_tokens == 16_384
        desk.sizing.forget()
        assert (await desk.sizing.wanted(LLAMA)).demand.wanted_tokens == 65_536

    at_desk(tmp_path, test)


def test_files_that_cannot_be_read_are_told_as_such(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        desk.error = OSError(5, "Input/output error")
        with pytest.raises(VllamaError, match=r"cannot read the files of llama3.1:8b.*Input/output error") as caught:
            await desk.sizing.wanted(LLAMA)
        assert caught.value.reason is Reason.STORAGE_FAILED
        desk.error = None
        assert await desk.sizing.wanted(LLAMA)

    at_desk(tmp_path, test)
