"""One worker (floor 3): its record, who leases it, and what each effect of the machine means.

``post`` is synchronous: it steps the record, stores it, then starts the effects; effects that take time are tasks of
the current incarnation, which posts an event when they end. There is no lock, because there is no await between reading
and writing.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model
from vllamad.domain.ports import LoadStep, OutputRing, Timer
from vllamad.domain.scheduler import Slot
from vllamad.domain.view import WorkerView
from vllamad.domain.worker import (
    WITH_PROCESS,
    Deadline,
    Effect,
    Event,
    IllegalTransition,
    Kind,
    State,
    WorkerRecord,
    deadline_of,
    step,
)
from vllamad.host.logs import event
from vllamad.supervisor.failure import LAST_LINES, load_failed
from vllamad.supervisor.idle import IdleTimer
from vllamad.supervisor.incarnation import Incarnation, World
from vllamad.supervisor.lease import Lease, engine_died
from vllamad.supervisor.limits import WorkerLimits

log = logging.getLogger("vllamad.worker")
engine_log = logging.getLogger("vllamad.engine")


class WritableRing(OutputRing, Protocol):
    """A ring that the supervisor also writes to."""

    def append(self, text: str) -> object:
        """Add a line; its time is now."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerDeps:
    """What a worker needs. ``folder`` is where its incarnations get folders of their own; ``on_change`` is called,
    synchronously, after every change."""

    world: World
    folder: Path
    limits: WorkerLimits
    on_change: Callable[["WorkerHandle"], None]
    count_waiting: Callable[[str], int]
    """How many requests wait for the model with this key."""


class WorkerHandle:
    """The one owner of one worker's record."""

    def __init__(
        self, key: str, model: Model, number: int, deps: WorkerDeps, ring: WritableRing, idle_s: float
    ) -> None:
        self.key = key
        """What it is known by; see ``Engine.identity``."""
        self.model = model
        """The model that it was started for; others may share it."""
        self.name = f"workers/{model.ref.slug}-{number}"
        self.record = WorkerRecord()
        self.ring = ring
        self.error: VllamaError | None = None
        """Why it is in BACKOFF or FAILED."""
        self.is_pinned = False
        self._clock = deps.world.clock
        self._deps = deps
        self._number = number
        self._load = LoadStep("starting", 0.0)
        self._load_s = 0.0
        self._start_time = 0.0
        self._life: Incarnation | None = None
        self._leases: set[Lease] = set()
        self._idle = IdleTimer(self._clock, idle_s, self._expired)
        self._deadline: Timer | None = None
        self._fault = ""
        """What the current life died of, in words: the first that was told."""
        self._is_hurried = False
        self._drain_s: float | None = None

    # --- what others ask -----------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self.record.state

    def slot(self) -> Slot:
        """The scheduler's picture of this worker."""
        record = self.record
        is_suspect = self._life is not None and self._life.is_suspect
        return Slot(
            self.key,
            self.model.name,
            record.state,
            record.goal,
            record.held,
            record.leases,
            self._idle.since,
            self.is_pinned,
            is_suspect,
        )

    def view(self) -> WorkerView:
        """The faces' picture of this worker."""
        expires_at = self._idle.expires_at
        if expires_at is not None and not math.isinf(expires_at):
            expires_at += self._clock.time() - self._clock.now()
        return WorkerView(
            name=self.name,
            model=self.model.name,
            model_digest=self.model.digest,
            state=self.state,
            incarnation=self.record.incarnation,
            pid=self._life.pid if self._life and self.state in WITH_PROCESS else 0,
            leases=self.record.leases,
            waiting=self._deps.count_waiting(self.key),
            load_phase=self._load.phase,
            load_fraction=self._load.fraction,
            load_s=self._load_s,
            start_time=self._start_time,
            expire_time=expires_at,
            idle_s=self._idle.idle_s,
            memory_bytes=self._life.memory_bytes if self._life else 0,
            device_bytes=self._life.device_bytes if self._life else 0,
            device=self._deps.world.device(),
            context_length=self._life.context_length if self._life else 0,
            error=self.error,
        )

    # --- leases --------------------------------------------------------------------------------------------------

    def lease(self, model: Model, keep_alive_s: float | None) -> Lease:
        """Give a lease for ``model``, which it serves; only in READY. ``keep_alive_s`` None leaves the worker's setting
        as it is."""
        life = self._life
        if life is None or life.client is None:
            raise IllegalTransition(self.record, Event(Kind.LEASED))
        self.post(Kind.LEASED)
        self._idle.disarm()
        if keep_alive_s is not None:
            self._idle.idle_s = keep_alive_s
        lease = Lease(
            model,
            life.client,
            life.context_length,
            lambda one: self._returned(one, life.number),
            lambda: self._suspect(life),
        )
        self._leases.add(lease)
        return lease

    def set_keep_alive(self, idle_s: float) -> None:
        """Change how long it may stay idle, from now on."""
        self._idle.idle_s = idle_s
        if self.state is State.READY and self.record.leases == 0:
            self._idle.arm()

    def _returned(self, lease: Lease, incarnation: int) -> None:
        self._leases.discard(lease)
        self.post(Kind.RETURNED, incarnation=incarnation)

    def _suspect(self, life: Incarnation) -> None:
        if life is self._life and self.state is State.READY:
            life.ask_whether_alive()

    # --- the machine ---------------------------------------------------------------------------------------------

    def post(self, kind: Kind, cause: Reason | None = None, incarnation: int | None = None) -> None:
        """Let something happen to this worker. Events of the process carry its incarnation; wishes do not."""
        before = self.record
        try:
            after, effects = step(before, Event(kind, incarnation, cause), self._deps.limits.attempts)
        except IllegalTransition:
            log.exception("worker.illegal worker=%s event=%s record=%s", self.name, kind, before)
            return
        self.record = after
        if after.state is not before.state:
            self._entered(before)
        for effect in effects:
            self._run(effect)
        if after is not before:
            self._deps.on_change(self)

    def drain_within(self, seconds: float) -> None:
        """From now on requests in flight get this long when the worker is asked to stop."""
        self._drain_s = seconds
        if self.state is State.DRAINING:
            self._arm_deadline()

    def hurry(self) -> None:
        """Let the deadline that is armed now, and every one to come, be over at once."""
        self._is_hurried = True
        if self._deadline is not None:
            self._arm_deadline()

    # --- what the incarnation tells ------------------------------------------------------------------------------

    def happened(self, incarnation: int, kind: Kind, cause: Reason | None = None, detail: str = "") -> None:
        """See ``Owner``. What a life tells that is over already is ignored."""
        if self._life is None or self._life.number != incarnation:
            return
        self._fault = self._fault or detail
        self.post(kind, cause, incarnation)

    def cleared(self) -> None:
        """See ``Owner``."""
        self._deps.on_change(self)

    def said(self, line: str) -> None:
        """See ``Owner``."""
        self.ring.append(line)
        event(engine_log, logging.INFO, "engine.line", model=self.model.name, text=line)
        if self.state is State.STARTING:
            load = self._deps.world.engine.read_phase(line)
            if load is not None and load.fraction >= self._load.fraction:
                self._load = load
                self._deps.on_change(self)

    # --- states and deadlines ------------------------------------------------------------------------------------

    def _entered(self, before: WorkerRecord) -> None:
        record = self.record
        if record.state is State.STARTING:
            self._drain_s = None
        if record.state is State.READY and before.state is State.STARTING and self._life is not None:
            self._load_s = self._clock.now() - self._life.spawned_at
            self._load = LoadStep("ready", 1.0)
        if record.state is not State.READY:
            self._idle.disarm()
        if before.state is State.RELEASING and self._life is not None:
            self._life.abandon()
            self._life = None
        if record.state in {State.BACKOFF, State.FAILED} and record.cause is not None:
            lines = [line.text for line in self.ring.tail(LAST_LINES)]
            self.error = load_failed(self.model.name, record.cause, self._fault, lines, record.attempts)
        elif record.state in {State.STARTING, State.STOPPED}:
            self.error = None
        self._log_change(before)
        self._arm_deadline()

    def _log_change(self, before: WorkerRecord) -> None:
        record = self.record
        facts: dict[str, object] = {}
        if record.cause is not None:
            facts |= {"cause": record.cause, "detail": self._fault}
        if record.state is State.READY and before.state is State.STARTING:
            facts["load_s"] = round(self._load_s, 1)
        event(
            log,
            logging.WARNING if record.cause is not None and before.cause is None else logging.INFO,
            "worker.state",
            worker=self.name,
            model=self.model.name,
            from_=before.state,
            to=record.state,
            incarnation=record.incarnation,
            **facts,
        )

    def _arm_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        deadline = deadline_of(self.record)
        if deadline is None:
            return
        incarnation = self.record.incarnation
        self._deadline = self._clock.call_at(
            self._clock.now() + self._seconds(deadline), lambda: self._deadline_passed(deadline, incarnation)
        )

    def _seconds(self, deadline: Deadline) -> float:
        usual = self._deps.limits.seconds(deadline, self.record.attempts)
        if deadline in {Deadline.KILL, Deadline.RELEASE}:
            # Hurry does not make the kernel faster: a tree that gets no time to die would be called unkillable.
            return usual
        if self._is_hurried:
            return 0.0
        if deadline is Deadline.DRAIN and self._drain_s is not None:
            return self._drain_s
        return usual

    def _deadline_passed(self, deadline: Deadline, incarnation: int) -> None:
        self._deadline = None
        if deadline is not Deadline.BACKOFF:
            event(log, logging.WARNING, "worker.deadline", worker=self.name, state=self.state, deadline=deadline)
        if deadline is Deadline.START:
            limit = self._deps.limits.start_s
            self._fault = self._fault or f"not ready after {limit:g} s (last phase: {self._load.phase})"
        self.post(Kind.DEADLINE, incarnation=incarnation)

    def _expired(self) -> None:
        if self.state is State.READY and self.record.leases == 0 and not self.is_pinned:
            event(log, logging.INFO, "worker.idle", worker=self.name, model=self.model.name, s=self._idle.idle_s)
            self.post(Kind.STOP)

    # --- effects -------------------------------------------------------------------------------------------------

    def _run(self, effect: Effect) -> None:
        match effect:
            case Effect.SPAWN:
                self._spawn()
            case Effect.TERM:
                # With streams open, the engine would wait for its clients' ends: ours are closed first.
                self._break_leases()
                if self._life is not None:
                    self._life.terminate()
            case Effect.KILL:
                if self._life is not None:
                    self._life.kill()
            case Effect.AWAIT_MEMORY:
                if self._life is not None:
                    self._life.release()
            case Effect.BREAK_LEASES:
                self._break_leases()
            case Effect.ARM_IDLE:
                self._idle.arm()
            case Effect.SLEEP | Effect.RESUME:
                # The machine knows sleep already; the engine port does not offer it yet, and a failed sleep is a stop.
                incarnation = self.record.incarnation
                asyncio.get_running_loop().call_soon(self.post, Kind.CALL_FAILED, None, incarnation)
            case Effect.SHOUT:
                event(
                    log,
                    logging.ERROR,
                    "worker.leaked",
                    worker=self.name,
                    model=self.model.name,
                    text="processes do not end on SIGKILL; nobody else gets their memory until they are gone",
                )
            case Effect.RESERVE | Effect.RELEASE | Effect.GROW | Effect.SHRINK:
                pass  # what is held stands in the record, and the scheduler counts records
            case Effect.WAKE_WAITERS | Effect.READMIT:
                pass  # on_change tells the gate, which looks at every waiter again

    def _spawn(self) -> None:
        self._start_time = self._clock.time()
        self._load = LoadStep("starting", 0.0)
        self._fault = ""
        number = self.record.incarnation
        folder = self._deps.folder / f"{self._number}-{number}"
        self._life = Incarnation(number, self.name, self.model, folder, self._deps.world, self)
        self._life.start()

    def _break_leases(self) -> None:
        if not self._leases:
            return
        name = self.model.name
        if self.record.cause is None and self.state is State.STOPPING:
            error = VllamaError(Reason.DRAINING, f"{name} is being unloaded", "ask again", model=name)
        else:
            error = engine_died(name, self._fault or "it does not answer")
        broken, self._leases = self._leases, set()
        for lease in broken:
            lease.break_off(error)
