"""The one ledger, kept true by looking: memory that returns late or never, lost GPUs, silent drivers."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.fakes.devices import GIB, FakeGpus, LateMemory, LostGpu, SilentDriver, StuckProcess, cards
from tests.fakes.world import FakeDevice
from vllamad.domain.placement import Demand, Lack, Need, NoPlace, Placement, place
from vllamad.domain.worker import Held
from vllamad.supervisor.memory import DeviceMemory, OwnUse

USABLE = 79 * GIB + GIB // 2
"""Of a fake card: what its driver keeps for itself is not to be had."""


class Keeper:
    """A ledger over GPUs, with what it said."""

    def __init__(self, gpus: FakeGpus) -> None:
        self.gpus = gpus
        self.memory = DeviceMemory()
        self.said: list[str] = []
        self.own: dict[str, OwnUse] = {}
        self.changes = 0
        self.memory.tell = self.said.append
        self.memory.own_use = lambda: list(self.own.values())
        self.memory.on_change = self._changed

    def _changed(self) -> None:
        self.changes += 1

    def run(self, holder: str, pid: int, size: int, index: int = 0) -> None:
        """A worker that declared ``size`` GiB starts, and takes them."""
        assert self.memory.reserve(holder, {index: size * GIB}) is None
        self.gpus.start(pid, size * GIB, index)
        self.own[holder] = OwnUse(holder, frozenset({pid}))


def with_gpus(test: Callable[[Keeper], Awaitable[None]], gpus: FakeGpus) -> None:
    async def run() -> None:
        keeper = Keeper(gpus)
        await keeper.memory.use(gpus, 0.0)
        await test(keeper)

    asyncio.run(run())


def test_devices_are_what_workers_can_have_of_them() -> None:
    async def test(keeper: Keeper) -> None:
        devices = keeper.memory.ledger.devices
        assert [one.name for one in devices.values()] == ["GPU 0", "GPU 1"]
        assert [one.total_bytes for one in devices.values()] == [USABLE, USABLE]
        assert [one.links for one in devices.values()] == [{1}, {0}]
        assert keeper.memory.key(1) == keeper.gpus.cards[1].uuid

    with_gpus(test, FakeGpus())


def test_what_workers_use_is_not_taken_for_others_use() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        changes = keeper.changes
        keeper.gpus.start(99, 5 * GIB)
        await keeper.memory.refresh()
        assert keeper.memory.ledger.foreign[0] == 5 * GIB
        assert keeper.memory.ledger.free(0) == USABLE - 35 * GIB
        assert keeper.memory.own_bytes("a") == 30 * GIB
        assert keeper.said == ["others hold 5.0 GiB on GPU 0, before it was 0.0 GiB: 44.5 GiB of 79.5 GiB can be given"]
        assert keeper.changes == changes + 1

    with_gpus(test, FakeGpus())


def test_more_than_was_declared_counts_as_others() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        keeper.gpus.start(1, 34 * GIB)
        await keeper.memory.refresh()
        assert keeper.memory.ledger.foreign[0] == 4 * GIB

    with_gpus(test, FakeGpus())


def test_memory_that_returns_late_is_waited_for() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        await keeper.memory.refresh()
        keeper.gpus.end(1)
        seen = [await keeper.memory.has_returned("a") for _ in range(4)]
        assert seen == [False, False, False, True]
        keeper.memory.release("a")
        assert keeper.memory.ledger.free(0) == USABLE

    with_gpus(test, LateMemory())


def test_memory_of_one_returns_while_another_on_the_card_goes_on() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        keeper.memory.end_load("a")
        keeper.run("b", 2, 20)
        await keeper.memory.refresh()
        keeper.gpus.end(1)
        assert await keeper.memory.has_returned("a")

    with_gpus(test, FakeGpus())


def test_what_does_not_come_back_is_quarantined_until_it_is_seen() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        await keeper.memory.refresh()
        keeper.gpus.end(1)  # it hangs in the driver
        assert not await keeper.memory.has_returned("a")
        keeper.memory.give_up("a")
        assert "a has leaked 30.0 GiB on GPU 0" in keeper.said[-1]
        assert keeper.memory.ledger.free(0) == USABLE - 30 * GIB
        assert keeper.memory.reserve("a", {0: 40 * GIB}) is None, "the worker itself may go on elsewhere"
        keeper.own["a"] = OwnUse("a", frozenset({3}))
        await keeper.memory.refresh()
        assert keeper.memory.ledger.free(0) == USABLE - 70 * GIB
        keeper.gpus.can_end = True
        keeper.gpus.end(1)
        await keeper.memory.refresh()
        assert keeper.said[-1] == "30.0 GiB that a had leaked are back"
        assert keeper.memory.ledger.free(0) == USABLE - 40 * GIB

    with_gpus(test, StuckProcess())


def test_a_worker_whose_processes_do_not_end_keeps_its_quarantine() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        keeper.memory.quarantine("a")
        await keeper.memory.refresh()
        assert keeper.memory.ledger.reservations["a"].held is Held.LEAKED
        assert keeper.memory.reserve("a", {0: GIB}) is not None
        keeper.gpus.end(1)
        keeper.memory.give_up("a")  # at last; nobody has looked since
        assert keeper.memory.ledger.free(0) == USABLE - 30 * GIB
        await keeper.memory.refresh()
        assert keeper.memory.ledger.free(0) == USABLE

    with_gpus(test, FakeGpus())


def test_a_lost_gpu_gives_nothing_and_has_nothing_to_give_back() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        await keeper.memory.refresh()
        assert keeper.said[-1].startswith("nothing is placed on GPU 0: lost")
        assert keeper.memory.ledger.free(0) == 0
        assert await keeper.memory.has_returned("a")
        demand = Demand((Need(1, 30 * GIB),))
        found = place(demand, keeper.memory.ledger)
        assert isinstance(found, Placement)
        assert found.devices == (1,)
        pinned = place(Demand((Need(1, 30 * GIB),), pinned=(0,)), keeper.memory.ledger)
        assert isinstance(pinned, NoPlace)
        assert pinned.lack is Lack.NEVER
        assert "GPU 0 is closed: lost" in pinned.numbers

    with_gpus(test, LostGpu())


def test_numbers_of_ours_stay_when_the_driver_counts_anew() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("b", 2, 30, index=1)
        keeper.gpus.remove(0)
        await keeper.memory.refresh()
        assert keeper.memory.ledger.free(1) == USABLE - 30 * GIB
        assert keeper.memory.ledger.free(0) == 0

    with_gpus(test, FakeGpus(cards(2)))


def test_a_silent_driver_proves_nothing_and_who_needs_its_gpu_waits() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        keeper.gpus.end(1)
        assert not await keeper.memory.has_returned("a")
        found = place(Demand((Need(1, 30 * GIB),)), keeper.memory.ledger)
        assert isinstance(found, NoPlace)
        assert found.lack is Lack.FULL, "it may answer again: that is no reason to send anybody away"
        assert "silent" in found.numbers
        keeper.memory.give_up("a")
        assert keeper.memory.ledger.leaks()

    with_gpus(test, SilentDriver())


def test_on_cpu_the_end_of_the_processes_is_the_end_of_their_memory() -> None:
    async def run() -> None:
        memory, device = DeviceMemory(), FakeDevice()
        await memory.use(device, 0.0)
        assert memory.ledger.foreign[0] == 8 * GIB
        assert memory.reserve("a", {0: 4 * GIB}) is None
        device.free_bytes -= 3 * GIB
        memory.own_use = lambda: [OwnUse("a", frozenset({1}), 3 * GIB)]
        await memory.refresh()
        assert memory.ledger.foreign[0] == 8 * GIB
        assert await memory.has_returned("a")

    asyncio.run(run())


def test_what_an_engine_has_not_taken_yet_is_not_taken_off_others_use() -> None:
    async def run() -> None:
        memory, device = DeviceMemory(), FakeDevice()
        await memory.use(device, 0.0)
        assert memory.reserve("a", {0: 4 * GIB}) is None
        for _ in range(3):
            await memory.refresh()
            assert memory.ledger.foreign[0] == 8 * GIB
            assert memory.ledger.free(0) == 4 * GIB, "or the next model gets, when this one is ready, what is not there"
            device.free_bytes -= 2 * GIB
        await memory.refresh()
        assert memory.ledger.foreign[0] == 10 * GIB, "more than it declared is never its own"

    asyncio.run(run())


def test_others_who_came_meanwhile_do_not_make_returned_memory_a_leak() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        keeper.memory.end_load("a")
        keeper.gpus.start(99, 5 * GIB)
        await keeper.memory.refresh()
        keeper.gpus.end(1)
        assert await keeper.memory.has_returned("a")

    with_gpus(test, FakeGpus())


def test_others_who_left_meanwhile_do_not_make_a_leak_returned_memory() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.gpus.start(99, 30 * GIB)
        await keeper.memory.refresh()
        keeper.run("a", 1, 30)
        keeper.memory.end_load("a")
        keeper.gpus.cards[0].processes.pop(99)
        await keeper.memory.refresh()
        keeper.gpus.end(1)
        assert not await keeper.memory.has_returned("a")

    with_gpus(test, LateMemory())


def test_where_the_driver_does_not_tell_by_process_newcomers_are_no_leak_either() -> None:
    async def run() -> None:
        memory, device = DeviceMemory(), FakeDevice("cuda")
        await memory.use(device, 0.0)
        assert memory.reserve("a", {0: 4 * GIB}) is None
        device.free_bytes -= 4 * GIB
        memory.end_load("a")
        device.free_bytes -= 2 * GIB  # somebody else
        await memory.refresh()
        assert not await memory.has_returned("a")
        device.free_bytes += 4 * GIB
        assert await memory.has_returned("a")

    asyncio.run(run())


def test_who_waits_looks_again_when_a_leak_is_back() -> None:
    async def test(keeper: Keeper) -> None:
        keeper.run("a", 1, 30)
        await keeper.memory.refresh()
        keeper.gpus.end(1)
        await keeper.memory.refresh()
        keeper.memory.give_up("a")
        changes = keeper.changes
        keeper.gpus.can_end = True
        keeper.gpus.end(1)
        await keeper.memory.refresh()
        assert keeper.memory.ledger.free(0) == USABLE
        assert keeper.changes > changes

    with_gpus(test, StuckProcess())
