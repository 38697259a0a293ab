"""Long work as its watchers see it (floor 1): a snapshot that replaces the one before, never a queue."""

from dataclasses import dataclass
from enum import StrEnum

from vllamad.domain.errors import VllamaError


class OperationKind(StrEnum):
    """What kind of work an operation is; the names are the wire's."""

    PULL = "PULL"
    CREATE = "CREATE"
    START = "START"
    STOP = "STOP"


@dataclass(frozen=True, slots=True)
class FileProgress:
    """Bytes of one file of a download; ``digest`` is ``sha256:<hex>`` once known."""

    path: str
    completed_bytes: int
    total_bytes: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest state of an operation. ``total_bytes`` 0: nothing to count, or not known yet; ``fraction`` is 0 to 1
    for phases that are not counted in bytes."""

    phase: str = "starting"
    detail: str = ""
    completed_bytes: int = 0
    total_bytes: int = 0
    files: tuple[FileProgress, ...] = ()
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation at one moment. Times are wall time in seconds; ``end_time`` is 0 while it runs."""

    number: int
    kind: OperationKind
    model: str
    progress: Progress
    create_time: float
    end_time: float = 0.0
    is_done: bool = False
    error: VllamaError | None = None

    @property
    def name(self) -> str:
        """The resource name: ``operations/7``."""
        return f"operations/{self.number}"
