"""Which rung an idle worker goes to when it has to give up its device (floor 1).

The ladder goes down from RESIDENT over the engine's two ways to sleep to STOPPED: each step holds less memory and costs
more seconds to come back from. A worker leaves its device for the highest rung that the engine can do, that the host
has room for, and that is cheaper to come back from than the next one down by more than noise. Everything else is a
stop, which has always worked. Nothing here knows how an engine sleeps; what is assumed of it is said where it matters.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from vllamad.domain.budget import gib


class Rung(StrEnum):
    """How much of a worker is there. At level 1 its weights lie in the host's memory, at level 2 they are dropped and
    read again; at both the process stays, with its compiled code, captured graphs and communicators."""

    RESIDENT = "resident"
    LEVEL_1 = "sleep level 1"
    LEVEL_2 = "sleep level 2"
    STOPPED = "stopped"

    @property
    def level(self) -> int:
        """What the engine calls it; 0 for the ends of the ladder, which are no sleep."""
        return {Rung.LEVEL_1: 1, Rung.LEVEL_2: 2}.get(self, 0)


ASLEEP = (Rung.LEVEL_1, Rung.LEVEL_2)

# --- what it costs to come back --------------------------------------------------------------------------------------

KEPT_TIMES = 5
"""Of each rung. Their median forgets one slow wake beside another load, and follows a new disk after three. Of an even
number the longer of the two in the middle counts: a rung that is doubted is not taken."""

COPY_BYTES_PER_S = 8_000_000_000
"""From pinned host memory to a device, mapping included. PCIe 4.0 with 16 lanes gives about 25 GB/s at best; a public
report (vLLM's pull request 48337) has 2.2 s for the 16 GB of an 8B model. Not measured here."""

DISK_BYTES_PER_S = 1_500_000_000
"""Reading safetensors and putting them in their places, from a local NVMe disk. The same report: 6.5 s for those
16 GB, with the files in the page cache. Not measured here; a load that was seen gives a better number."""

WAKE_S = 0.5
"""Of every wake, whatever its size: the calls, the mapping, one token to see that it answers. Not measured here."""

START_S = 25.0
"""Of every start, weights aside: imports, profiling, capturing graphs. On two CPU cores vLLM takes 29 s without any
graphs; on a GPU imports are quicker, and graphs come to it. Not measured there."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds to come back from each rung: the median of the last times that were seen, or an estimate."""

    estimated: Mapping[Rung, float]
    seen: Mapping[Rung, tuple[float, ...]] = field(default_factory=dict[Rung, tuple[float, ...]])

    def seconds(self, rung: Rung) -> float:
        """How long it takes from this rung until it serves."""
        times = self.seen.get(rung)
        return sorted(times)[len(times) // 2] if times else self.estimated.get(rung, 0.0)

    def is_measured(self, rung: Rung) -> bool:
        """True if it came back from this rung before."""
        return bool(self.seen.get(rung))

    def after(self, rung: Rung, seconds: float) -> "Costs":
        """With one more time that was seen. Only times of a wake or start that succeeded belong here."""
        times = (*self.seen.get(rung, ()), seconds)[-KEPT_TIMES:]
        return replace(self, seen={**self.seen, rung: times})

    def in_words(self, rung: Rung) -> str:
        """For sentences: ``1.8 s (estimated)``."""
        return f"{self.seconds(rung):.1f} s" + ("" if self.is_measured(rung) else " (estimated)")


def estimated_costs(weights_bytes: int, devices: int = 1, weights_s: float = 0.0) -> Costs:
    """Costs of a worker that never slept. ``weights_bytes`` is over all of its ``devices``; ``weights_s`` is how long
    its last load read them, 0 if nobody looked."""
    reading_s = weights_s or weights_bytes / DISK_BYTES_PER_S
    copying_s = weights_bytes / max(1, devices) / COPY_BYTES_PER_S  # each device is copied to over its own link
    return Costs(
        {
            Rung.RESIDENT: 0.0,
            Rung.LEVEL_1: WAKE_S + copying_s,
            Rung.LEVEL_2: WAKE_S + reading_s,
            Rung.STOPPED: START_S + reading_s,
        }
    )


# --- what it takes of the host ---------------------------------------------------------------------------------------

COPY_ROUNDING = 2
"""Level 1 copies each piece of the weights into pinned memory, whose pieces PyTorch rounds up to powers of two
(``CachingHostAllocator.h``): at most twice the weights. The report above saw 22 GiB for 15 GiB."""

LEVEL_2_BYTES = 128 << 20
"""What level 2 keeps in the host: the model's buffers, such as tables of positions. 32 MiB would be one table of 128
thousand positions. Not measured here."""


def host_needs(weights_bytes: int, base_bytes: int = 0, copy_bytes: int = 0, pool_bytes: int = 0) -> Mapping[Rung, int]:
    """What a worker holds of the host's memory on each rung, in all.

    ``base_bytes`` is what its processes hold when awake and fresh; ``copy_bytes`` what a copy of its weights was seen
    to take, 0 if never seen; ``pool_bytes`` is what an earlier copy left behind: PyTorch keeps pinned memory for the
    next time and gives none back before the process ends (seen in vLLM's issue 16663), so it counts on every rung but
    the last, and the next copy takes no more.
    """
    copy_bytes = copy_bytes or COPY_ROUNDING * weights_bytes
    return {
        Rung.RESIDENT: base_bytes + pool_bytes,
        Rung.LEVEL_1: base_bytes + max(copy_bytes, pool_bytes),
        Rung.LEVEL_2: base_bytes + pool_bytes + LEVEL_2_BYTES,
        Rung.STOPPED: 0,
    }


# --- the worker and the rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Life:
    """What a worker has been through: sleeps of its present process, and rungs that failed it in any of them."""

    cycles: int = 0
    barred: frozenset[Rung] = frozenset()

    def woken(self) -> "Life":
        """It slept and came back."""
        return replace(self, cycles=self.cycles + 1)

    def failed(self, rung: Rung) -> "Life":
        """It did not fall asleep, did not wake, or was not itself afterwards. Whatever the process is worth now, nobody
        can tell: it has to be stopped. The rung is barred from then on: what failed was the model or the machine, and
        neither changes with the process."""
        return replace(self, barred=self.barred | {rung})

    def restarted(self) -> "Life":
        """A new process: it has not slept yet."""
        return replace(self, cycles=0)


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A worker as the ladder sees it. ``host_bytes`` is what it holds on each rung, see ``host_needs``; ``idle_s`` is
    how long nobody asked for it.

    ``can_reload`` is False where reading the weights again in place is not to be trusted, or the question that is asked
    afterwards would not notice: with adapters (broken in vLLM up to its issue 39934), with weights quantised while
    loading, with eyes or ears (NVIDIA-NeMo/RL's issue 2631: a model that came back blind). Caution, not measured here.
    """

    holder: str
    model: str
    costs: Costs
    host_bytes: Mapping[Rung, int]
    rung: Rung = Rung.RESIDENT
    life: Life = Life()
    devices: int = 1
    can_reload: bool = True
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What was configured, and what holds for all workers. ``device`` is the kind that the engine runs on."""

    is_on: bool = False
    device: str = "cuda"
    allows_several: bool = False
    """Whether workers on several devices may sleep. vLLM puts each of its processes to sleep, and communicators survive
    by its own account; nobody has seen it here, and one that comes back half holds up all of its devices."""
    margin: float = 0.25
    """A rung has to save this part of what the next one down costs: less is in the noise of disks and caches."""
    least_s: float = 2.0
    """And so many seconds: a sleep is one more thing that can fail, and below this nobody notices what it gains."""
    max_cycles: int = 32
    """Sleeps of one process, then it starts afresh. Mapping and unmapping is where engines were seen to leak and to
    break (vLLM's issue 36651); at one a minute this is a start every half hour, 1 % of the time. Not measured here."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where this worker goes, and the sentence with the numbers."""

    holder: str
    rung: Rung
    why: str


# --- the two decisions -----------------------------------------------------------------------------------------------


def descend(worker: Sleeper, host_free_bytes: int, rules: Rules) -> Choice:
    """Where an idle, resident worker goes that has to give up its device; never RESIDENT."""
    obstacle = _never(worker, rules)
    if obstacle:
        return Choice(worker.holder, Rung.STOPPED, f"stop {worker.model}: {obstacle}")
    best, notes = Rung.STOPPED, list[str]()
    for rung in reversed(ASLEEP):
        obstacle = _obstacle(worker, rung, best, host_free_bytes, rules)
        if obstacle:
            notes.append(f"no {rung}: {obstacle}")
        else:
            best = rung
    costs = worker.costs
    if best is Rung.STOPPED:
        why = f"stop {worker.model}, {costs.in_words(best)} to come back"
    else:
        rest = f"{costs.in_words(best)} to come back, {costs.in_words(Rung.STOPPED)} if it were stopped"
        takes = f"takes {gib(_more(worker, best))} of {gib(max(0, host_free_bytes))} free in the host"
        why = f"put {worker.model} to {best}: {rest}, {takes}"
    return Choice(worker.holder, best, "; ".join([why, *notes]))


def relieve(sleepers: Iterable[Sleeper], wanted_bytes: int) -> tuple[Choice, ...]:
    """Who is stopped so that the host has so many bytes more: all who sleep if they do not hold as much.

    A sleeper has nowhere else to go: an engine that sleeps stays at its level until it has been awake in between (vLLM
    answers a second call with 200 and does nothing), and waking takes the device that it gave up. Those go first that
    lose the fewest seconds for the bytes they give, weighed by how soon they are likely to be wanted.
    """
    asleep = [one for one in sleepers if one.rung in ASLEEP and _holds(one) > 0]
    leaving, freed = list[Sleeper](), 0
    for one in sorted(asleep, key=lambda one: (_loss(one) / _holds(one), one.holder)):
        if freed >= wanted_bytes:
            break
        leaving.append(one)
        freed += _holds(one)
    for one in sorted(leaving, key=lambda one: (-_loss(one), one.holder)):
        # A large one that came late may make small ones before it needless.
        if freed - _holds(one) >= wanted_bytes:
            leaving.remove(one)
            freed -= _holds(one)
    return tuple(Choice(one.holder, Rung.STOPPED, _relief(one, wanted_bytes)) for one in leaving)


# --- inside ----------------------------------------------------------------------------------------------------------


def _never(worker: Sleeper, rules: Rules) -> str:
    """Why this worker sleeps on no rung; "" if it may."""
    if not rules.is_on:
        return "sleep is off"
    if rules.device != "cuda":
        return f"engines give nothing back by sleeping on {rules.device}"
    if worker.devices > 1 and not rules.allows_several:
        return f"it runs on {worker.devices} devices"
    if worker.life.cycles >= rules.max_cycles:
        return f"a fresh start after {worker.life.cycles} sleeps"
    return ""


def _obstacle(worker: Sleeper, rung: Rung, below: Rung, host_free_bytes: int, rules: Rules) -> str:
    """Why it does not go to this rung; "" if it does, unless a higher one is better still."""
    if rung in worker.life.barred:
        return "it failed before"
    if rung is Rung.LEVEL_2 and not worker.can_reload:
        return "its weights cannot be read again in place"
    if (more := _more(worker, rung)) > max(0, host_free_bytes):
        return f"needs {gib(more)}, free {gib(max(0, host_free_bytes))} in the host"
    costs = worker.costs
    if costs.seconds(below) - costs.seconds(rung) < max(rules.least_s, rules.margin * costs.seconds(below)):
        return f"{costs.in_words(rung)} to come back is not much less than {costs.in_words(below)} from {below}"
    return ""


def _more(worker: Sleeper, rung: Rung) -> int:
    """What a rung takes of the host beyond what the worker holds there now."""
    return max(0, worker.host_bytes.get(rung, 0) - _holds(worker))


def _holds(worker: Sleeper) -> int:
    return worker.host_bytes.get(worker.rung, 0)


def _loss(worker: Sleeper) -> float:
    """Seconds that a stop adds to its next coming back, times how often that is likely: about once in its idle time."""
    more_s = max(0.0, worker.costs.seconds(Rung.STOPPED) - worker.costs.seconds(worker.rung))
    return more_s / max(1.0, worker.idle_s)


def _relief(worker: Sleeper, wanted_bytes: int) -> str:
    back = f"{worker.costs.in_words(Rung.STOPPED)} to come back instead of {worker.costs.in_words(worker.rung)}"
    held = f"holds {gib(_holds(worker))} of the host, {gib(wanted_bytes)} wanted"
    return f"stop {worker.model} (asleep, idle {worker.idle_s:.0f} s): {held}; {back}"
