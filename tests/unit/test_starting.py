"""What makes starts shorter: weights fetched beforehand, a warm-up, a choice of loaders. All of it over fakes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.world import FakeChild, FakeDevice, FakeEngine, FakeLauncher, FakeRing, FakeSizing, make_model
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.loaders import Loader, choose
from vllamad.domain.ports import Prefetched
from vllamad.domain.worker import State
from vllamad.gate.gate import Gate, GateLimits, ModelRules
from vllamad.models.sizing import Sizing
from vllamad.supervisor import incarnation
from vllamad.supervisor.limits import WorkerLimits
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.starting import Loaders, Starting, WarmUp
from vllamad.supervisor.supervisor import Supervisor

MODEL = make_model("m")
KEY = f"{MODEL.path} "
PATIENCE_S = 5.0
OWN, FAST, OTHER = Loader("", "1"), Loader("fast", "2"), Loader("other", "3")


class FakePageCache:
    """Remembers what was asked for; comes to an end when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Path] = []
        self.ends = asyncio.Event()
        self.was_stopped = False

    async def prefetch(self, folder: Path) -> Prefetched:
        self.asked.append(folder)
        try:
            await self.ends.wait()
        except asyncio.CancelledError:
            self.was_stopped = True
            raise
        return Prefetched(7)


class FakeTimes:
    """A store in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, float | None]] = {}
        self.writes = 0

    def load(self) -> dict[str, dict[str, float | None]]:
        return {key: dict(seen) for key, seen in self.kept.items()}

    def record(self, seen: object) -> None:
        self.writes += 1
        self.kept = cast(dict[str, dict[str, float | None]], seen)


class House:
    """A supervisor and a gate over fakes, with one model."""

    def __init__(self, folder: Path, starting: Starting) -> None:
        self.clock, self.launcher = FakeClock(), FakeLauncher()
        self.engine = FakeEngine(self.launcher)
        self.memory = DeviceMemory()
        self.starting = starting
        self.supervisor = Supervisor(
            self.clock, self.engine, self.launcher, self.memory, folder, WorkerLimits(), FakeRing, starting=starting
        )
        sizing = cast(Sizing, FakeSizing(self.engine))
        rules = ModelRules(300.0)
        self.gate = Gate(self.clock, self.supervisor, self.memory, sizing, GateLimits(), lambda _model: rules)

    @property
    def state(self) -> State:
        handles = self.supervisor.of(MODEL)
        return handles[0].state if handles else State.STOPPED

    @property
    def asked(self) -> list[str]:
        """What the newest engine was asked beside requests."""
        return self.engine.clients[-1].asked

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_true():  # noqa: ASYNC110 - what is awaited tells nobody
                await asyncio.sleep(0.001)

    async def starts(self, count: int = 1) -> FakeChild:
        """Wait for the engine that is started as number ``count``."""
        await self.until(lambda: len(self.launcher.children) == count and self.state is State.STARTING)
        return self.launcher.last

    def ask(self, hold: asyncio.Event | None = None) -> "asyncio.Task[None]":
        """A request, which ends when ``hold`` is set."""

        async def request() -> None:
            async with self.gate.lease(MODEL):
                if hold is not None:
                    await hold.wait()

        return asyncio.create_task(request())

    async def stop(self) -> None:
        for handle in self.supervisor.handles():
            self.supervisor.stop(handle.holder)
        await self.until(lambda: self.state is State.STOPPED)


@asynccontextmanager
async def house_of(starting: Starting) -> AsyncIterator[House]:
    with TemporaryDirectory() as folder:
        house = House(Path(folder), starting)
        started = asyncio.Event()
        running = asyncio.create_task(house.supervisor.run(started))
        await started.wait()
        await house.memory.use(FakeDevice(), 0.0)
        house.gate.open()
        try:
            yield house
        finally:
            house.gate.close()
            await asyncio.wait_for(house.supervisor.stop_all(0.0), PATIENCE_S)
            running.cancel()
            await asyncio.wait([running])


def play(scene: Callable[[House], Awaitable[None]], starting: Starting | None = None) -> None:
    async def run() -> None:
        async with house_of(starting or Starting()) as house:
            await scene(house)

    asyncio.run(run(), debug=True)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_fetched_while_the_engine_starts_and_no_longer() -> None:
    async def scene(house: House) -> None:
        cache = house.starting.page_cache = FakePageCache()
        asking = house.ask()
        child = await house.starts()
        await house.until(lambda: cache.asked == [Path(MODEL.path)])
        assert not cache.was_stopped
        child.healthy.set()
        await asking
        assert cache.was_stopped, "what is left is not needed any more"

    play(scene)


def test_a_start_that_is_stopped_fetches_nothing_more() -> None:
    async def scene(house: House) -> None:
        cache = house.starting.page_cache = FakePageCache()
        asking = house.ask()
        await house.starts()
        await house.until(lambda: bool(cache.asked))
        asking.cancel()
        await house.stop()
        assert cache.was_stopped

    play(scene)


def test_an_engine_that_dies_while_it_starts_fetches_nothing_more() -> None:
    async def scene(house: House) -> None:
        cache = house.starting.page_cache = FakePageCache()
        asking = house.ask()
        child = await house.starts()
        await house.until(lambda: bool(cache.asked))
        child.exit(1)
        with pytest.raises(VllamaError):
            await asking
        assert cache.was_stopped

    play(scene)


# --- warm-up ---------------------------------------------------------------------------------------------------------


def test_before_ready_nobody_gets_in_until_the_engine_is_warm() -> None:
    async def scene(house: House) -> None:
        asking = house.ask()
        child = await house.starts()
        child.switches.clear()
        child.healthy.set()
        await house.until(lambda: house.asked == ["warm-up"])
        assert house.state is State.STARTING
        child.switches.set()
        await asking
        assert house.state is State.READY

    play(scene, Starting(warm_up=WarmUp.BEFORE_READY))


def test_an_engine_that_cannot_be_warmed_serves_all_the_same() -> None:
    async def scene(house: House) -> None:
        asking = house.ask()
        child = await house.starts()
        child.fails_at.add("warm-up")
        child.healthy.set()
        await asking
        assert house.asked == ["warm-up"] and house.state is State.READY

    play(scene, Starting(warm_up=WarmUp.BEFORE_READY))


def test_a_stop_ends_the_warm_up_before_the_engine_is_asked_to_leave() -> None:
    async def scene(house: House) -> None:
        asking = house.ask()
        child = await house.starts()
        child.switches.clear()
        child.healthy.set()
        await house.until(lambda: house.asked == ["warm-up"])
        asking.cancel()
        await house.stop()
        assert child.was_terminated

    play(scene, Starting(warm_up=WarmUp.BEFORE_READY))


def test_after_ready_an_idle_engine_is_warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incarnation, "WARM_UP_PAUSE_S", 0.02)

    async def scene(house: House) -> None:
        asking = house.ask()
        (await house.starts()).healthy.set()
        await asking
        await house.until(lambda: house.asked == ["warm-up"])
        assert house.state is State.READY

    play(scene, Starting(warm_up=WarmUp.AFTER_READY))


def test_after_ready_somebodys_request_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incarnation, "WARM_UP_PAUSE_S", 0.02)

    async def scene(house: House) -> None:
        finish = asyncio.Event()
        asking = house.ask(finish)
        (await house.starts()).healthy.set()
        await house.until(lambda: house.state is State.READY)
        warming = [task for task in asyncio.all_tasks() if task.get_name().endswith("/warm-up")]
        assert len(warming) == 1
        await asyncio.wait(warming)
        assert house.asked == []
        finish.set()
        await asking

    play(scene, Starting(warm_up=WarmUp.AFTER_READY))


def test_off_is_off() -> None:
    async def scene(house: House) -> None:
        asking = house.ask()
        (await house.starts()).healthy.set()
        await asking
        assert house.asked == []
        assert not [task for task in asyncio.all_tasks() if task.get_name().endswith("/warm-up")]

    play(scene)


# --- loaders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "chosen"),
    [
        ({}, OWN),
        ({OWN: 9.0}, FAST),
        ({OWN: 9.0, FAST: 1.0}, OTHER),
        ({OWN: 9.0, FAST: 1.0, OTHER: 2.0}, FAST),
        ({OWN: 1.0, FAST: 1.0, OTHER: 2.0}, OWN),
        ({OWN: 9.0, FAST: None, OTHER: 10.0}, OWN),
        ({OWN: None, FAST: None, OTHER: None}, OWN),
        ({OWN: 9.0, Loader("fast", "older"): 1.0}, FAST),
    ],
)
def test_each_loader_once_then_the_quickest(seen: dict[Loader, float | None], chosen: Loader) -> None:
    assert choose((OWN, FAST, OTHER), {loader.key: seconds for loader, seconds in seen.items()}) == chosen


async def _load(house: House, count: int, seconds: float) -> None:
    """Load the model, reading its weights for so long, and unload it."""
    asking = house.ask()
    child = await house.starts(count)
    child.say("phase weights")
    house.clock.advance(seconds)
    child.say("phase cache")
    child.healthy.set()
    await asking
    await house.stop()


def test_weights_are_read_by_each_loader_once_and_then_by_the_quickest() -> None:
    times = FakeTimes()

    async def scene(house: House) -> None:
        house.engine.loader_names = (OWN, FAST)
        for count, seconds in enumerate((9.0, 4.0, 10.0, 5.0, 5.0), 1):
            await _load(house, count, seconds)
        # Fast was quickest, became slow, gave way; then the engine's own was the quicker one.
        assert house.engine.loaded_by == ["", "fast", "fast", "", ""]
        await house.starting.loaders.keep()
        assert times.kept == {KEY: {OWN.key: 5.0, FAST.key: 10.0}}
        await house.starting.loaders.keep()
        assert times.writes == 1, "nothing is new"

    play(scene, Starting(loaders=Loaders(times)))


def test_what_was_seen_survives_a_restart() -> None:
    times = FakeTimes()
    times.kept = {KEY: {OWN.key: 9.0, FAST.key: 1.0}}

    async def scene(house: House) -> None:
        house.engine.loader_names = (OWN, FAST)
        await house.starting.loaders.recall()
        await _load(house, 1, 1.0)
        assert house.engine.loaded_by == ["fast"]

    play(scene, Starting(loaders=Loaders(times)))


def test_without_a_choice_nothing_is_remembered() -> None:
    times = FakeTimes()

    async def scene(house: House) -> None:
        await _load(house, 1, 3.0)
        await house.starting.loaders.keep()
        assert times.writes == 0

    play(scene, Starting(loaders=Loaders(times)))


def test_a_request_survives_a_loader_that_fails() -> None:
    async def scene(house: House) -> None:
        house.engine.loader_names = (OWN, FAST)
        await _load(house, 1, 9.0)
        asking = house.ask()
        (await house.starts(2)).exit(1)
        child = await house.starts(3)
        child.healthy.set()
        await asking
        assert house.engine.loaded_by == ["", "fast", ""]
        said = [decided.text for decided in house.supervisor.decisions]
        sentence = "m:latest is loaded without fast from now on: with it, its engine was never ready (it exited with "
        assert [text for text in said if text.startswith(sentence)], said
        await house.stop()
        await _load(house, 4, 9.0)
        assert house.engine.loaded_by[-1] == ""

    play(scene)


def test_the_engines_own_loader_is_not_excused() -> None:
    async def scene(house: House) -> None:
        house.engine.loader_names = (OWN, FAST)
        asking = house.ask()
        (await house.starts()).exit(1)
        with pytest.raises(VllamaError) as caught:
            await asking
        assert caught.value.reason is Reason.ENGINE_START_FAILED
        assert house.engine.loaded_by == [""]

    play(scene)


def test_a_loader_that_hangs_is_left_out_next_time() -> None:
    async def scene(house: House) -> None:
        house.engine.loader_names = (OWN, FAST)
        await _load(house, 1, 9.0)
        asking = house.ask()
        await house.starts(2)
        house.clock.advance(WorkerLimits().start_s)
        with pytest.raises(VllamaError) as caught:
            await asking
        assert caught.value.reason is Reason.START_TIMEOUT
        await house.until(lambda: house.state is State.FAILED)
        house.clock.advance(3600.0)
        await _load(house, 3, 9.0)
        assert house.engine.loaded_by == ["", "fast", ""]

    play(scene)
