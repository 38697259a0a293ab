"""One reload after the other: what is asked for while another runs, what fails, and what the service manager hears."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from vllama.reasons import Reason
from vllamad.config.load import load
from vllamad.config.loaded import Loaded
from vllamad.domain.errors import VllamaError
from vllamad.models.reconciling import Consequence, What
from vllamad.operations.reloading import Reloading

PATIENCE_S = 5.0


class Stage:
    """A daemon, as far as a reload sees it, and a file that the test writes."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.toml"
        self.file.write_text("")
        self.in_force = self.read()
        self.may_read = threading.Event()
        self.may_read.set()
        self.is_reading = threading.Event()
        self.reads = 0
        self.told: list[str] = []
        self.reloading = Reloading(
            self.slowly, self, lambda: self.told.append("RELOADING"), lambda: self.told.append("READY")
        )

    def read(self) -> Loaded:
        return load({"config": str(self.file)}, {"HOME": "/"}, is_system_service=True)

    def slowly(self) -> Loaded:
        self.reads += 1
        read = self.read()
        self.is_reading.set()
        assert self.may_read.wait(PATIENCE_S)
        return read

    def write(self, max_queue: object) -> None:
        self.file.write_text(f"[scheduler]\nmax_queue = {max_queue}\n")

    @property
    def max_queue(self) -> int:
        return self.in_force.settings.scheduler.max_queue

    # --- House

    def foresee(self, then: Loaded) -> tuple[Consequence, ...]:
        return (Consequence(What.LOADED, "tiny", f"tiny, with {then.settings.scheduler.max_queue}"),)

    def take_over(self, then: Loaded, consequences: Sequence[Consequence]) -> None:
        self.in_force = then
        self.told.append(f"took over {consequences[0].text}")

    async def settle(self) -> None:
        self.told.append("settled")


def on_stage(folder: Path, scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def run() -> None:
        stage = Stage(folder)
        running = asyncio.create_task(stage.reloading.run())
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                await scene(stage)
        finally:
            stage.may_read.set()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run(), debug=True)


def test_the_manager_hears_of_it_before_and_after(short_folder: Path) -> None:
    async def scene(stage: Stage) -> None:
        stage.write(3)
        told = await stage.reloading.reload()
        assert [one.key for one in told.changes] == ["scheduler.max_queue"]
        assert stage.told == ["RELOADING", "took over tiny, with 3", "settled", "READY"]

    on_stage(short_folder, scene)


def test_a_dry_run_answers_the_same_and_changes_nothing(short_folder: Path) -> None:
    async def scene(stage: Stage) -> None:
        stage.write(3)
        would = await stage.reloading.reload(is_dry_run=True)
        assert (stage.max_queue, stage.told) == (512, [])
        did = await stage.reloading.reload()
        assert (would.changes, would.consequences) == (did.changes, did.consequences)
        assert would.is_dry_run and not did.is_dry_run

    on_stage(short_folder, scene)


def test_a_wrong_file_changes_nothing_and_is_one_error_in_the_log(
    short_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage) -> None:
        stage.write('"many"')
        for is_dry_run in (False, True):
            with pytest.raises(VllamaError) as caught:
                await stage.reloading.reload(is_dry_run=is_dry_run)
            assert caught.value.reason is Reason.CONFIG_INVALID
            assert f"cannot reload the configuration: {stage.file}:2: scheduler.max_queue" in caught.value.message
            assert caught.value.hint.startswith("nothing has changed")
        assert stage.max_queue == 512
        assert stage.told == ["RELOADING", "READY"], "a manager that waits is not left waiting"

    with caplog.at_level(logging.INFO, "vllamad"):
        on_stage(short_folder, scene)
    assert [one.getMessage() for one in caplog.records] == ["config.unchanged"]
    assert caplog.records[0].levelno == logging.ERROR


def test_a_second_reload_waits_and_reads_again(short_folder: Path) -> None:
    """What was written after the first had read must not be lost."""

    async def scene(stage: Stage) -> None:
        stage.may_read.clear()
        stage.write(3)
        first = asyncio.create_task(stage.reloading.reload())
        await asyncio.to_thread(stage.is_reading.wait, PATIENCE_S)
        stage.write(4)
        second = asyncio.create_task(stage.reloading.reload())
        await asyncio.sleep(0)
        assert stage.max_queue == 512 and stage.reads == 1
        stage.may_read.set()
        one, two = await asyncio.gather(first, second)
        assert [one.changes[0].after, two.changes[0].before, two.changes[0].after] == ["3", "3", "4"]
        assert stage.max_queue == 4

    on_stage(short_folder, scene)


def test_signals_that_come_together_are_one_reload(short_folder: Path) -> None:
    async def scene(stage: Stage) -> None:
        stage.may_read.clear()
        stage.reloading.hang_up()
        await asyncio.to_thread(stage.is_reading.wait, PATIENCE_S)
        stage.write(5)
        for _ in range(10):
            stage.reloading.hang_up()
        stage.may_read.set()
        await stage.reloading.reload(is_dry_run=True)
        assert stage.max_queue == 5, "the one that waited has read what they were sent for"
        assert stage.reads == 3

    on_stage(short_folder, scene)


def test_a_signal_with_a_wrong_file_ends_nothing(short_folder: Path) -> None:
    async def scene(stage: Stage) -> None:
        stage.write(0)
        stage.reloading.hang_up()
        stage.write(0)
        with pytest.raises(VllamaError):
            await stage.reloading.reload()
        stage.write(6)
        await stage.reloading.reload()
        assert stage.max_queue == 6

    on_stage(short_folder, scene)


def test_on_the_way_out_nothing_is_reloaded(short_folder: Path) -> None:
    async def scene(stage: Stage) -> None:
        stage.may_read.clear()
        stage.write(7)
        calls = [asyncio.create_task(stage.reloading.reload()) for _ in range(2)]
        await asyncio.to_thread(stage.is_reading.wait, PATIENCE_S)
        stage.reloading.close()
        stage.may_read.set()
        for outcome in await asyncio.gather(*calls, stage.reloading.reload(), return_exceptions=True):
            assert isinstance(outcome, VllamaError) and outcome.reason is Reason.DRAINING
        stage.reloading.hang_up()
        assert stage.max_queue == 512
        assert stage.told == ["RELOADING"], "READY would take back STOPPING"

    on_stage(short_folder, scene)


def test_whoever_leaves_before_its_turn_changes_nothing(short_folder: Path) -> None:
    async def scene(stage: Stage) -> None:
        stage.may_read.clear()
        first = asyncio.create_task(stage.reloading.reload(is_dry_run=True))
        await asyncio.to_thread(stage.is_reading.wait, PATIENCE_S)
        left = asyncio.create_task(stage.reloading.reload())
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        stage.may_read.set()
        await first
        await stage.reloading.reload(is_dry_run=True)
        assert stage.told == []

    on_stage(short_folder, scene)
