"""In-process doubles of the ports that a worker needs: an engine, its launcher and its children, told what to do.

Nothing here waits for real time: a test says when the engine becomes healthy, dies, or refuses to.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.footprint import EngineSettings
from vllamad.domain.handover import HandedChild
from vllamad.domain.loaders import Loader
from vllamad.domain.model import Adapter, Model, ModelFile, Source, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.placement import Demand, Need
from vllamad.domain.ports import (
    Child,
    Command,
    DeviceReading,
    EngineClient,
    EnginePlace,
    EngineStream,
    EngineVersion,
    LoadStep,
    OutputLine,
    Sink,
    Taken,
    WorkerPlaces,
)
from vllamad.domain.workload import Wanted


def make_model(name: str, digest: str = "d" * 64) -> Model:
    """A model that exists only as a record."""
    return Model(
        ref=ModelRef.parse(name),
        digest=digest,
        files=(ModelFile("config.json", "0" * 64, 1),),
        path=f"/nowhere/{name}/{digest[:8]}",
        modified_time=0.0,
        source=Source(SourceKind.FOLDER),
    )


class FakeStream:
    """An answer that hangs until it is fed, ended, or closed under its reader."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.is_closed = False
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()

    def feed(self, chunk: bytes) -> None:
        self._chunks.put_nowait(chunk)

    async def pour(self, sink: Sink) -> bool:
        async for chunk in self.chunks():
            if sink(chunk):
                return True
        return False

    async def chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk
        raise VllamaError(Reason.ENGINE_DIED, "the connection broke")

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    def close(self) -> None:
        self.is_closed = True
        self._chunks.put_nowait(None)


class FakeClient:
    """Healthy when its child says so."""

    served_name = "m:latest"
    fast_path = ""

    def __init__(self, child: "FakeChild") -> None:
        self.child = child
        self.streams: list[FakeStream] = []
        self.learnt: list[str] = []
        self.asked: list[str] = []
        """What was asked of it about sleep, in order: "canary", "sleep 2", "wake"."""
        self.level = 0
        self.usage = 0.0
        self.is_closed = False

    async def is_healthy(self) -> bool:
        await self.child.healthy.wait()
        return not self.child.is_hung

    async def context_length(self) -> int:
        return 2048

    async def look_for_fast_path(self) -> None:
        self.fast_path = "off"

    async def open(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> EngineStream:
        stream = FakeStream()
        self.streams.append(stream)
        return stream

    async def cache_usage(self) -> float:
        return self.usage

    async def learn(self, adapter: Adapter) -> None:
        self.learnt.append(adapter.name)

    async def sleep(self, level: int) -> None:
        await self._switch(f"sleep {level}")
        self.level = level
        self.child.switched(level)

    async def wake(self) -> None:
        await self._switch("wake")
        self.level = 0
        self.child.switched(0)

    async def is_sleeping(self) -> bool:
        return self.level > 0

    async def canary(self) -> None:
        await self._switch("canary")

    async def warm_up(self) -> None:
        await self._switch("warm-up")

    async def _switch(self, what: str) -> None:
        self.asked.append(what)
        await self.child.switches.wait()
        if what.partition(" ")[0] in self.child.fails_at:
            raise VllamaError(Reason.ENGINE_DIED, f"cannot {what}: told to fail")

    async def close(self) -> None:
        self.is_closed = True
        for stream in self.streams:
            stream.close()


class FakeChild:
    """A process that becomes healthy and ends when the test says so."""

    def __init__(self, pid: int, on_line: Callable[[str], None]) -> None:
        self._pid = pid
        self.say = on_line
        self.healthy = asyncio.Event()
        self.is_hung = False
        self.switches = asyncio.Event()
        self.switches.set()
        """While it is cleared, the engine does not come back from what it was asked about sleep."""
        self.fails_at: set[str] = set()
        """"sleep", "wake", "canary": what the engine fails at."""
        self.switched: Callable[[int], None] = lambda _level: None
        """What else happens when it fell asleep at a level, or woke (0)."""
        self.ignores_term = False
        self.is_unkillable = False
        self.was_terminated = False
        self.tree_is_gone = False
        self.used_cpu_seconds = 0.0
        self.killed_for_memory = 0
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        return self._pid

    async def wait(self) -> int:
        return await asyncio.shield(self._exited)

    def exit(self, status: int = 0) -> None:
        if not self._exited.done():
            self._exited.set_result(status)

    def terminate(self) -> None:
        self.was_terminated = True
        if not self.ignores_term:
            self.exit(0)

    async def kill_tree(self) -> None:
        if self.is_unkillable:
            await asyncio.Event().wait()
        self.exit(-9)
        self.tree_is_gone = True

    def hand_over(self) -> HandedChild | None:
        if self._exited.done():
            return None
        return HandedChild(self._pid, f"owner:{self._pid}", "", "fake", -1, "", 8192)

    def memory_bytes(self) -> int:
        return 1 << 30

    def pids(self) -> frozenset[int]:
        return frozenset() if self.tree_is_gone else frozenset({self._pid})

    def cpu_seconds(self) -> float:
        return self.used_cpu_seconds

    def oom_kills(self) -> int:
        return self.killed_for_memory


class FakeLauncher:
    """Keeps every child that it started."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []
        self.error: VllamaError | None = None

    def spawn(self, command: Command, on_line: Callable[[str], None]) -> Child:
        if self.error is not None:
            raise self.error
        child = FakeChild(1000 + len(self.children), on_line)
        self.children.append(child)
        return child

    def adopt(self, handed: HandedChild, on_line: Callable[[str], None]) -> Child:
        found = next((child for child in self.children if child.pid == handed.pid), None)
        if found is None or found.tree_is_gone:
            raise VllamaError(Reason.ENGINE_DIED, f"process {handed.pid} is gone")
        # Whoever adopts one connects to it next.
        self.children.remove(found)
        self.children.append(found)
        found.say = on_line
        return found

    @property
    def last(self) -> FakeChild:
        return self.children[-1]


class FakeEngine:
    """Command lines that mean nothing, clients of the launcher's newest child."""

    def __init__(self, launcher: FakeLauncher) -> None:
        self._launcher = launcher
        self.clients: list[FakeClient] = []
        self.places: list[EnginePlace] = []
        self.loader_names: tuple[Loader, ...] = (Loader("", "fake 1.0"),)
        self.loaded_by: list[str] = []

    async def version(self) -> EngineVersion:
        return EngineVersion("/usr/bin/true", "fake", "1.0", "cpu")

    def quantizations(self) -> tuple[str, ...]:
        return ("fp8",)

    def identity(self, model: Model) -> str:
        return f"{model.path} {model.recipe.quantize}"

    def memory_settings(self, model: Model) -> EngineSettings:
        return EngineSettings(device="cpu", is_eager=True)

    def loaders(self, model: Model) -> tuple[Loader, ...]:
        return self.loader_names

    def command(self, model: Model, places: WorkerPlaces, place: EnginePlace, loader: str = "") -> Command:
        self.loaded_by.append(loader)
        self.places.append(place)
        return Command(["true"], {}, Path("/"), model.name)

    def read_phase(self, line: str) -> LoadStep | None:
        return LoadStep(line.removeprefix("phase "), 0.5) if line.startswith("phase ") else None

    def level(self, line: str) -> int:
        return logging.INFO

    def plain(self, line: str) -> str:
        return line

    def read_taken(self, line: str) -> Taken | None:
        return Taken(cache_tokens=int(line.removeprefix("cache "))) if line.startswith("cache ") else None

    def connect(self, socket: Path) -> EngineClient:
        client = FakeClient(self._launcher.last)
        self.clients.append(client)
        return client


class FakeDevice:
    """A device whose free memory the test sets."""

    problem = ""

    def __init__(self, kind: str = "cpu") -> None:
        self.kind = kind
        self.total_bytes = 16 << 30
        self.free_bytes = 8 << 30

    async def read(self) -> list[DeviceReading]:
        return [DeviceReading("a device", self.total_bytes, self.free_bytes, kind=self.kind)]


class FakeSizing:
    """Models need what the test says, 2 GiB if it says nothing."""

    def __init__(self, engine: "FakeEngine") -> None:
        self._engine = engine
        self.demands: dict[str, Demand] = {}
        self.replicas = 1

    def known(self, model: Model) -> Wanted | None:
        demand = self.demands.get(model.name, Demand((Need(1, 2 << 30),)))
        return Wanted(self._engine.identity(model), model.name, demand, 0.0, self.replicas)

    async def wanted(self, model: Model) -> Wanted:
        known = self.known(model)
        assert known is not None
        return known


class FakeRing:
    """Keeps every line."""

    def __init__(self) -> None:
        self.lines: list[OutputLine] = []

    def append(self, text: str) -> None:
        self.lines.append(OutputLine(len(self.lines) + 1, 0.0, text))

    def restore(self, lines: Iterable[OutputLine]) -> None:
        self.lines.extend(lines)

    def tail(self, count: int) -> list[OutputLine]:
        return self.lines if count < 0 else self.lines[-count:]

    async def follow(self) -> AsyncIterator[OutputLine]:
        for line in self.lines:
            yield line
