"""What the faces may show of a worker (floor 1): one immutable picture, taken at one moment."""

from dataclasses import dataclass

from vllamad.domain.errors import VllamaError
from vllamad.domain.worker import State


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker now. Times are wall time in seconds. ``expire_time`` is None while it is busy or loading and
    ``math.inf`` if it stays for ever; ``idle_s`` is its keep-alive (``math.inf``: for ever)."""

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
    error: VllamaError | None = None

    @property
    def is_loaded(self) -> bool:
        """True if it holds memory that a user would call "loaded"."""
        return self.state in {State.READY, State.DRAINING, State.SUSPENDED, State.RESUMING, State.SUSPENDING}
