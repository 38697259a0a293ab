"""GPUs that do what a test says, behind the port, and doubles named after their fault.

``Rack`` is what happens to cards: processes come and go, memory returns late, cards fall off the bus. ``FakeGpus``
shows it as readings; ``tests/fakes/nvml/library.py`` shows the same to the real adapter, through a library of our own.
One suite of claims, ``tests/contract/device_claims.py``, runs on both.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from vllamad.devices.health import HARMLESS_XIDS
from vllamad.domain.ports import DeviceReading

GIB = 1 << 30


@dataclass
class Card:
    """One GPU. What is None, its driver does not tell."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    total_bytes: int = 80 * GIB
    reserved_bytes: int | None = GIB // 2
    processes: dict[int, int | None] = field(default_factory=dict[int, int | None])
    """Bytes by process; None where the driver only tells that it is there."""
    temperature_c: int | None = 41
    utilisation: float | None = 0.0
    capability: tuple[int, int] | None = (9, 0)
    peers: list[str] = field(default_factory=list[str])
    ecc_errors: int | None = 0
    is_mig: bool | None = False
    remap_failed: bool | None = False
    recovery: int | None = 0
    xids: dict[int, int] = field(default_factory=dict[int, int])
    """Xid events that came since the driver was started, by their number in the order of all."""
    is_lost: bool = False
    returning: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Bytes of processes that have ended, and how many readings they stay away for."""

    @property
    def free_bytes(self) -> int:
        held = sum(used or 0 for used in self.processes.values()) + sum(count for count, _reads in self.returning)
        return self.total_bytes - (self.reserved_bytes or 0) - held


def cards(count: int = 2) -> list[Card]:
    """So many alike, all joined by NVLink."""
    uuids = [f"GPU-{number:08x}-0000-0000-0000-000000000000" for number in range(count)]
    return [Card(uuid, peers=[other for other in uuids if other != uuid]) for uuid in uuids]


class Rack:
    """Cards by PCI bus, and what happens to them."""

    late_reads = 0
    """For how many readings the memory of a process that ended stays away."""
    can_end = True
    """False: processes hang in the driver, and SIGKILL does not end them."""

    def __init__(self, cards_: Iterable[Card] | None = None) -> None:
        self.cards = cards() if cards_ is None else list(cards_)
        self.is_silent = False
        self.failure = 0
        """The error that the driver as a whole answers with, by NVML's number."""
        self._events = 0

    def start(self, pid: int, used_bytes: int, index: int = 0) -> None:
        """A process takes memory."""
        self.cards[index].processes[pid] = used_bytes

    def end(self, pid: int) -> None:
        """It is killed, on every card."""
        for card in self.cards:
            if self.can_end and pid in card.processes:
                used = card.processes.pop(pid)
                if self.late_reads and used:
                    card.returning.append((used, self.late_reads))

    def lose(self, index: int = 0) -> None:
        """A card falls off the bus."""
        self.cards[index].is_lost = True

    def find(self, index: int = 0) -> None:
        """It is back, as after a reset."""
        self.cards[index].is_lost = False
        self.cards[index].xids.clear()

    def report(self, xid: int, index: int = 0) -> None:
        """The driver tells of an error."""
        self._events += 1
        self.cards[index].xids[self._events] = xid

    def remove(self, index: int) -> Card:
        """The driver does not even list it any more; the numbers behind it move up."""
        return self.cards.pop(index)

    def elapse(self) -> None:
        """One reading has been made."""
        for card in self.cards:
            card.returning = [(used, reads - 1) for used, reads in card.returning if reads > 1]


class FakeGpus(Rack):
    """A DeviceProbe."""

    def __init__(self, cards_: Iterable[Card] | None = None) -> None:
        super().__init__(cards_)
        self.problem = ""
        self._known: dict[str, DeviceReading] = {}

    async def read(self) -> list[DeviceReading]:
        self.problem = "silent: it was told not to answer" if self.is_silent else ""
        if self.failure:
            self.problem = f"driver: error {self.failure}"
        if not self.problem:
            lost = {key: one.unanswered("lost: it is not listed") for key, one in self._known.items()}
            self._known = lost | {card.uuid: self._read(index, card) for index, card in enumerate(self.cards)}
            self.elapse()
            return sorted(self._known.values(), key=lambda one: one.index)
        return [one.unanswered(self.problem) for one in self._known.values()]

    def _read(self, index: int, card: Card) -> DeviceReading:
        if card.is_lost:
            known = self._known.get(card.uuid) or DeviceReading(f"GPU {index}", 0, 0, uuid=card.uuid)
            return replace(known.unanswered("lost: it fell off the bus"), index=index)
        ailments = [
            *(["reset: recovery action"] if card.recovery else []),
            *(f"xid: {xid}" for xid in card.xids.values() if xid not in HARMLESS_XIDS),
            *(["ecc: could not be remapped"] if card.remap_failed else []),
            *(["ecc: errors"] if card.remap_failed is None and card.ecc_errors else []),
            *(["mig: slices"] if card.is_mig else []),
        ]
        answering = {one.uuid for one in self.cards if not one.is_lost}
        return DeviceReading(
            card.name,
            card.total_bytes,
            card.free_bytes,
            index=index,
            uuid=card.uuid,
            reserved_bytes=card.reserved_bytes or 0,
            used_by_pid={pid: used for pid, used in card.processes.items() if used is not None},
            temperature_c=card.temperature_c,
            utilisation=card.utilisation,
            capability=card.capability,
            nvlink_peers=tuple(peer for peer in card.peers if peer in answering),
            ecc_errors=card.ecc_errors,
            is_mig=bool(card.is_mig),
            is_healthy=not ailments,
            reason="; ".join(ailments),
        )


class LateMemory(FakeGpus):
    """The memory of a process that ended is back three readings later."""

    late_reads = 3


class StuckProcess(FakeGpus):
    """A process that nothing ends keeps its memory."""

    can_end = False


class LostGpu(FakeGpus):
    """The first card falls off the bus once it was read."""

    async def read(self) -> list[DeviceReading]:
        readings = await super().read()
        self.lose(0)
        return readings


class SilentDriver(FakeGpus):
    """A driver that answers once and then never again."""

    async def read(self) -> list[DeviceReading]:
        readings = await super().read()
        self.is_silent = True
        return readings
