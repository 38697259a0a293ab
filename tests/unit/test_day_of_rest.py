"""A daemon that nobody asks anything says nothing: a day of it, with a model loaded, in made-up time."""

import asyncio
import logging
from pathlib import Path

import pytest

from tests.fakes.house import House, Setting, Spec
from tests.fakes.loop import MadeUpLoop, run
from vllamad.domain.worker import State

DAY_S = 24 * 3600.0
SETTLED_S = 600.0
"""What follows a load has happened by then."""


def test_a_day_of_rest_writes_no_line(short_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(loop: MadeUpLoop) -> None:
        house = House(loop, short_folder, Setting((Spec(gib=20, is_pinned=True), Spec(gib=20)), can_sleep=True))
        started = asyncio.Event()
        supervising = asyncio.create_task(house.supervisor.run(started))
        await started.wait()
        await house.open()
        keeping = asyncio.create_task(house.keep())
        house.arrive(0, None, "somebody")
        (request,) = house.requests
        while not request.is_over:
            house.serve()
            await asyncio.sleep(1.0)
        await asyncio.sleep(SETTLED_S)
        assert "worker.state" in caplog.text, "something was said when something happened"
        caplog.clear()
        await asyncio.sleep(DAY_S)
        assert [record.getMessage() for record in caplog.records] == []
        (handle,) = house.supervisor.handles()
        assert handle.record.state is State.READY
        house.gate.close()
        async with asyncio.timeout(120.0):
            await house.supervisor.stop_all(0.0)
        for task in (keeping, supervising):
            assert not task.done(), "a branch of the daemon has ended"
            task.cancel()
        await asyncio.wait([keeping, supervising])

    with caplog.at_level(logging.INFO, logger="vllamad"):
        run(main)
