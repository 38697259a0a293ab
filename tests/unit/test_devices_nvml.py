"""The real adapter, nvidia-ml-py included, over a library of our own: errors of every call, hangs, restarts of the
driver, and which GPUs workers see. What holds for every probe is in ``tests/contract/device_claims.py``."""

import asyncio
import ctypes
import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.devices import GIB, Card, cards
from tests.fakes.nvml.library import SOURCE, child, in_process, scripted
from vllamad.devices.nvml import driver_versions

FULL = 80 * GIB - GIB // 2

NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, LOST, MISMATCH, UNKNOWN = 3, 4, 13, 15, 18, 999

OPTIONAL = {
    "nvmlDeviceGetTemperature": {"temperature_c": None},
    "nvmlDeviceGetUtilizationRates": {"utilisation": None},
    "nvmlDeviceGetCudaComputeCapability": {"capability": None},
    "nvmlDeviceGetMigMode": {},
    "nvmlDeviceGetTotalEccErrors": {"ecc_errors": None},
    "nvmlDeviceGetRemappedRows": {},
    "nvmlDeviceGetFieldValues": {},
    "nvmlDeviceGetMemoryInfo_v2": {"reserved_bytes": 0},
    "nvmlDeviceGetComputeRunningProcesses_v3": {"used_by_pid": {}},
    "nvmlDeviceGetGraphicsRunningProcesses_v3": {},
    "nvmlDeviceGetP2PStatus": {"nvlink_peers": ()},
    "nvmlDeviceRegisterEvents": {},
    "nvmlEventSetCreate": {},
    "nvmlEventSetWait_v2": {},
}
"""Calls that may fail, and what is missing then."""
NEEDED = ["nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo"]
WHO = ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID"]
WHOLE = ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2"]
VERSIONS = ["nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion_v2"]
OF_NO_CARD = [
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceRegisterEvents",
    "nvmlEventSetCreate",
    "nvmlEventSetWait_v2",
]
"""Calls whose errors do not say which card they mean; the card tells by the others."""


def run(scene: Any) -> None:
    asyncio.run(scene, debug=True)


def test_every_function_of_the_library_has_its_test() -> None:
    there = {
        name for name in re.findall(r"^int (nvml\w+)\(", SOURCE.read_text(), re.MULTILINE) if name != "nvmlInit_v2"
    }
    assert there == {*OPTIONAL, *NEEDED, *WHO, *WHOLE, *VERSIONS, "nvmlShutdown"}


@pytest.mark.parametrize(
    "structure",
    [
        "c_nvmlMemory_t",
        "c_nvmlMemory_v2_t",
        "c_nvmlProcessInfo_v2_t",
        "c_nvmlUtilization_t",
        "c_nvmlEventData_t",
        "c_nvmlFieldValue_t",
    ],
)
def test_layouts_are_those_of_the_python_binding(structure: str, tmp_path: Path) -> None:
    import pynvml

    with in_process(tmp_path / "script") as library:
        assert library.vllama_fake_size(structure.encode()) == ctypes.sizeof(getattr(pynvml, structure))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, UNKNOWN])
@pytest.mark.parametrize("function", OPTIONAL)
def test_a_fact_that_is_not_told_is_missing_and_nothing_else(function: str, code: int, tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path) as gpus:
            gpus.start(41, GIB)
            gpus.lines = [f"error {function} {code}"]
            first, second = await gpus.read()
            assert not gpus.problem
            gpus.lines = []
        async with scripted(tmp_path) as gpus:
            gpus.start(41, GIB)
            whole = (await gpus.read())[0]
        missing = OPTIONAL[function]
        assert first.is_healthy
        assert second.is_healthy
        for field in whole.__slots__:
            assert getattr(first, field) == missing.get(field, getattr(whole, field)), field

    run(scene())


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
@pytest.mark.parametrize("function", [*NEEDED, *WHO])
def test_a_gpu_that_cannot_be_read_is_told_as_it_was_and_the_others_count(
    function: str, code: int, tmp_path: Path
) -> None:
    async def scene() -> None:
        async with scripted(tmp_path, cards(3)) as gpus:
            before = await gpus.read()
            uuid = gpus.cards[1].uuid
            gpus.lines = [f"error {function} {code} {uuid}"]
            if function == "nvmlDeviceGetMemoryInfo":
                gpus.lines.append(f"error nvmlDeviceGetMemoryInfo_v2 {code} {uuid}")
            first, second, third = await gpus.read()
            assert (first.is_healthy, third.is_healthy) == (True, True)
            assert second.reason.startswith("unreadable: ")
            assert second == before[1].unanswered(second.reason)
            gpus.lines = []
            assert await gpus.read() == before

    run(scene())


@pytest.mark.parametrize("function", sorted({*NEEDED, *WHO, *OPTIONAL} - {*OF_NO_CARD}))
def test_a_gpu_is_lost_whichever_call_says_so(function: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path) as gpus:
            before = await gpus.read()
            gpus.lines = [f"error {function} {LOST} {gpus.cards[1].uuid}"]
            if function == "nvmlDeviceGetMemoryInfo":
                gpus.lines.append(f"error nvmlDeviceGetMemoryInfo_v2 {LOST} {gpus.cards[1].uuid}")
            first, second = await gpus.read()
            assert first.is_healthy
            assert second.reason == "lost: GPU is lost (it fell off the bus)"
            assert second == before[1].unanswered(second.reason)
            gpus.lines = []
            assert await gpus.read() == before

    run(scene())


@pytest.mark.parametrize("function", OF_NO_CARD)
def test_a_call_that_means_no_card_in_particular_loses_none(function: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path) as gpus:
            gpus.lines = [f"error {function} {LOST}"]
            assert [one.is_healthy for one in await gpus.read()] == [True, True]
            gpus.lines = []
            assert len((await gpus.read())[0].nvlink_peers) == 1

    run(scene())


@pytest.mark.parametrize("function", WHO)
def test_a_gpu_that_may_not_be_opened_is_not_ours(function: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path, cards(3)) as gpus:
            gpus.lines = [f"error {function} {NO_PERMISSION} {gpus.cards[1].uuid}"]
            assert [one.index for one in await gpus.read()] == [0, 2]

    run(scene())


def test_a_name_that_is_no_text_is_no_reason_to_die(tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path, [Card("GPU-0"), Card("GPU-1")]) as gpus:
            await gpus.read()
            text = gpus.script.read_bytes().replace(b"NVIDIA H100", b"NVIDIA \xff\xfe", 1)
            gpus.script.write_bytes(text)
            first, second = await gpus.probe.read()
            assert first.reason.startswith("unreadable: ")
            assert second.is_healthy

    run(scene())


# --- the driver as a whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", WHOLE)
def test_a_driver_that_fails_is_started_anew(function: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path) as gpus:
            before = await gpus.read()
            gpus.generation = 2
            gpus.lines = [f"error {function} {UNKNOWN}"]
            for _ in range(3):
                readings = await gpus.read()
                assert gpus.problem
                assert readings == [one.unanswered(gpus.problem) for one in before]
            gpus.lines = []
            assert await gpus.read() == before

    run(scene())


def test_a_driver_that_was_loaded_anew_is_noticed_and_its_events_are_heard(tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path) as gpus:
            before = await gpus.read()
            gpus.report(79, 0)
            assert not (await gpus.read())[0].is_healthy
            gpus.generation = 2
            gpus.cards[0].xids.clear()
            assert gpus.problem == ""
            assert (await gpus.read())[0].reason == "driver: Uninitialized"
            assert await gpus.read() == before
            gpus.report(48, 1)
            assert (await gpus.read())[1].reason == "xid: 48, see the kernel's log"

    run(scene())


def test_an_updated_driver_says_what_to_do(tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path) as gpus:
            gpus.failure = MISMATCH
            assert await gpus.read() == []
            assert "reboot" in gpus.problem

    run(scene())


@pytest.mark.parametrize(
    "function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetName", "nvmlDeviceGetTemperature"]
)
def test_a_driver_that_hangs_anywhere_costs_one_thread(function: str, tmp_path: Path) -> None:
    async def scene() -> None:
        others = set(threading.enumerate())
        async with scripted(tmp_path, deadline_s=0.1) as gpus:
            gpus.lines = [f"hang {function}"]
            for _ in range(3):
                assert await gpus.read() == []
                assert gpus.problem.startswith("silent: ")
            assert await asyncio.gather(*(gpus.probe.read() for _ in range(10))) == [[]] * 10
            assert [thread.name for thread in set(threading.enumerate()) - others] == ["nvml"]
            gpus.lines = []
            async with asyncio.timeout(10):
                while gpus.problem:
                    readings = await gpus.read()
            assert [one.free_bytes for one in readings] == [FULL, FULL]

    run(scene())


def test_a_driver_that_is_slow_is_waited_for(tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path) as gpus:
            gpus.lines = ["delay nvmlInitWithFlags 50", "delay nvmlDeviceGetMemoryInfo_v2 20"]
            assert [one.free_bytes for one in await gpus.read()] == [FULL, FULL]

    run(scene())


def test_changes_of_health_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with scripted(tmp_path) as gpus:
            for _ in range(2):
                await gpus.read()
            gpus.lose(1)
            for _ in range(3):
                await gpus.read()
            gpus.find(1)
            for _ in range(2):
                await gpus.read()

    with caplog.at_level(logging.INFO, "vllamad.devices"):
        asyncio.run(scene())
    said = [record.getMessage().split()[0] for record in caplog.records if record.name.startswith("vllamad.devices")]
    assert said == ["devices.unhealthy", "devices.healthy"]


# --- memory, processes, events ----------------------------------------------------------------------------------------


def test_a_process_that_computes_and_draws_counts_once(tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path, cards(1)) as gpus:
            gpus.start(41, 3 * GIB)
            gpus.lines = [f"graphics 41 {3 * GIB}", f"graphics 7 {GIB}"]
            assert (await gpus.read())[0].used_by_pid == {41: 3 * GIB, 7: GIB}

    run(scene())


def test_many_processes_are_all_told(tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path, cards(1)) as gpus:
            for pid in range(60):
                gpus.start(pid + 1, GIB)
            (one,) = await gpus.read()
            assert one.used_by_pid == {pid + 1: GIB for pid in range(60)}

    run(scene())


def test_a_storm_of_events_does_not_hold_up_a_reading(tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path, cards(2)) as gpus:
            await gpus.read()
            for _ in range(60):
                gpus.report(31, 0)
                gpus.report(13, 1)
            gpus.report(48, 1)
            assert [one.is_healthy for one in await gpus.read()] == [True, True]
            assert [one.is_healthy for one in await gpus.read()] == [True, False]

    run(scene())


# --- which GPUs workers see -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "indices"), [(None, [0, 1, 2]), ("2,0", [0, 2]), ("", []), ("GPU-00000001", [1]), ("0,9", [0])]
)
def test_gpus_that_workers_cannot_see_are_left_out(visible: str | None, indices: list[int], tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path, cards(3), visible=visible) as gpus:
            readings = await gpus.read()
            assert [one.index for one in readings] == indices
            assert not gpus.problem
            # What cannot be used is no peer either.
            assert all(len(one.nvlink_peers) == len(indices) - 1 for one in readings)

    run(scene())


def test_a_lost_gpu_keeps_its_place_among_those_that_workers_see(tmp_path: Path) -> None:
    async def scene() -> None:
        async with scripted(tmp_path, cards(3), visible="1,2") as gpus:
            await gpus.read()
            gpus.lose(1)
            assert [(one.index, one.is_healthy) for one in await gpus.read()] == [(1, False), (2, True)]

    run(scene())


# --- what it is -------------------------------------------------------------------------------------------------------


def test_the_drivers_version_and_the_newest_cuda_that_it_runs(tmp_path: Path) -> None:
    script = tmp_path / "nvml.txt"
    with in_process(script):
        assert driver_versions() == ("", ""), "no driver is loaded"
        script.write_text("driver 570.86.15\ncuda 12080\n")
        assert driver_versions() == ("570.86.15", "12.8")
        for name, left in zip(VERSIONS, [("", "12.8"), ("570.86.15", "")], strict=True):
            script.write_text(f"driver 570.86.15\ncuda 12080\nerror {name} {NOT_SUPPORTED}\n")
            assert driver_versions() == left


# --- as the daemon finds it -------------------------------------------------------------------------------------------

FOUND_FIRST = """
import asyncio, json
from vllamad.devices.nvml import NvmlProbe

async def main():
    probe = NvmlProbe(30)
    print(json.dumps([[one.uuid, one.free_bytes] for one in await probe.read()]), flush=True)

asyncio.run(main())
"""


def test_a_process_finds_our_library_before_the_drivers(tmp_path: Path) -> None:
    script = tmp_path / "nvml.txt"
    script.write_text(f"gpu GPU-of-ours\nname A card\nmemory {9 * GIB} {GIB} {5 * GIB}\n")
    assert json.loads(child(FOUND_FIRST, script)) == [["GPU-of-ours", 5 * GIB]]


def test_a_process_leaves_though_its_driver_hangs(tmp_path: Path) -> None:
    script = tmp_path / "nvml.txt"
    script.write_text("hang nvmlInitWithFlags\n")
    assert json.loads(child(FOUND_FIRST.replace("NvmlProbe(30)", "NvmlProbe(0.1)"), script)) == []
