"""Which wishes to upgrade are refused, before anything is asked or given up."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vllamad.config.places import Places
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import FORMAT
from vllamad.operations.upgrading import Upgrading

FOLDERS = {"state": "/var/lib/vllama", "runtime": "/run/vllama", "worker_sockets": "/run/vllama/workers"}
PLACES = cast(Places, SimpleNamespace(**{name: Path(path) for name, path in FOLDERS.items()}))


class NewProgram:
    """Says that it can, once it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def tell(self) -> Mapping[str, Any]:
        self.asked += 1
        await self.may_answer.wait()
        return {"version": "9.9", "handover": FORMAT, "problem": "", **FOLDERS}


def test_a_process_that_does_not_end_is_told_before_a_successor_waits_for_it() -> None:
    async def scene() -> None:
        program, stuck = NewProgram(), ["big:latest"]
        upgrading = Upgrading(program.tell, PLACES, lambda: ("tiny:latest",), lambda: tuple(stuck))
        with pytest.raises(VllamaError, match="processes of big:latest do not end"):
            await upgrading.upgrade(1.0)
        assert not program.asked
        stuck.clear()
        assert (await upgrading.upgrade(1.0)).models == ("tiny:latest",)
        assert await upgrading.wished() == 1.0

    asyncio.run(scene(), debug=True)


def test_of_two_wishes_at_once_one_is_fulfilled() -> None:
    async def scene() -> None:
        program = NewProgram()
        upgrading = Upgrading(program.tell, PLACES, lambda: (), lambda: ())
        program.may_answer.clear()
        wishes = [asyncio.create_task(upgrading.upgrade(each)) for each in (1.0, 2.0)]
        await asyncio.sleep(0)
        program.may_answer.set()
        first, second = await asyncio.gather(*wishes, return_exceptions=True)
        assert not isinstance(first, BaseException) and await upgrading.wished() == 1.0
        assert isinstance(second, VllamaError) and "is being upgraded already" in second.message

    asyncio.run(scene(), debug=True)
