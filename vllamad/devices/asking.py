"""One thread that asks something that blocks (floor 2): a driver that hangs costs one thread, whoever waits.

Never a pool: a thread that hangs must neither be waited for when the daemon leaves nor be joined by a second one.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Question(Generic[T]):
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[T]"
    asked_at: float


class Asker(Generic[T]):
    """Calls ``ask`` in a thread named ``name``, one call at a time. What ``ask`` raises is raised by ``answer``."""

    def __init__(self, ask: Callable[[], T], deadline_s: float, name: str) -> None:
        self._ask = ask
        self._deadline_s = deadline_s
        self._name = name
        self._questions: queue.SimpleQueue[_Question[T]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending: _Question[T] | None = None

    async def answer(self) -> T:
        """Return an answer that is no older than the deadline. Callers that come while ``ask`` is busy share its
        answer; one that comes too late for its question is asked for anew. Raises TimeoutError."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._deadline_s):
            while True:
                question = self._question(loop)
                # Shielded: a caller that gives up must not take the answer from the others.
                answer = await asyncio.shield(question.answer)
                if loop.time() - question.asked_at <= self._deadline_s:
                    return answer

    def _question(self, loop: asyncio.AbstractEventLoop) -> _Question[T]:
        if self._pending is None or self._pending.answer.done():
            self._pending = _Question(loop, loop.create_future(), loop.time())
            self._questions.put(self._pending)
        return self._pending

    def _work(self) -> None:
        while True:
            question = self._questions.get()
            try:
                settle = _Settle(question.answer, self._ask())
            except Exception as error:  # noqa: BLE001 - handed over to whoever asked; the thread must go on
                settle = _Fail(question.answer, error)
            try:
                question.loop.call_soon_threadsafe(settle)
            except RuntimeError:
                # The loop was closed meanwhile: the daemon has left.
                return


@dataclass(frozen=True, slots=True)
class _Settle(Generic[T]):
    answer: "asyncio.Future[T]"
    value: T

    def __call__(self) -> None:
        if not self.answer.done():
            self.answer.set_result(self.value)


@dataclass(frozen=True, slots=True)
class _Fail(Generic[T]):
    answer: "asyncio.Future[T]"
    error: Exception

    def __call__(self) -> None:
        if not self.answer.done():
            self.answer.set_exception(self.error)
            # Seen, even if everyone who waited has given up.
            self.answer.exception()
