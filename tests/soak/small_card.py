"""A world with one GPU that is too small for two of its models, where engines may sleep: the daemon's own NVML adapter
reads a library of ours, and the card's memory follows the engines. Needs a C compiler."""

import asyncio
import subprocess
from collections.abc import Mapping, Sequence

from tests.fakes.cards import Machine, small
from tests.fakes.nvml.library import NO_COMPILER, compiler
from tests.soak.checks import Checks
from tests.soak.world import Character, World, until

SLOW_S = 2.4
"""A model that loads faster than this is stopped, not put to sleep: that would not pay."""
SETTLES_S = 3.0
"""How long a card may still show what has ended: it is looked at ten times a second, on a busy machine."""


def no_card() -> str:
    """Why there can be no such world; "" if there can."""
    return "" if compiler() is not None else NO_COMPILER


class SmallCard(World):
    """``models`` are more than one cell needs: what did not fall asleep once is never put to sleep again."""

    def __init__(self, models: Sequence[Character], environment: Mapping[str, str]) -> None:
        super().__init__(models, {**environment, "VLLAMA_SCHEDULER_SLEEP": "auto"})
        self.machine = Machine(self.daemon, small(1))
        self._is_plugged_in = False

    async def start(self) -> None:
        if not self._is_plugged_in:
            self._is_plugged_in = True
            self.machine.__enter__()
        await super().start()

    async def close(self) -> None:
        # The daemon first, because it waits for the card; its folder last, because the card's script is in there.
        try:
            if self.daemon.child is not None:
                await self.stop()
        except subprocess.TimeoutExpired:
            pass  # told when it is tried again
        finally:
            if self._is_plugged_in:
                await asyncio.to_thread(self.machine.__exit__)
            await super().close()

    async def check_nothing_left(self, checks: Checks) -> None:
        await super().check_nothing_left(checks)

        async def is_empty() -> bool:
            return not self.machine.held()

        checks.that(await until(is_empty, SETTLES_S), "nothing left on the cards", self.machine.held())
        devices = await asyncio.to_thread(self.control.devices)
        reserved = {name: (count, holders) for name, count, holders in devices if count or holders}
        checks.that(devices and not reserved, "nothing reserved after unloading", reserved)
