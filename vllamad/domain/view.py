"""What the faces may show of a worker (floor 1): one immutable picture, taken at one moment."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from vllamad.domain.budget import Device, Ledger
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import DeviceReading
from vllamad.domain.worker import State


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker now. Times are wall time in seconds. ``expire_time`` is None while it is busy or loading and
    ``math.inf`` if it stays for ever; ``idle_s`` is its keep-alive (``math.inf``: for ever). ``reserved_bytes`` is what
    the ledger holds for it, on all its devices; ``memory_bytes`` and ``device_bytes`` are what was seen."""

    name: str
    model: str
    model_digest: str
    state: State
    incarnation: int
    pid: int
    leases: int
    waiting: int
    load_phase: str
    load_fraction: float
    load_s: float
    start_time: float
    expire_time: float | None
    idle_s: float
    memory_bytes: int
    device_bytes: int
    device: str
    context_length: int
    is_pinned: bool = False
    reserved_bytes: int = 0
    cache_tokens: int = 0
    cpu_s: float = 0.0
    """Processor time that its present process has used, in all."""
    holder: str = ""
    """Its name in the ledger and in sentences: the model's, with ``#2`` and so on for further workers of it."""
    cache_usage: float = 0.0
    """How much of its cache requests fill, 0 to 1, at the last look some seconds ago."""
    fast_path: str = ""
    """"on" if its engine writes plain streams itself, else why not; "" while that is unknown."""
    error: VllamaError | None = None

    @property
    def is_loaded(self) -> bool:
        """True if it holds memory that a user would call "loaded"."""
        return self.state in {State.READY, State.DRAINING, State.SUSPENDED, State.RESUMING, State.SUSPENDING}


def one_per_model(views: Iterable[WorkerView]) -> list[WorkerView]:
    """For clients that know of models only: the workers of a model as one that holds what all of them hold. It is in
    use while one of them is, else it expires with the last of them."""
    joined: dict[str, WorkerView] = {}
    for view in views:
        other = joined.get(view.model)
        if other is None:
            joined[view.model] = view
            continue
        ends = [one.expire_time for one in (other, view) if one.expire_time is not None]
        joined[view.model] = replace(
            other,
            leases=other.leases + view.leases,
            memory_bytes=other.memory_bytes + view.memory_bytes,
            device_bytes=other.device_bytes + view.device_bytes,
            expire_time=max(ends) if len(ends) == 2 else None,
            idle_s=max(other.idle_s, view.idle_s),
        )
    return list(joined.values())


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device now. Of ``total_bytes`` engines may have ``usable_bytes`` if nobody else is there; ``reserved_bytes``
    is what the ledger holds for workers, ``foreign_bytes`` what others were seen to hold, ``giveable_bytes`` what the
    next worker could get. ``free_bytes`` is what the driver calls free. ``problem`` is why nothing is placed on it."""

    name: str
    product: str
    kind: str
    key: str
    total_bytes: int
    free_bytes: int
    usable_bytes: int
    reserved_bytes: int
    foreign_bytes: int
    giveable_bytes: int
    holders: tuple[str, ...] = ()
    loading: str = ""
    temperature_c: int | None = None
    utilisation: float | None = None
    problem: str = ""

    @classmethod
    def of(cls, device: Device, reading: DeviceReading, ledger: Ledger) -> "DeviceView":
        """Join what the ledger plans with and what was seen last."""
        index = device.index
        closed = ledger.closed.get(index)
        return cls(
            name=device.name,
            product=reading.name,
            kind=reading.kind,
            key=reading.key,
            total_bytes=reading.total_bytes,
            free_bytes=reading.free_bytes,
            usable_bytes=device.total_bytes - int(device.total_bytes * ledger.margin_share),
            reserved_bytes=ledger.held(index),
            foreign_bytes=ledger.foreign.get(index, 0),
            giveable_bytes=ledger.free(index),
            holders=ledger.holders(index),
            loading=ledger.loader(index) or "",
            temperature_c=reading.temperature_c,
            utilisation=reading.utilisation,
            problem=closed.why if closed is not None else "",
        )


class ZygoteState(StrEnum):
    """What there is of a zygote, the process that engines are forked from."""

    WARMING = "warming"
    READY = "ready"
    ENDED = "ended"
    """It is started again in a moment."""
    OFF = "off"
    """Given up, or never wanted."""


@dataclass(frozen=True, slots=True)
class ZygoteView:
    """A zygote now; ``pid`` is 0 if there is none. Of its ``memory_bytes``, pages that it shares with engines are
    counted in equal parts. ``problem`` says why there is none."""

    state: ZygoteState
    pid: int = 0
    memory_bytes: int = 0
    forked: int = 0
    """Engines that were forked from it."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AcceptorView:
    """A process that takes HTTP connections beside the daemon; ``pid`` is 0 while there is none. ``requests`` are those
    that hold a lease, ``starts`` how often it was started."""

    number: int
    pid: int
    is_ready: bool
    requests: int
    starts: int
    memory_bytes: int
