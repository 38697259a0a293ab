"""Long work with progress and an end (floor 3).

An operation is started or joined by a key; it runs as a task of this registry and is seen through snapshots: watchers
get the newest one, at most ten a second, and always the last.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.operation import Operation, OperationKind, Progress
from vllamad.domain.ports import Clock
from vllamad.host.logs import event

log = logging.getLogger("vllamad.operations")

Report = Callable[[Progress], None]
Work = Callable[[Report], Awaitable[None]]

KEPT_OPERATIONS = 100
SNAPSHOT_INTERVAL_S = 0.1
RESUME = "start it again to resume"


class _Running:
    """One operation and who watches it."""

    def __init__(self, operation: Operation, key: str) -> None:
        self.operation = operation
        self.key = key
        self.watchers = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Operations:
    """The registry. ``run`` is its branch of the daemon's tree."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: dict[str, _Running] = {}
        self._number = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._is_closing = False
        self._hint = RESUME

    async def run(self, started: asyncio.Event) -> None:
        """Hold the tasks until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            started.set()
            await asyncio.Event().wait()

    def start_or_join(self, kind: OperationKind, model: str, key: str, work: Work) -> Operation:
        """Run ``work``, or return the operation with this kind and key that runs already. Raises DRAINING while the
        daemon is on its way out."""
        for running in self._all.values():
            if running.key == key and running.operation.kind is kind and not running.operation.is_done:
                return running.operation
        if self._is_closing or self._tasks is None:
            raise VllamaError(Reason.DRAINING, f"cannot {kind.lower()} {model}: the daemon is stopping", "ask again")
        self._number += 1
        operation = Operation(self._number, kind, model, Progress(), self._clock.time())
        running = _Running(operation, key)
        self._all[operation.name] = running
        running.task = self._tasks.create_task(self._carry_out(running, work), name=operation.name)
        running.task.add_done_callback(lambda task: self._never_ran(running, task))
        event(log, logging.INFO, "operation.started", operation=operation.name, kind=kind, model=model)
        self._forget_old()
        return operation

    def get(self, name: str) -> Operation:
        return self._find(name).operation

    def list(self) -> list[Operation]:
        """Running and lately ended ones, newest first."""
        return [running.operation for running in reversed(self._all.values())]

    def cancel(self, name: str, only_if_unwatched: bool = False) -> Operation:
        """Ask it to end early. With ``only_if_unwatched`` it goes on while anyone watches it."""
        running = self._find(name)
        if running.task is not None and not (only_if_unwatched and running.watchers > 0):
            running.task.cancel()
        return running.operation

    async def watch(self, name: str) -> AsyncGenerator[Operation, None]:
        """Snapshots: the first at once, the last with ``is_done``. An open generator counts as interest."""
        running = self._find(name)
        running.watchers += 1
        try:
            while True:
                snapshot = running.operation
                yield snapshot
                if snapshot.is_done:
                    return
                while running.operation is snapshot:  # other watchers clear the event too
                    running.changed.clear()
                    await running.changed.wait()
                if not running.operation.is_done:
                    await asyncio.sleep(SNAPSHOT_INTERVAL_S)
        finally:
            running.watchers -= 1

    async def wait(self, name: str) -> Operation:
        """Return the operation when it is done; raise what it failed with."""
        last = self._find(name).operation
        async for snapshot in self.watch(name):
            last = snapshot
        if last.error is not None:
            raise last.error
        return last

    async def close(self, hint: str = RESUME) -> None:
        """Accept nothing more, cancel what runs, and return when it has ended. ``hint`` tells those who watch what to
        do."""
        self._is_closing = True
        self._hint = hint
        tasks = [one.task for one in self._all.values() if one.task is not None and not one.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _carry_out(self, running: _Running, work: Work) -> None:
        def report(progress: Progress) -> None:
            running.operation = replace(running.operation, progress=progress)
            running.changed.set()

        error: VllamaError | None = None
        try:
            await work(report)
        except VllamaError as failure:
            error = failure
        except asyncio.CancelledError:
            what = f"{running.operation.kind.lower()} of {running.operation.model}"
            self._end(running, VllamaError(Reason.CANCELLED, f"{what} was cancelled", self._hint))
            raise
        except Exception as bug:  # an operation's bug ends the operation, not the daemon
            log.exception("operation.bug operation=%s", running.operation.name)
            error = VllamaError(Reason.INTERNAL, f"internal error: {bug}", "see the daemon's log")
        self._end(running, error)

    def _never_ran(self, running: _Running, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step never enters _carry_out.
        if task.cancelled() and not running.operation.is_done:
            self._end(running, VllamaError(Reason.CANCELLED, f"{running.operation.name} was cancelled"))

    def _end(self, running: _Running, error: VllamaError | None) -> None:
        running.operation = replace(running.operation, is_done=True, error=error, end_time=self._clock.time())
        running.changed.set()
        operation = running.operation
        spent = operation.end_time - operation.create_time
        outcome = {"reason": error.reason, "error": error.message} if error else {}
        event(
            log,
            logging.WARNING if error and error.reason is not Reason.CANCELLED else logging.INFO,
            "operation.ended",
            operation=operation.name,
            kind=operation.kind,
            model=operation.model,
            s=round(spent, 1),
            **outcome,
        )

    def _find(self, name: str) -> _Running:
        running = self._all.get(name)
        if running is None:
            raise VllamaError(
                Reason.NOT_FOUND, f"there is no operation {name!r}", "ended operations are kept for a while only"
            )
        return running

    def _forget_old(self) -> None:
        ended = [name for name, running in self._all.items() if running.operation.is_done and not running.watchers]
        for name in ended[: max(0, len(self._all) - KEPT_OPERATIONS)]:
            del self._all[name]
