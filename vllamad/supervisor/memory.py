"""The one ledger of the house, kept true by looking (floor 3).

Workers reserve before they start and release when somebody saw their memory return; this class keeps the ledger, brings
it up to date with what the devices say, and answers whether memory is back. Devices get numbers of ours when they are
first seen, which stay when the driver counts anew. What does not come back is quarantined, shouted about, and looked
for at every reading.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from vllamad.domain.budget import (
    CPU_KIND,
    HOST_KIND,
    Closed,
    Device,
    Ledger,
    Observed,
    Refused,
    foreign_news,
    gib,
    open_ledger,
)
from vllamad.domain.ports import DeviceProbe, DeviceReading
from vllamad.domain.worker import Held
from vllamad.host.logs import event

log = logging.getLogger("vllamad.memory")

MEMORY_SLACK_BYTES = 512 << 20
"""Memory counts as returned when what is in use beyond everyone's share is this close to what others held; drivers keep
a little for themselves."""

HOST = -1
"""Our number of the machine's own memory, beside GPUs."""

SETTLE_LOOK_S = 0.25
SETTLED_LOOKS = 6
"""A driver that gives back what a killed process had does so within some hundred milliseconds of its end; then nothing
more comes."""

PASSING = ("silent", "driver", "unreadable")
"""Ailments that may be over at the next reading: who needs the device waits for it."""


@dataclass(frozen=True, slots=True)
class OwnUse:
    """A worker's processes, and what they hold of the machine's memory (None: not measured, or still growing). ``look``
    finds them anew (blocking): a worker that loads has more of them every second."""

    holder: str
    pids: frozenset[int]
    resident_bytes: int | None = None
    look: Callable[[], frozenset[int]] | None = None


class DeviceMemory:
    """Devices, and who holds what of them. Everything but ``use`` and ``refresh`` is synchronous."""

    def __init__(self) -> None:
        self.ledger: Ledger = open_ledger([])
        self.readings: list[DeviceReading] = []
        """As they were seen last."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when devices can give more or less than before."""
        self.tell: Callable[[str], None] = lambda _sentence: None
        """Takes sentences for people."""
        self.own_use: Callable[[], Iterable[OwnUse]] = lambda: ()
        self._probe: DeviceProbe | None = None
        self._host: DeviceProbe | None = None
        self._numbers: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        self._seen: dict[int, Observed] = {}
        self._beside: dict[str, dict[int, int]] = {}
        """What others held beside each holder, as it was seen last while it had its memory."""
        self._told = self.ledger
        self._leaks = 0
        self._tells_by_process = False
        """The driver was seen to tell what processes of ours hold: who is not named then holds nothing. In a container
        it tells the numbers of the host's processes, which mean nothing to us."""

    async def use(self, probe: DeviceProbe, margin_share: float, host: DeviceProbe | None = None) -> None:
        """Begin to look at these devices, and at the ``host``'s memory where sleeping workers leave something. Once,
        before anything is reserved."""
        self._host = host
        self.ledger = open_ledger([], margin_share)
        await self._look(probe)
        self._told = self.ledger  # what was there before us is no news
        self._probe = probe

    async def refresh(self) -> None:
        """Look at every device now."""
        if self._probe is not None:
            await self._look(self._probe)
            self._tell_news()

    async def _look(self, probe: DeviceProbe) -> None:
        own = await self._own_now()
        readings = await probe.read()
        hosts = await self._host.read() if self._host is not None else []
        before = self.ledger
        self.readings = readings
        for reading in readings:
            self._keys[self._numbers.setdefault(reading.key, len(self._numbers))] = reading.key
        for reading in readings:
            self._note_device(reading)
        observed = [self._observed(reading, own) for reading in readings]
        observed += [self._observed_host(reading) for reading in hosts]
        self._seen |= {one.index: one for one in observed}
        self.ledger = self.ledger.observe(observed)
        self._note_others(observed)
        leaks = [self._look_for(leak) for leak in self._quarantined()]
        after = self.ledger
        is_other = after.foreign != before.foreign or after.closed != before.closed or after.devices != before.devices
        if is_other or any(leaks):
            self.on_change()

    async def settle(self, longest_s: float) -> None:
        """Engines of an earlier daemon were killed: return when what others hold has not shrunk for a while. Drivers
        give memory back after the process has gone, and what is still out then is no longer ours to wait for."""
        looks, quiet = int(longest_s / SETTLE_LOOK_S), 0
        held = sum(self.ledger.foreign.values())
        while looks > 0 and quiet < SETTLED_LOOKS:
            await asyncio.sleep(SETTLE_LOOK_S)
            await self.refresh()
            now = sum(self.ledger.foreign.values())
            looks, quiet, held = looks - 1, 0 if now < held - MEMORY_SLACK_BYTES // 8 else quiet + 1, now
        event(log, logging.INFO, "memory.settled", others_bytes=held)

    # --- questions -----------------------------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """Why no device can be seen, or not as it is now; "" if all is well."""
        return self._probe.problem if self._probe is not None else "the engine is not known yet"

    def closed_for_good(self, indices: Iterable[int]) -> str:
        """Why one of these devices gives nothing before somebody repairs it; "" if all may."""
        for index in indices:
            closed = self.ledger.closed.get(index)
            if closed is not None and closed.is_lasting:
                return f"{self.ledger.devices[index].name}: {closed.why}"
        return ""

    def key(self, index: int) -> str:
        """What a device's driver knows it by (a GPU's UUID); "" for the host's memory."""
        return self._keys[index] if index != HOST else ""

    def index_of(self, key: str) -> int | None:
        """Our number of the device that its driver knows by this, see ``key``; None if it is not there."""
        if not key:
            return HOST
        return next((index for index, one in self._keys.items() if one == key), None)

    def by_index(self, bytes_on: Mapping[str, int]) -> dict[int, int]:
        """Bytes by keys of devices as bytes by our numbers; devices that are not there are left out."""
        found = {self.index_of(key): count for key, count in bytes_on.items()}
        return {index: count for index, count in found.items() if index is not None}

    def index(self, reading: DeviceReading) -> int | None:
        """Our number of a device; None before it was seen."""
        return self._numbers.get(reading.key)

    def own_bytes(self, holder: str) -> int:
        """What its processes were last seen to hold on all devices; 0 where the driver does not tell."""
        return sum(self.own_bytes_on(holder).values())

    def own_bytes_on(self, holder: str) -> dict[int, int]:
        """The same by device; {} where the driver does not tell."""
        return {index: seen.own_bytes[holder] for index, seen in self._seen.items() if holder in seen.own_bytes}

    async def has_returned(self, holder: str) -> bool:
        """Look, and say whether all that a holder has was seen to be free. Call when its processes have ended."""
        await self.refresh()
        return holder not in self.ledger.reservations or self._is_back(holder)

    # --- a holder's life -----------------------------------------------------------------------------------------

    def reserve(self, holder: str, full_on: Mapping[int, int]) -> Refused | None:
        """Give a holder its bytes and let it load, or say why not."""
        after = self.ledger.reserve(holder, full_on)
        if isinstance(after, Refused):
            return after
        self._beside[holder] = dict(self.ledger.foreign)
        self.ledger = after
        return None

    def take_over(
        self, holder: str, full_on: Mapping[int, int], small_on: Mapping[int, int], held: Held, *, is_loading: bool
    ) -> None:
        """A holder has this already, from a daemon before us. ``settle_in`` when all of them are named."""
        self.ledger = self.ledger.take_over(holder, full_on, small_on, held, is_loading=is_loading)
        self._beside[holder] = {}

    async def settle_in(self) -> None:
        """Look anew, with everyone named who held something before us: what was taken for others' use is ours, and no
        news."""
        if self._probe is not None:
            await self._look(self._probe)
        self._told = self.ledger

    def begin_load(self, holder: str) -> Refused | None:
        """Let a holder that kept its bytes over a crash load again, or say who loads in its place."""
        after = self.ledger.begin_load(holder)
        if isinstance(after, Refused):
            return after
        self.ledger = after
        return None

    def shrink(self, holder: str, small_on: Mapping[int, int]) -> Refused | None:
        """It sleeps, and holds this much; or say why that is more than there is."""
        # What it copied into the host was seen there already, where it counts as somebody else's until now.
        more = max(0, small_on.get(HOST, 0) - self.ledger.reservations[holder].bytes_on.get(HOST, 0))
        foreign = {**self.ledger.foreign, HOST: max(0, self.ledger.foreign.get(HOST, 0) - more)}
        after = replace(self.ledger, foreign=foreign).shrink(holder, small_on)
        if isinstance(after, Refused):
            return after
        # Looked at anew: what others hold was reckoned beside all that it had declared.
        self.ledger = after.observe(self._seen.values())
        return None

    def grow(self, holder: str) -> Refused | None:
        """Let it wake, or say why its place is not there."""
        after = self.ledger.grow(holder)
        if isinstance(after, Refused):
            return after
        self.ledger = after
        return None

    def end_load(self, holder: str) -> None:
        """It serves, or its process is gone: others may load beside it."""
        self.ledger = self.ledger.end_load(holder)

    def release(self, holder: str) -> None:
        """Its memory is back. Harmless when repeated."""
        # Looked at anew: what it had declared and not used was taken off what others were seen to hold.
        self.ledger = self.ledger.without({holder}).observe(self._seen.values())
        self._beside.pop(holder, None)

    def quarantine(self, holder: str) -> None:
        """Its processes do not end."""
        self.ledger = self.ledger.quarantine(holder)
        self._shout(holder)

    def give_up(self, holder: str) -> None:
        """Its processes have ended and its memory was not seen to return in time. The holder is free of it; nobody else
        gets it before it was seen."""
        if holder not in self.ledger.reservations or self._is_back(holder):
            self.release(holder)
            return
        self._leaks += 1
        name = f"{holder} (leak {self._leaks})"
        self.ledger = self.ledger.abandon(holder, name)
        self._beside[name] = self._beside.pop(holder, {})
        self._shout(name)

    # --- looking -------------------------------------------------------------------------------------------------

    async def _own_now(self) -> list[OwnUse]:
        own = list(self.own_use())
        looks = [one.look for one in own if one.look is not None]
        if not looks or not any(reading.kind == "cuda" for reading in self.readings):
            return own
        try:
            found = iter(await asyncio.to_thread(lambda: [look() for look in looks]))
        except OSError as error:  # too many open files: what was known stands until the next reading
            event(log, logging.WARNING, "memory.unseen", why=str(error))
            return own
        return [one if one.look is None else replace(one, pids=next(found)) for one in own]

    def _note_device(self, reading: DeviceReading) -> None:
        index = self._numbers[reading.key]
        usable = reading.total_bytes - reading.reserved_bytes
        if usable <= 0:
            return  # it did not answer yet: a device without memory is none
        name = "CPU" if reading.kind == "cpu" else f"GPU {reading.index}"
        links = frozenset(self._numbers[peer] for peer in reading.nvlink_peers if peer in self._numbers)
        known = self.ledger.devices.get(index)
        if known is not None and not reading.is_healthy:
            name, links = known.name, known.links
        kind = CPU_KIND if reading.kind == "cpu" else reading.name
        device = Device(index, name, usable, kind, links)
        if device != known:
            self.ledger = self.ledger.with_device(device)

    def _observed(self, reading: DeviceReading, own: Iterable[OwnUse]) -> Observed:
        index = self._numbers[reading.key]
        closed = None
        if not reading.is_healthy:
            closed = Closed(reading.reason or "not healthy", not reading.reason.startswith(PASSING))
        is_answering = reading.is_healthy or reading.free_bytes > 0
        used = reading.total_bytes - reading.reserved_bytes - reading.free_bytes if is_answering else None
        return Observed(index, used, self._own_bytes(reading, own), closed)

    def _observed_host(self, reading: DeviceReading) -> Observed:
        device = Device(HOST, "the host", reading.total_bytes, HOST_KIND)
        if self.ledger.devices.get(HOST) != device:
            self.ledger = self.ledger.with_device(device)
        return Observed(HOST, reading.total_bytes - reading.free_bytes)

    def _own_bytes(self, reading: DeviceReading, own: Iterable[OwnUse]) -> dict[str, int]:
        if reading.kind == "cpu":
            return {one.holder: one.resident_bytes for one in own if one.resident_bytes is not None}
        found = {one.holder: sum(reading.used_by_pid.get(pid, 0) for pid in one.pids) for one in own}
        self._tells_by_process = self._tells_by_process or any(found.values())
        return found if self._tells_by_process else {}

    def _note_others(self, observed: Iterable[Observed]) -> None:
        """Others come and go while a worker lives: what they held when it came says nothing when it leaves."""
        for seen in observed:
            foreign = self.ledger.foreign.get(seen.index, 0)
            for one in self.ledger.reservations.values():
                beside, declared = self._beside.get(one.holder), one.bytes_on.get(seen.index)
                if beside is None or declared is None or one.held is Held.LEAKED or seen.used_bytes is None:
                    continue
                own = seen.own_bytes.get(one.holder)
                if own:
                    beside[seen.index] = max(0, foreign - max(0, own - declared))
                elif own is None:  # not told: others hold this much at least
                    beside[seen.index] = max(beside.get(seen.index, 0), foreign)

    def _is_back(self, holder: str) -> bool:
        mine = self.ledger.reservations[holder]
        beside = self._beside.get(holder, {})
        rest = self.ledger.without({holder})
        return all(self._is_back_on(index, holder, rest, beside.get(index, 0)) for index in mine.bytes_on)

    def _is_back_on(self, index: int, holder: str, rest: Ledger, beside_bytes: int) -> bool:
        seen = self._seen.get(index)
        if seen is None:
            return False
        if seen.closed is not None and seen.closed.why.startswith("lost"):
            return True  # a GPU that is lost has nothing to give back
        if self.ledger.devices[index].kind in {CPU_KIND, HOST_KIND}:
            return True  # the end of the processes is the end of their memory
        if seen.used_bytes is None or seen.own_bytes.get(holder, 0):
            return False
        return seen.used_bytes - rest.ours(seen) <= beside_bytes + MEMORY_SLACK_BYTES

    # --- what leaked ---------------------------------------------------------------------------------------------

    def _quarantined(self) -> list[str]:
        """Leaks that no worker answers for any more."""
        reservations = self.ledger.reservations.values()
        return [one.holder for one in reservations if one.held is Held.LEAKED and " (leak " in one.holder]

    def _look_for(self, leak: str) -> bool:
        """True if it is back."""
        if not self._is_back(leak):
            return False
        count = sum(self.ledger.reservations[leak].bytes_on.values())
        self.release(leak)
        self.tell(f"{gib(count)} that {leak.partition(' (leak ')[0]} had leaked are back")
        return True

    def _shout(self, holder: str) -> None:
        mine = self.ledger.reservations[holder]
        where = ", ".join(
            f"{gib(count)} on {self.ledger.devices[index].name}" for index, count in sorted(mine.bytes_on.items())
        )
        text = f"{holder.partition(' (leak ')[0]} has leaked {where}: nobody gets it before it was seen to be free"
        event(log, logging.ERROR, "memory.leaked", holder=holder, text=text)
        self.tell(text)

    def _tell_news(self) -> None:
        """Say what changed since it was said last. What others hold is only sure where every holder was seen: one that
        loads has declared more than it uses yet."""
        settled = [
            index
            for index in self.ledger.devices
            if set(self.ledger.holders(index)) <= self._seen.get(index, Observed(index, None)).own_bytes.keys()
        ]
        news = foreign_news(self._told, self.ledger, settled)
        for index, device in self.ledger.devices.items():
            was, now = self._told.closed.get(index), self.ledger.closed.get(index)
            if now is not None and (was is None or was.why != now.why):
                news.append(f"nothing is placed on {device.name}: {now.why}")
            elif was is not None and now is None:
                news.append(f"{device.name} is well again")
        if news:
            foreign = dict(self._told.foreign) | {index: self.ledger.foreign.get(index, 0) for index in settled}
            self._told = replace(self.ledger, foreign=foreign)
        for sentence in news:
            self.tell(sentence)
