"""The ports: what the services ask of the world (floor 1). Each adapter on floor 2 fills one of them; tests fill them
with fakes, and one suite of claims per port runs on both.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from vllamad.domain.footprint import EngineSettings, Footprint
from vllamad.domain.handover import HandedChild
from vllamad.domain.loaders import Loader
from vllamad.domain.model import NO_RECIPE, Adapter, Model, Recipe, Source
from vllamad.domain.names import ModelRef
from vllamad.domain.operation import Progress
from vllamad.domain.restore import LoadedModel
from vllamad.domain.self_test import SelfTest


class Clock(Protocol):
    """Time. Deadlines are instants of ``now``."""

    def now(self) -> float:
        """Monotonic seconds; the event loop's clock."""
        ...

    def time(self) -> float:
        """Wall time: seconds since the epoch."""
        ...

    def call_at(self, when: float, callback: Callable[[], None]) -> "Timer":
        """Call back once at an instant of ``now``, in the event loop's thread."""
        ...


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Forget it; harmless when it is over."""
        ...


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run. ``env`` is the whole environment of the child: nothing is inherited."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    title: str
    """Who it is in log lines: the model's name for an engine."""
    stdin: bytes = b""
    """What it reads on its standard input, to its end; secrets travel here, neither in argv nor in the environment."""
    longest_line_bytes: int = 8192
    """Longer lines of its output are cut."""
    memory_limit_bytes: int = 0
    """What the whole tree may have of the machine's memory; beyond it the kernel ends the tree. 0 for no limit; not
    enforced where control groups are not ours to divide, which is logged."""
    descriptors: Sequence[int] = ()
    """What it has open beside its standard streams, under the same numbers as here; not for a child of a zygote."""
    zygote: "Command | None" = None
    """A process that this one may be forked from instead of being executed: its ``argv`` are the same interpreter and
    a file of Python that imports what there is to import, its environment is the part of this one that is read then.
    Then ``argv`` of this one is ``PYTHON -m MODULE ARGUMENT...``. Nobody can tell which it was but by the time that it
    took."""


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line that a child wrote, without its end; ``time`` is wall time. ``number`` counts from 1 over all lines of
    the ring, so that a reader can tell what it missed."""

    number: int
    time: float
    text: str


class OutputRing(Protocol):
    """The last lines of a child, and whoever follows them. It outlives the child, over restarts of its worker."""

    def tail(self, count: int) -> list[OutputLine]:
        """The newest lines, oldest first; all that are kept if ``count`` is negative."""
        ...

    def follow(self) -> AsyncIterator[OutputLine]:
        """Every line from now on; a slow reader misses some, see ``OutputLine.number``."""
        ...


class Child(Protocol):
    """A leader and its tree (own session and process group). Every signal goes to the tree."""

    @property
    def pid(self) -> int:
        """The leader; 0 before there is one, see ``Command.zygote``."""
        ...

    async def wait(self) -> int:
        """Return the leader's exit status (negative: the signal) once it ended. Does not reap it: the group stays
        addressable until ``kill_tree``. May be awaited by several, and again."""
        ...

    def terminate(self) -> None:
        """SIGTERM to the tree; returns at once."""
        ...

    def hand_over(self) -> HandedChild | None:
        """Let go of it, alive, for a daemon that takes our place in this process; None if it has ended, or has not
        begun yet. It must not be used after that: nobody watches it here any more."""
        ...

    async def kill_tree(self) -> None:
        """SIGKILL to the tree, reap it, and return when no process of it is left. Safe to call again."""
        ...

    def memory_bytes(self) -> int:
        """Resident bytes of the whole tree now, shared pages counted once where the kernel tells (PSS), else RSS."""
        ...

    def pids(self) -> frozenset[int]:
        """Who is alive in the tree now. Blocks for some milliseconds, as ``memory_bytes`` and ``cpu_seconds`` do."""
        ...

    def cpu_seconds(self) -> float:
        """Processor time of the whole tree since its start; never falls, and stays known when the tree is gone. Those
        who have ended are counted in full where the kernel does it (a control group), else only if someone of the tree
        waited for them."""
        ...

    def oom_kills(self) -> int:
        """How many of the tree the kernel has killed for want of memory; stays known when the tree is gone. Always 0
        where the kernel does not count by tree."""
        ...


class Launcher(Protocol):
    """Starts children that die with the daemon."""

    def spawn(self, command: Command, on_line: Callable[[str], None]) -> Child:
        """Start a child; every line of its output reaches ``on_line`` in the event loop's thread, until the end of the
        tree. Call from the loop's thread (the death signal belongs to the thread that forked). Raises
        ENGINE_START_FAILED if the program cannot be executed; if that turns out later, it ends with status 127."""
        ...

    def adopt(self, handed: HandedChild, on_line: Callable[[str], None]) -> Child:
        """Go on with a child that a daemon before us in this process has handed over. One that has ended meanwhile
        says so by ``wait``. Raises ENGINE_DIED if there is no such child."""
        ...


@dataclass(frozen=True, slots=True)
class Prefetched:
    """What was asked for of a model's weights; ``why`` says what it ended at, "" if all of them were."""

    count_bytes: int
    why: str = ""


class PageCache(Protocol):
    """The kernel's copies of files in memory."""

    async def prefetch(self, folder: Path) -> Prefetched:
        """Have the weights in a model's folder read, unless they are more than the machine has room for. Returns when
        all of it was asked for; cancelling ends it there. A disk that fails is told in the answer."""
        ...


# --- the engine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerPlaces:
    """Where one incarnation of a worker lives: its HTTP socket (path under 108 bytes) and a folder of its own for
    temporary files, which goes with it."""

    socket: Path
    folder: Path


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """What one engine may use: ``devices`` are GPUs by their drivers' keys, none on CPU; ``share`` is the part of each
    that it may take in all, and ``cache_bytes`` of that are for its cache (0: its own choice). Beyond
    ``host_limit_bytes`` of the machine's memory the kernel ends it, where it can (0: no limit)."""

    devices: tuple[str, ...] = ()
    share: float = 0.0
    cache_bytes: int = 0
    host_limit_bytes: int = 0


NO_PLACE = EnginePlace()
"""On CPU, or wherever the engine wants."""


@dataclass(frozen=True, slots=True)
class LoadStep:
    """What the engine is doing while it loads; ``fraction`` is 0 to 1 by our reckoning of a usual load."""

    phase: str
    fraction: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """What ``engine.python`` has: ``version`` is "" and ``problem`` says why if it has no usable engine."""

    python: str
    distribution: str = ""
    version: str = ""
    device: str = ""
    problem: str = ""
    hint: str = ""
    torch_cuda: str = ""
    """The CUDA that its torch was built for, like "12.8"; "" for a CPU build."""
    extras: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """Versions of the packages beside it that it can make use of, by distribution: those that are installed."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What an engine said that it took while it loaded, on one device; 0 for what it did not say."""

    weights_bytes: int = 0
    cache_tokens: int = 0

    def __or__(self, other: "Taken") -> "Taken":
        """Both; what the other says wins."""
        return Taken(other.weights_bytes or self.weights_bytes, other.cache_tokens or self.cache_tokens)


Sink = Callable[[bytes], bool]
"""Gets a piece of an answer; True if it has enough for now. Called where the piece was read: it must not block."""


class EngineStream(Protocol):
    """An answer of the engine whose head has arrived."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers, names in lower case."""
        ...

    async def pour(self, sink: Sink) -> bool:
        """Give ``sink`` the body as it arrives, each read as one piece, until it has enough: then True, and the rest
        waits for the next call (little of it here, the rest in the engine). False at the end of the body. Costs no
        task a wake-up for each piece. Raises ENGINE_DIED if the connection breaks before its end, and what ``sink``
        raises."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The same for a loop: the body as it arrives; never held back. Raises ENGINE_DIED if the connection breaks
        before its end."""
        ...

    async def read(self) -> bytes:
        """The whole body. Raises ENGINE_DIED if the connection breaks."""
        ...

    def close(self) -> None:
        """Drop the connection; the engine then aborts the request. Harmless after the end."""
        ...


class EngineSocket(Protocol):
    """A websocket to the engine. Text frames are ``str``, binary ones ``bytes``."""

    @property
    def close_code(self) -> int | None:
        """What the engine closed it with; None while it is open."""
        ...

    async def send(self, frame: str | bytes) -> None:
        """Send one frame; waits while the engine does not read. Raises ENGINE_DIED."""
        ...

    def frames(self) -> AsyncIterator[str | bytes]:
        """Frames as they arrive, until the engine closes. Raises ENGINE_DIED if the connection breaks."""
        ...

    def close(self) -> None:
        """Drop the connection. Harmless when repeated."""
        ...


FAST_PATH_ON = "on"


class EngineClient(Protocol):
    """HTTP to one incarnation over its socket."""

    @property
    def served_name(self) -> str:
        """The model's name in the engine's answers; "" before ``context_length`` was asked."""
        ...

    @property
    def fast_path(self) -> str:
        """``FAST_PATH_ON`` if it writes plain streams as lines where it is asked to, else why not, for people; ""
        before ``look_for_fast_path``."""
        ...

    async def is_healthy(self) -> bool:
        """True if the engine answers that it can serve; False if it does not answer in 5 s, refuses or says no."""
        ...

    async def context_length(self) -> int:
        """Tokens that one request may use (the engine's max_model_len)."""
        ...

    async def look_for_fast_path(self) -> None:
        """Ask it for ``fast_path``. Raises ENGINE_DIED."""
        ...

    async def open(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> EngineStream:
        """Send a request and return when the head of the answer is there. A pooled connection that turns out stale is
        retried once if no byte was received; a body that is only there once goes over a fresh one. Raises
        ENGINE_DIED."""
        ...

    async def connect(self, path: str, headers: Mapping[str, str] | None = None) -> EngineSocket:
        """Open a websocket. Raises UNSUPPORTED if the engine has none there, ENGINE_DIED."""
        ...

    async def learn(self, adapter: Adapter) -> None:
        """Have the engine know a LoRA adapter by its name; quick if it does already. Raises ENGINE_DIED, or UNSUPPORTED
        if the adapter does not fit the model."""
        ...

    async def sleep(self, level: int) -> None:
        """Give the device's memory back: at level 1 weights are kept in the host's memory, at level 2 they are dropped.
        Running requests are aborted, later ones wait for the wake. Only where the command line said so. Raises
        ENGINE_DIED, also for a sleeper: no level is reached from another. After a failure, or when cancelled, the
        engine is good for nothing but ``Child.terminate``."""
        ...

    async def cache_usage(self) -> float:
        """How much of its cache running requests fill, 0 to 1; 0 where it does not say. Raises ENGINE_DIED."""
        ...

    async def wake(self) -> None:
        """Take the memory again and serve; after level 2 the weights are read from disk. Returns when it says that it
        is awake, which ``canary`` should confirm. Raises ENGINE_DIED; then as after ``sleep``."""
        ...

    async def is_sleeping(self) -> bool:
        """True also while it takes no requests for another reason. Raises ENGINE_DIED."""
        ...

    async def canary(self) -> None:
        """Have it answer a question of one token (or embed one short text), and remember what it says: raises
        ENGINE_DIED if it does not answer in 30 s, or otherwise than the first time. So ask it once while it is known to
        be good, before its first sleep, and after every wake; never while it sleeps. Raises UNSUPPORTED if it can do
        neither: then nobody could tell, and it should not sleep."""
        ...

    async def warm_up(self) -> None:
        """Have it do once what it does slowly the first time: a short question of each kind that it answers, with a
        draw among probable tokens and their probabilities. Its answers mean nothing. Raises ENGINE_DIED if it does not
        answer in 5 minutes, or none of them."""
        ...

    async def close(self) -> None:
        """Close every connection; streams that are open break."""
        ...


class Engine(Protocol):
    """What the supervisor needs to know of the engine program."""

    async def version(self) -> EngineVersion:
        """Look into ``engine.python`` (a child, once; the answer is kept). Never raises."""
        ...

    def identity(self, model: Model) -> str:
        """What a worker depends on: models with the same identity can be served by the same one."""
        ...

    def quantizations(self) -> tuple[str, ...]:
        """What it can do to 16-bit weights while it loads them, on this machine; nothing before ``version()`` has
        answered."""
        ...

    def memory_settings(self, model: Model) -> EngineSettings:
        """What of its settings for a model changes how much memory it takes. Only after ``version()`` has answered."""
        ...

    def loaders(self, model: Model) -> tuple[Loader, ...]:
        """The ways in which it can read a model's weights here, its own first; more than one only where there is a
        choice. Raises as ``command``."""
        ...

    def command(self, model: Model, places: WorkerPlaces, place: EnginePlace, loader: str = "") -> Command:
        """The command line and environment that serve ``model`` on ``places.socket``, its weights read by ``loader``
        (its name, see ``loaders``). Raises ENGINE_START_FAILED if ``engine.python`` is known to be unusable."""
        ...

    def read_phase(self, line: str) -> LoadStep | None:
        """What a line of output says about the progress of loading; None for every other line."""
        ...

    def level(self, line: str) -> int:
        """How bad a line of output is, as a level of ``logging``; INFO where it does not say."""
        ...

    def plain(self, line: str) -> str:
        """A line of output without what the engine writes before each: who it is from, when, and where in the code."""
        ...

    def read_taken(self, line: str) -> Taken | None:
        """What a line of output says about the memory that was taken; None for every other line."""
        ...

    def connect(self, socket: Path) -> EngineClient:
        """A client for the engine behind ``socket``; does no IO yet."""
        ...


# --- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the hub. ``revision`` "" means its main branch. ``hints`` are the library table's columns for
    this name (parsers, gated), empty for a plain repository."""

    repository: str
    revision: str = ""
    is_gated: bool = False
    tool_parser: str = ""
    reasoning_parser: str = ""
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A complete set of files, ready to be committed: usually in a staging folder of the store."""

    folder: Path
    source: Source
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])
    """Digests that are known and verified already, by path; the rest is hashed at commit."""


class Hub(Protocol):
    """Where models come from."""

    def resolve(self, ref: ModelRef) -> HubSource:
        """The repository that a name means. Raises UNSUPPORTED (with the remedy) for names that have none."""
        ...

    async def fetch(self, source: HubSource, staging: Path, on_progress: Callable[[Progress], None]) -> StagedModel:
        """Download what the engine needs of a repository into ``staging`` and verify it. Finished bytes in ``staging``
        are kept and not fetched again. Cancelling ends the child that downloads. Raises MODEL_NOT_FOUND,
        HUB_FORBIDDEN, HUB_UNREACHABLE, STORAGE_FULL, STORAGE_FAILED, UNSUPPORTED (nothing loadable in it)."""
        ...


class Converter(Protocol):
    """Makes what the engine loads out of other formats, in a child of the engine's interpreter."""

    async def convert_gguf(self, file: Path, staging: Path, on_progress: Callable[[Progress], None]) -> StagedModel:
        """Dequantise a GGUF file into safetensors, config and tokenizer. Raises UNSUPPORTED, STORAGE_FULL,
        STORAGE_FAILED, INVALID_REQUEST (not a GGUF file)."""
        ...


class Store(Protocol):
    """Models on disk. Synchronous: callers run it in a thread. Every change is atomic: after a crash there is the old
    state or the new one."""

    def load(self) -> list[Model]:
        """Read every manifest; unreadable ones are logged and left alone. Raises STORAGE_FAILED if the folder itself
        cannot be read."""
        ...

    def staging(self, key: str, *, is_resumable: bool = True) -> Path:
        """The folder where the files of a download or conversion with this key are gathered; made if need be. After a
        restart it is found again, or, if it is not ``is_resumable``, gone."""
        ...

    def discard(self, key: str) -> None:
        """Remove a staging folder and what is in it."""
        ...

    def commit(
        self,
        ref: ModelRef,
        staged: StagedModel,
        hints: HubSource | None = None,
        recipe: Recipe = NO_RECIPE,
        adapter: Adapter | None = None,
    ) -> Model:
        """Take the files over into the store and write the manifest; replaces a model of the same name and then frees
        what only that one used. A folder that is not one of the store's own is copied and left as it is. Raises
        STORAGE_FULL, STORAGE_FAILED, UNSUPPORTED (no model in it), INVALID_REQUEST (no such folder)."""
        ...

    def copy(self, source: Model, destination: ModelRef) -> Model:
        """Write a second manifest over the same files."""
        ...

    def adopt(self, folder: Path) -> Adapter:
        """Take a LoRA adapter over, for a model that is made next; one that no model takes is removed in time. Raises
        INVALID_REQUEST, UNSUPPORTED, STORAGE_FULL, STORAGE_FAILED."""
        ...

    def derive(self, source: Model, destination: ModelRef, recipe: Recipe, adapter: Adapter | None = None) -> Model:
        """Write a manifest over the same files with another recipe and adapter; replaces a model of that name."""
        ...

    def remove(self, model: Model) -> int:
        """Remove a manifest and the files that no other manifest names; returns the bytes that were freed."""
        ...

    def free_bytes(self) -> int:
        """Room on the disk that holds the store."""
        ...


class Footprints(Protocol):
    """What models were seen to need. Synchronous: callers run it in a thread."""

    def find(self, key: str) -> Footprint | None:
        """What was measured under a key, or None."""
        ...

    def record(self, key: str, footprint: Footprint, *, model: str = "", engine_version: str = "") -> None:
        """Keep a measurement, in place of an earlier one; names are for people."""
        ...


class LoadTimes(Protocol):
    """What loaders were seen to take, by model and loader; see ``domain.loaders.Seen``. Synchronous: callers run it in
    a thread."""

    def load(self) -> dict[str, dict[str, float | None]]:
        """Everything that was recorded; nothing if it cannot be read (the log says so)."""
        ...

    def record(self, seen: Mapping[str, Mapping[str, float | None]]) -> None:
        """Replace what was recorded. What cannot be written is said in the log."""
        ...


class SelfTests(Protocol):
    """What processors were seen to do, by ``SelfTest.key``. Synchronous: callers run it in a thread."""

    def find(self, key: str) -> SelfTest | None:
        """What was found, or None."""
        ...

    def record(self, test: SelfTest) -> None:
        """Keep it. What cannot be written is said in the log."""
        ...


class Upload(Protocol):
    """A file on its way in. Synchronous, as its ``Uploads``."""

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises STORAGE_FULL, STORAGE_FAILED."""
        ...

    def finish(self) -> None:
        """Make it known under its digest. Raises INVALID_REQUEST if the bytes have another one."""
        ...

    def abandon(self) -> None:
        """Remove what came so far; harmless after the end."""
        ...


class Uploads(Protocol):
    """Files that clients send before they make a model of them, by SHA-256. Synchronous: callers run it in threads."""

    def find(self, sha256: str) -> Path | None:
        """The file with this digest, among uploads and the blobs of models, or None."""
        ...

    def begin(self, sha256: str, size_bytes: int) -> Upload:
        """Start to receive a file; ``size_bytes`` 0 if its size is not known. Raises STORAGE_FULL, STORAGE_FAILED."""
        ...

    def discard(self, sha256: str) -> None:
        """Forget an upload that has served its purpose; blobs of models stay."""
        ...

    def sweep(self, *, all_temporary: bool = False) -> None:
        """Remove what nobody used in time, and at start what a crash left incomplete."""
        ...


class LoadedStore(Protocol):
    """Which models are loaded, for the next start. Synchronous: callers run it in a thread, and not for every request:
    a record waits for the disk."""

    def load(self) -> list[LoadedModel]:
        """What was recorded last; [] if there is nothing, or nothing that can be read (the log says so)."""
        ...

    def record(self, models: Iterable[LoadedModel]) -> None:
        """Replace what was recorded, atomically and durably. What cannot be written is said in the log."""
        ...


# --- devices and the service manager ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One device at one moment. What its driver does not tell is None or empty."""

    name: str
    total_bytes: int
    free_bytes: int
    """0 where it does not answer."""
    index: int = 0
    """Its number with the driver, by PCI bus. It moves when another GPU vanishes: ``key`` stays."""
    uuid: str = ""
    kind: str = "cuda"
    """"cuda" or "cpu"."""
    reserved_bytes: int = 0
    """The part of ``total_bytes`` that the driver keeps for itself; no engine gets it."""
    used_by_pid: Mapping[int, int] = field(default_factory=dict[int, int], hash=False)
    """Bytes by process, where the driver tells; processes by the numbers of the host, also in a container."""
    temperature_c: int | None = None
    utilisation: float | None = None
    """The part of the last moments in which it computed, 0 to 1."""
    capability: tuple[int, int] | None = None
    """Of CUDA, such as (9, 0)."""
    nvlink_peers: tuple[str, ...] = ()
    """``uuid`` of every GPU that NVLink reaches from here, through a switch or not."""
    ecc_errors: int | None = None
    """Uncorrectable memory errors since the driver was loaded."""
    is_mig: bool = False
    """Cut into slices: its memory is not one piece, and an engine sees a slice."""
    is_healthy: bool = True
    """False: place nothing on it, whatever is free."""
    reason: str = ""
    """Why it is not healthy: a word ("lost", "silent", "driver", "unreadable", "reset", "xid", "ecc", "mig"), a colon,
    and a sentence; several of them joined by "; "."""

    @property
    def key(self) -> str:
        """What tells it from every other device, over restarts of the driver too."""
        return self.uuid or self.name

    def unanswered(self, reason: str) -> "DeviceReading":
        """The same device when it does not answer: who it is stays known, how it is does not."""
        return replace(
            self,
            free_bytes=0,
            used_by_pid={},
            temperature_c=None,
            utilisation=None,
            ecc_errors=None,
            is_healthy=False,
            reason=reason,
        )


class DeviceProbe(Protocol):
    """What memory there is. Blocking drivers are asked in a thread of their own, with a deadline."""

    @property
    def problem(self) -> str:
        """Why the last reading is not what the driver says now; "" if it is. Tells a machine without devices from a
        driver that has not answered yet."""
        ...

    async def read(self) -> list[DeviceReading]:
        """Every device now that workers can see. One that was there and does not answer stays in the list, unhealthy;
        [] if none was ever read."""
        ...


class Notifier(Protocol):
    """The service manager."""

    def ready(self, status: str) -> None:
        """Both faces serve."""
        ...

    def status(self, text: str) -> None:
        """One line on what is going on."""
        ...

    def reloading(self) -> None:
        """The configuration is being read anew; ``ready`` ends it, however it went."""
        ...

    def stopping(self) -> None:
        """On the way out."""
        ...

    def extend(self, seconds: float) -> None:
        """The current phase (start, stop) needs this much longer."""
        ...

    def watchdog(self) -> None:
        """Still alive."""
        ...
