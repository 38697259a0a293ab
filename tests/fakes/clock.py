"""A Clock that stands still until a test moves it."""

import heapq
import itertools
from collections.abc import Callable


class FakeTimer:
    """A call that is due at an instant of the fake clock."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Time that passes by ``advance`` only. Timers run in the order of their instants, inside ``advance``."""

    def __init__(self, now: float = 1000.0, time: float = 1_800_000_000.0) -> None:
        self._now = now
        self._time = time
        self._order = itertools.count()
        self._timers: list[tuple[float, int, FakeTimer]] = []

    def now(self) -> float:
        return self._now

    def time(self) -> float:
        return self._time

    def call_at(self, when: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass; what falls due on the way runs at its own instant, also what that arms in turn."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._move_to(max(when, self._now))
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        self._move_to(end)

    def pending(self) -> list[float]:
        """The instants of the timers that are armed, soonest first."""
        return [when for when, _, timer in sorted(self._timers, key=lambda each: each[:2]) if timer.callback]

    def _move_to(self, instant: float) -> None:
        self._time += instant - self._now
        self._now = instant
