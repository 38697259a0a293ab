"""Admission (floor 3): turns requests into leases on ready workers.

A request waits here, with its headers unsent, until its model's worker is ready; so a failure still gets an honest
status. The gate keeps the waiting requests, asks the scheduler what to do whenever anything changed, and carries the
answers to the supervisor. Everything but the waiting itself is synchronous.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model
from vllamad.domain.ports import Clock
from vllamad.domain.scheduler import Grant, Refuse, Start, Stop, Waiting, plan
from vllamad.domain.view import WorkerView
from vllamad.domain.worker import State
from vllamad.supervisor.lease import Lease
from vllamad.supervisor.supervisor import Supervisor
from vllamad.supervisor.worker import WorkerHandle


@dataclass(frozen=True, slots=True)
class GateLimits:
    """``capacity`` models loaded at once; ``parallel`` leases per worker (0: no bound); ``queue`` waiting requests in
    all; ``wait_s`` how long one waits; ``idle_s`` the keep-alive where neither request nor row says one."""

    capacity: int = 1
    parallel: int = 0
    queue: int = 512
    wait_s: float = 900.0
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class ModelRules:
    """What the configuration says about one model."""

    idle_s: float
    is_pinned: bool = False


@dataclass(slots=True, eq=False)
class _Waiter:
    number: int
    key: str
    model: Model
    keep_alive_s: float | None
    since: float
    future: asyncio.Future[Lease]
    on_progress: Callable[[WorkerView], None] | None = field(default=None)


class Gate:
    """Grants leases. ``rules_for`` gives what the configuration says about a model."""

    def __init__(
        self, clock: Clock, supervisor: Supervisor, limits: GateLimits, rules_for: Callable[[Model], ModelRules]
    ) -> None:
        self._clock = clock
        self._supervisor = supervisor
        self._limits = limits
        self._rules_for = rules_for
        self._waiting: dict[int, _Waiter] = {}
        self._number = 0
        self._active = 0
        self._is_open = False
        self._is_closed = False
        self._is_looking = False
        self._look_again = False
        supervisor.on_change = self._worker_changed
        supervisor.count_waiting = self._count_waiting

    @property
    def active(self) -> int:
        """Requests that hold a lease."""
        return self._active

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    @asynccontextmanager
    async def lease(
        self,
        model: Model,
        *,
        keep_alive_s: float | None = None,
        on_progress: Callable[[WorkerView], None] | None = None,
    ) -> AsyncGenerator[Lease, None]:
        """Wait until ``model`` is ready and hold a lease on its worker for the body of the ``async with``.

        ``keep_alive_s``: how long the worker may stay idle afterwards (None: as it is set, or the default; inf: for
        ever; 0: it leaves at once). ``on_progress`` is called with the worker's picture while it loads. Cancelling
        takes the request out of the queue. Raises QUEUE_FULL, DRAINING, DEADLINE_EXCEEDED, WONT_FIT and what starting
        the engine failed with.
        """
        arrived = self._clock.now()
        lease = self._grant_at_once(model, keep_alive_s)
        if lease is None:
            lease = await self._wait(model, keep_alive_s, on_progress)
        lease.load_ns = max(1, int((self._clock.now() - arrived) * 1e9))
        lease.waited_ns = lease.load_ns
        self._active += 1
        try:
            yield lease
        finally:
            self._active -= 1
            lease.give_back()

    def set_keep_alive(self, model: Model, keep_alive_s: float) -> None:
        """Change a loaded model's keep-alive; 0 unloads it as soon as nobody uses it."""
        handle = self._supervisor.of(model)
        if handle is None:
            return
        handle.set_keep_alive(keep_alive_s)

    def open(self) -> None:
        """Begin to start workers. Until then requests are taken and wait: the daemon serves before it has looked at
        its engine."""
        self._is_open = True
        self._look()

    def close(self) -> None:
        """Refuse everyone from now on, those who wait included."""
        self._is_closed = True
        for waiter in list(self._waiting.values()):
            self._fail(waiter, _draining(waiter.model))

    # --- waiting -------------------------------------------------------------------------------------------------

    def _grant_at_once(self, model: Model, keep_alive_s: float | None) -> Lease | None:
        """The common case without a queue: the worker is ready, and nobody waits for anything."""
        if self._waiting or self._is_closed:
            return None
        handle = self._supervisor.of(model)
        if handle is None or not handle.slot().takes_requests:
            return None
        if self._limits.parallel and handle.record.leases >= self._limits.parallel:
            return None
        return handle.lease(model, keep_alive_s)

    async def _wait(
        self, model: Model, keep_alive_s: float | None, on_progress: Callable[[WorkerView], None] | None
    ) -> Lease:
        if self._is_closed:
            raise _draining(model)
        if len(self._waiting) >= self._limits.queue:
            raise VllamaError(
                Reason.QUEUE_FULL,
                "server busy, please try again.  maximum pending requests exceeded",
                "raise scheduler.max_queue, or ask less often",
                waiting=len(self._waiting),
                limit=self._limits.queue,
            )
        self._number += 1
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        key = self._supervisor.key(model)
        waiter = _Waiter(self._number, key, model, keep_alive_s, self._clock.now(), future, on_progress)
        self._waiting[waiter.number] = waiter
        is_taken = False
        try:
            self._look()
            async with asyncio.timeout(self._limits.wait_s):
                lease = await future
                is_taken = True
                return lease
        except TimeoutError:
            raise VllamaError(
                Reason.DEADLINE_EXCEEDED,
                f"cannot serve {model.name}: it was not ready within {self._limits.wait_s:.0f} s",
                "see what it waits for: vllamactl status; or raise scheduler.load_wait",
                model=model.name,
            ) from None
        finally:
            if not is_taken:
                self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        """A request goes without its lease: cancelled, out of time, or failed."""
        self._waiting.pop(waiter.number, None)
        if not waiter.future.cancel() and not waiter.future.cancelled() and waiter.future.exception() is None:
            waiter.future.result().give_back()  # granted in the same turn of the loop in which it was cancelled
        self._look()

    def _fail(self, waiter: _Waiter, error: VllamaError) -> None:
        self._waiting.pop(waiter.number, None)
        if not waiter.future.done():
            waiter.future.set_exception(error)

    # --- deciding ------------------------------------------------------------------------------------------------

    def _worker_changed(self, handle: WorkerHandle) -> None:
        mine = [waiter for waiter in self._waiting.values() if waiter.key == handle.key]
        if handle.state is State.FAILED and handle.error is not None:
            for waiter in mine:
                self._fail(waiter, handle.error)
        elif mine and handle.state in {State.STARTING, State.BACKOFF}:
            view = handle.view()
            for waiter in mine:
                if waiter.on_progress is not None:
                    waiter.on_progress(view)
        if self._waiting:
            self._look()

    def _look(self) -> None:
        """Ask the scheduler and do what it says, until nothing more follows. Doing changes workers, which asks again:
        the flag turns that recursion into a loop."""
        self._look_again = True
        if self._is_looking or not self._is_open:
            return
        self._is_looking = True
        try:
            while self._look_again:
                self._look_again = False
                self._act()
        finally:
            self._is_looking = False

    def _act(self) -> None:
        queue = [Waiting(each.number, each.key, each.model.name, each.since) for each in self._waiting.values()]
        slots = {handle.key: handle.slot() for handle in self._supervisor.handles()}
        decisions = plan(queue, slots, self._limits.capacity, self._limits.parallel, self._clock.now())
        for decision in decisions:
            match decision:
                case Grant(number):
                    self._grant(self._waiting.get(number))
                case Start(key, why):
                    self._start(key, why)
                case Stop(key, why):
                    self._supervisor.decided(why)
                    self._supervisor.stop(key)
                case Refuse(number, reason, why):
                    waiter = self._waiting.get(number)
                    if waiter is not None:
                        self._fail(waiter, VllamaError(reason, why, "stop one: vllamactl stop MODEL"))

    def _grant(self, waiter: _Waiter | None) -> None:
        if waiter is None or waiter.future.done():
            return
        handle = self._supervisor.get(waiter.key)
        if handle is None or not handle.slot().takes_requests:
            return
        self._waiting.pop(waiter.number, None)
        waiter.future.set_result(handle.lease(waiter.model, waiter.keep_alive_s))

    def _start(self, key: str, why: str) -> None:
        waiter = next(each for each in self._waiting.values() if each.key == key)
        rules = self._rules_for(waiter.model)
        self._supervisor.decided(why)
        idle_s = rules.idle_s if waiter.keep_alive_s is None else waiter.keep_alive_s
        self._supervisor.start(waiter.model, idle_s, rules.is_pinned)

    def _count_waiting(self, key: str) -> int:
        return sum(1 for each in self._waiting.values() if each.key == key)


def _draining(model: Model) -> VllamaError:
    return VllamaError(
        Reason.DRAINING, f"cannot serve {model.name}: the daemon is stopping", "ask again in a few seconds"
    )
