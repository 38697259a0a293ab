"""Admission (floor 3): turns requests into leases on ready workers.

A request waits here, with its headers unsent, until its model's worker is ready; so a failure still gets an honest
status. The gate keeps the waiting requests, asks the planner what to do whenever anything changed, and carries the
answers to the supervisor. Everything but the waiting itself is synchronous.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model
from vllamad.domain.planning import plan
from vllamad.domain.ports import Clock, Timer
from vllamad.domain.view import WorkerView
from vllamad.domain.worker import Goal, Held, State
from vllamad.domain.workload import Grant, Limits, Refuse, Start, Stop, Wait, Waiter, Wanted, Workload
from vllamad.host.logs import event
from vllamad.models.sizing import Sizing
from vllamad.supervisor.lease import Lease
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.supervisor import Supervisor
from vllamad.supervisor.worker import WorkerHandle

log = logging.getLogger("vllamad.gate")

QUICK_LOOK_S = 0.002
"""A look that takes longer is followed by a pause: with hundreds of requests waiting the loop has streams to serve too,
and who waits for a model does not feel some milliseconds."""
PAUSE_FACTOR = 4
"""A look may take a fifth of the loop's time at most."""

MAX_CALLERS = 10_000
"""Of whom it is remembered when they were served last."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """``planner`` is what the planner goes by; ``wait_s`` how long one waits; ``idle_s`` the keep-alive where neither
    request nor row says one."""

    planner: Limits = field(default_factory=Limits)
    wait_s: float = 900.0
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class ModelRules:
    """What the configuration says about one model. A higher ``priority`` goes first."""

    idle_s: float
    is_pinned: bool = False
    priority: int = 0


class _ServedOtherwise(Exception):
    """What a request waits for is not what its model needs any more: an adapter came or went, or the configuration is
    another one."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request in the queue: the planner's picture of it, and who is to be told."""

    waiter: Waiter
    model: Model
    keep_alive_s: float | None
    future: asyncio.Future[Lease]
    on_progress: Callable[[WorkerView], None] | None


class Gate:
    """Grants leases. ``rules_for`` gives what the configuration says about a model, ``as_it_is`` the model of that name
    as it is now."""

    def __init__(
        self,
        clock: Clock,
        supervisor: Supervisor,
        memory: DeviceMemory,
        sizing: Sizing,
        limits: GateLimits,
        rules_for: Callable[[Model], ModelRules],
        as_it_is: Callable[[Model], Model] = lambda model: model,
    ) -> None:
        self.waits: dict[str, str] = {}
        """Why those who wait now are waiting: a sentence for each model, by its name."""
        self._clock = clock
        self._supervisor = supervisor
        self._memory = memory
        self._sizing = sizing
        self._limits = limits
        self._rules_for = rules_for
        self._as_it_is = as_it_is
        self._waiting: dict[int, _Waiting] = {}
        self._wanted: dict[str, Wanted] = {}
        """Of every model that somebody waits for or that has a worker, by key."""
        self._served_at: dict[tuple[str, str], float] = {}
        self._room_made_for: frozenset[str] = frozenset()
        self._number = 0
        self._admitted = 0
        """Requests up to this number came under other limits, and are not refused for those of now."""
        self._arriving = 0
        self._active = 0
        self._opened = asyncio.Event()
        self._someone_left = asyncio.Event()
        self._is_closed = False
        self._next_look: asyncio.Handle | None = None
        self._timer: Timer | None = None
        supervisor.on_change = self._worker_changed
        supervisor.count_waiting = self._count_waiting
        memory.on_change = self._memory_changed

    @property
    def active(self) -> int:
        """Requests that hold a lease."""
        return self._active

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting) + self._arriving

    @asynccontextmanager
    async def lease(
        self,
        model: Model,
        *,
        keep_alive_s: float | None = None,
        caller: str = "",
        on_progress: Callable[[WorkerView], None] | None = None,
        is_wish: bool = False,
        may_evict: bool = True,
    ) -> AsyncGenerator[Lease, None]:
        """Wait until ``model`` is ready and hold a lease on its worker for the body of the ``async with``.

        ``keep_alive_s``: how long the worker may stay idle afterwards (None: as it is set, or the default; inf: for
        ever; 0: it leaves at once). ``caller`` is whom the request is from: callers of a model take turns.
        ``on_progress`` is called with the worker's picture while it loads. ``is_wish``: a person asked for the load, so
        it is tried although the model has just failed. ``may_evict`` False: only into memory that is free. Cancelling
        takes the request out of the queue. Raises QUEUE_FULL, DRAINING, DEADLINE_EXCEEDED, WONT_FIT and what starting
        the engine failed with.
        """
        arrived = self._clock.now()
        lease = self._grant_at_once(model, keep_alive_s, caller)
        try:
            if lease is None:
                self._check_breaker(model, is_wish)
                lease = await self._wait(model, keep_alive_s, caller, on_progress, may_evict)
            lease.load_ns = max(1, int((self._clock.now() - arrived) * 1e9))
            lease.waited_ns = lease.load_ns
            self._active += 1
            try:
                yield lease
            finally:
                self._active -= 1
                lease.give_back()
        finally:
            self._someone_left.set()

    def set_keep_alive(self, model: Model, keep_alive_s: float) -> None:
        """Change a loaded model's keep-alive; 0 unloads it as soon as nobody uses it."""
        for handle in self._supervisor.of(model):
            handle.set_keep_alive(keep_alive_s)

    async def unload(self, model: Model) -> None:
        """The latter, for faces: theirs may have to wait until it has reached the gate."""
        self.set_keep_alive(model, 0)

    def use(self, limits: GateLimits) -> None:
        """Go by other limits, and by what is configured for models now. Who waits keeps its turn and its deadline, also
        in a queue that is shorter now, and is reckoned with anew; until ``reckon_anew`` has done the same with what is
        loaded, nothing gets a replica."""
        self._limits = limits
        self._admitted = self._number
        for key, wanted in self._wanted.items():
            self._wanted[key] = replace(wanted, replicas=1)
        for waiting in list(self._waiting.values()):
            self._fail(waiting, _ServedOtherwise())

    async def reckon_anew(self) -> None:
        """See again what the models that are loaded need: replicas are started by it. One whose files cannot be read
        now stays as it is known."""
        for handle in self._supervisor.handles():
            try:
                wanted = await self._sizing.wanted(handle.model)
            except VllamaError as error:
                event(log, logging.WARNING, "gate.unsized", model=handle.model.name, why=error.message)
                continue
            if wanted.key in self._wanted:
                self._wanted[wanted.key] = wanted

    def workload(self) -> Workload:
        """Everything that the planner goes by, as it is now."""
        return Workload(
            waiting=tuple(waiting.waiter for waiting in self._waiting.values()),
            workers={handle.holder: handle.picture() for handle in self._supervisor.handles()},
            models=self._wanted,
            ledger=self._memory.ledger,
            limits=self._limits_now(),
            served_at=self._served_at,
            room_made_for=self._room_made_for,
        )

    def _limits_now(self) -> Limits:
        """The planner's limits, with room in the queues for those who were admitted to longer ones."""
        limits = self._limits.planner
        if not self._admitted:
            return limits
        queues = Counter(one.waiter.key for one in self._waiting.values() if one.waiter.number <= self._admitted)
        longest = max(queues.values(), default=0)
        of_model = max(limits.queue_per_model, longest) if limits.queue_per_model else 0
        return replace(limits, queue=max(limits.queue, queues.total()), queue_per_model=of_model)

    def open(self) -> None:
        """Begin to start workers. Until then requests are taken and wait: the daemon serves before it has looked at
        its engine and its devices."""
        self._opened.set()

    def know(self, wanted: Wanted) -> None:
        """A model has a worker that was not started by us: this is what it needs."""
        self._wanted[wanted.key] = wanted

    async def quiet(self, seconds: float) -> bool:
        """True once nobody holds a lease or waits for one; False if that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                while self._active or self.waiting:
                    self._someone_left.clear()
                    await self._someone_left.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Refuse everyone from now on, those who wait included."""
        self._is_closed = True
        self._opened.set()
        for waiting in list(self._waiting.values()):
            self._fail(waiting, _draining(waiting.model))

    # --- waiting -------------------------------------------------------------------------------------------------

    def _grant_at_once(self, model: Model, keep_alive_s: float | None, caller: str) -> Lease | None:
        """The common case without a queue: a worker is ready, and nobody waits for anything."""
        if self._waiting or self._is_closed:
            return None
        ready = [handle for handle in self._supervisor.of(model) if handle.takes_requests]
        parallel = self._limits.planner.parallel
        if parallel:
            ready = [handle for handle in ready if handle.record.leases < parallel]
        if not ready:
            return None
        handle = min(ready, key=lambda one: (one.record.leases, one.holder))
        lease = self._lease_of(handle, model, keep_alive_s)
        self._note_served(handle.key, caller)
        wanted = self._wanted.get(handle.key)
        if wanted is not None and wanted.replicas > 1 and handle.record.leases >= self._limits.planner.crowd:
            self._look()  # another replica may be due
        return lease

    async def _wait(
        self,
        model: Model,
        keep_alive_s: float | None,
        caller: str,
        on_progress: Callable[[WorkerView], None] | None,
        may_evict: bool,
    ) -> Lease:
        self._number += 1
        number, since, wait_s = self._number, self._clock.now(), self._limits.wait_s
        deadline = since + wait_s
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    wanted = await self._size(model, number)
                    priority = self._rules_for(model).priority
                    waiter = Waiter(number, wanted.key, since, deadline, caller, priority, may_evict)
                    self._wanted[wanted.key] = wanted
                    future = asyncio.get_running_loop().create_future()
                    with contextlib.suppress(_ServedOtherwise):
                        return await self._queue(_Waiting(waiter, model, keep_alive_s, future, on_progress))
                    model = self._as_it_is(model)
        except TimeoutError:
            raise self._too_late(model, wait_s) from None

    def _check_breaker(self, model: Model, is_wish: bool) -> None:
        """A model that has just failed is not loaded again for everyone who asks. Raises what it failed with."""
        breaker, now = self._supervisor.breaker, self._clock.now()
        key = self._supervisor.key(model)
        if is_wish:
            breaker.insist(key, now)
        handles = self._supervisor.with_key(key)
        if any(handle.record.goal is not Goal.STOP or handle.record.held is Held.LEAKED for handle in handles):
            return  # it serves, comes up or only has to wake; or the planner says why it gets no load
        error = breaker.refuse(key, model.name, now)
        if error is not None:
            raise error

    async def _size(self, model: Model, number: int) -> Wanted:
        """What the model needs; with a disk that has to be asked, or before the daemon knows its engine, that takes a
        while."""
        if self._is_closed:
            raise _draining(model)
        wanted = self._sizing.known(model) if self._opened.is_set() else None
        if wanted is not None:
            return wanted
        if number > self._admitted and self._arriving >= self._limits.planner.queue:
            raise self._queue_full(f"{self._arriving} requests wait for the daemon to be ready", 1)
        self._arriving += 1
        try:
            await self._opened.wait()
            if not self._is_closed:
                wanted = await self._sizing.wanted(model)
        finally:
            self._arriving -= 1
        if wanted is None or self._is_closed:
            raise _draining(model)
        return wanted

    async def _queue(self, waiting: _Waiting) -> Lease:
        self._waiting[waiting.waiter.number] = waiting
        is_taken = False
        try:
            self._look()
            for handle in self._supervisor.with_key(waiting.waiter.key):
                self._tell_progress(handle, [waiting])  # of a load that others have begun
            lease = await waiting.future
            is_taken = True
            return lease
        finally:
            if not is_taken:
                self._leave(waiting)

    def _leave(self, waiting: _Waiting) -> None:
        """A request goes without its lease: cancelled, out of time, or failed."""
        self._waiting.pop(waiting.waiter.number, None)
        future = waiting.future
        if not future.cancel() and not future.cancelled() and future.exception() is None:
            future.result().give_back()  # granted in the same turn of the loop in which it was cancelled
        self._look()

    def _fail(self, waiting: _Waiting, error: VllamaError | _ServedOtherwise) -> None:
        self._waiting.pop(waiting.waiter.number, None)
        if not waiting.future.done():
            waiting.future.set_exception(error)

    # --- deciding ------------------------------------------------------------------------------------------------

    def _worker_changed(self, handle: WorkerHandle) -> None:
        mine = [waiting for waiting in self._waiting.values() if waiting.waiter.key == handle.key]
        if handle.state is State.FAILED and handle.error is not None:
            if not any(other.record.will_serve for other in self._supervisor.with_key(handle.key)):
                breaker, now = self._supervisor.breaker, self._clock.now()
                for waiting in mine:
                    refused = breaker.refuse(handle.key, waiting.model.name, now)
                    self._fail(waiting, refused or handle.error)
        else:
            self._tell_progress(handle, mine)
        if self._waiting:
            self._look()

    def _tell_progress(self, handle: WorkerHandle, to: Iterable[_Waiting]) -> None:
        listeners = [waiting.on_progress for waiting in to if waiting.on_progress is not None]
        if listeners and handle.state in {State.STARTING, State.BACKOFF}:
            view = handle.view()
            for listener in listeners:
                listener(view)

    def _memory_changed(self) -> None:
        self._supervisor.relieve_host()
        if self._waiting:
            self._look()

    def _look(self, pause_s: float = 0.0) -> None:
        """Ask the planner in the loop's next turn: whatever happens in this one is looked at once."""
        if self._next_look is not None or not self._opened.is_set():
            return
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(pause_s, self._act) if pause_s else loop.call_soon(self._act)

    def _act(self) -> None:
        self._next_look = None
        began = time.perf_counter()
        try:
            self._decide()
        except Exception as error:  # the gate's boundary: whoever waits would wait for a look that never comes
            log.exception("gate.bug waiting=%d", len(self._waiting))
            for waiting in list(self._waiting.values()):
                why = f"cannot serve {waiting.model.name}: internal error while deciding: {error!r}"
                self._fail(waiting, VllamaError(Reason.INTERNAL, why, "report it with the log of vllamad"))
        took_s = time.perf_counter() - began
        if took_s > QUICK_LOOK_S and self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
            self._look(PAUSE_FACTOR * took_s)

    def _decide(self) -> None:
        self._forget({handle.key for handle in self._supervisor.handles()})
        planned = plan(self.workload(), self._clock.now())
        self._room_made_for = planned.room_made_for
        self.waits = {self._wanted[one.key].name: one.why for one in planned.decisions if isinstance(one, Wait)}
        # Whatever the decisions change asks for another look, which is due in the next turn.
        for decision in planned.decisions:
            match decision:
                case Grant(number, holder):
                    self._grant(number, holder)
                case Start():
                    self._start(decision)
                case Stop():
                    self._stop(decision)
                case Refuse():
                    self._refuse(decision)
                case Wait():
                    pass
        self._arm(planned.look_again_at)

    def _arm(self, look_again_at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if look_again_at is not None and self._waiting:
            self._timer = self._clock.call_at(look_again_at, self._look)

    def _grant(self, number: int, holder: str) -> None:
        waiting, handle = self._waiting.get(number), self._supervisor.get(holder)
        if waiting is None or waiting.future.done() or handle is None or not handle.takes_requests:
            return
        del self._waiting[number]
        self._note_served(handle.key, waiting.waiter.caller)
        waiting.future.set_result(self._lease_of(handle, waiting.model, waiting.keep_alive_s))

    def _lease_of(self, handle: WorkerHandle, model: Model, keep_alive_s: float | None) -> Lease:
        lease = handle.lease(model, keep_alive_s)
        if keep_alive_s is not None:  # is the model's, whichever of its workers serves
            for other in self._supervisor.with_key(handle.key):
                if other.keep_alive_s != keep_alive_s:
                    other.set_keep_alive(keep_alive_s)
        return lease

    def _start(self, decision: Start) -> None:
        mine = [each for each in self._waiting.values() if each.waiter.key == decision.key]
        if mine:
            model, keep_alive_s = mine[0].model, mine[0].keep_alive_s
        else:  # a replica, for those who are served already
            model, keep_alive_s = self._supervisor.with_key(decision.key)[0].model, None
        if self._supervisor.key(model) != decision.key:
            # What would be started is not what they wait for, and they would have another started, and another.
            for waiting in mine:
                self._fail(waiting, _ServedOtherwise())
            return
        rules = self._rules_for(model)
        self._supervisor.decided(decision.why)
        refused = self._supervisor.start(
            model,
            decision.holder,
            decision.placement,
            idle_s=rules.idle_s if keep_alive_s is None else keep_alive_s,
            wanted=self._wanted[decision.key],
            is_pinned=rules.is_pinned,
        )
        if refused is not None:  # the planner reads the same ledger: this is a bug, and it must not be a silent one
            event(log, logging.ERROR, "gate.start_refused", model=model.name, holder=decision.holder, why=refused.why)

    def _stop(self, decision: Stop) -> None:
        self._supervisor.decided(decision.why)
        if decision.may_sleep:
            self._supervisor.make_room(decision.holder)
        else:
            self._supervisor.stop(decision.holder)

    def _refuse(self, decision: Refuse) -> None:
        waiting = self._waiting.get(decision.number)
        if waiting is None:
            return
        match decision.reason:
            case Reason.QUEUE_FULL:
                error = self._queue_full(decision.why, decision.retry_after_s)
            case Reason.DEADLINE_EXCEEDED:
                waited_s = waiting.waiter.deadline - waiting.waiter.since
                error = self._too_late(waiting.model, waited_s)
            case _:
                problem = self._memory.problem
                hint = f"the devices cannot be read: {problem}" if problem else "see what there is: vllamactl status"
                later = {"retry_after_s": decision.retry_after_s} if decision.retry_after_s else {}
                error = VllamaError(decision.reason, decision.why, hint, model=waiting.model.name, **later)
        self._fail(waiting, error)

    def _queue_full(self, why: str, retry_after_s: int) -> VllamaError:
        limits = self._limits.planner
        is_models = bool(limits.queue_per_model) and self.waiting <= limits.queue
        setting = "max_queue_per_model" if is_models else "max_queue"
        return VllamaError(
            Reason.QUEUE_FULL,
            "server busy, please try again.  maximum pending requests exceeded",
            f"{why.removeprefix('server busy: ')}; raise scheduler.{setting}, or ask less often",
            waiting=self.waiting,
            limit=limits.queue_per_model if is_models else limits.queue,
            retry_after_s=retry_after_s,
        )

    def _too_late(self, model: Model, wait_s: float) -> VllamaError:
        why = self.waits.get(model.name, "")
        return VllamaError(
            Reason.DEADLINE_EXCEEDED,
            f"cannot serve {model.name}: it was not ready within {wait_s:.0f} s",
            f"{why or 'see what it waits for: vllamactl status'}; or raise scheduler.load_wait",
            model=model.name,
        )

    # --- what is remembered --------------------------------------------------------------------------------------

    def _note_served(self, key: str, caller: str) -> None:
        self._served_at.pop((key, caller), None)
        self._served_at[key, caller] = self._clock.now()
        if len(self._served_at) > MAX_CALLERS:
            del self._served_at[next(iter(self._served_at))]

    def _forget(self, loaded: set[str]) -> None:
        waited_for = {waiting.waiter.key for waiting in self._waiting.values()}
        for key in self._wanted.keys() - loaded - waited_for:
            del self._wanted[key]

    def _count_waiting(self, key: str) -> int:
        return sum(1 for each in self._waiting.values() if each.waiter.key == key)


def _draining(model: Model) -> VllamaError:
    return VllamaError(
        Reason.DRAINING, f"cannot serve {model.name}: the daemon is stopping", "ask again in a few seconds"
    )
