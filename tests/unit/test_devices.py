"""Memory of the machine, its control groups and its GPUs."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from vllamad.devices.cpu import CpuProbe, has_bfloat16
from vllamad.devices.nvml import NvmlProbe
from vllamad.domain.ports import DeviceReading

GIB = 2**30
MEMINFO = f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {12 * GIB // 1024} kB\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """``proc`` and ``groups`` of a machine with 16 GiB, 12 of them free."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/vllama.service\n")
    return tmp_path


def group(folder: Path, limit: str, used: int, cached: int, *, is_old: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_old else ("memory.max", "memory.current")
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{'total_' if is_old else ''}inactive_file {cached}\n")


def read(machine: Path) -> list[DeviceReading]:
    return asyncio.run(CpuProbe(machine / "proc", machine / "groups").read())


def test_without_limits_it_is_the_machines_memory(machine: Path) -> None:
    assert read(machine) == [DeviceReading("CPU", 16 * GIB, 12 * GIB)]
    group(machine / "groups/system.slice/vllama.service", "max", GIB, 0)
    assert read(machine) == [DeviceReading("CPU", 16 * GIB, 12 * GIB)]


def test_the_tightest_group_around_us_counts_and_cache_is_free(machine: Path) -> None:
    group(machine / "groups/system.slice/vllama.service", str(8 * GIB), 3 * GIB, GIB)
    assert read(machine) == [DeviceReading("CPU", 8 * GIB, 6 * GIB)]
    group(machine / "groups/system.slice", str(4 * GIB), 5 * GIB, 0)
    assert read(machine) == [DeviceReading("CPU", 4 * GIB, 0)]


def test_in_a_container_the_root_is_our_group(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("0::/../../elsewhere\n")
    group(machine / "groups", str(2 * GIB), GIB, 0)
    assert read(machine) == [DeviceReading("CPU", 2 * GIB, GIB)]


def test_groups_of_the_old_kind(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("5:cpu:/x\n4:memory:/x\n0::/\n")
    group(machine / "groups/memory", str(2**63 - 4096), GIB, 0, is_old=True)
    assert read(machine) == [DeviceReading("CPU", 16 * GIB, 12 * GIB)]
    group(machine / "groups/memory/x", str(6 * GIB), 2 * GIB, GIB, is_old=True)
    assert read(machine) == [DeviceReading("CPU", 6 * GIB, 5 * GIB)]


def test_no_proc_no_devices(tmp_path: Path) -> None:
    assert read(tmp_path) == []


def test_this_machine_has_memory() -> None:
    (here,) = CpuProbe().read_now()
    assert 0 < here.free_bytes <= here.total_bytes


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("processor: 0\nflags\t\t: fpu sse avx2\n", False),
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("Features\t: fp asimd\n", False),
        ("processor: 0\n", True),
    ],
)
def test_bfloat16(tmp_path: Path, text: str, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bfloat16(tmp_path / "cpuinfo") is has


def test_bfloat16_is_assumed_where_nothing_tells(tmp_path: Path) -> None:
    assert has_bfloat16(tmp_path / "none")


def test_gpus_are_asked_in_a_thread_of_their_own_once_for_all_who_wait() -> None:
    threads: list[str] = []

    def driver() -> list[DeviceReading]:
        threads.append(threading.current_thread().name)
        return [DeviceReading("NVIDIA H200", 150 * GIB, 149 * GIB)]

    async def scene() -> None:
        probe = NvmlProbe(5, driver)
        readings = await asyncio.gather(probe.read(), probe.read(), probe.read())
        assert readings == [[DeviceReading("NVIDIA H200", 150 * GIB, 149 * GIB)]] * 3
        assert threads == ["nvml"]
        await probe.read()
        assert threads == ["nvml", "nvml"]

    asyncio.run(scene(), debug=True)


def test_a_driver_that_hangs_gives_no_devices_in_time_and_answers_later() -> None:
    release = threading.Event()

    def driver() -> list[DeviceReading]:
        release.wait(10)
        return [DeviceReading("GPU", 2, 1)]

    async def scene() -> None:
        probe = NvmlProbe(0.05, driver)
        before = time.monotonic()
        assert await probe.read() == []
        assert await probe.read() == []
        assert time.monotonic() - before < 5
        release.set()
        patient = NvmlProbe(5, driver)
        assert await patient.read() == [DeviceReading("GPU", 2, 1)]
        cancelled = asyncio.create_task(patient.read())
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await patient.read() == [DeviceReading("GPU", 2, 1)]

    asyncio.run(scene(), debug=True)


def test_without_a_driver_there_are_no_gpus() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    probe = NvmlProbe()

    async def scene() -> None:
        assert await probe.read() == []
        assert await probe.read() == []

    asyncio.run(scene())
