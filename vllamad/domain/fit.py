"""What fits where, in a sentence (floor 1): footprints beside devices. For people who ask before they load; the ledger
and the planner decide by themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllamad.domain.budget import gib
from vllamad.domain.footprint import Footprint

LEAST_TOKENS = 4096
"""With less cache a model is not worth loading: Ollama's clients expect this much context by default."""


@dataclass(frozen=True, slots=True)
class Room:
    """A device to lay footprints beside. ``usable_bytes`` is what one engine may have of it when nobody else is there,
    ``free_bytes`` what it may have now."""

    name: str
    usable_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Fitting:
    """A number of devices that hold a model: their places in the list that was given, and the longest sequence (None:
    its length does not matter)."""

    devices: tuple[int, ...]
    tokens: int | None
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits, as data and as a sentence. ``now`` and ``empty`` go by the number of devices, smallest first: with
    what is free now, and if nobody else were there. ``needed_bytes`` is what the smallest number of devices must give
    each."""

    now: tuple[Fitting, ...]
    empty: tuple[Fitting, ...]
    needed_bytes: int
    sentence: str
    notes: tuple[str, ...] = ()


def explain(
    footprints: Mapping[int, Footprint],
    rooms: Sequence[Room],
    *,
    noun: str = "GPU",
    least_tokens: int = LEAST_TOKENS,
    cache_bytes: int = 0,
) -> Fit:
    """Say what fits where. ``footprints`` go by their number of devices and must not be empty; ``noun`` is what a
    device is called.

    ``least_tokens`` of cache make a fit, and the cache gets all that a device has left; if it was set to a fixed
    ``cache_bytes`` (as on CPU), it has that and no more, and a fit is where that is free.
    """
    wish = _Wish(least_tokens, cache_bytes)
    now = _fittings(footprints, [room.free_bytes for room in rooms], wish)
    empty = _fittings(footprints, [room.usable_bytes for room in rooms], wish)
    needs = {size: wish.needs(footprints[size]) for size in sorted(footprints)}
    smallest = min(footprints)
    if now:
        sentence = _fits(now, rooms, noun)
    elif empty:
        sentence = _fits_later(empty[0], rooms, noun)
    else:
        sentence = _never(needs, rooms, noun)
    return Fit(now, empty, needs[smallest], sentence, footprints[smallest].notes)


@dataclass(frozen=True, slots=True)
class _Wish:
    least_tokens: int
    cache_bytes: int

    def needs(self, footprint: Footprint) -> int:
        if self.cache_bytes and footprint.has_cache:
            return footprint.base_bytes + self.cache_bytes
        return footprint.needed_bytes(self.least_tokens)

    def tokens(self, footprint: Footprint, available_bytes: int) -> int | None:
        """What it gets; 0 if that is no fit."""
        needed = self.needs(footprint)
        if needed > available_bytes:
            return 0
        return footprint.tokens_in(needed if self.cache_bytes else available_bytes)


def _fittings(footprints: Mapping[int, Footprint], available: Sequence[int], wish: _Wish) -> tuple[Fitting, ...]:
    found: list[Fitting] = []
    roomiest = sorted(range(len(available)), key=lambda index: (-available[index], index))
    for size, footprint in sorted(footprints.items()):
        chosen = roomiest[:size]
        if len(chosen) < size:
            break
        tokens = wish.tokens(footprint, available[chosen[-1]])
        if tokens != 0:
            found.append(Fitting(tuple(sorted(chosen)), tokens, wish.needs(footprint)))
    return tuple(found)


def _fits(found: Sequence[Fitting], rooms: Sequence[Room], noun: str) -> str:
    return "fits on " + "; or on ".join(f"{_where(each, rooms, noun)}{_with_cache(each)}" for each in found)


def _where(found: Fitting, rooms: Sequence[Room], noun: str) -> str:
    if len(found.devices) == 1:
        return rooms[found.devices[0]].name
    return f"{len(found.devices)} {noun}s"


def _with_cache(found: Fitting) -> str:
    return "" if found.tokens is None else f" with {_rounded(found.tokens):,} tokens of cache"


def _rounded(tokens: int) -> int:
    """Down to what people read: 34,816 becomes 34,000."""
    step = 1000 if tokens >= 10_000 else 100 if tokens >= 1000 else 1
    return tokens // step * step


def _fits_later(found: Fitting, rooms: Sequence[Room], noun: str) -> str:
    busiest = min((rooms[index] for index in found.devices), key=lambda room: room.free_bytes)
    each = "" if len(found.devices) == 1 else f" on each of {len(found.devices)} {noun}s"
    free, usable = gib(busiest.free_bytes), gib(busiest.usable_bytes)
    return f"not now: needs {gib(found.needed_bytes)}{each}, {busiest.name} has {free} free of {usable}"


def _never(needs: Mapping[int, int], rooms: Sequence[Room], noun: str) -> str:
    smallest = min(needs)
    if not rooms:
        return f"not: needs {gib(needs[smallest])}, and there is no {noun}"
    largest = max(rooms, key=lambda room: room.usable_bytes)
    name = largest.name if len(rooms) == 1 else f"the largest {noun}"
    sentence = f"not: needs {gib(needs[smallest])}, {name} has {gib(largest.usable_bytes)}"
    most = max((size for size in needs if size <= len(rooms)), default=smallest)
    if most > smallest:
        sentence += f"; {most} {noun}s would still have to give {gib(needs[most])} each"
    return sentence
