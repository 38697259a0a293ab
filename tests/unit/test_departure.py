"""What a daemon waits for before it leaves to another one."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from tests.fakes.clock import FakeClock
from vllamad.departure import Departure
from vllamad.domain.operation import OperationKind
from vllamad.operations.registry import Operations, Report


class QuietGate:
    """Nobody is served, nobody waits."""

    async def quiet(self, _seconds: float) -> bool:
        return True


def test_a_model_that_is_being_made_is_waited_for_and_one_that_is_pulled_is_not() -> None:
    async def scene() -> None:
        clock, may_end = FakeClock(), asyncio.Event()
        operations = Operations(clock)
        started = asyncio.Event()
        running = asyncio.create_task(operations.run(started))
        await started.wait()
        nothing = cast(Any, SimpleNamespace())
        departure = Departure(
            gate=cast(Any, QuietGate()),
            supervisor=nothing,
            operations=operations,
            restoring=nothing,
            reloading=nothing,
            upgrading=nothing,
            taking_over=nothing,
            http=nothing,
            control=nothing,
            notifier=nothing,
            clock=clock,
            stop=asyncio.Event(),
        )

        async def work(_report: Report) -> None:
            await may_end.wait()

        operations.start_or_join(OperationKind.PULL, "pulled", "pulled", work)
        assert await departure._finished(60.0)
        operations.start_or_join(OperationKind.CREATE, "made", "made", work)
        assert not await departure._finished(0.0)
        waiting = asyncio.create_task(departure._finished(60.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        may_end.set()
        assert await waiting
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(scene(), debug=True)
