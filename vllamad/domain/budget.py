"""Who holds how many bytes of which device (floor 1): admission is arithmetic on *declared* bytes.

A ledger is a value: every method returns a new one, or says with its numbers why not. So a planner can try what would
be if somebody left, and throw the thought away. What a device can give is its total, less a margin, less what others
were seen to hold on it; what was declared is given back only when somebody who looked says so (``release``). What does
not come back is *quarantined*: it counts until it is proven free, and nobody else gets it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from vllamad.domain.worker import Held

CPU_KIND = "cpu"
"""The kind of the machine's own memory where engines run on its processor."""

HOST_KIND = "host"
"""The kind of the machine's own memory where engines run on GPUs: sleeping workers hold some, none is placed there."""

MARGIN_SHARE = 0.10
"""Of each device. Outside what they declare, engines have contexts, communication buffers and captured graphs; vLLM's
own default leaves a tenth too."""

NEWS_BYTES = 1 << 30
"""Foreign use that changes by less is not worth a line: drivers and desktops breathe by some hundred MiB."""

NEWS_SHARE_OF_HOST = 0.25
"""The same of the host's memory, which is for everybody: a build beside us takes and returns gigabytes every minute."""


def gib(count: int) -> str:
    """Bytes for people: ``18.2 GiB``."""
    return f"{count / (1 << 30):.1f} GiB"


@dataclass(frozen=True, slots=True)
class Device:
    """A device with memory of its own. ``name`` is for people ("GPU 0"), ``kind`` the hardware: engines spread over
    devices of one kind only. ``links`` are the indices of its peers on a fast link (NVLink)."""

    index: int
    name: str
    total_bytes: int
    kind: str = ""
    links: frozenset[int] = frozenset()

    @property
    def is_cpu(self) -> bool:
        return self.kind == CPU_KIND


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one holder (a worker) has been given: bytes by index of device.

    ``small_on`` is what stays while it sleeps (it may name the host, where the weights lie then). ``is_promise`` is
    set aside for one who comes when others have left; only planners make promises.
    """

    holder: str
    full_on: Mapping[int, int]
    held: Held = Held.FULL
    small_on: Mapping[int, int] = field(default_factory=dict[int, int])
    is_loading: bool = False
    is_promise: bool = False

    @property
    def bytes_on(self) -> Mapping[int, int]:
        """What counts now."""
        return self.small_on if self.held is Held.SMALL else self.full_on


@dataclass(frozen=True, slots=True)
class Refused:
    """Why bytes were not given; ``why`` carries the numbers in words."""

    why: str
    device: int | None = None
    needs_bytes: int = 0
    free_bytes: int = 0
    holders: tuple[str, ...] = ()
    """Who is in the way."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Why nothing is given on a device now. ``is_lasting``: not before somebody repairs it."""

    why: str
    is_lasting: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """A device as it was seen. ``own_bytes`` is what each holder was seen to use, where that can be told (by the
    processes of its tree); one that is not named is taken to use all that it declared. ``used_bytes`` None: it was not
    seen. ``closed`` is why it gives nothing, None if it does."""

    index: int
    used_bytes: int | None
    own_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    closed: Closed | None = None


@dataclass(frozen=True)
class Ledger:
    """Every device, what is held on it and by whom. Make one with ``open_ledger``."""

    devices: Mapping[int, Device]
    margin_share: float = MARGIN_SHARE
    reservations: Mapping[str, Reservation] = field(default_factory=dict[str, Reservation])
    foreign: Mapping[int, int] = field(default_factory=dict[int, int])
    """Bytes that others were seen to hold, by index."""
    closed: Mapping[int, Closed] = field(default_factory=dict[int, Closed])
    """Devices on which nothing is given, by index."""

    # --- questions -----------------------------------------------------------------------------------------------

    def budget(self, index: int) -> int:
        """What workers may hold on a device, all together; never negative."""
        return self._budgets[index]

    def held(self, index: int) -> int:
        """What is declared on a device, promises included."""
        return self._sums.get(index, 0)

    def free(self, index: int) -> int:
        """What can still be given; 0 also where others have pushed the budget below what is held."""
        return max(0, self.budget(index) - self.held(index))

    def excess(self, index: int) -> int:
        """What is declared beyond the budget: others have taken it since it was given."""
        return max(0, self.held(index) - self.budget(index)) if index in self.devices else 0

    def holders(self, index: int) -> tuple[str, ...]:
        """Who holds something on a device."""
        return tuple(one.holder for one in self.reservations.values() if one.bytes_on.get(index, 0))

    def loader(self, index: int) -> str | None:
        """Who is loading on a device now: nobody else may, since engines measure free memory while they load."""
        return self._loaders.get(index)

    def leaks(self) -> tuple[str, ...]:
        """A sentence for each quarantined reservation, to be shouted."""
        return tuple(
            f"{one.holder} has leaked {self._in_words(one.bytes_on)}: nobody else gets it until it is proven free"
            for one in self.reservations.values()
            if one.held is Held.LEAKED
        )

    # --- a holder's life -----------------------------------------------------------------------------------------

    def reserve(
        self, holder: str, full_on: Mapping[int, int], small_on: Mapping[int, int] | None = None
    ) -> "Ledger | Refused":
        """Give a holder its bytes and let it load. Refused if it has some already, if they are not there, or if another
        loads on one of the devices."""
        mine = self.reservations.get(holder)
        if mine is not None:
            what = "has leaked" if mine.held is Held.LEAKED else "holds"
            return Refused(f"{holder} {what} {self._in_words(mine.bytes_on)} already", holders=(holder,))
        wanted = Reservation(holder, full_on, Held.FULL, small_on or {}, is_loading=True)
        return self._load_clash(wanted) or self._shortage(wanted, {}) or self._with(wanted)

    def take_over(
        self, holder: str, full_on: Mapping[int, int], small_on: Mapping[int, int], held: Held, *, is_loading: bool
    ) -> "Ledger":
        """A holder has its bytes already, from before this ledger was opened: nothing is asked, for it is so."""
        return self._with(Reservation(holder, full_on, held, small_on, is_loading))

    def begin_load(self, holder: str) -> "Ledger | Refused":
        """Let a holder that kept its bytes over a crash load again."""
        wanted = replace(self.reservations[holder], is_loading=True)
        return self._load_clash(wanted) or self._with(wanted)

    def end_load(self, holder: str) -> "Ledger":
        """It serves, or its process is gone: others may load beside it."""
        mine = self.reservations.get(holder)
        return self if mine is None else self._with(replace(mine, is_loading=False))

    def shrink(self, holder: str, small_on: Mapping[int, int] | None = None) -> "Ledger | Refused":
        """It sleeps: only its small part counts, ``small_on`` as it was seen. What lies in the host then stays there
        over the wake: engines keep that memory for the next time. Refused if the host has no room for it."""
        mine = self.reservations[holder]
        if mine.held is not Held.FULL:
            return self
        small_on = mine.small_on if small_on is None else small_on
        in_host = {index: count for index, count in small_on.items() if self._is_host(index)}
        full_on = {**mine.full_on, **in_host}
        asleep = replace(mine, held=Held.SMALL, full_on=full_on, small_on=small_on, is_loading=False)
        return self._shortage(asleep, mine.bytes_on) or self._with(asleep)

    def grow(self, holder: str) -> "Ledger | Refused":
        """It wakes: all of it counts again. It counts as a load until ``end_load``: an engine that loads on the same
        device looks at what is free there."""
        mine = self.reservations[holder]
        if mine.held is not Held.SMALL:
            return self
        awake = replace(mine, held=Held.FULL, is_loading=True)
        return self._load_clash(awake) or self._shortage(awake, mine.bytes_on) or self._with(awake)

    def release(self, holder: str) -> "Ledger | Refused":
        """Take back what somebody saw returned. A second release changes nothing; what is quarantined stays."""
        mine = self.reservations.get(holder)
        if mine is not None and mine.held is Held.LEAKED:
            return Refused(f"{holder} has leaked {self._in_words(mine.bytes_on)}: not proven free", holders=(holder,))
        return self.without({holder})

    def quarantine(self, holder: str) -> "Ledger":
        """Its processes do not end: what it holds now counts until ``prove_free``, and it holds up no load."""
        return self._with(replace(self.reservations[holder], held=Held.LEAKED, is_loading=False))

    def prove_free(self, holder: str) -> "Ledger":
        """Its processes are gone and the memory was seen to be back: the one way out of quarantine."""
        return self.without({holder})

    # --- what planners and observers do --------------------------------------------------------------------------

    def abandon(self, holder: str, name: str) -> "Ledger":
        """Its processes have ended and its memory was not seen to return: the holder goes on without it, and the bytes
        stay quarantined under another name."""
        mine = self.reservations[holder]
        left = Reservation(name, mine.bytes_on, Held.LEAKED)
        return self.without({holder})._with(left)

    def with_device(self, device: Device) -> "Ledger":
        """A device that was not there before, or is known better now."""
        return replace(self, devices=dict(sorted({**self.devices, device.index: device}.items())))

    def if_repaired(self) -> "Ledger":
        """As if every device that is closed for the moment only gave again."""
        return replace(self, closed={index: one for index, one in self.closed.items() if one.is_lasting})

    def if_empty(self) -> "Ledger":
        """The bare devices: as if nobody had ever been there, and all were well."""
        return replace(self, reservations={}, foreign={}, closed={})

    def promise(self, holder: str, full_on: Mapping[int, int]) -> "Ledger":
        """Set bytes aside, be they there yet or not."""
        return self._with(Reservation(holder, full_on, is_promise=True))

    def without(self, holders: Collection[str]) -> "Ledger":
        """As if these had left."""
        return replace(self, reservations={name: one for name, one in self.reservations.items() if name not in holders})

    def observe(self, readings: Iterable[Observed]) -> "Ledger":
        """Take in what was seen. What a device has in use beyond its holders' share is foreign, also where a holder
        uses more than it declared: either way it cannot be given. A device that was not read keeps its last number.

        One that loads and is not named has taken something between nothing and all that it declared. What was known of
        others stays within these bounds: taken off, it would be given to the next one when this one is ready."""
        foreign, closed = dict(self.foreign), dict(self.closed)
        for seen in readings:
            if seen.index not in self.devices:
                continue
            closed.pop(seen.index, None)
            if seen.closed is not None:
                closed[seen.index] = seen.closed
            if seen.used_bytes is not None:
                least = max(0, seen.used_bytes - self.ours(seen))
                most = min(seen.used_bytes, least + self._unseen_loads(seen))
                foreign[seen.index] = min(max(least, foreign.get(seen.index, 0)), most)
        return replace(self, foreign=foreign, closed=closed)

    def ours(self, seen: Observed) -> int:
        """The part of a device's use that holders have declared."""
        total = 0
        for one in self.reservations.values():
            declared = one.bytes_on.get(seen.index, 0)
            # Memory of the leaked has no process to be seen by.
            used = declared if one.held is Held.LEAKED else seen.own_bytes.get(one.holder, declared)
            total += 0 if one.is_promise else min(declared, used)
        return total

    # --- inside --------------------------------------------------------------------------------------------------

    def _unseen_loads(self, seen: Observed) -> int:
        """What is declared by holders that load, where nobody saw how much of it they use."""
        loads = (one for one in self.reservations.values() if one.is_loading and one.holder not in seen.own_bytes)
        return sum(one.bytes_on.get(seen.index, 0) for one in loads)

    @cached_property
    def _budgets(self) -> Mapping[int, int]:
        totals = {index: 0 if index in self.closed else one.total_bytes for index, one in self.devices.items()}
        return {
            index: max(0, total - int(total * self.margin_share) - self.foreign.get(index, 0))
            for index, total in totals.items()
        }

    @cached_property
    def _sums(self) -> Mapping[int, int]:
        sums: dict[int, int] = {}
        for one in self.reservations.values():
            for index, count in one.bytes_on.items():
                sums[index] = sums.get(index, 0) + count
        return sums

    @cached_property
    def _loaders(self) -> Mapping[int, str]:
        return {
            index: one.holder
            for one in self.reservations.values()
            if one.is_loading
            for index in one.full_on
            if not self._is_host(index)
        }

    def _is_host(self, index: int) -> bool:
        return index in self.devices and self.devices[index].kind == HOST_KIND

    def _with(self, reservation: Reservation) -> "Ledger":
        return replace(self, reservations={**self.reservations, reservation.holder: reservation})

    def _load_clash(self, wanted: Reservation) -> Refused | None:
        for index in wanted.full_on:
            other = self.loader(index)
            if other is not None and other != wanted.holder:
                why = f"{self.devices[index].name} loads {other}: one load at a time"
                return Refused(why, index, wanted.full_on[index], self.free(index), (other,))
        return None

    def _shortage(self, wanted: Reservation, before: Mapping[int, int]) -> Refused | None:
        """Why the bytes of ``wanted`` beyond those that it had ``before`` are not there."""
        for index, count in wanted.bytes_on.items():
            if count < 0:
                return Refused(f"{count} bytes cannot be reserved", index, count)
            if index not in self.devices:
                return Refused(f"there is no device {index}", index, count)
            more = count - before.get(index, 0)
            if more > self.free(index):
                why = f"needs {gib(more)}, free {gib(self.free(index))} on {self.devices[index].name}"
                return Refused(why, index, more, self.free(index), self.holders(index))
        return None

    def _in_words(self, bytes_on: Mapping[int, int]) -> str:
        return ", ".join(f"{gib(count)} on {self.devices[index].name}" for index, count in sorted(bytes_on.items()))


def open_ledger(devices: Iterable[Device], margin_share: float = MARGIN_SHARE) -> Ledger:
    """A ledger in which nothing is held yet."""
    return Ledger({one.index: one for one in sorted(devices, key=lambda one: one.index)}, margin_share)


def foreign_news(before: Ledger, after: Ledger, among: Iterable[int] | None = None) -> list[str]:
    """A sentence for each device (of ``among``) on which others hold notably more or less than was seen before."""
    news: list[str] = []
    for index in after.devices if among is None else among:
        device = after.devices[index]
        was, now = before.foreign.get(index, 0), after.foreign.get(index, 0)
        is_host = device.kind in {CPU_KIND, HOST_KIND}
        least = max(NEWS_BYTES, NEWS_SHARE_OF_HOST * device.total_bytes) if is_host else NEWS_BYTES
        if abs(now - was) >= least:
            left = f"{gib(after.free(index))} of {gib(device.total_bytes)} can be given"
            news.append(f"others hold {gib(now)} on {device.name}, before it was {gib(was)}: {left}")
    return news
