"""The set of workers (floor 3): makes the planner's decisions true, and ends everything in order.

What a worker serves is known by what its engine depends on (``Engine.identity``, its *key*), so models that are served
alike share one; a model may have several, which differ by their *holder*, their name in the ledger. A worker that came
to rest with nothing left to tell (STOPPED) is forgotten; one that FAILED stays, with its cause, until it is started or
stopped again.
"""

import asyncio
import logging
import shutil
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.breaker import Breaker
from vllamad.domain.budget import Refused
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import HandedWorker
from vllamad.domain.ladder import Rules
from vllamad.domain.model import Model
from vllamad.domain.placement import Placement
from vllamad.domain.ports import Clock, Engine, Launcher
from vllamad.domain.view import WorkerView
from vllamad.domain.worker import Kind, State
from vllamad.domain.workload import Wanted
from vllamad.host.logs import event
from vllamad.supervisor.incarnation import World
from vllamad.supervisor.limits import WorkerLimits
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.sleeping import Ladder
from vllamad.supervisor.starting import Starting
from vllamad.supervisor.worker import WorkerDeps, WorkerHandle, WritableRing, folder_name

log = logging.getLogger("vllamad.supervisor")

_AT_REST = frozenset({State.STOPPED, State.FAILED})

KEPT_RINGS = 32
"""Models whose engine output is kept after they were unloaded: for "what did it say before it died"."""
KEPT_DECISIONS = 50


@dataclass(frozen=True, slots=True)
class Decided:
    """A sentence of the scheduler and when it was said (wall time)."""

    time: float
    text: str


class Supervisor:
    """Owns every WorkerHandle. ``on_change`` is called, synchronously, after every change of any worker;
    ``on_measured`` when a ready one was measured; ``count_waiting`` tells how many requests wait for a model."""

    def __init__(
        self,
        clock: Clock,
        engine: Engine,
        launcher: Launcher,
        memory: DeviceMemory,
        folder: Path,
        limits: WorkerLimits,
        new_ring: Callable[[], WritableRing],
        rules: Rules | None = None,
        starting: Starting | None = None,
    ) -> None:
        self.on_change: Callable[[WorkerHandle], None] = lambda _handle: None
        self.on_measured: Callable[[WorkerHandle], Awaitable[None]] = _ignored
        self.count_waiting: Callable[[str], int] = lambda _key: 0
        self.decisions: deque[Decided] = deque(maxlen=KEPT_DECISIONS)
        self.breaker = Breaker()
        self._clock = clock
        self._engine = engine
        self._folder = folder
        self._new_ring = new_ring
        self._handles: dict[str, WorkerHandle] = {}
        self._rings: OrderedDict[str, WritableRing] = OrderedDict()
        self._numbers = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._next_change = asyncio.Event()
        self._asked: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self._deps = WorkerDeps(
            World(clock, engine, launcher, memory, starting or Starting(), self._spawn_task),
            folder,
            limits,
            self._changed,
            lambda handle: self.on_measured(handle),
            lambda key: self.count_waiting(key),
            self.breaker,
            Ladder(memory, rules or Rules()),
            self.decided,
        )
        memory.own_use = lambda: [handle.own_use() for handle in self._handles.values()]
        memory.tell = self.decided

    # --- life ----------------------------------------------------------------------------------------------------

    def clean_up(self, handed: Iterable[HandedWorker] = ()) -> None:
        """Remove what an earlier daemon left in the worker folder. Call it under the lock of the state folder, before
        the first start; blocking. What was handed over to us is not left."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = {folder_name(one.number, one.incarnation) for one in handed}
        for leftover in self._folder.iterdir():
            if leftover.name in kept:
                continue
            event(log, logging.INFO, "supervisor.leftover", path=leftover)
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    async def run(self, started: asyncio.Event) -> None:
        """The supervisor's branch of the daemon's tree: runs until cancelled. Every worker's tasks live below it."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            started.set()
            while True:
                (await self._asked.get()).set()

    async def answer(self) -> None:
        """Return once the supervisor's own branch has run: for whoever vouches for it."""
        asked = asyncio.Event()
        self._asked.put_nowait(asked)
        await asked.wait()

    async def stop_all(self, drain_s: float) -> None:
        """Stop every worker in parallel; requests in flight get ``drain_s`` seconds. Returns when all are at rest."""
        for handle in list(self._handles.values()):
            handle.drain_within(drain_s)
            handle.post(Kind.STOP)
        await self.wait_until(lambda: not self._busy())

    async def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Return once ``is_true`` holds; it is asked again after every change of any worker."""
        while not is_true():
            await self._next_change.wait()

    def use(self, limits: WorkerLimits) -> None:
        """Go by other limits from the next deadline on; those that are armed stay."""
        self._deps.limits = limits

    def hurry(self) -> None:
        """A second signal: every deadline is over now; no step is skipped."""
        for handle in list(self._handles.values()):
            handle.hurry()

    # --- from one daemon to the next -----------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """True if every worker rests, or could be handed over."""
        return all(one.can_be_handed_over or one.state in _AT_REST for one in self._handles.values())

    def break_off(self, error: VllamaError) -> None:
        """End the streams of every request with ``error``."""
        for handle in self._handles.values():
            handle.break_off(error)

    def hand_over(self) -> tuple[HandedWorker, ...]:
        """Let go of every engine that another daemon can go on with, for one that takes our place. Others it has to
        end, as it ends what any daemon leaves behind."""
        handed = {name: one for name, handle in self._handles.items() if (one := handle.hand_over()) is not None}
        for name in handed:
            del self._handles[name]
        return tuple(handed.values())

    async def take_over(self, handed: HandedWorker, model: Model, wanted: Wanted | None, *, is_pinned: bool) -> None:
        """Go on with a worker of a daemon before us; ``model`` is what it serves now. Raises ENGINE_DIED;
        then what there was of it is ended."""
        memory = self._deps.memory
        self._numbers = max(self._numbers, handed.number)
        devices = [memory.index_of(key) for key in handed.devices]
        if None in devices:
            await self.put_down(handed)
            raise VllamaError(Reason.ENGINE_DIED, f"cannot go on with {model.name}: its device is not there any more")
        indices = tuple(index for index in devices if index is not None)
        placement = Placement(indices, handed.device_bytes, handed.cache_bytes, handed.tokens)
        handle = WorkerHandle(
            handed.holder, handed.key, model, handed.number, self._deps, self._ring(handed.key), handed.keep_alive_s
        )
        handle.is_pinned = is_pinned
        await handle.take_over(handed, placement, wanted)
        full_on, small_on = memory.by_index(handed.full_on), memory.by_index(handed.small_on)
        is_loading = handed.state is State.STARTING
        memory.take_over(handed.holder, full_on, small_on, handle.record.held, is_loading=is_loading)
        self._handles[handed.holder] = handle

    async def put_down(self, handed: HandedWorker) -> None:
        """End an engine of a daemon before us that nobody goes on with."""
        try:
            child = self._deps.world.launcher.adopt(handed.child, lambda _line: None)
        except VllamaError as gone:
            event(log, logging.INFO, "supervisor.gone", worker=handed.name, why=gone.message)
            return
        await child.kill_tree()

    # --- decisions -----------------------------------------------------------------------------------------------

    def start(
        self,
        model: Model,
        holder: str,
        placement: Placement | None,
        *,
        idle_s: float,
        wanted: Wanted | None = None,
        is_pinned: bool = False,
    ) -> Refused | None:
        """Want a worker to run: on a new placement, or where it is (None). Returns why its bytes are not to be had;
        nothing has changed then."""
        key = self.key(model)
        handle = self._handles.get(holder)
        if handle is not None and handle.key != key and handle.state is State.FAILED:
            handle = None  # the failure of what had this name before; its memory is returned, or named otherwise
        if handle is None:
            self._numbers += 1
            handle = WorkerHandle(holder, key, model, self._numbers, self._deps, self._ring(key), idle_s)
            self._handles[holder] = handle
        elif handle.state in {State.STOPPED, State.FAILED, State.BACKOFF}:
            handle.model = model  # the name that it was started for last
        handle.is_pinned = is_pinned
        if handle.state is State.FAILED:
            handle.set_keep_alive(idle_s)
        if wanted is not None:
            handle.wanted = wanted
            handle.load_cost_s = handle.load_cost_s or wanted.load_cost_s
        refused = handle.start(placement)
        if refused is not None and handle.state is State.STOPPED:
            del self._handles[holder]
        return refused

    def make_room(self, holder: str) -> None:
        """Have an idle worker give up its devices: asleep or stopped, whatever is better."""
        handle = self._handles.get(holder)
        if handle is not None:
            handle.make_room()

    def relieve_host(self) -> None:
        """Stop some of those who sleep, if others took of the machine's memory what is held for them."""
        sleepers = [one for handle in self._handles.values() if (one := handle.sleeper()) is not None]
        if not sleepers:
            return
        leaving = {handle.holder for handle in self._handles.values() if handle.picture().is_leaving}
        for choice in self._deps.ladder.relieve(sleepers, leaving):
            self.decided(choice.why)
            self.stop(choice.holder)

    def stop(self, holder: str) -> None:
        """Want a worker gone; leases that are out finish first."""
        handle = self._handles.get(holder)
        if handle is not None:
            handle.post(Kind.STOP)

    def decided(self, text: str) -> None:
        """Keep and log a sentence of the scheduler."""
        self.decisions.append(Decided(self._clock.time(), text))
        event(log, logging.INFO, "scheduler.decision", text=text)

    # --- questions -----------------------------------------------------------------------------------------------

    def key(self, model: Model) -> str:
        """The key of the worker that serves a model, whether there is one or not."""
        return self._engine.identity(model)

    def get(self, holder: str) -> WorkerHandle | None:
        return self._handles.get(holder)

    def of(self, model: Model) -> list[WorkerHandle]:
        """The workers that serve a model now."""
        return self.with_key(self.key(model))

    def with_key(self, key: str) -> list[WorkerHandle]:
        """The same by what they serve."""
        return [handle for handle in self._handles.values() if handle.key == key]

    def handles(self) -> list[WorkerHandle]:
        return list(self._handles.values())

    def views(self) -> list[WorkerView]:
        """Every worker, in the order of their names."""
        return sorted((handle.view() for handle in self._handles.values()), key=lambda view: view.name)

    def ring(self, model: Model) -> WritableRing:
        """The output of a model's engine, over restarts; an empty one if it never ran."""
        return self._ring(self.key(model))

    def _ring(self, key: str) -> WritableRing:
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = self._new_ring()
        self._rings.move_to_end(key)
        for old in list(self._rings):
            if len(self._rings) <= KEPT_RINGS:
                break
            if old != key and not self.with_key(old):
                del self._rings[old]
        return ring

    # --- inside --------------------------------------------------------------------------------------------------

    def _busy(self) -> bool:
        return any(handle.state not in _AT_REST for handle in self._handles.values())

    def _spawn_task(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        assert self._tasks is not None, "the supervisor is not running"
        return self._tasks.create_task(work, name=name)

    def _changed(self, handle: WorkerHandle) -> None:
        self.on_change(handle)
        if handle.state is State.STOPPED and self._handles.get(handle.holder) is handle:
            # What is wanted again gets a new one, when the gate looks in the loop's next turn.
            del self._handles[handle.holder]
        woken, self._next_change = self._next_change, asyncio.Event()
        woken.set()


async def _ignored(_handle: WorkerHandle) -> None:
    """Nobody wants to know."""
