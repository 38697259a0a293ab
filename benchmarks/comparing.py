"""The daemon against the worker behind it, in turns: same prompts, same limits, same asking process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.client import Client, Round, Target
from benchmarks.machine import cpu_s
from benchmarks.report import Row
from benchmarks.samples import Samples, pair_ratios, turns

TOPICS = (
    "the sea", "a lighthouse", "old maps", "the winter", "trains", "a small garden", "bread", "the moon",
    "rivers", "a clock maker", "bees", "the desert", "paper", "a violin", "mountains", "the harbour",
)  # fmt: skip


def prompts(count: int) -> list[str]:
    """Questions whose answers run into any limit; all different."""
    kinds = ("story", "poem", "letter", "lecture")
    return [f"Tell me a very long {kind} about {topic}." for kind in kinds for topic in TOPICS][:count]


@dataclass
class Side:
    """What one of the two did over the rounds."""

    tokens: int = 0
    texts: list[list[str]] = field(default_factory=list[list[str]])
    speeds: list[float] = field(default_factory=list[float])
    firsts: list[float] = field(default_factory=list[float])
    cpu_us: list[float] = field(default_factory=list[float])
    """Of the daemon, by token."""
    busiest_us: list[float] = field(default_factory=list[float])
    """Of the process among several that had most to do, by token of all of them: it fills its core first."""
    client_us: list[float] = field(default_factory=list[float])
    """Of the asking process, by token."""

    def note(self, played: Round, daemon_s: float, busiest_s: float = 0.0) -> None:
        self.tokens += played.tokens
        self.texts.append(played.texts)
        self.speeds.append(played.tokens / played.spent_s)
        self.firsts.append(median(answer.first_s for answer in played.answers))
        self.cpu_us.append(daemon_s * 1e6 / played.tokens)
        self.busiest_us.append(busiest_s * 1e6 / played.tokens)
        self.client_us.append(played.cpu_s * 1e6 / played.tokens)


@dataclass(frozen=True)
class Comparison:
    """Both sides of a series."""

    through: Side
    direct: Side

    def speed_row(self, what: str, against: str) -> Row:
        """Tokens a second; more is better."""
        return _row(what, "tokens/s", self.through.speeds, against, self.direct.speeds)

    def first_row(self, what: str, against: str) -> Row:
        """Time to the first token: the median of a round's streams; less is better."""
        firsts = ([value * 1000 for value in side.firsts] for side in (self.through, self.direct))
        return _row(what, "ms", next(firsts), against, next(firsts))

    def cpu_row(self, what: str, unit: str = "µs/token") -> Row:
        """What the daemon's process spent on one token, and on whatever else it did meanwhile."""
        return Row(what, unit, Samples.of(self.through.cpu_us))

    def client_row(self, what: str, against: str) -> Row:
        """What the asking process spent on one token: it should be about the same on both sides."""
        return _row(what, "µs/token", self.through.client_us, against, self.direct.client_us)

    @property
    def same_share(self) -> float:
        """The share of answers that are the same text on both sides."""
        mine = [text for texts in self.through.texts for text in texts]
        others = [text for texts in self.direct.texts for text in texts]
        return sum(one == other for one, other in zip(mine, others, strict=True)) / len(mine)


def compare(
    client: Client,
    targets: tuple[Target, Target],
    model: str,
    daemon_pid: int,
    *,
    streams: int,
    tokens: int,
    pairs: int,
    watch: Callable[[str], None] = lambda _text: None,
) -> Comparison:
    """Play one warm-up on each side, then so many pairs of rounds."""
    asked = prompts(streams)
    for target in targets:
        client.play(target, model, asked, tokens)
    sides = (Side(), Side())
    for number, order in enumerate(turns(pairs), 1):
        for which in order:
            before = cpu_s(daemon_pid)
            played = client.play(targets[which], model, asked, tokens)
            sides[which].note(played, cpu_s(daemon_pid) - before)
        watch(f"{streams} streams, pair {number} of {pairs}: " + " and ".join(f"{s.speeds[-1]:.1f}" for s in sides))
    return Comparison(*sides)


def _row(what: str, unit: str, measured: list[float], against: str, compared: list[float]) -> Row:
    one, other = Samples.of(measured), Samples.of(compared)
    return Row(what, unit, one, against, other, pair_ratios(one, other))
