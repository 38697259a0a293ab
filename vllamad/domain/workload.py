"""What the planner looks at and what it decides (floor 1): plain values, with no rule in them.

A *holder* is a worker's name in the ledger: the model's name for its first worker, ``name#2`` and so on for replicas.
Instants are monotonic seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllama.reasons import Reason
from vllamad.domain.budget import Ledger
from vllamad.domain.placement import Demand, Placement
from vllamad.domain.worker import Goal, Held, State


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that waits. ``number`` grows with arrival and is its identity; ``key`` is that of the model it can be
    served by; ``caller`` whom it is from (a key or an address); a higher ``priority`` goes first. One that may not
    evict is loaded for only where memory is free."""

    number: int
    key: str
    since: float
    deadline: float
    caller: str = ""
    priority: int = 0
    may_evict: bool = True


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known of a model that somebody waits for or that has a worker. ``load_cost_s`` is how long it took to
    load, or an estimate; ``replicas`` is how many workers it may have. For sleeping: ``weights_bytes`` over all of its
    devices, ``left_bytes`` that stay on each, ``host_bytes`` of the machine's memory for its processes; without
    ``can_reload`` its weights are not to be read again in place, without ``can_sleep`` it is only ever stopped."""

    key: str
    name: str
    demand: Demand
    load_cost_s: float
    replicas: int = 1
    weights_bytes: int = 0
    left_bytes: int = 0
    host_bytes: int = 0
    can_sleep: bool = True
    can_reload: bool = True


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as it is. ``idle_since`` means nothing while it has leases; ``ready_since`` is when it last became
    ready; ``gap_s`` is the usual time between two requests to it, 0 if not known. Where its bytes lie, the ledger
    knows."""

    holder: str
    key: str
    model: str
    state: State
    goal: Goal
    held: Held
    leases: int = 0
    idle_since: float = 0.0
    ready_since: float = 0.0
    load_cost_s: float = 0.0
    gap_s: float = 0.0
    is_pinned: bool = False
    is_suspect: bool = False
    """It has just failed a request and is being asked whether it still lives."""

    @property
    def is_here(self) -> bool:
        """True if it holds memory."""
        return self.held is not Held.NONE

    @property
    def takes_requests(self) -> bool:
        return self.state is State.READY and self.goal is Goal.RUN and not self.is_suspect

    @property
    def is_leaving(self) -> bool:
        """True if it gives up all that it holds, or nearly so to sleep, without being asked again."""
        falls_asleep = self.goal is Goal.SUSPEND and self.state is not State.SUSPENDED
        return (self.goal is Goal.STOP or falls_asleep) and self.held in {Held.FULL, Held.SMALL}

    @property
    def is_asleep(self) -> bool:
        return self.state is State.SUSPENDED and self.held is Held.SMALL and self.goal is not Goal.STOP


@dataclass(frozen=True, slots=True)
class Limits:
    """What was configured. 0 in ``max_loaded``, ``parallel`` and ``queue_per_model`` means: no such bound."""

    max_loaded: int = 0
    parallel: int = 0
    queue_per_model: int = 0
    queue: int = 512
    hysteresis: float = 1.0
    """A worker stays at least this many times as long as its load took: at 1, two models that fight for one place still
    serve half of the time. Costs already spare who is asked often, so a quiet day (`benchmarks/day.py`) is a little
    better without; at 2 it is worse by more."""
    turn_s: float = 30.0
    """A model without a worker that has waited this long goes before models that are being served, however old their
    queues are. About what a model of middling size takes to load: less would not be noticed beside the load."""
    aging_s: float = 60.0
    """Waiting so long is worth one level of priority: a minute is what a person waits before asking again."""
    crowd: int = 128
    """Leases of each worker at which another replica is started, where ``parallel`` sets no bound: half of what an
    engine batches by default on small GPUs (vLLM's max_num_seqs is 256), while it can still take more."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything at one moment. ``workers`` by holder, ``models`` by key. ``served_at`` is when a caller was last
    granted a lease of a model, by (key, caller); who is not in it has not been. ``room_made_for`` is what the last
    ``Plan`` said."""

    waiting: tuple[Waiter, ...]
    workers: Mapping[str, Worker]
    models: Mapping[str, Wanted]
    ledger: Ledger
    limits: Limits = Limits()
    served_at: Mapping[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    room_made_for: frozenset[str] = frozenset()


# --- decisions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """Give this waiting request a lease of this worker."""

    number: int
    holder: str


@dataclass(frozen=True, slots=True)
class Start:
    """Reserve the placement and load; without one: wake the worker, or take back the wish to stop it."""

    key: str
    holder: str
    placement: Placement | None
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Have this idle worker give up its devices. One that ``may_sleep`` leaves a little behind; where the number of
    models is what matters, it may not."""

    holder: str
    why: str
    may_sleep: bool = True


@dataclass(frozen=True, slots=True)
class Refuse:
    """Turn this waiting request away. ``retry_after_s`` is 0 where asking again does not help."""

    number: int
    reason: Reason
    why: str
    retry_after_s: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Nobody more is granted this model now, and why. Nothing to do: it is what status shows."""

    key: str
    why: str


Decision = Grant | Start | Stop | Refuse | Wait


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, in this order, and when to look again if nothing happens before (None: no need).
    ``room_made_for`` are the keys of the models that others were stopped for and that have no place yet; the next look
    must be told."""

    decisions: tuple[Decision, ...]
    look_again_at: float | None = None
    room_made_for: frozenset[str] = frozenset()
