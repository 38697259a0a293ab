"""Keep-alive (floor 3): how long a worker may be idle, since when it is, and when that is over."""

import math
from collections.abc import Callable

from vllamad.domain.ports import Clock, Timer


class IdleTimer:
    """Calls ``on_expired`` once the worker has been idle for ``idle_s`` seconds (``math.inf``: never)."""

    def __init__(self, clock: Clock, idle_s: float, on_expired: Callable[[], None]) -> None:
        self.idle_s = idle_s
        self.since = clock.now()
        """The instant at which it fell idle last; means nothing while it is busy."""
        self.expires_at: float | None = None
        """The instant at which it expires; None while it is busy, ``math.inf`` if it never does."""
        self._clock = clock
        self._on_expired = on_expired
        self._timer: Timer | None = None

    def arm(self, first_s: float | None = None) -> None:
        """It is idle from now on; ``first_s`` instead of ``idle_s`` for this time only."""
        self.disarm()
        self.since = self._clock.now()
        self.expires_at = self.since + (self.idle_s if first_s is None else first_s)
        if not math.isinf(self.expires_at):
            self._timer = self._clock.call_at(self.expires_at, self._expired)

    def disarm(self) -> None:
        """It is busy, or has nothing to expire."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.expires_at = None

    def _expired(self) -> None:
        self._timer = None
        self._on_expired()
