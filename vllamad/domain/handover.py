"""What a daemon hands to the one that takes its place in the same process (floor 1): plain values and their form.

The process stays: its number, its children, its control group and its open files. What it knows does not, so that is
written down. Descriptors are numbers, and mean the same files on both sides. Instants are of the monotonic clock, which
goes on.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from vllamad.domain.ladder import Rung
from vllamad.domain.worker import State

FORMAT = 2
"""Of the document. A daemon is asked which one it reads before anything is handed to it: it has to change with every
field whose absence, or presence, a reader cannot bear."""

HANDED = frozenset({State.STARTING, State.READY, State.SUSPENDED})
"""States in which a worker may be handed over: nothing in them waits for an answer that would be lost."""


@dataclass(frozen=True, slots=True)
class HandedChild:
    """A leader and its tree, which go on. ``output`` is the read end of the pipe that they write to, -1 if they have
    closed it; ``unfinished`` is the beginning of a line that was read (Latin-1, a character a byte)."""

    pid: int
    marker: str
    leaf: str
    title: str
    output: int
    unfinished: str
    longest_line_bytes: int
    shared_memory: Mapping[str, int] = field(default_factory=dict[str, int])
    """Files in /dev/shm that they were seen to map, with their inodes."""


@dataclass(frozen=True, slots=True)
class HandedWorker:
    """A worker whose engine goes on. ``state`` is one of HANDED; ``devices`` are keys of drivers; ``full_on`` and
    ``small_on`` are its reservation by such a key ("" is the host's memory). ``expires_at`` is when its
    keep-alive ends if nobody asks."""

    name: str
    holder: str
    number: int
    key: str
    model: str
    state: State
    incarnation: int
    attempts: int
    devices: tuple[str, ...]
    device_bytes: int
    cache_bytes: int
    tokens: int
    full_on: Mapping[str, int]
    small_on: Mapping[str, int]
    rung: Rung
    keep_alive_s: float
    expires_at: float
    idle_since: float
    spawned_at: float
    ready_since: float
    start_time: float
    load_s: float
    load_cost_s: float
    load_phase: str
    load_fraction: float
    context_length: int
    weights_bytes: int
    cache_tokens: int
    is_outdated: bool
    lines: tuple[tuple[int, float, str], ...]
    """The output of its engine that is kept: number, wall time, text."""
    child: HandedChild


@dataclass(frozen=True, slots=True)
class Handover:
    """All of it. ``http`` are sockets that listen; ``bound_to`` is the setting that they were bound for, "" for those
    of the service manager. ``locks`` are descriptors by the paths of their files. ``left_at`` is the instant at which
    the faces stopped to take connections; ``count`` says how often this process was taken over, this time included."""

    version: str
    count: int
    left_at: float
    http: tuple[int, ...]
    bound_to: str
    locks: Mapping[str, int]
    workers: tuple[HandedWorker, ...] = ()
    pulls: tuple[str, ...] = ()
    """Names of models that were being fetched."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Every file that has to stay open."""
        outputs = (one.child.output for one in self.workers if one.child.output >= 0)
        return (*self.http, *self.locks.values(), *outputs)

    def encoded(self) -> bytes:
        """As a document."""
        return json.dumps({"format": FORMAT, **asdict(self)}).encode()


def decode(document: bytes) -> Handover:
    """Read a document. Raises ValueError if another version of this program wrote it in another way, or nobody did."""
    try:
        content = cast(dict[str, Any], json.loads(document))
        if content.pop("format") != FORMAT:
            raise ValueError("it is of another format")
        content["http"], content["pulls"] = tuple(content["http"]), tuple(content["pulls"])
        content["workers"] = tuple(_worker(one) for one in content["workers"])
        return Handover(**content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _worker(content: dict[str, Any]) -> HandedWorker:
    content["state"], content["rung"] = State(content["state"]), Rung(content["rung"])
    content["devices"] = tuple(content["devices"])
    content["lines"] = tuple((number, time, text) for number, time, text in content["lines"])
    content["child"] = HandedChild(**content["child"])
    return HandedWorker(**content)
