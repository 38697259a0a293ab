"""The real Clock (floor 2): the event loop's time and the wall's."""

import asyncio
import time
from collections.abc import Callable

from vllamad.domain.ports import Timer


class RealClock:
    """Fills the port ``Clock`` for one event loop; made and used in the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        """Seconds of the monotonic clock, the loop's own, so that ``asyncio.timeout_at`` takes our deadlines as they
        are. Not ``loop.time()``: uvloop rounds that to milliseconds and keeps it still within a turn of the loop, and
        durations in answers are taken from here."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back at ``when``; ``math.inf`` is allowed and never comes."""
        return self._loop.call_at(when, callback)
