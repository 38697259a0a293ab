"""What the faces may show of a worker (floor 1): one immutable picture, taken at one moment."""

from dataclasses import dataclass

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
    error: VllamaError | None = None

    @property
    def is_loaded(self) -> bool:
        """True if it holds memory that a user would call "loaded"."""
        return self.state in {State.READY, State.DRAINING, State.SUSPENDED, State.RESUMING, State.SUSPENDING}


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
