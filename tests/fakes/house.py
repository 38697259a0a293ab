"""Gate, supervisor, ledger and ladder over a world of fakes: engines, GPUs and callers that do what a history says.

All time is made up (``tests/fakes/loop.py``). Whatever happens in the world is a method here, whose targets are chosen
by a number among those that there are, so that any history means something.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from tests.fakes.devices import GIB, Card, FakeGpus, cards
from tests.fakes.loop import LoopClock, MadeUpLoop
from tests.fakes.world import FakeChild, FakeClient, FakeDevice, FakeEngine, FakeLauncher, FakeRing, make_model
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.ladder import Rules
from vllamad.domain.model import Model
from vllamad.domain.names import ModelRef
from vllamad.domain.placement import Demand, Need
from vllamad.domain.ports import Child, Command, DeviceReading, EngineClient, EnginePlace, WorkerPlaces
from vllamad.domain.workload import Limits, Wanted
from vllamad.gate.gate import Gate, GateLimits, ModelRules
from vllamad.models.catalog import Catalog
from vllamad.models.loading import Loading
from vllamad.models.sizing import Sizing
from vllamad.operations.registry import Operations
from vllamad.supervisor.lease import Lease
from vllamad.supervisor.limits import WorkerLimits
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.supervisor import Supervisor

T = TypeVar("T")

HOUSEKEEPING_S = 20.0
"""Between two looks at the devices that nobody asked for; the daemon looks more often, which takes longer to play."""
LEFT_BYTES = 2 * GIB
"""Of a sleeping engine, on each of its devices."""
OUTSIDER = 90_000
"""Process numbers of those that are not ours begin here."""


@dataclass(frozen=True)
class Spec:
    """What a model is like. ``gib`` on each of ``devices``; ``idle_s`` is its keep-alive."""

    gib: int
    devices: int = 1
    replicas: int = 1
    is_pinned: bool = False
    priority: int = 0
    idle_s: float = 300.0


@dataclass(frozen=True)
class Setting:
    """What does not change over a history. ``read_s`` is how long the driver takes to answer; with ``tells`` it says
    what each process holds; ``is_slow`` makes each of the gate's looks take long enough for a pause."""

    specs: tuple[Spec, ...]
    gpus: int = 1
    limits: Limits = field(default_factory=Limits)
    can_sleep: bool = False
    host_gib: int = 200
    late_reads: int = 0
    read_s: float = 0.0
    tells: bool = True
    is_slow: bool = False
    wait_s: float = 1e7


class HouseGpus(FakeGpus):
    """A driver that takes its time, and answers as it was when it was asked."""

    def __init__(self, cards_: Sequence[Card], read_s: float, tells: bool) -> None:
        super().__init__(cards_)
        self.read_s = read_s
        self.tells = tells

    async def read(self) -> list[DeviceReading]:
        readings = await super().read()
        if not self.tells:
            readings = [replace(one, used_by_pid={}) for one in readings]
        if self.read_s:
            await asyncio.sleep(self.read_s)
        return readings


class HouseChild(FakeChild):
    """An engine that takes its memory when it is loaded, and keeps it until its tree is gone."""

    def __init__(self, pid: int, on_line: Callable[[str], None], place: EnginePlace, gpus: HouseGpus) -> None:
        super().__init__(pid, on_line)
        self.killable = asyncio.Event()
        self.killable.set()
        self.share_bytes = int(place.share * max(card.total_bytes for card in gpus.cards)) - GIB
        self._gpus = gpus
        self._on = [index for index, card in enumerate(gpus.cards) if card.uuid in place.devices]
        self.switched = self._switched

    @property
    def is_dead(self) -> bool:
        """True if its leader has ended."""
        return self._exited.done()

    def load(self) -> None:
        """Take the memory and become healthy; or die of there being too little."""
        if any(self._gpus.cards[index].free_bytes < self.share_bytes for index in self._on):
            self.exit(1)
            return
        self._hold(self.share_bytes)
        self.healthy.set()

    def grow(self) -> None:
        """Take more than was declared, where there is some."""
        if self.healthy.is_set() and all(self._gpus.cards[index].free_bytes >= 3 * GIB for index in self._on):
            self._hold(self.share_bytes + 3 * GIB)

    def _switched(self, level: int) -> None:
        self._hold(LEFT_BYTES if level else self.share_bytes)

    def _hold(self, count: int) -> None:
        for index in self._on:
            self._gpus.start(self.pid, max(0, count), index)

    async def kill_tree(self) -> None:
        await self.killable.wait()
        self.exit(-9)
        self.tree_is_gone = True
        self._gpus.end(self.pid)


class HouseClient(FakeClient):
    """Answers as the real one does: in some seconds at most, and that its engine has died when it has."""

    def __init__(self, child: HouseChild) -> None:
        super().__init__(child)
        self.child: HouseChild = child

    async def is_healthy(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await self.child.healthy.wait()
        return self.child.healthy.is_set() and not self.child.is_hung and not self.child.is_dead

    async def context_length(self) -> int:
        await asyncio.sleep(0)
        self._raise_if_dead()
        return 2048

    async def _switch(self, what: str) -> None:
        await super()._switch(what)
        self._raise_if_dead()

    def _raise_if_dead(self) -> None:
        if self.child.is_dead:
            raise VllamaError(Reason.ENGINE_DIED, "nobody listens")


class HouseEngine(FakeEngine):
    """Remembers the place of the engine that is started next."""

    place = EnginePlace()

    def command(self, model: Model, places: WorkerPlaces, place: EnginePlace, loader: str = "") -> Command:
        self.place = place
        return super().command(model, places, place, loader)

    def connect(self, socket: Path) -> EngineClient:
        return HouseClient(cast(HouseChild, self._launcher.last))


class HouseLauncher(FakeLauncher):
    """Starts engines on the GPUs that they are given."""

    def __init__(self, gpus: HouseGpus) -> None:
        super().__init__()
        self.engine: HouseEngine | None = None
        self._gpus = gpus

    def spawn(self, command: Command, on_line: Callable[[str], None]) -> Child:
        error, self.error = self.error, None
        if error is not None:
            raise error
        assert self.engine is not None
        child = HouseChild(1000 + len(self.children), on_line, self.engine.place, self._gpus)
        self.children.append(child)
        return child


class HouseSizing:
    """Knows every model, the first time after a look at the disk."""

    def __init__(self, engine: FakeEngine, specs: dict[str, Spec]) -> None:
        self._engine = engine
        self._specs = specs
        self._known: set[str] = set()

    def known(self, model: Model) -> Wanted | None:
        return self._wanted(model) if model.path in self._known else None

    async def wanted(self, model: Model) -> Wanted:
        await asyncio.sleep(0.01)
        self._known.add(model.path)
        return self._wanted(model)

    def _wanted(self, model: Model) -> Wanted:
        spec = self._specs[model.path]
        return Wanted(
            self._engine.identity(model),
            model.name,
            Demand((Need(spec.devices, spec.gib * GIB),)),
            float(spec.gib),
            spec.replicas,
            weights_bytes=spec.gib * GIB * 2 // 3,
            left_bytes=LEFT_BYTES,
            host_bytes=3 * GIB,
        )


class HouseCatalog:
    """The models that there are."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.on_change: Callable[[], None] = lambda: None

    def list(self) -> list[Model]:
        return list(self.models.values())


class Request:
    """One request: it waits, holds its lease until it is told to finish, and remembers how it ended."""

    def __init__(self, number: int, model: Model) -> None:
        self.number = number
        self.model = model
        self.lease: Lease | None = None
        self.error: VllamaError | None = None
        self.is_over = False
        self.finish = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def waits(self) -> bool:
        return self.lease is None and not self.is_over

    @property
    def is_served(self) -> bool:
        return self.lease is not None and not self.is_over


class House:
    """Everything together, in one loop of made-up time."""

    def __init__(self, loop: MadeUpLoop, folder: Path, setting: Setting) -> None:
        self.loop = loop
        self.setting = setting
        self.gpus = HouseGpus(cards(setting.gpus), setting.read_s, setting.tells)
        self.gpus.late_reads = setting.late_reads
        self.host = FakeDevice()
        self.host.total_bytes = self.host.free_bytes = setting.host_gib * GIB
        self.memory = DeviceMemory()
        self.clock = LoopClock(loop)
        self.launcher = HouseLauncher(self.gpus)
        self.engine = HouseEngine(self.launcher)
        self.launcher.engine = self.engine
        rules = Rules(is_on=setting.can_sleep, allows_several=True)
        self.supervisor = Supervisor(
            self.clock, self.engine, self.launcher, self.memory, folder, WorkerLimits(), FakeRing, rules
        )
        self.specs: dict[str, Spec] = {}
        sizing = cast(Sizing, HouseSizing(self.engine, self.specs))
        limits = GateLimits(setting.limits, wait_s=setting.wait_s)
        self.gate = Gate(self.clock, self.supervisor, self.memory, sizing, limits, self._rules_for)
        self.catalog = HouseCatalog()
        self.loading = Loading(cast(Catalog, self.catalog), self.gate, self.supervisor, cast(Operations, None))
        self.requests: list[Request] = []
        self.unloads: set[asyncio.Task[None]] = set()
        self.removed: list[Model] = []
        self._versions = 0
        self._outsiders = 0
        for number, spec in enumerate(setting.specs):
            self._add(f"m{number}", spec)
        first = self.catalog.list()[0]
        self.catalog.models["alias"] = replace(first, ref=ModelRef.parse("alias"))

    # --- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        await self.memory.use(self.gpus, 0.1, self.host)
        self.gate.open()

    async def keep(self) -> None:
        """The daemon's housekeeping."""
        while True:
            await self.memory.refresh()
            await asyncio.sleep(HOUSEKEEPING_S)

    async def settle(self) -> None:
        """Let everything happen that happens without time; and the gate's next look, which time may separate."""
        await self.loop.quiet()
        while self.gate._next_look is not None:
            await asyncio.sleep(0.02)
            await self.loop.quiet()

    def _rules_for(self, model: Model) -> ModelRules:
        spec = self.specs[model.path]
        return ModelRules(math.inf if spec.is_pinned else spec.idle_s, spec.is_pinned, spec.priority)

    def _add(self, name: str, spec: Spec) -> None:
        self._versions += 1
        model = make_model(name, f"{self._versions:064x}"[::-1])
        self.specs[model.path] = spec
        self.catalog.models[name] = model

    # --- what people and programs do -----------------------------------------------------------------------------

    def arrive(
        self, choice: int, keep_alive_s: float | None, caller: str, is_wish: bool = False, may_evict: bool = True
    ) -> None:
        model = _pick(self.catalog.list(), choice)
        if model is None:
            return
        request = Request(len(self.requests), model)
        self.requests.append(request)
        request.task = asyncio.create_task(self._ask(request, keep_alive_s, caller, is_wish, may_evict))

    async def _ask(
        self, request: Request, keep_alive_s: float | None, caller: str, is_wish: bool, may_evict: bool
    ) -> None:
        try:
            async with self.gate.lease(
                request.model, keep_alive_s=keep_alive_s, caller=caller, is_wish=is_wish, may_evict=may_evict
            ) as lease:
                request.lease = lease
                await request.finish.wait()
        except VllamaError as error:
            request.error = error
        finally:
            request.is_over = True

    def leave(self, choice: int) -> None:
        """Somebody hangs up, in the queue or while it is served."""
        request = _pick([one for one in self.requests if not one.is_over], choice)
        if request is not None and request.task is not None:
            request.task.cancel()

    def finish(self, choice: int) -> None:
        request = _pick([one for one in self.requests if one.is_served], choice)
        if request is not None:
            request.finish.set()

    def suspect(self, choice: int) -> None:
        """A request fails inside its engine."""
        request = _pick([one for one in self.requests if one.is_served], choice)
        if request is not None and request.lease is not None:
            request.lease.suspect()

    def stop(self, choice: int, force: bool) -> None:
        model = _pick(self.catalog.list(), choice)
        if model is not None:
            self._unload(model, force)

    def keep_alive(self, choice: int, seconds: float) -> None:
        model = _pick(self.catalog.list(), choice)
        if model is not None:
            self.gate.set_keep_alive(model, seconds)

    def remove(self, choice: int) -> None:
        """A model is removed by force; the next time it is put back."""
        if self.removed:
            model = self.removed.pop()
            self.catalog.models[model.ref.model] = model
        else:
            model = _pick(self.catalog.list(), choice)
            assert model is not None
            del self.catalog.models[model.ref.model]
            self.removed.append(model)
        self.loading.tidy()

    def replace(self, choice: int) -> None:
        """A model is pulled anew under its name, and is a little smaller now."""
        model = _pick(self.catalog.list(), choice)
        if model is not None:
            spec = self.specs[model.path]
            self._add(model.ref.model, replace(spec, gib=max(2, spec.gib * 3 // 4)))
            self.loading.tidy()

    def _unload(self, model: Model, force: bool) -> None:
        async def unload() -> None:
            with suppress(VllamaError):
                await self.loading.unload(model, force)

        task = asyncio.create_task(unload())
        self.unloads.add(task)
        task.add_done_callback(self.unloads.discard)

    # --- what engines do -----------------------------------------------------------------------------------------

    @property
    def children(self) -> list[HouseChild]:
        """Engines whose tree is not gone."""
        return [one for one in cast("list[HouseChild]", self.launcher.children) if not one.tree_is_gone]

    def _living(self, choice: int) -> HouseChild | None:
        return _pick([one for one in self.children if not one.is_dead], choice)

    def load(self, choice: int) -> None:
        child = _pick([one for one in self.children if not one.is_dead and not one.healthy.is_set()], choice)
        if child is not None:
            child.load()

    def die(self, choice: int, status: int) -> None:
        if child := self._living(choice):
            child.exit(status)

    def hang(self, choice: int) -> None:
        if child := self._living(choice):
            child.is_hung = not child.is_hung

    def grow(self, choice: int) -> None:
        if child := self._living(choice):
            child.grow()

    def deafen(self, choice: int) -> None:
        """It ignores SIGTERM from now on."""
        if child := self._living(choice):
            child.ignores_term = True

    def cling(self, choice: int) -> None:
        """SIGKILL does not end it, until the next time."""
        child = _pick(self.children, choice)
        if child is not None:
            (child.killable.clear if child.killable.is_set() else child.killable.set)()

    def stay_awake(self, choice: int, what: str) -> None:
        """It fails when it is asked to sleep or to wake; "hang": does not answer then, until the next time."""
        child = self._living(choice)
        if child is None:
            return
        if what != "hang":
            child.fails_at ^= {what}
        elif child.switches.is_set():
            child.switches.clear()
        else:
            child.switches.set()

    def refuse_to_start(self) -> None:
        self.launcher.error = VllamaError(Reason.ENGINE_START_FAILED, "cannot execute /no/python")

    # --- what devices do -----------------------------------------------------------------------------------------

    def lose(self, choice: int) -> None:
        """A card falls off the bus; the next time it is back."""
        index = choice % len(self.gpus.cards)
        (self.gpus.find if self.gpus.cards[index].is_lost else self.gpus.lose)(index)

    def fall_silent(self) -> None:
        self.gpus.is_silent = not self.gpus.is_silent

    def stick(self) -> None:
        """Processes that are killed hang in the driver; the next time they are let go."""
        self.gpus.can_end = not self.gpus.can_end
        self._let_go()

    def _let_go(self) -> None:
        for child in self.launcher.children:
            if child.tree_is_gone:
                self.gpus.end(child.pid)

    def intrude(self, choice: int, gib: int) -> None:
        """Somebody else takes memory."""
        index = choice % len(self.gpus.cards)
        if self.gpus.cards[index].free_bytes >= gib * GIB:
            self._outsiders += 1
            self.gpus.start(OUTSIDER + self._outsiders, gib * GIB, index)

    def withdraw(self) -> None:
        """All others give their memory back."""
        for card in self.gpus.cards:
            for pid in [pid for pid in card.processes if pid >= OUTSIDER]:
                del card.processes[pid]

    # --- the end -------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything is well from now on: who was to be mended is, and what is left of the past can go."""
        self.gpus.is_silent = False
        self.gpus.can_end = True
        self._let_go()
        self.withdraw()
        self.launcher.error = None
        for index, card in enumerate(self.gpus.cards):
            if card.is_lost:
                self.gpus.find(index)
        for child in self.children:
            child.is_hung = child.ignores_term = False
            child.fails_at.clear()
            child.switches.set()
            child.killable.set()

    def said(self) -> list[str]:
        return [decided.text for decided in self.supervisor.decisions]

    def serve(self) -> None:
        """Every engine that loads is loaded, and every request is answered."""
        for child in self.children:
            if not child.is_dead and not child.healthy.is_set():
                child.load()
            child.ignores_term = False
            child.killable.set()
        for request in self.requests:
            if request.is_served:
                request.finish.set()


def _pick(among: Sequence[T], choice: int) -> T | None:
    return among[choice % len(among)] if among else None


class Complaints(logging.Handler):
    """Keeps what is never to be logged."""

    NAMES = ("worker.illegal", "worker.bug", "gate.start_refused")

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(self.NAMES):
            fault = record.exc_info[1] if record.exc_info else ""
            self.heard.append(f"{text} {fault!r} {getattr(record, 'fields', '')}")
