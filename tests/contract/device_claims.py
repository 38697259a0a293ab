"""What the daemon relies on about devices, as claims that run on the fake behind the port, on the real adapter over a
library of our own, and, if they only look, on whatever this machine has.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tests.fakes.devices import GIB, Card, cards
from vllamad.domain.ports import DeviceProbe, DeviceReading

PATIENCE_S = 10.0
HASTE_S = 0.25
"""For claims in which the driver is silent: each such reading takes so long."""


class Gpus(DeviceProbe, Protocol):
    """A probe, and what can be done to its cards. See ``tests.fakes.devices.Rack``."""

    cards: list[Card]
    is_silent: bool
    failure: int
    late_reads: int
    can_end: bool

    def start(self, pid: int, used_bytes: int, index: int = 0) -> None: ...
    def end(self, pid: int) -> None: ...
    def lose(self, index: int = 0) -> None: ...
    def find(self, index: int = 0) -> None: ...
    def report(self, xid: int, index: int = 0) -> None: ...
    def remove(self, index: int) -> Card: ...


class Make(Protocol):
    """Makes a probe over cards, which answers within ``deadline_s`` or is silent."""

    def __call__(
        self, cards_: list[Card] | None = None, *, deadline_s: float = PATIENCE_S
    ) -> AbstractAsyncContextManager[Gpus]: ...


async def answered(probe: DeviceProbe) -> list[DeviceReading]:
    """A reading that the driver itself has made; a busy machine may need more than one try."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            readings = await probe.read()
            if not probe.problem:
                return readings


async def every_gpu_is_told_by_its_number(make: Make) -> None:
    async with make(cards(8)) as gpus:
        readings = await gpus.read()
        assert not gpus.problem
        assert [one.index for one in readings] == list(range(8))
        assert [one.uuid for one in readings] == [card.uuid for card in gpus.cards]
        for one in readings:
            assert (one.name, one.kind, one.key) == ("NVIDIA H100 80GB HBM3", "cuda", one.uuid)
            assert (one.total_bytes, one.reserved_bytes) == (80 * GIB, GIB // 2)
            assert one.free_bytes == one.total_bytes - one.reserved_bytes
            assert (one.temperature_c, one.utilisation, one.capability) == (41, 0.0, (9, 0))
            assert (one.ecc_errors, one.is_mig, one.is_healthy, one.reason) == (0, False, True, "")
            assert set(one.nvlink_peers) == {card.uuid for card in gpus.cards} - {one.uuid}


async def a_process_is_told_with_what_it_holds(make: Make) -> None:
    async with make() as gpus:
        gpus.start(41, 20 * GIB, 0)
        gpus.start(42, 5 * GIB, 0)
        gpus.start(42, 6 * GIB, 1)
        gpus.cards[1].utilisation = 0.5
        first, second = await gpus.read()
        assert (first.used_by_pid, second.used_by_pid) == ({41: 20 * GIB, 42: 5 * GIB}, {42: 6 * GIB})
        assert first.free_bytes == first.total_bytes - first.reserved_bytes - 25 * GIB
        assert second.utilisation == 0.5
        gpus.end(42)
        first, second = await gpus.read()
        assert (first.used_by_pid, second.used_by_pid) == ({41: 20 * GIB}, {})
        assert second.free_bytes == second.total_bytes - second.reserved_bytes


async def memory_may_return_late(make: Make) -> None:
    async with make() as gpus:
        gpus.late_reads = 3
        gpus.start(41, 20 * GIB)
        before = (await gpus.read())[0].free_bytes
        gpus.end(41)
        for _ in range(3):
            first = (await gpus.read())[0]
            assert (first.free_bytes, first.used_by_pid) == (before, {})
        assert (await gpus.read())[0].free_bytes == before + 20 * GIB


async def a_process_that_cannot_be_killed_keeps_its_memory(make: Make) -> None:
    async with make() as gpus:
        gpus.can_end = False
        gpus.start(41, 20 * GIB)
        before = (await gpus.read())[0]
        gpus.end(41)
        assert (await gpus.read())[0] == before
        assert before.used_by_pid == {41: 20 * GIB}


async def what_a_driver_does_not_tell_is_none(make: Make) -> None:
    bare = Card("GPU-bare", "NVIDIA GeForce", 24 * GIB, None, {7: None}, None, None, None, [], None, None, None, None)
    async with make([bare]) as gpus:
        (one,) = await gpus.read()
        assert one == DeviceReading("NVIDIA GeForce", 24 * GIB, 24 * GIB, uuid="GPU-bare")


async def a_lost_gpu_stays_in_the_list_and_may_come_back(make: Make) -> None:
    async with make(cards(3)) as gpus:
        gpus.start(41, 20 * GIB, 1)
        before = await gpus.read()
        gpus.lose(1)
        first, second, third = await gpus.read()
        assert not gpus.problem
        assert (first.is_healthy, second.is_healthy, third.is_healthy) == (True, False, True)
        assert second.reason.startswith("lost: ")
        assert second == before[1].unanswered(second.reason)
        assert (second.free_bytes, second.used_by_pid, second.total_bytes) == (0, {}, 80 * GIB)
        assert set(first.nvlink_peers) == {third.uuid}
        gpus.find(1)
        assert await gpus.read() == before


async def a_gpu_that_was_lost_from_the_beginning_is_told_too(make: Make) -> None:
    async with make() as gpus:
        gpus.lose(0)
        first, second = await gpus.read()
        assert (first.index, first.total_bytes, first.is_healthy, second.is_healthy) == (0, 0, False, True)
        assert first.reason.startswith("lost: ")
        gpus.find(0)
        assert [one.is_healthy for one in await gpus.read()] == [True, True]


async def a_gpu_that_is_not_listed_any_more_stays_known(make: Make) -> None:
    async with make(cards(3)) as gpus:
        uuids = [one.uuid for one in await gpus.read()]
        gone = gpus.remove(1)
        readings = {one.uuid: one for one in await gpus.read()}
        assert set(readings) == set(uuids)
        assert [readings[uuid].is_healthy for uuid in uuids] == [True, False, True]
        assert readings[gone.uuid].reason.startswith("lost: ")
        # Numbers move, and the readings say so.
        assert readings[uuids[2]].index == 1
        gpus.cards.insert(1, gone)
        assert [(one.uuid, one.is_healthy) for one in await gpus.read()] == [(uuid, True) for uuid in uuids]


async def a_driver_that_falls_silent_leaves_its_gpus_known_and_unusable(make: Make) -> None:
    async with make(deadline_s=HASTE_S) as gpus:
        before = await answered(gpus)
        gpus.is_silent = True
        readings = await gpus.read()
        assert gpus.problem.startswith("silent: ")
        assert readings == [one.unanswered(gpus.problem) for one in before]
        assert await gpus.read() == readings
        gpus.is_silent = False
        assert await answered(gpus) == before


async def a_driver_that_was_never_heard_gives_no_gpus_and_a_problem(make: Make) -> None:
    async with make(deadline_s=HASTE_S) as gpus:
        gpus.is_silent = True
        assert await gpus.read() == []
        assert gpus.problem.startswith("silent: ")
        gpus.is_silent = False
        assert len(await answered(gpus)) == 2


async def a_driver_that_fails_leaves_its_gpus_known_and_unusable(make: Make) -> None:
    async with make() as gpus:
        gpus.failure = 9
        assert await gpus.read() == []
        assert gpus.problem.startswith("driver: ")
        gpus.failure = 0
        before = await gpus.read()
        assert len(before) == 2
        gpus.failure = 999
        assert await gpus.read() == [one.unanswered(gpus.problem) for one in before]
        assert gpus.problem.startswith("driver: ")
        gpus.failure = 0
        assert await gpus.read() == before
        assert not gpus.problem


async def a_critical_event_makes_a_gpu_unhealthy_and_others_do_not(make: Make) -> None:
    async with make() as gpus:
        gpus.start(41, 20 * GIB)
        before = await gpus.read()
        gpus.report(31, 0)  # a page fault of a program
        gpus.report(94, 1)  # a memory error that was contained
        assert await gpus.read() == before
        gpus.report(48, 1)  # a double bit error
        first, second = await gpus.read()
        assert first == before[0]
        assert not second.is_healthy
        assert second.reason.startswith("xid: 48")
        assert second.free_bytes == before[1].free_bytes
        assert (await gpus.read())[1] == second
        gpus.lose(1)
        await gpus.read()
        gpus.find(1)
        assert await gpus.read() == before


async def what_ails_a_gpu_is_told_in_a_word(make: Make) -> None:
    async with make(cards(5)) as gpus:
        gpus.cards[0].recovery = 1
        gpus.cards[1].remap_failed = True
        gpus.cards[2].remap_failed, gpus.cards[2].ecc_errors = None, 3
        gpus.cards[3].is_mig = True
        gpus.cards[4].ecc_errors = 3  # remapped: it goes on
        readings = await gpus.read()
        assert [one.reason.partition(":")[0] for one in readings] == ["reset", "ecc", "ecc", "mig", ""]
        assert [one.is_healthy for one in readings] == [False] * 4 + [True]
        assert [one.is_mig for one in readings] == [False, False, False, True, False]
        assert [one.ecc_errors for one in readings] == [0, 0, 3, 0, 3]


CLAIMS: list[Callable[[Make], Awaitable[None]]] = [
    every_gpu_is_told_by_its_number,
    a_process_is_told_with_what_it_holds,
    memory_may_return_late,
    a_process_that_cannot_be_killed_keeps_its_memory,
    what_a_driver_does_not_tell_is_none,
    a_lost_gpu_stays_in_the_list_and_may_come_back,
    a_gpu_that_was_lost_from_the_beginning_is_told_too,
    a_gpu_that_is_not_listed_any_more_stays_known,
    a_driver_that_falls_silent_leaves_its_gpus_known_and_unusable,
    a_driver_that_was_never_heard_gives_no_gpus_and_a_problem,
    a_driver_that_fails_leaves_its_gpus_known_and_unusable,
    a_critical_event_makes_a_gpu_unhealthy_and_others_do_not,
    what_ails_a_gpu_is_told_in_a_word,
]


async def readings_make_sense(probe: DeviceProbe) -> None:
    """Only looks, so it holds for any devices at any time."""
    readings = await answered(probe)
    assert readings
    assert len({one.key for one in readings}) == len(readings)
    assert [one.index for one in readings] == sorted({one.index for one in readings})
    for one in readings:
        assert one.name
        assert one.uuid
        assert one.kind in {"cuda", "cpu"}
        assert one.is_healthy == (not one.reason)
        if one.is_healthy:
            assert 0 <= one.free_bytes <= one.total_bytes - one.reserved_bytes
            assert sum(one.used_by_pid.values()) <= one.total_bytes
            assert one.utilisation is None or 0 <= one.utilisation <= 1
            assert one.temperature_c is None or 0 < one.temperature_c < 120
            assert one.kind == "cpu" or one.capability is not None
            assert set(one.nvlink_peers) <= {other.uuid for other in readings} - {one.uuid}


async def who_it_is_does_not_change(probe: DeviceProbe) -> None:
    """Two readings tell of the same devices."""
    first, second = await answered(probe), await answered(probe)
    for one, other in zip(first, second, strict=True):
        assert (one.key, one.index, one.name) == (other.key, other.index, other.name)
        assert (one.total_bytes, one.reserved_bytes) == (other.total_bytes, other.reserved_bytes)
        assert (one.capability, one.nvlink_peers) == (other.capability, other.nvlink_peers)


LOOKING_CLAIMS: list[Callable[[DeviceProbe], Awaitable[None]]] = [readings_make_sense, who_it_is_does_not_change]
