"""Operations: started or joined, watched without loss of the end, cancelled only if nobody else cares."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.fakes.clock import FakeClock
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.operation import Operation, OperationKind, Progress
from vllamad.operations.registry import Operations, Report

PATIENCE_S = 5.0
PULL = OperationKind.PULL


class Work:
    """Long work that ends when told to."""

    def __init__(self) -> None:
        self.runs = 0
        self.report: Report | None = None
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __call__(self, report: Report) -> None:
        self.runs += 1
        self.report = report
        await self.end


def in_registry(test: Callable[[Operations], Awaitable[None]]) -> None:
    async def run() -> None:
        operations = Operations(FakeClock())
        started = asyncio.Event()
        running = asyncio.create_task(operations.run(started))
        await started.wait()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await test(operations)
        finally:
            await operations.close()
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(run(), debug=True)


async def collect(operations: Operations, name: str) -> list[Operation]:
    return [snapshot async for snapshot in operations.watch(name)]


def test_a_second_start_joins_the_first() -> None:
    async def test(operations: Operations) -> None:
        work = Work()
        first = operations.start_or_join(PULL, "m", "m", work)
        second = operations.start_or_join(PULL, "m", "m", work)
        assert first.name == second.name
        await asyncio.sleep(0)
        assert work.runs == 1
        work.end.set_result(None)
        await operations.wait(first.name)
        third = operations.start_or_join(PULL, "m", "m", Work())
        assert third.name != first.name

    in_registry(test)


def test_every_watcher_sees_the_end_even_if_others_took_the_news_first() -> None:
    async def test(operations: Operations) -> None:
        work = Work()
        name = operations.start_or_join(PULL, "m", "m", work).name
        watchers = [asyncio.create_task(collect(operations, name)) for _ in range(3)]
        await asyncio.sleep(0)
        assert work.report is not None
        for done in range(100):
            work.report(Progress("downloading", completed_bytes=done, total_bytes=100))
        work.end.set_result(None)
        for snapshots in await asyncio.gather(*watchers):
            assert snapshots[-1].is_done
            assert len(snapshots) < 50, "a snapshot replaces the one before"

    in_registry(test)


def test_a_failure_lives_in_the_operation() -> None:
    async def test(operations: Operations) -> None:
        work = Work()
        name = operations.start_or_join(PULL, "m", "m", work).name
        work.end.set_exception(VllamaError(Reason.HUB_UNREACHABLE, "cannot pull m: no route"))
        with pytest.raises(VllamaError, match="no route"):
            await operations.wait(name)
        assert operations.get(name).is_done

    in_registry(test)


def test_a_bug_ends_the_operation_and_not_the_daemon() -> None:
    async def test(operations: Operations) -> None:
        async def broken(_report: Report) -> None:
            raise ZeroDivisionError("oops")

        name = operations.start_or_join(PULL, "m", "m", broken).name
        with pytest.raises(VllamaError) as caught:
            await operations.wait(name)
        assert caught.value.reason is Reason.INTERNAL
        assert operations.start_or_join(PULL, "m", "m", Work()).name != name

    in_registry(test)


def test_cancel_spares_what_others_watch() -> None:
    async def test(operations: Operations) -> None:
        name = operations.start_or_join(PULL, "m", "m", Work()).name
        watcher = asyncio.create_task(collect(operations, name))
        await asyncio.sleep(0)
        operations.cancel(name, only_if_unwatched=True)
        await asyncio.sleep(0)
        assert not operations.get(name).is_done
        operations.cancel(name)
        (*_, last) = await watcher
        assert last.error is not None
        assert last.error.reason is Reason.CANCELLED

    in_registry(test)


def test_cancelled_before_its_first_step_is_cancelled_all_the_same() -> None:
    async def test(operations: Operations) -> None:
        name = operations.start_or_join(PULL, "m", "m", Work()).name
        operations.cancel(name)
        with pytest.raises(VllamaError) as caught:
            await operations.wait(name)
        assert caught.value.reason is Reason.CANCELLED

    in_registry(test)


def test_unknown_operations_are_not_found() -> None:
    async def test(operations: Operations) -> None:
        with pytest.raises(VllamaError) as caught:
            operations.get("operations/99")
        assert caught.value.reason is Reason.NOT_FOUND

    in_registry(test)


def test_a_closing_registry_cancels_and_refuses() -> None:
    async def test(operations: Operations) -> None:
        name = operations.start_or_join(PULL, "m", "m", Work()).name
        await operations.close()
        assert operations.get(name).is_done
        with pytest.raises(VllamaError) as caught:
            operations.start_or_join(PULL, "m", "m", Work())
        assert caught.value.reason is Reason.DRAINING

    in_registry(test)


def test_old_operations_are_forgotten_and_running_ones_are_not() -> None:
    async def test(operations: Operations) -> None:
        kept = operations.start_or_join(PULL, "kept", "kept", Work()).name

        async def nothing(_report: Report) -> None:
            return None

        for number in range(150):
            await operations.wait(operations.start_or_join(PULL, "m", str(number), nothing).name)
        assert len(operations.list()) <= 101
        assert not operations.get(kept).is_done

    in_registry(test)
