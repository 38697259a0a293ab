"""Memory of the machine and its control groups, which GPUs workers see, and how a driver that blocks is asked."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from vllamad.devices.asking import Asker
from vllamad.devices.cpu import CpuProbe, has_bfloat16
from vllamad.devices.nvml import Answer, NvmlProbe
from vllamad.devices.visible import visible_positions
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


def cpu(total_bytes: int, free_bytes: int) -> DeviceReading:
    return DeviceReading("CPU", total_bytes, free_bytes, uuid="cpu", kind="cpu")


def read(machine: Path, budget_bytes: int = 0) -> list[DeviceReading]:
    return asyncio.run(CpuProbe(machine / "proc", machine / "groups", budget_bytes=budget_bytes).read())


def test_without_limits_it_is_the_machines_memory(machine: Path) -> None:
    assert read(machine) == [cpu(16 * GIB, 12 * GIB)]
    group(machine / "groups/system.slice/vllama.service", "max", GIB, 0)
    assert read(machine) == [cpu(16 * GIB, 12 * GIB)]


def test_the_tightest_group_around_us_counts_and_cache_is_free(machine: Path) -> None:
    group(machine / "groups/system.slice/vllama.service", str(8 * GIB), 3 * GIB, GIB)
    assert read(machine) == [cpu(8 * GIB, 6 * GIB)]
    group(machine / "groups/system.slice", str(4 * GIB), 5 * GIB, 0)
    assert read(machine) == [cpu(4 * GIB, 0)]


def test_in_a_container_the_root_is_our_group(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("0::/../../elsewhere\n")
    group(machine / "groups", str(2 * GIB), GIB, 0)
    assert read(machine) == [cpu(2 * GIB, GIB)]


def test_groups_of_the_old_kind(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("5:cpu:/x\n4:memory:/x\n0::/\n")
    group(machine / "groups/memory", str(2**63 - 4096), GIB, 0, is_old=True)
    assert read(machine) == [cpu(16 * GIB, 12 * GIB)]
    group(machine / "groups/memory/x", str(6 * GIB), 2 * GIB, GIB, is_old=True)
    assert read(machine) == [cpu(6 * GIB, 5 * GIB)]


def test_a_budget_is_one_more_limit(machine: Path) -> None:
    assert read(machine, 4 * GIB) == [cpu(4 * GIB, 4 * GIB)]
    assert read(machine, 14 * GIB) == [cpu(14 * GIB, 12 * GIB)]
    assert read(machine, 99 * GIB) == [cpu(16 * GIB, 12 * GIB)]
    group(machine / "groups/system.slice/vllama.service", str(8 * GIB), 7 * GIB, 0)
    assert read(machine, 4 * GIB) == [cpu(4 * GIB, GIB)]


def test_no_proc_no_devices(tmp_path: Path) -> None:
    probe = CpuProbe(tmp_path)
    assert probe.read_now() == []
    assert probe.problem.startswith("unreadable: ")
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert len(probe.read_now()) == 1
    assert not probe.problem


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


# --- which GPUs workers see ------------------------------------------------------------------------------------------

UUIDS = ["GPU-aa11", "GPU-ab22", "GPU-cc33"]


@pytest.mark.parametrize(
    ("value", "positions"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("0,1,2", [0, 1, 2]),
        (" 2 , 0", [2, 0]),
        ("0,7,1", [0]),
        ("1,-1,2", [1]),
        ("0,,1", [0]),
        ("1,1", []),
        ("1gpu,2x", [1, 2]),
        ("GPU-cc33,GPU-aa11", [2, 0]),
        ("GPU-c,GPU-aa", [2, 0]),
        ("GPU-a", []),
        ("GPU-c,GPU-a", [2]),
        ("GPU-cc33,GPU-c", []),
        ("GPU-cc33,0", [2]),
        ("0,GPU-cc33", [0]),
        ("MIG-cc33", []),
    ],
)
def test_workers_see_what_cuda_makes_of_the_variable(value: str | None, positions: list[int]) -> None:
    assert visible_positions(value, UUIDS) == positions


# --- a driver that blocks ---------------------------------------------------------------------------------------------


def test_a_driver_is_asked_in_a_thread_of_its_own_once_for_all_who_wait() -> None:
    threads: list[str] = []

    def driver() -> Answer:
        threads.append(threading.current_thread().name)
        return Answer([DeviceReading("NVIDIA H200", 150 * GIB, 149 * GIB)])

    async def scene() -> None:
        probe = NvmlProbe(5, ask=driver)
        readings = await asyncio.gather(probe.read(), probe.read(), probe.read())
        assert readings == [[DeviceReading("NVIDIA H200", 150 * GIB, 149 * GIB)]] * 3
        assert threads == ["nvml"]
        await probe.read()
        assert threads == ["nvml", "nvml"]

    asyncio.run(scene(), debug=True)


def test_a_driver_that_hangs_costs_one_thread_and_no_one_waits_for_it() -> None:
    release = threading.Event()
    asked = 0

    def driver() -> Answer:
        nonlocal asked
        asked += 1
        release.wait(10)
        return Answer([DeviceReading("GPU", 2, asked)])

    async def scene() -> None:
        others = {thread for thread in threading.enumerate() if thread.name == "nvml"}
        probe = NvmlProbe(0.05, ask=driver)
        before = time.monotonic()
        for _ in range(5):
            assert await probe.read() == []
        assert await asyncio.gather(*(probe.read() for _ in range(20))) == [[]] * 20
        assert time.monotonic() - before < 5
        assert probe.problem == "silent: the NVIDIA driver did not answer in 0.05 s"
        assert asked == 1
        assert len({thread for thread in threading.enumerate() if thread.name == "nvml"} - others) == 1
        release.set()

    asyncio.run(scene(), debug=True)


def test_what_was_asked_too_long_ago_is_asked_anew() -> None:
    release = threading.Event()
    asked = 0

    def driver() -> Answer:
        nonlocal asked
        asked += 1
        number = asked
        if number == 1:
            release.wait(10)
        return Answer([DeviceReading("GPU", 9, number)])

    async def scene() -> None:
        asker = Asker(driver, 0.2, "asker")
        with pytest.raises(TimeoutError):
            await asker.answer()
        late = asyncio.create_task(asker.answer())
        await asyncio.sleep(0)
        release.set()
        assert (await late).readings == [DeviceReading("GPU", 9, 2)]

    asyncio.run(scene(), debug=True)


def test_who_gives_up_does_not_take_the_answer_from_others() -> None:
    release = threading.Event()

    def driver() -> Answer:
        release.wait(10)
        return Answer([DeviceReading("GPU", 2, 1)])

    async def scene() -> None:
        probe = NvmlProbe(5, ask=driver)
        cancelled, patient = asyncio.create_task(probe.read()), asyncio.create_task(probe.read())
        await asyncio.sleep(0)
        cancelled.cancel()
        release.set()
        assert await patient == [DeviceReading("GPU", 2, 1)]

    asyncio.run(scene(), debug=True)


def test_a_bug_in_the_thread_reaches_who_asked_and_the_thread_goes_on() -> None:
    faults = [ZeroDivisionError("bug")]

    def driver() -> Answer:
        if faults:
            raise faults.pop()
        return Answer([])

    async def scene() -> None:
        probe = NvmlProbe(5, ask=driver)
        with pytest.raises(ZeroDivisionError):
            await probe.read()
        assert await probe.read() == []

    asyncio.run(scene(), debug=True)


def test_without_a_driver_there_are_no_gpus() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    probe = NvmlProbe()

    async def scene() -> None:
        for _ in range(2):
            assert await probe.read() == []
            assert probe.problem == "no NVIDIA driver: libnvidia-ml.so.1 was not found"

    asyncio.run(scene())
