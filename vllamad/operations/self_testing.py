"""When this processor is tested (floor 3): once for each engine, while nobody is served, and never again.

A request that comes meanwhile ends the test, which then waits for the next quiet while.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Clock, SelfTests
from vllamad.domain.self_test import SelfTest
from vllamad.host.logs import event

log = logging.getLogger("vllamad.engine")

QUIET_S = 10.0
"""How long nobody has to be served before: a daemon that was just started is about to be asked."""
LOOK_S = 0.2
"""How soon a request is seen. The test runs at the lowest priority: until then it takes little from anybody."""


class SelfTesting:
    """``run_test`` runs the test for a key; ``is_quiet`` tells if nobody is served, waits, or is being loaded;
    ``on_found`` is told the outcome, whether it is new or remembered."""

    def __init__(
        self,
        clock: Clock,
        known: SelfTests,
        run_test: Callable[[str], Awaitable[SelfTest]],
        is_quiet: Callable[[], bool],
        on_found: Callable[[SelfTest], None],
    ) -> None:
        self._clock = clock
        self._known = known
        self._run_test = run_test
        self._is_quiet = is_quiet
        self._on_found = on_found

    async def recall(self, key: str) -> bool:
        """Take up what is known of this processor and engine; False if they have to be tested."""
        found = await asyncio.to_thread(self._known.find, key)
        if found is not None:
            self._on_found(found)
        return found is not None

    async def run(self, key: str) -> None:
        """Test, as soon as nobody minds. One that fails is not repeated before the next start."""
        while True:
            await self._wait_for_quiet()
            try:
                found = await self._undisturbed(self._run_test(key))
            except VllamaError as error:
                event(log, logging.WARNING, "self-test.failed", why=error.message, hint=error.hint)
                return
            if found is not None:
                await asyncio.to_thread(self._known.record, found)
                self._on_found(found)
                return

    async def _wait_for_quiet(self) -> None:
        since = self._clock.now()
        while self._clock.now() - since < QUIET_S:
            await asyncio.sleep(LOOK_S)
            if not self._is_quiet():
                since = self._clock.now()

    async def _undisturbed(self, test: Awaitable[SelfTest]) -> SelfTest | None:
        """The outcome; None if somebody was about to be disturbed."""
        testing = asyncio.ensure_future(test)
        try:
            while not testing.done():
                if not self._is_quiet():
                    return None
                await asyncio.wait([testing], timeout=LOOK_S)
            return testing.result()
        finally:
            testing.cancel()
            await asyncio.wait([testing])
