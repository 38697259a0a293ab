"""An event loop whose time is made up: it stands still while anything is ready, and jumps to the next timer.

So everything that waits for time, by the Clock port or by asyncio itself, waits for the same time, and hours pass in
milliseconds. There are no threads and no sockets: what would run in a thread runs at once.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

MOST_TURNS = 1_000
"""Of the loop at one instant. Beyond, things push each other round for ever."""


class _NoFiles(selectors.SelectSelector):
    """Nothing ever arrives from outside; to wait for it is to let time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.wait: Callable[[float | None], None] = lambda _seconds: None
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._turns += 1
        if timeout is None or timeout > 0:
            self._turns = 0
            self.wait(timeout)
        if self._turns > MOST_TURNS:
            raise RuntimeError("it never comes to rest")
        return []


class MadeUpLoop(asyncio.SelectorEventLoop):
    """Use it with ``run``."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._quiet: list[asyncio.Future[None]] = []
        selector = _NoFiles()
        super().__init__(selector)
        selector.wait = self._pass

    def time(self) -> float:
        return self._now

    async def quiet(self) -> None:
        """Return when nothing more happens before time passes."""
        waiting: asyncio.Future[None] = self.create_future()
        self._quiet.append(waiting)
        await waiting

    def run_in_executor(self, executor: object, func: Callable[..., T], *args: object) -> asyncio.Future[T]:  # type: ignore[override]
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the thread
            done.set_exception(error)
        return done

    def _pass(self, seconds: float | None) -> None:
        if self._quiet:
            waiting, self._quiet = self._quiet, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)
        elif seconds is None:
            raise RuntimeError("everything waits, and nothing is due")
        else:
            self._now += seconds


class LoopClock:
    """The Clock port over such a loop."""

    def __init__(self, loop: MadeUpLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return 1_800_000_000.0 + self._loop.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_at(when, callback)


def run(main: Callable[[MadeUpLoop], Coroutine[Any, Any, None]]) -> None:
    """Run to the end. What a callback or a task raises unseen is raised here."""
    faults: list[Mapping[str, Any]] = []
    with asyncio.Runner(loop_factory=MadeUpLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, MadeUpLoop)
        loop.set_exception_handler(lambda _loop, context: faults.append(context))
        runner.run(main(loop))
    for each in faults:
        raise AssertionError(str(each["message"])) from each.get("exception")
