"""The worker as one machine (floor 1): ``step(record, event) -> (record, effects)``, pure and total.

The *goal* is what is wanted, the *state* what is; that is why "restart", "stop while starting" and "wanted again while
stopping" need no states of their own. Whoever owns a record steps it, stores the result and then starts the effects;
effects that take time post an event when they end. ``tests/unit/test_worker_walk.py`` walks every reachable record and
checks the invariants named there; ``docs/reference/worker-states.md`` is generated from this module.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from vllama.reasons import Reason


class State(StrEnum):
    """Where a worker is. ``...ING`` resolves by itself (it has a deadline of its own); everything else rests."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    SUSPENDING = "SUSPENDING"
    SUSPENDED = "SUSPENDED"
    RESUMING = "RESUMING"
    STOPPING = "STOPPING"
    KILLING = "KILLING"
    RELEASING = "RELEASING"
    BACKOFF = "BACKOFF"
    FAILED = "FAILED"


MEANING: dict[State, str] = {
    State.STOPPED: "no process",
    State.STARTING: "spawned, loading, not yet healthy",
    State.READY: "serves",
    State.DRAINING: "no new leases, old ones finish",
    State.SUSPENDING: "the engine is being put to sleep",
    State.SUSPENDED: "asleep: a small part of the memory is held",
    State.RESUMING: "the engine is waking up",
    State.STOPPING: "asked to end (SIGTERM to the tree)",
    State.KILLING: "leader gone or deaf; SIGKILL to the tree",
    State.RELEASING: "tree gone, waiting for device memory to return",
    State.BACKOFF: "crashed, will try again",
    State.FAILED: "gave up; cause and last log lines are kept",
}


class Goal(StrEnum):
    """What is wanted of a worker."""

    RUN = "RUN"
    SUSPEND = "SUSPEND"
    STOP = "STOP"


class Held(StrEnum):
    """What a worker holds in the ledger."""

    NONE = "none"
    SMALL = "small"
    FULL = "full"
    LEAKED = "leaked"


class Kind(StrEnum):
    """What can happen to a worker."""

    START = "Start"
    STOP = "Stop"
    SUSPEND = "Suspend"
    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    SPAWN_FAILED = "SpawnFailed"
    LEASED = "Leased"
    RETURNED = "Returned"
    STABLE = "Stable"
    SUSPEND_DONE = "SuspendDone"
    RESUME_DONE = "ResumeDone"
    CALL_FAILED = "CallFailed"
    DEADLINE = "Deadline"
    LEADER_EXITED = "LeaderExited"
    LOADER_FAILED = "LoaderFailed"
    TREE_GONE = "TreeGone"
    MEMORY_BACK = "MemoryBack"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``incarnation`` ties it to one process life; None: a wish, true of any life."""

    kind: Kind
    incarnation: int | None = None
    cause: Reason | None = None


class Effect(Enum):
    """What the owner has to do after a step. Deadlines are not effects: ``deadline_of`` gives the one of a state."""

    RESERVE = "reserve"
    SPAWN = "spawn"
    WAKE_WAITERS = "wake waiters"
    SLEEP = "sleep"
    RESUME = "wake the engine"
    SHRINK = "shrink the reservation"
    GROW = "reserve full"
    BREAK_LEASES = "break leases"
    ARM_IDLE = "arm idle timer"
    TERM = "term"
    KILL = "kill tree"
    AWAIT_MEMORY = "await memory"
    RELEASE = "release"
    READMIT = "readmit"
    SHOUT = "shout: memory leaked"


class Deadline(StrEnum):
    """The deadline that a state has of its own; the settings give its seconds."""

    START = "start"
    DRAIN = "drain"
    SUSPEND = "suspend"
    RESUME = "resume"
    TERM = "term"
    KILL = "kill"
    RELEASE = "release"
    BACKOFF = "backoff"


_DEADLINES: dict[State, Deadline] = {
    State.STARTING: Deadline.START,
    State.DRAINING: Deadline.DRAIN,
    State.SUSPENDING: Deadline.SUSPEND,
    State.RESUMING: Deadline.RESUME,
    State.STOPPING: Deadline.TERM,
    State.KILLING: Deadline.KILL,
    State.RELEASING: Deadline.RELEASE,
    State.BACKOFF: Deadline.BACKOFF,
}

WITH_PROCESS = frozenset(
    {
        State.STARTING,
        State.READY,
        State.DRAINING,
        State.SUSPENDING,
        State.SUSPENDED,
        State.RESUMING,
        State.STOPPING,
    }
)
"""States in which the leader may exit on its own. (In KILLING its exit is awaited, in FAILED it may come late.)"""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """Everything that decides what a worker does next. ``attempts`` counts crashes since it was last stable;
    ``is_final`` says that trying again is pointless; ``cause`` is the fault that brought it down, None if it was
    wished."""

    state: State = State.STOPPED
    goal: Goal = Goal.STOP
    incarnation: int = 0
    leases: int = 0
    attempts: int = 0
    cause: Reason | None = None
    is_final: bool = False
    held: Held = Held.NONE

    @property
    def will_serve(self) -> bool:
        """True if it serves, or is on its way there."""
        return self.goal is Goal.RUN and self.state not in {State.STOPPED, State.FAILED}

    @property
    def will_retry(self) -> bool:
        """True on the way down from a crash that another attempt follows."""
        return self.goal is Goal.RUN and self.cause is not None and not self.is_final


class IllegalTransition(Exception):
    """An event came in a state in which it cannot be: a bug in the owner, not a fault of the world."""

    def __init__(self, record: WorkerRecord, event: Event) -> None:
        super().__init__(f"{event.kind} in {record.state}: {record}")
        self.record = record
        self.event = event


Step = tuple[WorkerRecord, tuple[Effect, ...]]

MAX_ATTEMPTS = 3
"""Crashes in a row before a worker is given up: enough for a passing fault, few enough for a broken model."""


def deadline_of(record: WorkerRecord) -> Deadline | None:
    """The one deadline that is armed while the record is in its state; None: it rests."""
    return _DEADLINES.get(record.state)


def step(record: WorkerRecord, event: Event, max_attempts: int = MAX_ATTEMPTS) -> Step:
    """Return what the record becomes and what has to be done, or raise IllegalTransition.

    An event of an older incarnation changes nothing. Wishes (Start, Stop, Suspend) are legal everywhere: where the
    table has no row for them they move the goal only.
    """
    if event.incarnation is not None and event.incarnation != record.incarnation:
        return record, ()
    rule = _TABLE.get((record.state, event.kind))
    if rule is not None:
        return rule(record, event, max_attempts)
    match event.kind:
        case Kind.START:
            return replace(record, goal=Goal.RUN), ()
        case Kind.STOP:
            return replace(record, goal=Goal.STOP), ()
        case Kind.SUSPEND:
            return _suspend_elsewhere(record), ()
        case Kind.RETURNED if record.leases == 0:
            return record, ()  # the late return of a broken lease
        case Kind.LEADER_EXITED if record.state in WITH_PROCESS:
            return _leader_exited(record, event, max_attempts)
        case Kind.LEADER_EXITED | Kind.TREE_GONE if record.state in {State.KILLING, State.RELEASING, State.FAILED}:
            return record, ()
        case Kind.STABLE:
            return record, ()
        case Kind.HEALTHY | Kind.UNHEALTHY | Kind.CALL_FAILED | Kind.SUSPEND_DONE | Kind.RESUME_DONE if (
            record.state not in {State.STOPPED, State.BACKOFF}
        ):
            # The answer to a question that a newer event has overtaken; one that was given up unkillable still speaks.
            return record, ()
        case _:
            raise IllegalTransition(record, event)


def taken_over(state: State, incarnation: int, attempts: int) -> WorkerRecord:
    """The record of a worker whose engine another daemon had before, in a state in which one may be handed over."""
    goal = Goal.SUSPEND if state is State.SUSPENDED else Goal.RUN
    held = Held.SMALL if state is State.SUSPENDED else Held.FULL
    return WorkerRecord(state, goal, incarnation, attempts=attempts, held=held)


Rule = Callable[[WorkerRecord, Event, int], Step]


def _suspend_elsewhere(record: WorkerRecord) -> WorkerRecord:
    # On the way down a wish to sleep means: stay down. On the way up it is ignored; nobody has used it yet.
    if record.state in {State.STOPPING, State.KILLING, State.RELEASING}:
        return replace(record, goal=Goal.STOP)
    if record.state in {State.STARTING, State.RESUMING, State.STOPPED, State.FAILED}:
        return record
    return replace(record, goal=Goal.SUSPEND)


def _start(record: WorkerRecord, event: Event, _max: int) -> Step:
    if record.held is Held.LEAKED:
        return replace(record, goal=Goal.STOP), ()  # refused: the old tree may still be there
    started = replace(
        record,
        state=State.STARTING,
        goal=Goal.RUN,
        incarnation=record.incarnation + 1,
        leases=0,
        attempts=0,
        cause=None,
        is_final=False,
        held=Held.FULL,
    )
    return started, (Effect.RESERVE, Effect.SPAWN)


def _retry(record: WorkerRecord, event: Event, _max: int) -> Step:
    attempts = 0 if event.kind is Kind.START else record.attempts
    again = replace(
        record,
        state=State.STARTING,
        goal=Goal.RUN,
        incarnation=record.incarnation + 1,
        attempts=attempts,
        cause=None,
        is_final=False,
    )
    return again, (Effect.SPAWN,)


def _healthy(record: WorkerRecord, _event: Event, _max: int) -> Step:
    return replace(record, state=State.READY), (Effect.WAKE_WAITERS, Effect.ARM_IDLE)


def _give_up_starting(record: WorkerRecord, event: Event, _max: int) -> Step:
    if event.kind is Kind.DEADLINE:
        timed_out = replace(record, state=State.STOPPING, cause=Reason.START_TIMEOUT, is_final=True)
        return timed_out, (Effect.TERM,)
    return replace(record, state=State.STOPPING, goal=Goal.STOP), (Effect.TERM,)


def _unhealthy_starting(record: WorkerRecord, event: Event, max_attempts: int) -> Step:
    down = replace(record, state=State.STOPPING)
    if record.attempts == 0:
        return replace(down, cause=event.cause or Reason.ENGINE_START_FAILED, is_final=True), (Effect.TERM,)
    return _faulted(down, event, max_attempts), (Effect.TERM,)


def _spawn_failed(record: WorkerRecord, event: Event, _max: int) -> Step:
    failed = replace(record, state=State.RELEASING, cause=event.cause or Reason.ENGINE_START_FAILED, is_final=True)
    return failed, (Effect.AWAIT_MEMORY,)


def _leased(record: WorkerRecord, _event: Event, _max: int) -> Step:
    return replace(record, leases=record.leases + 1), ()


def _returned(record: WorkerRecord, _event: Event, _max: int) -> Step:
    if record.leases == 0:
        return record, ()  # the late return of a broken lease
    left = replace(record, leases=record.leases - 1)
    return left, (Effect.ARM_IDLE,) if left.leases == 0 else ()


def _returned_draining(record: WorkerRecord, _event: Event, _max: int) -> Step:
    left = replace(record, leases=max(0, record.leases - 1))
    if left.leases > 0:
        return left, ()
    if left.goal is Goal.SUSPEND:
        return replace(left, state=State.SUSPENDING), (Effect.SLEEP,)
    return replace(left, state=State.STOPPING), (Effect.TERM,)


def _stable(record: WorkerRecord, _event: Event, _max: int) -> Step:
    return replace(record, attempts=0), ()


def _leave_ready(record: WorkerRecord, event: Event, _max: int) -> Step:
    goal = Goal.STOP if event.kind is Kind.STOP else Goal.SUSPEND
    if record.leases > 0:
        return replace(record, state=State.DRAINING, goal=goal), ()
    if goal is Goal.STOP:
        return replace(record, state=State.STOPPING, goal=goal), (Effect.TERM,)
    return replace(record, state=State.SUSPENDING, goal=goal), (Effect.SLEEP,)


def _unhealthy_ready(record: WorkerRecord, event: Event, max_attempts: int) -> Step:
    down = _faulted(replace(record, state=State.STOPPING, leases=0), event, max_attempts)
    return down, (Effect.BREAK_LEASES, Effect.TERM)


def _take_back(record: WorkerRecord, _event: Event, _max: int) -> Step:
    return replace(record, state=State.READY, goal=Goal.RUN), (Effect.WAKE_WAITERS,)


def _end_draining(record: WorkerRecord, event: Event, _max: int) -> Step:
    # A worker that was on its way out anyway is not started again because it fell on the way.
    down = replace(record, state=State.STOPPING, goal=Goal.STOP, leases=0)
    return down, (Effect.BREAK_LEASES, Effect.TERM)


def _suspend_done(record: WorkerRecord, _event: Event, _max: int) -> Step:
    if record.goal is Goal.RUN:
        return replace(record, state=State.RESUMING, held=Held.FULL), (Effect.RESUME,)
    return replace(record, state=State.SUSPENDED, held=Held.SMALL), (Effect.SHRINK,)


def _sleep_failed(record: WorkerRecord, _event: Event, _max: int) -> Step:
    # A failed sleep or wake falls back to a stop; if it is wanted, it is started again from nothing. A server that
    # misses its health checks by then will not answer the call either, whose own deadline is minutes away.
    goal = Goal.RUN if record.goal is Goal.RUN else Goal.STOP
    return replace(record, state=State.STOPPING, goal=goal), (Effect.TERM,)


def _resume(record: WorkerRecord, _event: Event, _max: int) -> Step:
    return replace(record, state=State.RESUMING, goal=Goal.RUN, held=Held.FULL), (Effect.GROW, Effect.RESUME)


def _resume_done(record: WorkerRecord, _event: Event, _max: int) -> Step:
    return replace(record, state=State.READY, goal=Goal.RUN), (Effect.WAKE_WAITERS, Effect.ARM_IDLE)


def _stop_now(record: WorkerRecord, event: Event, _max: int) -> Step:
    return replace(record, state=State.STOPPING, goal=Goal.STOP), (Effect.TERM,)


def _kill(record: WorkerRecord, _event: Event, _max: int) -> Step:
    return replace(record, state=State.KILLING), (Effect.KILL,)


def _leader_exited(record: WorkerRecord, event: Event, max_attempts: int) -> Step:
    """The leader's end is not the tree's end: what it leaves behind is killed, whatever the exit status said."""
    down = replace(record, state=State.KILLING, leases=0)
    effects = (Effect.BREAK_LEASES, Effect.KILL)
    if record.state is State.STOPPING:
        return down, effects  # it was asked to
    if record.state is State.STARTING and record.attempts == 0:
        # The first start of all: its clients want to know now, and the next one to ask tries anew.
        return replace(down, cause=event.cause or Reason.ENGINE_START_FAILED, is_final=True), effects
    if record.goal is not Goal.RUN:
        return replace(down, goal=Goal.STOP), effects
    return _faulted(down, event, max_attempts), effects


def _start_otherwise(record: WorkerRecord, _event: Event, _max: int) -> Step:
    """The leader exited, and a way to load that was only tried is to blame: no fault, it is wanted again at once."""
    return replace(record, state=State.KILLING, leases=0), (Effect.KILL,)


def _faulted(record: WorkerRecord, event: Event, max_attempts: int) -> WorkerRecord:
    attempts = min(record.attempts + 1, max_attempts)
    return replace(
        record,
        attempts=attempts,
        cause=event.cause or Reason.ENGINE_DIED,
        is_final=attempts >= max_attempts,
    )


def _tree_gone(record: WorkerRecord, _event: Event, _max: int) -> Step:
    return replace(record, state=State.RELEASING), (Effect.AWAIT_MEMORY,)


def _unkillable(record: WorkerRecord, _event: Event, _max: int) -> Step:
    stuck = replace(record, state=State.FAILED, goal=Goal.STOP, cause=Reason.INTERNAL, is_final=True, held=Held.LEAKED)
    return stuck, (Effect.SHOUT, Effect.WAKE_WAITERS)


def _released(record: WorkerRecord, _event: Event, _max: int) -> Step:
    if record.goal is not Goal.RUN:
        rest = replace(
            record, state=State.STOPPED, goal=Goal.STOP, cause=None, attempts=0, is_final=False, held=Held.NONE
        )
        return rest, (Effect.RELEASE, Effect.WAKE_WAITERS)
    if record.cause is None:
        again = replace(record, state=State.STOPPED, attempts=0, is_final=False, held=Held.NONE)
        return again, (Effect.RELEASE, Effect.READMIT)
    if record.will_retry:
        return replace(record, state=State.BACKOFF, held=Held.FULL), ()
    return replace(record, state=State.FAILED, goal=Goal.STOP, held=Held.NONE), (Effect.RELEASE, Effect.WAKE_WAITERS)


def _leave_backoff(record: WorkerRecord, _event: Event, _max: int) -> Step:
    rest = replace(record, state=State.STOPPED, goal=Goal.STOP, cause=None, attempts=0, held=Held.NONE)
    return rest, (Effect.RELEASE, Effect.WAKE_WAITERS)


def _forget_failure(record: WorkerRecord, _event: Event, _max: int) -> Step:
    if record.held is Held.LEAKED:
        return replace(record, state=State.KILLING, goal=Goal.STOP), (Effect.KILL,)
    rest = replace(record, state=State.STOPPED, goal=Goal.STOP, cause=None, attempts=0, is_final=False)
    return rest, ()


def _late_tree_gone(record: WorkerRecord, _event: Event, _max: int) -> Step:
    if record.held is not Held.LEAKED:
        return record, ()
    return replace(record, held=Held.NONE), (Effect.RELEASE,)


_TABLE: dict[tuple[State, Kind], Rule] = {
    (State.STOPPED, Kind.START): _start,
    (State.STARTING, Kind.HEALTHY): _healthy,
    (State.STARTING, Kind.DEADLINE): _give_up_starting,
    (State.STARTING, Kind.STOP): _give_up_starting,
    (State.STARTING, Kind.UNHEALTHY): _unhealthy_starting,
    (State.STARTING, Kind.SPAWN_FAILED): _spawn_failed,
    (State.STARTING, Kind.LOADER_FAILED): _start_otherwise,
    (State.READY, Kind.LEASED): _leased,
    (State.READY, Kind.RETURNED): _returned,
    (State.READY, Kind.STABLE): _stable,
    (State.READY, Kind.STOP): _leave_ready,
    (State.READY, Kind.SUSPEND): _leave_ready,
    (State.READY, Kind.UNHEALTHY): _unhealthy_ready,
    (State.DRAINING, Kind.RETURNED): _returned_draining,
    (State.DRAINING, Kind.START): _take_back,
    (State.DRAINING, Kind.DEADLINE): _end_draining,
    (State.DRAINING, Kind.UNHEALTHY): _end_draining,
    (State.SUSPENDING, Kind.SUSPEND_DONE): _suspend_done,
    (State.SUSPENDING, Kind.CALL_FAILED): _sleep_failed,
    (State.SUSPENDING, Kind.DEADLINE): _sleep_failed,
    (State.SUSPENDING, Kind.UNHEALTHY): _sleep_failed,
    (State.SUSPENDING, Kind.STOP): _stop_now,
    (State.SUSPENDED, Kind.START): _resume,
    (State.SUSPENDED, Kind.STOP): _stop_now,
    (State.SUSPENDED, Kind.UNHEALTHY): _stop_now,
    (State.RESUMING, Kind.RESUME_DONE): _resume_done,
    (State.RESUMING, Kind.CALL_FAILED): _sleep_failed,
    (State.RESUMING, Kind.DEADLINE): _sleep_failed,
    (State.RESUMING, Kind.UNHEALTHY): _sleep_failed,
    (State.RESUMING, Kind.STOP): _stop_now,
    (State.STOPPING, Kind.DEADLINE): _kill,
    (State.KILLING, Kind.TREE_GONE): _tree_gone,
    (State.KILLING, Kind.DEADLINE): _unkillable,
    (State.RELEASING, Kind.MEMORY_BACK): _released,
    (State.RELEASING, Kind.DEADLINE): _released,
    (State.BACKOFF, Kind.DEADLINE): _retry,
    (State.BACKOFF, Kind.START): _retry,
    (State.BACKOFF, Kind.STOP): _leave_backoff,
    (State.BACKOFF, Kind.SUSPEND): _leave_backoff,
    (State.FAILED, Kind.START): _start,
    (State.FAILED, Kind.STOP): _forget_failure,
    (State.FAILED, Kind.TREE_GONE): _late_tree_gone,
}
