"""The claims about devices: on the fake behind the port, on the real adapter over a library of our own, and on this
machine. What the other tests build on with ``FakeGpus`` is true of the real adapter."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.contract import device_claims as claims
from tests.fakes.devices import Card, FakeGpus, LateMemory, LostGpu, SilentDriver, StuckProcess
from tests.fakes.nvml.library import ScriptedGpus, scripted
from vllamad.devices.cpu import CpuProbe
from vllamad.devices.nvml import NvmlProbe
from vllamad.domain.ports import DeviceProbe

DRIVER = Path("/dev/nvidiactl")
GIB = 1 << 30

Claim = Callable[[claims.Make], Awaitable[None]]
LookingClaim = Callable[[DeviceProbe], Awaitable[None]]


def name(claim: Claim | LookingClaim) -> str:
    return claim.__name__


@asynccontextmanager
async def make_fake(cards: list[Card] | None = None, *, deadline_s: float = 0) -> AsyncIterator[FakeGpus]:
    yield FakeGpus(cards)


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=name)
def test_the_fake_keeps_every_claim(claim: Claim) -> None:
    asyncio.run(claim(make_fake), debug=True)


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=name)
def test_the_real_adapter_keeps_every_claim_over_our_library(claim: Claim, tmp_path: Path) -> None:
    def make(cards: list[Card] | None = None, *, deadline_s: float = 10) -> AbstractAsyncContextManager[ScriptedGpus]:
        return scripted(tmp_path, cards, deadline_s=deadline_s)

    asyncio.run(claim(make), debug=True)


@pytest.mark.parametrize("claim", claims.LOOKING_CLAIMS, ids=name)
@pytest.mark.parametrize("probe", [CpuProbe(), CpuProbe(budget_bytes=GIB), FakeGpus()], ids=["cpu", "budget", "fake"])
def test_what_is_there_keeps_the_claims_that_look(claim: LookingClaim, probe: DeviceProbe) -> None:
    asyncio.run(claim(probe), debug=True)


@pytest.mark.skipif(not DRIVER.exists(), reason="this machine has no NVIDIA driver")
@pytest.mark.parametrize("claim", claims.LOOKING_CLAIMS, ids=name)
def test_the_real_driver_keeps_the_claims_that_look(claim: LookingClaim) -> None:
    asyncio.run(claim(NvmlProbe(60)), debug=True)


def test_doubles_have_the_fault_that_they_are_named_after() -> None:
    async def scene() -> None:
        late, stuck, lost, silent = LateMemory(), StuckProcess(), LostGpu(), SilentDriver()
        for gpus in (late, stuck):
            gpus.start(1, GIB)
        full = 80 * GIB - GIB // 2
        late.end(1)
        assert [(await late.read())[0].free_bytes - full for _ in range(4)] == [-GIB, -GIB, -GIB, 0]
        stuck.end(1)
        assert (await stuck.read())[0].used_by_pid == {1: GIB}
        assert [[one.is_healthy for one in await lost.read()] for _ in range(2)] == [[True, True], [False, True]]
        assert not (await silent.read(), silent.problem)[1]
        assert [one.is_healthy for one in await silent.read()] == [False, False]
        assert silent.problem.startswith("silent")

    asyncio.run(scene(), debug=True)
