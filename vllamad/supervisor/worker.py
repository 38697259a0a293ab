"""One worker (floor 3): its record, who leases it, and what each effect of the machine means.

``post`` is synchronous: it steps the record, stores it, then starts the effects; effects that take time are tasks of
the current incarnation, which posts an event when they end. There is no lock, because there is no await between reading
and writing.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vllama.reasons import Reason
from vllamad.domain.breaker import Breaker
from vllamad.domain.budget import Refused
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import HANDED, HandedWorker
from vllamad.domain.ladder import Rung, Sleeper
from vllamad.domain.model import Model
from vllamad.domain.placement import Placement
from vllamad.domain.ports import LoadStep, OutputLine, OutputRing, Taken, Timer
from vllamad.domain.view import WorkerView
from vllamad.domain.worker import (
    WITH_PROCESS,
    Deadline,
    Effect,
    Event,
    Goal,
    Held,
    IllegalTransition,
    Kind,
    State,
    WorkerRecord,
    deadline_of,
    step,
    taken_over,
)
from vllamad.domain.workload import Wanted, Worker
from vllamad.host.logs import event
from vllamad.supervisor.failure import SOUGHT_LINES, last_words, load_failed
from vllamad.supervisor.idle import IdleTimer
from vllamad.supervisor.incarnation import Incarnation, World
from vllamad.supervisor.lease import Lease, engine_died
from vllamad.supervisor.limits import WorkerLimits
from vllamad.supervisor.memory import DeviceMemory, OwnUse
from vllamad.supervisor.places import engine_place, names_of
from vllamad.supervisor.sleeping import Ladder

log = logging.getLogger("vllamad.worker")
engine_log = logging.getLogger("vllamad.engine")

RETRY_LOAD_S = 1.0
"""How soon a crashed worker that found its device loading somebody else asks again."""

LOADING_TERM_S = 2.0
"""How long an engine that was not ready yet gets after SIGTERM, at most: vLLM looks at signals only when it is (20 s,
measured), and it has served nobody whom it would have to finish with. Who tidies up after it is spared by the kill."""

LINGER_S = 1.0
"""How long it stays at least while requests wait for it, also with a keep-alive of nothing: the gate may pause for a
moment before it grants them."""

WEIGHTS = "weights"
"""The phase of a load in which the engine reads them."""

GAP_WEIGHT = 0.3
"""Of the newest gap between two requests in their usual gap: a handful of them makes it."""


def folder_name(number: int, incarnation: int) -> str:
    """Of the folder of one life of a worker, by their numbers. Paths of sockets are limited: it says nothing else."""
    return f"{number}-{incarnation}"


class WritableRing(OutputRing, Protocol):
    """A ring that the supervisor also writes to."""

    def restore(self, lines: Iterable[OutputLine]) -> None:
        """Go on behind lines that an earlier ring kept."""
        ...

    def append(self, text: str) -> object:
        """Add a line; its time is now."""
        ...


@dataclass(slots=True)
class WorkerDeps:
    """What workers need, all of them the same. ``folder`` is where their incarnations get folders of their own;
    ``on_change`` is called, synchronously, after every change, ``on_measured`` when a ready one was measured."""

    world: World
    folder: Path
    limits: WorkerLimits
    """Of the deadlines that are armed from now on: a reload puts others here."""
    on_change: Callable[["WorkerHandle"], None]
    on_measured: Callable[["WorkerHandle"], Awaitable[None]]
    count_waiting: Callable[[str], int]
    """How many requests wait for the model with this key."""
    breaker: Breaker
    ladder: Ladder
    decided: Callable[[str], None]
    """Takes sentences for people."""

    @property
    def memory(self) -> DeviceMemory:
        """The ledger's keeper: the one that incarnations ask as well."""
        return self.world.memory


_MAY_BE_IDLE = frozenset({State.READY, State.SUSPENDING, State.SUSPENDED})
"""States in which keep-alive goes on while nobody asks."""

_SLEEP_FAULTS = frozenset({Kind.CALL_FAILED, Kind.UNHEALTHY, Kind.LEADER_EXITED})
"""What ends a falling asleep or a wake otherwise than well."""

_LOADED_OR_GONE = frozenset({State.READY, State.SUSPENDED, State.RELEASING, State.FAILED})
"""States that end a load, a wake or a falling asleep: others may load on its devices from then on."""


class WorkerHandle:
    """The one owner of one worker's record."""

    def __init__(
        self, holder: str, key: str, model: Model, number: int, deps: WorkerDeps, ring: WritableRing, idle_s: float
    ) -> None:
        self.holder = holder
        """Its name in the ledger."""
        self.key = key
        """What it serves; see ``Engine.identity``. Replicas share it."""
        self.model = model
        """The model that it was started for; others may share it."""
        self.name = f"workers/{model.ref.slug}-{number}"
        self.record = WorkerRecord()
        self.ring = ring
        self.error: VllamaError | None = None
        """Why it is in BACKOFF or FAILED."""
        self.is_pinned = False
        self.is_outdated = False
        """What its engine was started with is configured otherwise now, and its placement was reckoned for it."""
        self.placement: Placement | None = None
        """Where it was placed last; means nothing while it holds no memory."""
        self.wanted: Wanted | None = None
        """What was known of its model when it was started last."""
        self.load_cost_s = 0.0
        """What a load takes: as it was measured, else as it was estimated."""
        self._rung = Rung.RESIDENT
        """Where it sleeps, or is to sleep; means nothing while it serves."""
        self._waking_since = 0.0
        self._clock = deps.world.clock
        self._deps = deps
        self._number = number
        self._load = LoadStep("starting", 0.0)
        self._load_s = 0.0
        self._weights_since = 0.0
        self._weights_s = 0.0
        """What its engine took to read the weights, by what it said; 0 if it did not say."""
        self._start_time = 0.0
        self._said_before = 0
        """The number of the last line in the ring that an earlier life wrote."""
        self._life: Incarnation | None = None
        self._leases: set[Lease] = set()
        self._idle = IdleTimer(self._clock, idle_s, self._expired)
        self._deadline: Timer | None = None
        self._fault = ""
        """What the current life died of, in words: the first that was told."""
        self._is_hurried = False
        self._drain_s: float | None = None
        self._is_unreturned = False
        """Its last life has ended without its memory being seen to return."""
        self._ready_since = 0.0
        self._asked_at: float | None = None
        self._gap_s = 0.0

    # --- what others ask -----------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self.record.state

    @property
    def keep_alive_s(self) -> float:
        """How long it may stay idle."""
        return self._idle.idle_s

    @property
    def idle_since(self) -> float:
        """The instant at which its last request ended; means nothing while it has some."""
        return self._idle.since

    @property
    def is_busy(self) -> bool:
        """See ``Owner``."""
        return self.record.leases > 0

    @property
    def takes_requests(self) -> bool:
        return self.picture().takes_requests

    @property
    def load_s(self) -> float:
        """What its last load took; 0 if it was never loaded."""
        return self._load_s

    @property
    def memory_bytes(self) -> int:
        """Resident memory of its processes, as it was measured last."""
        return self._life.memory_bytes if self._life else 0

    @property
    def device_bytes(self) -> int:
        """What it was last seen to hold on GPUs; 0 on CPU, and where the driver does not tell."""
        return self._life.device_bytes if self._life else 0

    @property
    def taken(self) -> Taken:
        """What its engine said that it took."""
        return self._life.taken if self._life else Taken()

    def picture(self) -> Worker:
        """The planner's picture of this worker."""
        record = self.record
        return Worker(
            holder=self.holder,
            key=self.key,
            model=self.model.name,
            state=record.state,
            goal=record.goal,
            held=record.held,
            leases=record.leases,
            idle_since=self._idle.since,
            ready_since=self._ready_since,
            load_cost_s=self.load_cost_s,
            gap_s=self._gap_s,
            is_pinned=self.is_pinned,
            is_suspect=self._life is not None and self._life.is_suspect,
        )

    def own_use(self) -> OwnUse:
        """What the ledger's keeper may look for. What still grows is not told: all that was declared counts then. Until
        everything was measured once with all of it loaded, its processes are searched for at each look: one that came
        last would be taken for somebody else's."""
        life = self._life
        if life is None:
            return OwnUse(self.holder, frozenset(), 0)
        if life.settled_bytes is None:
            return OwnUse(self.holder, life.pids, look=life.look_for_pids)
        return OwnUse(self.holder, life.pids, life.settled_bytes if self.state is State.READY else None)

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
            is_pinned=self.is_pinned,
            memory_bytes=self.memory_bytes,
            device_bytes=self.device_bytes,
            device=names_of(self._deps.memory.ledger, self.placement) if self.placement else "",
            reserved_bytes=self._reserved_bytes(),
            cache_tokens=self.taken.cache_tokens,
            cpu_s=self._life.cpu_s if self._life else 0.0,
            context_length=self._life.context_length if self._life else 0,
            holder=self.holder,
            cache_usage=self._life.cache_usage if self._life and self.is_busy else 0.0,
            fast_path=self._life.fast_path if self._life else "",
            error=self.error,
        )

    def _reserved_bytes(self) -> int:
        mine = self._deps.memory.ledger.reservations.get(self.holder)
        return sum(mine.bytes_on.values()) if mine is not None else 0

    # --- wishes --------------------------------------------------------------------------------------------------

    def start(self, placement: Placement | None) -> Refused | None:
        """Want it to run: on a new placement, or where it is. The bytes are reserved here, before the step, because a
        step cannot be refused; returns why they are not to be had, and changes nothing then."""
        memory, refused = self._deps.memory, None
        match self.state:
            case State.STOPPED | State.FAILED if self.record.held is Held.NONE:
                assert placement is not None, f"{self.name} has no place"
                refused = memory.reserve(self.holder, placement.bytes_on)
                if refused is None:
                    self.placement, self.is_outdated = placement, False
            case State.BACKOFF:
                refused = memory.begin_load(self.holder)
            case State.SUSPENDED:
                refused = memory.grow(self.holder)
            case _:
                pass
        if refused is None:
            self.post(Kind.START)
        return refused

    def make_room(self) -> None:
        """Give up the devices, or most of them: sleep where that is better than to be stopped."""
        ladder, wanted, placement = self._deps.ladder, self.wanted, self.placement
        can_sleep = ladder.rules.is_on and self.state is State.READY
        if not can_sleep or wanted is None or not wanted.can_sleep or placement is None:
            self.post(Kind.STOP)
            return
        choice = ladder.choose(self._seen_on(Rung.RESIDENT, wanted, placement))
        self._deps.decided(choice.why)
        if choice.rung is Rung.STOPPED or self._deps.memory.begin_load(self.holder) is not None:
            # Beside a load nobody falls asleep: the engine that loads looks at what is free.
            self.post(Kind.STOP)
            return
        self._rung = choice.rung
        self.post(Kind.SUSPEND)

    def sleeper(self) -> Sleeper | None:
        """The ladder's picture of it while it sleeps; None if it does not."""
        if not self.picture().is_asleep or self.wanted is None or self.placement is None:
            return None
        return self._seen_on(self._rung, self.wanted, self.placement)

    def _seen_on(self, rung: Rung, wanted: Wanted, placement: Placement) -> Sleeper:
        idle_s = self._clock.now() - self._idle.since
        return self._deps.ladder.sleeper(self.holder, wanted, len(placement.devices), rung, idle_s)

    # --- from one daemon to the next -----------------------------------------------------------------------------

    @property
    def can_be_handed_over(self) -> bool:
        """True if another daemon could go on with its engine as it is now."""
        is_up = self.state in HANDED and self.record.goal is not Goal.STOP and self.placement is not None
        return is_up and self._life is not None and self._life.pid != 0

    def break_off(self, error: VllamaError) -> None:
        """End the streams of every request on it with ``error``."""
        broken, self._leases = self._leases, set()
        for lease in broken:
            lease.break_off(error)

    def hand_over(self) -> HandedWorker | None:
        """Let go of the engine for a daemon that takes our place; None where that cannot be. This worker is good for
        nothing after that."""
        life, placement, memory = self._life, self.placement, self._deps.memory
        child = life.hand_over() if life is not None and self.can_be_handed_over else None
        if life is None or placement is None or child is None:
            return None
        now, expires_at = self._clock.now(), self._idle.expires_at
        mine = memory.ledger.reservations[self.holder]
        self._life = None
        self._idle.disarm()
        if self._deadline is not None:
            self._deadline.cancel()
        return HandedWorker(
            name=self.name,
            holder=self.holder,
            number=self._number,
            key=self.key,
            model=self.model.name,
            state=self.state,
            incarnation=self.record.incarnation,
            attempts=self.record.attempts,
            devices=tuple(memory.key(index) for index in placement.devices),
            device_bytes=placement.device_bytes,
            cache_bytes=placement.cache_bytes,
            tokens=placement.tokens,
            full_on={memory.key(index): count for index, count in mine.full_on.items()},
            small_on={memory.key(index): count for index, count in mine.small_on.items()},
            rung=self._rung,
            keep_alive_s=self._idle.idle_s,
            expires_at=now + self._idle.idle_s if expires_at is None else expires_at,
            idle_since=self._idle.since,
            spawned_at=life.spawned_at,
            ready_since=self._ready_since,
            start_time=self._start_time,
            load_s=self._load_s,
            load_cost_s=self.load_cost_s,
            load_phase=self._load.phase,
            load_fraction=self._load.fraction,
            context_length=life.context_length,
            weights_bytes=life.taken.weights_bytes,
            cache_tokens=life.taken.cache_tokens,
            is_outdated=self.is_outdated,
            lines=tuple((line.number, line.time, line.text) for line in self.ring.tail(-1)),
            child=child,
        )

    async def take_over(self, handed: HandedWorker, placement: Placement, wanted: Wanted | None) -> None:
        """Be the worker that a daemon before us had. Raises what keeps its engine from going on."""
        self.name, self.placement, self.wanted = handed.name, placement, wanted
        self.is_outdated = handed.is_outdated
        self.load_cost_s, self._load_s = handed.load_cost_s, handed.load_s
        self._rung, self._start_time, self._ready_since = handed.rung, handed.start_time, handed.ready_since
        self._load = LoadStep(handed.load_phase, handed.load_fraction)
        self.ring.restore(OutputLine(*line) for line in handed.lines)
        life = self._new_life(handed.incarnation)
        await life.take_over(handed)
        self._life = life
        self.record = taken_over(handed.state, handed.incarnation, handed.attempts)
        if self.state in _MAY_BE_IDLE:
            self._idle.arm(max(LINGER_S, handed.expires_at - self._clock.now()))
            self._idle.since = handed.idle_since
        self._arm_deadline()
        event(log, logging.INFO, "worker.taken_over", worker=self.name, model=self.model.name, state=self.state)

    # --- leases --------------------------------------------------------------------------------------------------

    def lease(self, model: Model, keep_alive_s: float | None) -> Lease:
        """Give a lease for ``model``, which it serves; only in READY. ``keep_alive_s`` None leaves the worker's setting
        as it is."""
        life = self._life
        if life is None or life.client is None:
            raise IllegalTransition(self.record, Event(Kind.LEASED))
        self.post(Kind.LEASED)
        self._idle.disarm()
        self._note_gap()
        if keep_alive_s is not None and not self.is_pinned:
            self._idle.idle_s = keep_alive_s
        lease = Lease(
            model,
            life.client,
            life.socket,
            life.context_length,
            lambda one: self._returned(one, life.number),
            lambda: self._suspect(life),
        )
        self._leases.add(lease)
        return lease

    def set_keep_alive(self, idle_s: float) -> None:
        """Change how long it may stay idle, from now on; a pinned one stays whatever is asked."""
        if self.is_pinned:
            return
        self._idle.idle_s = idle_s
        if self.state in _MAY_BE_IDLE and self.record.leases == 0:
            self._idle.arm()

    def configure(self, idle_s: float, *, is_pinned: bool) -> None:
        """Take what is configured now: a pin holds at once, a keep-alive counts from now on."""
        self.is_pinned = False
        self.set_keep_alive(idle_s)
        self.is_pinned = is_pinned

    def outdate(self) -> None:
        """Serve on as it is, and be started otherwise next time: not in its place after a crash, but placed anew."""
        self.is_outdated = True
        if self.state is State.BACKOFF:
            self.post(Kind.STOP)

    def _note_gap(self) -> None:
        now = self._clock.now()
        if self._asked_at is not None:
            gap_s = now - self._asked_at
            self._gap_s = gap_s if not self._gap_s else (1 - GAP_WEIGHT) * self._gap_s + GAP_WEIGHT * gap_s
        self._asked_at = now

    def expire_within(self, seconds: float) -> None:
        """Let it go earlier if nobody uses it from now on; its keep-alive stays as it is."""
        if self.state is State.READY and self.record.leases == 0:
            self._idle.arm(min(seconds, self._idle.idle_s))

    def _returned(self, lease: Lease, incarnation: int) -> None:
        self._leases.discard(lease)
        self.post(Kind.RETURNED, incarnation=incarnation)

    def _suspect(self, life: Incarnation) -> None:
        if life is self._life and self.state is State.READY:
            life.ask_whether_alive()

    # --- the machine ---------------------------------------------------------------------------------------------

    def post(self, kind: Kind, cause: Reason | None = None, incarnation: int | None = None) -> None:
        """Let something happen to this worker. Events of the process carry its incarnation; wishes do not."""
        before, now, breaker = self.record, self._clock.now(), self._deps.breaker
        attempts = breaker.attempts(self.key, self._deps.limits.attempts, now)
        try:
            after, effects = step(before, Event(kind, incarnation, cause), attempts)
        except IllegalTransition:
            log.exception("worker.illegal worker=%s event=%s record=%s", self.name, kind, before)
            return
        self.record = after
        if after.state is not before.state:
            self._entered(before)
        if sentence := breaker.changed(self.key, self.name, before, after, self.error, now):
            self._deps.decided(f"{self.model.name} {sentence}")
        for effect in effects:
            self._run(effect, before)
        if after is not before:
            self._deps.on_change(self)

    def stop_at_once(self) -> None:
        """Stop it without waiting for requests in flight. Who waits for it gets its next life."""
        self.post(Kind.STOP)
        if self.state is State.DRAINING:
            self.post(Kind.DEADLINE)

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
        if kind in _SLEEP_FAULTS and self.state in {State.SUSPENDING, State.RESUMING}:
            self._sleep_failed(detail)
        if kind is Kind.LEADER_EXITED and self._blames_loader(self._life, detail):
            kind = Kind.LOADER_FAILED
        elif kind is not Kind.CALL_FAILED:  # which says nothing of one that is being stopped
            self._fault = self._fault or detail
        self.post(kind, cause, incarnation)

    def cleared(self) -> None:
        """See ``Owner``."""
        self._deps.on_change(self)

    def said(self, line: str) -> None:
        """See ``Owner``."""
        self.ring.append(line)
        level = self._deps.world.engine.level(line)
        event(engine_log, level, "engine.line", model=self.model.name, worker=self.name, text=line)
        if self.state is State.STARTING:
            taken = self._deps.world.engine.read_taken(line)
            if taken is not None and self._life is not None:
                self._life.taken |= taken
            load = self._deps.world.engine.read_phase(line)
            if load is not None and load.fraction >= self._load.fraction:
                self._note_weights(self._load.phase, load.phase)
                self._load = load
                self._deps.on_change(self)

    def _note_weights(self, before: str, now: str) -> None:
        if before != WEIGHTS and now == WEIGHTS:
            self._weights_since = self._clock.now()
        elif before == WEIGHTS and now != WEIGHTS:
            self._weights_s = self._clock.now() - self._weights_since

    def _blames_loader(self, life: Incarnation, detail: str) -> bool:
        """An engine ended before it was ready, with a loader that was only tried: it is not tried again with this
        model. True if the engine's own way of loading is tried at once; what was a crash before goes on as one."""
        if self.state is not State.STARTING or not life.loader.name:
            return False
        self._deps.world.starting.loaders.failed(self.key, life.loader)
        self._deps.decided(
            f"{self.model.name} is loaded without {life.loader.name} from now on: with it, its engine was never ready "
            f"({detail})"
        )
        return self.record.attempts == 0

    async def measured(self) -> None:
        """See ``Owner``."""
        if self.state is State.READY:
            await self._deps.on_measured(self)

    # --- states and deadlines ------------------------------------------------------------------------------------

    def _entered(self, before: WorkerRecord) -> None:
        record = self.record
        if record.state in {State.STARTING, State.READY}:
            self._drain_s = None
        if record.state is State.READY and before.state is State.STARTING and self._life is not None:
            self._load_s = self.load_cost_s = self._clock.now() - self._life.spawned_at
            self._load = LoadStep("ready", 1.0)
            if self._weights_s and self._life.has_choice:
                self._deps.world.starting.loaders.took(self.key, self._life.loader, self._weights_s)
            self._ready_since = self._clock.now()
        if record.state in _LOADED_OR_GONE:
            self._deps.memory.end_load(self.holder)
        if record.state is State.RELEASING:
            self._is_unreturned = False
        if record.state is State.RESUMING:
            self._waking_since = self._clock.now()
        if before.state is State.RESUMING and record.state is State.READY and self.wanted and self.placement:
            seconds = self._clock.now() - self._waking_since
            self._deps.ladder.woke(self.wanted, len(self.placement.devices), self._rung, seconds)
        if before.state is State.STARTING and record.state is State.READY and self.wanted and self.placement:
            self._deps.ladder.loaded(self.wanted, len(self.placement.devices), self._load_s)
        if record.state not in _MAY_BE_IDLE:
            self._idle.disarm()  # asleep it is as idle as before, and its keep-alive goes on
        if (before.state is State.RELEASING or record.state is State.STOPPED) and self._life is not None:
            self._life.abandon()
            self._life = None
        if record.state in {State.BACKOFF, State.FAILED} and record.cause is not None:
            said = self.ring.tail(SOUGHT_LINES)
            lines = last_words(line.text for line in said if line.number > self._said_before)
            self.error = load_failed(
                self.model.name, record.cause, self._fault, lines, record.attempts, self._deps.world.engine.plain
            )
        elif record.state in {State.STARTING, State.STOPPED}:
            self.error = None
        self._log_change(before)
        self._arm_deadline()
        if record.state is State.BACKOFF and self.placement is not None:
            closed = self._deps.memory.closed_for_good(self.placement.devices)
            if closed or self.is_outdated:
                # There it will not come up again: whoever wants it has it placed anew.
                why = closed or "it is configured otherwise since it was started"
                self._deps.decided(f"stop {self.model.name}, instead of trying again where it was: {why}")
                asyncio.get_running_loop().call_soon(self.post, Kind.STOP)

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

    def _arm_deadline(self, seconds: float | None = None) -> None:
        """Arm the deadline of the state that it is in; ``seconds`` instead of the usual time."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        deadline = deadline_of(self.record)
        if deadline is None:
            return
        incarnation = self.record.incarnation
        self._deadline = self._clock.call_at(
            self._clock.now() + (self._seconds(deadline) if seconds is None else seconds),
            lambda: self._deadline_passed(deadline, incarnation),
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
        if deadline is Deadline.TERM and self._life is not None and not self._life.context_length:
            return min(LOADING_TERM_S, usual)
        return usual

    def _deadline_passed(self, deadline: Deadline, incarnation: int) -> None:
        self._deadline = None
        if deadline is not Deadline.BACKOFF:
            event(log, logging.WARNING, "worker.deadline", worker=self.name, state=self.state, deadline=deadline)
        if deadline is Deadline.BACKOFF and self._deps.memory.begin_load(self.holder) is not None:
            self._arm_deadline(RETRY_LOAD_S)  # another loads on its device now
            return
        if deadline is Deadline.RELEASE:
            self._is_unreturned = True
        if deadline in {Deadline.SUSPEND, Deadline.RESUME}:
            self._sleep_failed(f"not done within {self._seconds(deadline):g} s")
        if deadline is Deadline.START:
            limit = self._deps.limits.start_s
            self._fault = self._fault or f"not ready after {limit:g} s (last phase: {self._load.phase})"
            if self._life is not None:
                self._blames_loader(self._life, self._fault)
        self.post(Kind.DEADLINE, incarnation=incarnation)

    def _sleep_failed(self, why: str) -> None:
        """It is stopped, and never goes to this rung again."""
        if self.wanted is not None:
            self._deps.ladder.failed(self.wanted, self._rung)
        step = "wake from" if self.state is State.RESUMING else "go to"
        self._deps.decided(f"{self.model.name} did not {step} {self._rung}, and is not put there again: {why}")

    def _expired(self) -> None:
        if self.state in _MAY_BE_IDLE and self.record.leases == 0 and not self.is_pinned:
            if self._deps.count_waiting(self.key):
                # They are about to have it, and would only have it loaded anew.
                self._idle.arm(max(LINGER_S, self._idle.idle_s))
                return
            event(log, logging.INFO, "worker.idle", worker=self.name, model=self.model.name, s=self._idle.idle_s)
            self.post(Kind.STOP)

    # --- effects -------------------------------------------------------------------------------------------------

    def _run(self, effect: Effect, before: WorkerRecord) -> None:
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
            case Effect.SLEEP:
                if self._life is not None:
                    self._life.suspend(self._rung.level)
            case Effect.RESUME:
                if self._life is not None:
                    self._life.resume()
            case Effect.SHOUT:
                self._deps.memory.quarantine(self.holder)
            case Effect.RELEASE:
                if self._is_unreturned or self.state is State.FAILED:
                    self._deps.memory.give_up(self.holder)
                    if self._life is not None and before.state is State.FAILED:
                        self._life.tidy()  # its tree has ended at last, long after it was given up
                else:
                    self._deps.memory.release(self.holder)
            case Effect.SHRINK:
                self._shrink()
            case Effect.RESERVE | Effect.GROW:
                pass  # done by ``start``, before the step
            case Effect.WAKE_WAITERS | Effect.READMIT:
                pass  # on_change tells the gate, which looks at every waiter again

    def _spawn(self) -> None:
        self._start_time = self._clock.time()
        self._said_before = max((line.number for line in self.ring.tail(1)), default=0)
        self._load = LoadStep("starting", 0.0)
        self._weights_s = 0.0
        self._fault = ""
        self._life = self._new_life(self.record.incarnation)
        self._life.start()

    def _new_life(self, number: int) -> Incarnation:
        assert self.placement is not None, f"{self.name} has no place"
        return Incarnation(
            number,
            self.name,
            self.model,
            self.holder,
            engine_place(self._deps.memory, self.placement),
            self._deps.folder / folder_name(self._number, number),
            self._deps.world,
            self,
        )

    def _shrink(self) -> None:
        memory, wanted, placement = self._deps.memory, self.wanted, self.placement
        assert wanted is not None and placement is not None, f"{self.name} sleeps on nothing"
        seen = memory.own_bytes_on(self.holder)
        refused = memory.shrink(self.holder, self._deps.ladder.small_on(wanted, self._rung, placement, seen))
        if refused is not None:
            self._sleep_failed(refused.why)
            asyncio.get_running_loop().call_soon(self.post, Kind.STOP)

    def _break_leases(self) -> None:
        if not self._leases:
            return
        name = self.model.name
        if self.record.cause is None and self.state is State.STOPPING:
            error = VllamaError(Reason.DRAINING, f"{name} is being unloaded", "ask again", model=name)
        else:
            error = engine_died(name, self._fault or "it does not answer")
        self.break_off(error)
