"""Who may be awake (floor 1): waiting requests and workers in, decisions out, each with its sentence.

``plan`` is a pure function of what is true now, called again whenever something changed; it keeps nothing, so there is
no second truth to go stale. In this version capacity is a number of loaded models; bytes come in with the ledger.

The rule, in one breath: models are looked at in the order of their oldest waiting request. One whose worker is ready
gets its requests granted; one that needs a slot takes a free one, else *claims* the slot of the model that has been
idle longest, else of one that is busy. A claimed model is not given new requests, so it falls idle and is stopped:
nobody is starved, and no busy model is ever evicted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllama.reasons import Reason
from vllamad.domain.worker import Goal, Held, State


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for a model. ``number`` grows with arrival and is its identity; ``key`` is that of the
    worker that can serve it, which models may share; ``model`` is the name for people."""

    number: int
    key: str
    model: str
    since: float


@dataclass(frozen=True, slots=True)
class Slot:
    """What the scheduler needs to know of a worker. ``idle_since`` is an instant; it means nothing while leases > 0."""

    key: str
    model: str
    state: State
    goal: Goal
    held: Held
    leases: int
    idle_since: float
    is_pinned: bool = False
    is_suspect: bool = False
    """It has just failed a request and is being asked whether it still lives: nobody new is sent there meanwhile."""

    @property
    def is_leaving(self) -> bool:
        """True if it gives its slot up without being asked again."""
        return self.goal is not Goal.RUN and self.held in {Held.FULL, Held.SMALL}

    @property
    def takes_requests(self) -> bool:
        return self.state is State.READY and self.goal is Goal.RUN and not self.is_suspect


@dataclass(frozen=True, slots=True)
class Grant:
    """Give this waiting request a lease."""

    number: int
    key: str


@dataclass(frozen=True, slots=True)
class Start:
    """Load what this key stands for (or take back the wish to stop it)."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Unload this idle worker."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Turn this waiting request away."""

    number: int
    reason: Reason
    why: str


Decision = Grant | Start | Stop | Refuse


def plan(
    waiting: Iterable[Waiting],
    slots: Mapping[str, Slot],
    capacity: int,
    parallel: int,
    now: float,
) -> list[Decision]:
    """Decide what to do now. ``slots`` are the workers by their keys.

    ``capacity`` is how many models may hold memory at once (at least 1); ``parallel`` how many leases one worker may
    give (0: as many as come, the engine queues them). Grants come first-come within a model.
    """
    queues: dict[str, list[Waiting]] = {}
    for one in sorted(waiting, key=lambda each: each.number):
        queues.setdefault(one.key, []).append(one)

    decisions: list[Decision] = []
    claimed: set[str] = set()
    granted: set[str] = set()
    free = capacity - sum(1 for slot in slots.values() if slot.held is not Held.NONE)

    for key, queue in queues.items():
        model = queue[0].model
        slot = slots.get(key)
        if slot is not None and slot.held is not Held.NONE:
            if key in claimed:
                continue  # an older request of another model gets this slot
            if slot.held is Held.LEAKED:
                why = f"cannot load {model}: processes of its last engine do not end, and their memory is not free"
                decisions += [Refuse(one.number, Reason.WONT_FIT, why) for one in queue]
            elif slot.takes_requests:
                room = len(queue) if parallel == 0 else max(0, parallel - slot.leases)
                decisions += [Grant(one.number, key) for one in queue[:room]]
                granted.add(key)
            elif slot.is_leaving:
                decisions.append(Start(key, f"start {model} again: wanted while on its way out"))
            continue
        if free > 0:
            free -= 1
            decisions.append(Start(key, f"start {model}: {len(queue)} waiting, a slot is free"))
            continue
        decisions += _make_room(queue, slots, queues, claimed, granted, capacity, now)
    return decisions


def _make_room(
    queue: Sequence[Waiting],
    slots: Mapping[str, Slot],
    queues: Mapping[str, Sequence[Waiting]],
    claimed: set[str],
    granted: set[str],
    capacity: int,
    now: float,
) -> list[Decision]:
    model = queue[0].model
    held = [slot for slot in slots.values() if slot.held is not Held.NONE and slot.key not in claimed]
    leaving = [slot for slot in held if slot.is_leaving and slot.key not in queues]
    if leaving:
        claimed.add(leaving[0].key)
        return []
    movable = [slot for slot in held if slot.takes_requests and not slot.is_pinned]
    idle = [slot for slot in movable if slot.leases == 0 and slot.key not in granted]
    if idle:
        victim = min(idle, key=lambda slot: (slot.key in queues, slot.idle_since))
        claimed.add(victim.key)
        idle_s = max(0.0, now - victim.idle_since)
        why = f"evict {victim.model} (idle {idle_s:.0f} s) to load {model}: {capacity} of {capacity} slots are taken"
        return [Stop(victim.key, why)]
    if movable:
        claimed.add(min(movable, key=lambda slot: (slot.key in queues, slot.leases)).key)
        return []
    if held and all(slot.is_pinned or slot.held is Held.LEAKED for slot in held) and not claimed:
        why = (
            f"cannot load {model}: the {capacity} slot(s) of scheduler.max_loaded_models are held by pinned or stuck "
            f"models ({', '.join(sorted(slot.model for slot in held))})"
        )
        return [Refuse(one.number, Reason.WONT_FIT, why) for one in queue]
    return []  # something is on its way up or down: ask again when it got there
