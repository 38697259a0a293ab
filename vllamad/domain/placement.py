"""What fits where, and who would have to leave (floor 1): a demand and a ledger in, a placement or its absence out.

The policy, and why:

- The smallest tensor-parallel size that can *ever* hold the model, on one device if one can. A larger size would fit
  into crumbs now and then, but it costs speed at every token, and a model that is served differently each time is
  compiled anew each time.
- A model goes beside others where it gets the cache that it wants there, so that large models keep whole devices; else
  onto an empty device; else beside others with less cache. Among equals, where the least is left over: small gaps
  are used up, large ones stay whole.
- The cache cannot grow after the load, so it is chosen once. On an empty device a model gets what it wants, up to as
  much as its weights take or half of what they leave, and the rest too if nobody could use the rest. Beside others it
  gets its least and half of what is left beyond: each newcomer leaves as much as it takes, so that the first does not
  lock out those to come.
- Peers on a fast link before any others; then whoever is cheapest to ask to leave.

Everything is decided by numbers and, in the end, by indices and names: same ledger, same placement.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vllamad.domain.budget import HOST_KIND, Ledger, gib
from vllamad.domain.worker import Held

USEFUL_BYTES = 2 << 30
"""A smaller rest is not kept for others: contexts, graphs and a little cache of the smallest engine take as much."""

SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Need:
    """What each device must give at one tensor-parallel size. ``fixed_bytes`` are weights and what comes with them;
    ``token_bytes`` is what one token of cache takes."""

    size: int
    fixed_bytes: int
    token_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model wants. ``needs`` by size, smallest first. ``least_tokens`` of cache it cannot serve without,
    ``wanted_tokens`` serve it well; ``pinned`` are the only devices that it may use (none: any)."""

    needs: tuple[Need, ...]
    least_tokens: int = 0
    wanted_tokens: int = 0
    pinned: tuple[int, ...] = ()

    def least_bytes(self, need: Need) -> int:
        """Bytes per device without which there is no point in loading."""
        return need.fixed_bytes + need.token_bytes * self.least_tokens


def demand_of(
    weights_bytes: int,
    overhead_bytes: int,
    token_bytes: int,
    heads: int,
    kv_heads: int,
    *,
    least_tokens: int,
    wanted_tokens: int,
    sizes: Iterable[int] = SIZES,
    pinned: tuple[int, ...] = (),
) -> Demand:
    """Split a whole model's numbers over each of ``sizes`` that divides its heads (vLLM refuses the others). Heads of 0
    are unknown: one device only. ``overhead_bytes`` is per device; key-value heads are copied where there are fewer of
    them than devices, so beyond ``kv_heads`` the cache is not split further."""
    needs: list[Need] = []
    for size in sorted(set(sizes)):
        if size > 1 and (heads == 0 or heads % size):
            continue
        ways = min(size, kv_heads or 1)
        if size > 1 and kv_heads and max(size, kv_heads) % ways:
            continue
        needs.append(Need(size, -(-weights_bytes // size) + overhead_bytes, -(-token_bytes // ways)))
    return Demand(tuple(needs), least_tokens, max(least_tokens, wanted_tokens), pinned)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes: ``device_bytes`` of each of ``devices``, of which ``cache_bytes`` are for ``tokens`` of
    cache."""

    devices: tuple[int, ...]
    device_bytes: int
    cache_bytes: int
    tokens: int

    @property
    def bytes_on(self) -> Mapping[int, int]:
        """As a reservation takes it."""
        return dict.fromkeys(self.devices, self.device_bytes)


class Lack(StrEnum):
    """Why there is no placement."""

    NEVER = "never"
    """Not on this machine, whoever leaves."""
    LOADING = "loading"
    """The bytes are there, but another loads on the device."""
    FULL = "full"


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Why not, with the numbers in words. ``would_fit_after`` are the holders who must leave first (none, if those who
    may be asked do not suffice), ``then`` where it goes then."""

    lack: Lack
    numbers: str
    would_fit_after: tuple[str, ...] = ()
    then: Placement | None = None


def place(
    demand: Demand, ledger: Ledger, costs: Mapping[str, float] | None = None, stays: Collection[str] = ()
) -> Placement | NoPlace:
    """Find the best place now, or say why there is none. ``costs`` are the holders that may be asked to leave and what
    that costs; ``stays`` are those that never will (pinned). Whoever else holds something may leave one day."""
    search = _Search(demand, ledger, costs or {})
    need = search.smallest_need(stays)
    if need is None:
        return NoPlace(Lack.NEVER, search.never(stays))
    found = search.best(need, [index for index in search.allowed if ledger.loader(index) is None])
    if found is not None:
        return found
    later = search.best(need, search.allowed)
    if later is not None:
        loads = ", ".join(f"{ledger.devices[index].name} loads {ledger.loader(index)}" for index in later.devices)
        return NoPlace(Lack.LOADING, f"{loads}: one load at a time", (), later)
    return search.after_leaving(need)


class _Search:
    def __init__(self, demand: Demand, ledger: Ledger, costs: Mapping[str, float]) -> None:
        self._demand = demand
        self._ledger = ledger
        self._costs = costs
        devices = ledger.devices.values()
        self.allowed = [
            one.index for one in devices if one.kind != HOST_KIND and (not demand.pinned or one.index in demand.pinned)
        ]

    # --- sizes ---------------------------------------------------------------------------------------------------

    def smallest_need(self, stays: Collection[str]) -> Need | None:
        """Of the smallest size that fits once everyone has left who ever will."""
        lasting = self._lasting(stays)
        for need in self._demand.needs:
            least = self._demand.least_bytes(need)
            kinds = [self._kind(index) for index in self.allowed if lasting.free(index) >= least]
            if any(kinds.count(kind) >= need.size for kind in set(kinds)):
                return need
        return None

    def never(self, stays: Collection[str]) -> str:
        if not self._demand.needs or not self.allowed:
            return "no device may be used for it"
        if all(self._is_closed(index) for index in self.allowed):
            return "; ".join(
                f"{self._name(index)} is closed: {self._ledger.closed[index].why}" for index in self.allowed
            )
        needs = self._demand.needs
        need = max((one for one in needs if one.size <= len(self.allowed)), key=lambda one: one.size, default=needs[0])
        lasting = self._lasting(stays)
        most = max(self.allowed, key=lambda index: (lasting.free(index), -index))
        on_each = f" on each of {need.size} devices of one kind" if need.size > 1 else ""
        numbers = f"needs {gib(self._demand.least_bytes(need))}{on_each}, of {len(self.allowed)} allowed the roomiest"
        text = f"{numbers} ({self._name(most)}) can give {gib(lasting.free(most))}"
        foreign = self._ledger.foreign.get(most, 0)
        return f"{text}, others hold {gib(foreign)} there" if foreign else text

    def _lasting(self, stays: Collection[str]) -> Ledger:
        reservations = self._ledger.reservations.values()
        leaves = {one.holder for one in reservations if one.held is not Held.LEAKED and one.holder not in stays}
        return self._ledger.without(leaves).if_repaired()

    # --- a place now ---------------------------------------------------------------------------------------------

    def best(self, need: Need, among: Sequence[int]) -> Placement | None:
        least = self._demand.least_bytes(need)
        ranks = {index: self._rank(need, index) for index in among if self._ledger.free(index) >= least}
        group = self._group(need.size, ranks)
        return self._on(need, group, self._ledger) if group else None

    def _rank(self, need: Need, index: int) -> tuple[float, ...]:
        """Smaller is better: comfortable company, then solitude, then a squeeze; the smallest rest first."""
        free = self._ledger.free(index)
        is_empty = self._ledger.held(index) == 0
        is_comfortable = self._tokens(need, free, is_empty) >= self._demand.wanted_tokens
        company = 1 if is_empty else 0 if is_comfortable else 2
        return (company, free - self._demand.least_bytes(need))

    def _group(self, size: int, ranks: Mapping[int, tuple[float, ...]]) -> tuple[int, ...]:
        """``size`` devices of one kind, as well linked as can be, then of the best ranks; () if there are not so many.
        Grown from each device in turn, always by the peer that is linked to most of those that are in: exact for pairs
        and for the islands that links form in practice, and cheap for any number of devices."""
        found: list[tuple[int, tuple[float, ...], tuple[int, ...]]] = []
        for seed in ranks:
            group = [seed]
            while len(group) < size:
                rest = [one for one in ranks if one not in group and self._kind(one) == self._kind(seed)]
                if not rest:
                    break
                group.append(min(rest, key=lambda one: (-self._links(one, group), ranks[one], one)))
            if len(group) == size:
                gaps = sum(len(group) - 1 - self._links(one, group) for one in group)
                worst = max(ranks[one] for one in group)
                found.append((gaps, worst, tuple(sorted(group))))
        return min(found)[2] if found else ()

    def _on(self, need: Need, group: Sequence[int], ledger: Ledger) -> Placement | None:
        """The place on these very devices, with its cache; None if one of them has not got the least."""
        if min(ledger.free(index) for index in group) < self._demand.least_bytes(need):
            return None
        # Every device gives the same: the fewest tokens that any can keep are what all keep.
        tokens = min(self._tokens(need, ledger.free(index), ledger.held(index) == 0) for index in group)
        cache = tokens * need.token_bytes
        return Placement(tuple(group), need.fixed_bytes + cache, cache, tokens)

    def _tokens(self, need: Need, free: int, is_empty: bool) -> int:
        least, wanted = self._demand.least_tokens, self._demand.wanted_tokens
        if need.token_bytes == 0:
            return wanted  # it keeps none: what it wants costs nothing
        room = free - need.fixed_bytes
        most = room // need.token_bytes
        if not is_empty:
            return min(wanted, least + max(0, most - least) // 2)
        # As much for the cache as for the model itself, or half of what is left beyond it, whichever is more: a small
        # model does not take all of a card because it is the first there.
        bound = max(room // 2, need.fixed_bytes) // need.token_bytes
        wanted = max(least, min(wanted, bound))
        rest = room - min(most, wanted) * need.token_bytes
        return most if rest < USEFUL_BYTES else wanted

    # --- a place after others have left --------------------------------------------------------------------------

    def after_leaving(self, need: Need) -> NoPlace:
        least = self._demand.least_bytes(need)
        leavers: dict[int, tuple[str, ...]] = {}
        for index in self.allowed:
            # Where someone loads nobody is asked to leave: the newcomer would have to wait for that load too.
            found = self._leavers(least, (index,)) if self._ledger.loader(index) is None else None
            if found is not None:
                leavers[index] = found
        ranks = {index: (self._cost(holders), float(len(holders))) for index, holders in leavers.items()}
        group = self._group(need.size, ranks)
        if not group:
            return NoPlace(Lack.FULL, self._short(least, need.size))
        together = self._leavers(least, group)
        assert together is not None, "what suffices on each device suffices on all"
        then = self._on(need, group, self._ledger.without(together))
        return NoPlace(Lack.FULL, self._short(least, need.size, group), together, then)

    def _leavers(self, least: int, group: Sequence[int]) -> tuple[str, ...] | None:
        """The cheapest holders, none of them needlessly, without whom ``least`` is free on each of these devices."""

        missing = {index: least - self._ledger.budget(index) + self._ledger.held(index) for index in group}
        gains = {
            name: self._ledger.reservations[name].bytes_on
            for index in group
            for name in self._ledger.holders(index)
            if name in self._costs
        }

        def suffices(leaving: Collection[str]) -> bool:
            return all(sum(gains[name].get(index, 0) for name in leaving) >= missing[index] for index in group)

        by_cost = sorted(gains, key=lambda name: (self._costs[name], name))
        if not suffices(by_cost):
            return None
        chosen: list[str] = []
        for name in by_cost:
            if suffices(chosen):
                break
            chosen.append(name)
        for name in reversed(list(chosen)):
            fewer = [other for other in chosen if other != name]
            if suffices(fewer):
                chosen = fewer
        # Cheap ones add up: one larger holder may be the better bargain.
        alone = next((name for name in by_cost if suffices((name,))), None)
        if alone is not None and self._costs[alone] < self._cost(chosen):
            chosen = [alone]
        return tuple(chosen)

    def _cost(self, holders: Iterable[str]) -> float:
        return sum(self._costs[name] for name in holders)

    def _short(self, least: int, size: int, group: Sequence[int] = ()) -> str:
        """``needs 18.2 GiB, free 6.1 GiB on GPU 0``: where it would go, else where there is most."""
        roomiest = sorted(self.allowed, key=lambda index: (-self._ledger.free(index), index))
        named = group or sorted(roomiest[:size])
        each = f"on each of {size} devices, " if size > 1 else ""
        free = ", ".join(f"{gib(self._ledger.free(index))} on {self._name(index)}" for index in named)
        text = f"needs {gib(least)} {each}free {free}" if each else f"needs {gib(least)}, free {free}"
        shut = [f"{self._name(index)}: {self._ledger.closed[index].why}" for index in named if self._is_closed(index)]
        return "; ".join([text, *shut])

    def _is_closed(self, index: int) -> bool:
        return index in self._ledger.closed

    def _links(self, index: int, group: Iterable[int]) -> int:
        return sum(1 for other in group if other in self._ledger.devices[index].links)

    def _kind(self, index: int) -> str:
        return self._ledger.devices[index].kind

    def _name(self, index: int) -> str:
        return self._ledger.devices[index].name
