"""One process life of a worker (floor 3): spawned, watched, asked, ended, and its memory awaited.

It knows nothing of states: it tells its worker what happened, and the worker's machine decides what that means. Its
tasks end at the *worker boundary* (``_guarded``): a bug in one of them is logged and told as an event, so that one
model's bug is not everyone's.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from vllama.reasons import Reason
from vllamad.domain.breaker import STABLE_S
from vllamad.domain.budget import gib
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import HandedChild, HandedWorker
from vllamad.domain.loaders import Loader
from vllamad.domain.model import Model
from vllamad.domain.ports import (
    Child,
    Clock,
    Engine,
    EngineClient,
    EnginePlace,
    Launcher,
    PageCache,
    Taken,
    WorkerPlaces,
)
from vllamad.domain.worker import Kind, State
from vllamad.host.logs import event
from vllamad.supervisor.memory import HOST, MEMORY_SLACK_BYTES, DeviceMemory
from vllamad.supervisor.starting import Starting, WarmUp

log = logging.getLogger("vllamad.worker")

STARTING_HEALTH_INTERVAL_S = 0.1
READY_HEALTH_INTERVAL_S = 5.0
CACHE_LOOK_S = 5.0
HEALTH_MISSES = 6
"""Unanswered health checks in a row before a worker counts as hung. One takes up to 5 s, and a server that is busy
with a large prompt may miss a few: six are half a minute of silence or more."""
LOADING_MEASURE_INTERVAL_S = 5.0
READY_MEASURE_INTERVAL_S = 30.0
"""Adding up the pages of a worker of 3 GB takes 50 to 75 ms, so one that rests is not measured often."""
TAKE_OVER_TRIES = 3
"""Health checks that an engine which was handed over may miss; each takes up to 5 s."""
MEMORY_POLL_S = 0.25
WARM_UP_PAUSE_S = 0.2
"""How long those who waited for a worker have the first word, before it is given a request that is nobody's."""
SLEEP_LOOKS = 40
"""Ten seconds for a driver to show what an engine gave up, as for one that has ended."""


Work = Callable[[], Coroutine[object, object, None]]


@dataclass(frozen=True, slots=True)
class World:
    """What an incarnation needs of the world."""

    clock: Clock
    engine: Engine
    launcher: Launcher
    memory: DeviceMemory
    """Asked whether memory has returned."""
    starting: Starting
    spawn_task: Callable[[Coroutine[object, object, None], str], asyncio.Task[None]]


class Owner(Protocol):
    """The worker that is told what happens. All of it in the event loop's thread."""

    def happened(self, incarnation: int, kind: Kind, cause: Reason | None = None, detail: str = "") -> None:
        """Something happened to this life; ``detail`` says it in words, where it is a fault."""
        ...

    def cleared(self) -> None:
        """It was suspected to be dead, and lives."""
        ...

    def said(self, line: str) -> None:
        """The engine wrote a line."""
        ...

    async def measured(self) -> None:
        """What it holds, with everything loaded, was measured anew."""
        ...

    @property
    def is_busy(self) -> bool:
        """Requests run on it."""
        ...


class Incarnation:
    """One life, from ``start`` to ``release``. ``number`` tells it from the lives before and after; ``holder`` is whose
    reservation it lives on."""

    def __init__(
        self,
        number: int,
        name: str,
        model: Model,
        holder: str,
        place: EnginePlace,
        folder: Path,
        world: World,
        owner: Owner,
    ) -> None:
        self.number = number
        self.context_length = 0
        self.pids: frozenset[int] = frozenset()
        self.memory_bytes = 0
        """Resident memory of the tree, as it was measured last; its processes were ``pids`` then."""
        self.settled_bytes: int | None = None
        """The same, None before it was measured with everything loaded."""
        self.cpu_s = 0.0
        """Processor time of the tree, then."""
        self.device_bytes = 0
        """What it was seen to hold on GPUs; 0 on CPU, and where the driver does not tell by process."""
        self.taken = Taken()
        """What the engine said that it took."""
        self.cache_usage = 0.0
        """How much of its cache requests filled at the last look, 0 to 1; 0 while there are none."""
        self.loader = Loader("", "")
        """What its weights are read with."""
        self.has_choice = False
        """There were several to choose from."""
        self.fast_path = ""
        """See ``EngineClient.fast_path``."""
        self.client: EngineClient | None = None
        self.spawned_at = world.clock.now()
        # Socket paths are limited to 107 bytes: the folder's name is short and says nothing.
        self._places = WorkerPlaces(folder / "s", folder)
        self._name = name
        self._model = model
        self._holder = holder
        self._place = place
        self._world = world
        self._owner = owner
        self._child: Child | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._warming: asyncio.Task[None] | None = None
        self._prefetching: asyncio.Task[None] | None = None
        self._is_asking = False
        self._measure = asyncio.Event()

    @property
    def pid(self) -> int:
        """The engine's leader; 0 if none was started."""
        return self._child.pid if self._child is not None else 0

    @property
    def socket(self) -> Path:
        """Where the engine listens."""
        return self._places.socket

    def look_for_pids(self) -> frozenset[int]:
        """Its processes now. Blocking."""
        return self._child.pids() if self._child is not None else frozenset()

    @property
    def is_suspect(self) -> bool:
        """True while it is being asked whether it still lives."""
        return self._is_asking

    def start(self) -> None:
        """Spawn the engine and watch it. Never raises: what keeps it from starting is told as SpawnFailed, later."""
        try:
            shutil.rmtree(self._places.folder, ignore_errors=True)
            self._places.folder.mkdir(mode=0o700, parents=True)
            self.loader, self.has_choice = self._choose_loader()
            command = self._world.engine.command(self._model, self._places, self._place, self.loader.name)
            command = replace(command, memory_limit_bytes=self._place.host_limit_bytes)
            self._child = self._world.launcher.spawn(command, self._owner.said)
        except (VllamaError, OSError) as error:
            reason = error.reason if isinstance(error, VllamaError) else Reason.ENGINE_START_FAILED
            self._owner.said(f"vllamad: cannot start the engine: {error}")
            asyncio.get_running_loop().call_soon(self._tell, Kind.SPAWN_FAILED, reason, str(error))
            return
        self.client = self._world.engine.connect(self._places.socket)
        self._watch(self._child, self.client, is_up=False)
        if self._world.starting.page_cache is not None:
            self._prefetching = self._run(partial(self._prefetch, self._world.starting.page_cache), "prefetch")

    async def take_over(self, handed: HandedWorker) -> None:
        """Go on with an engine that a daemon before us has started, and watch it. Raises ENGINE_DIED if it is not there
        any more or, where it was ready, does not answer as before; what there is of it is ended then."""
        self.spawned_at = handed.spawned_at
        self.taken = Taken(handed.weights_bytes, handed.cache_tokens)
        self._child = self._world.launcher.adopt(handed.child, self._owner.said)
        self.client = self._world.engine.connect(self._places.socket)
        is_up = handed.state is not State.STARTING
        if is_up:
            try:
                await self._answer_again(self.client)
            except VllamaError:
                await self._child.kill_tree()
                await self._tidy()
                raise
        self._watch(self._child, self.client, is_up=is_up)
        if is_up:
            self._measure.set()

    def hand_over(self) -> HandedChild | None:
        """Let go of the engine, alive; None if there is nothing to go on with. Nothing of this life is told after
        that."""
        self.abandon()
        if self.client is not None:
            self._world.spawn_task(self.client.close(), f"{self._name}/close")
        return self._child.hand_over() if self._child is not None else None

    def terminate(self) -> None:
        """SIGTERM to the tree. Streams to it must be closed before: with some open, the engine waits for their ends."""
        self._end_warm_up()
        self._end_prefetch()
        if self._child is not None:
            self._child.terminate()

    def kill(self) -> None:
        """SIGKILL to the tree; TreeGone is told when no process of it is left."""
        self._end_prefetch()
        self._run(self._kill_tree, "kill")

    def release(self) -> None:
        """Give up everything that belongs to this life; MemoryBack is told when its memory has returned."""
        self._run(self._release, "release")

    def suspend(self, level: int) -> None:
        """Put the engine to sleep; SuspendDone is told when its memory has gone down, or CallFailed."""
        self._end_warm_up()
        self._run(partial(self._suspend, level), "suspend")

    def resume(self) -> None:
        """Wake it; ResumeDone is told when it answers as before and has its memory again, or CallFailed."""
        self._run(self._resume, "resume")

    def tidy(self) -> None:
        """The same where nobody waits for it: nothing is told."""
        self._run(self._tidy, "tidy")

    def ask_whether_alive(self) -> None:
        """A request failed inside the engine: ask whether it still lives. When its core dies, the API server stays for
        seconds and answers everyone with errors. Tells Unhealthy, or that it is cleared."""
        if not self._is_asking and self.client is not None:
            self._is_asking = True
            self._run(partial(self._ask, self.client), "suspicion")

    def abandon(self) -> None:
        """Nothing of this life matters any more: end its tasks."""
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    # --- tasks ---------------------------------------------------------------------------------------------------

    def _watch(self, child: Child, client: EngineClient, *, is_up: bool) -> None:
        self._run(partial(self._watch_exit, child), "exit")
        self._run(partial(self._watch_health if is_up else self._watch_load, client), "health")
        self._run(partial(self._watch_memory, child), "memory")

    async def _answer_again(self, client: EngineClient) -> None:
        for _ in range(TAKE_OVER_TRIES):
            if await client.is_healthy():
                self.context_length = await client.context_length()
                await self._look_for_fast_path(client)
                return
            await asyncio.sleep(STARTING_HEALTH_INTERVAL_S)
        raise VllamaError(Reason.ENGINE_DIED, f"cannot go on with {self._model.name}: its engine does not answer")

    async def _look_for_fast_path(self, client: EngineClient) -> None:
        await client.look_for_fast_path()
        self.fast_path = client.fast_path
        event(log, logging.INFO, "worker.fast_path", worker=self._name, fast_path=self.fast_path)

    async def _watch_exit(self, child: Child) -> None:
        status = await child.wait()
        # The status proves nothing: vLLM exits 0 after its engine core died. An exit that nobody asked for is a crash.
        detail = _describe_exit(status)
        if await asyncio.to_thread(child.oom_kills):
            detail = f"the kernel ended it for want of memory: it took more than {gib(self._place.host_limit_bytes)}"
        self._tell(Kind.LEADER_EXITED, detail=detail)

    async def _watch_load(self, client: EngineClient) -> None:
        while not await client.is_healthy():  # noqa: ASYNC110 - the engine is asked; nothing tells
            await asyncio.sleep(STARTING_HEALTH_INTERVAL_S)
        self._end_prefetch()
        context_length = await client.context_length()
        await self._look_for_fast_path(client)
        warm_up = self._world.starting.warm_up
        if warm_up is WarmUp.BEFORE_READY:
            await asyncio.wait([self._begin_warm_up(client, 0.0)])
        self.context_length = context_length
        self._tell(Kind.HEALTHY)
        self._measure.set()
        if warm_up is WarmUp.AFTER_READY:
            self._begin_warm_up(client, WARM_UP_PAUSE_S)
        await self._watch_health(client)

    async def _watch_health(self, client: EngineClient) -> None:
        stable_at = self._world.clock.now() + STABLE_S
        stable = self._world.clock.call_at(stable_at, lambda: self._tell(Kind.STABLE))
        misses = 0
        try:
            # Told again and again: what does not count in one state may in the next.
            while True:
                await asyncio.sleep(READY_HEALTH_INTERVAL_S)
                misses = 0 if await client.is_healthy() else misses + 1
                self.cache_usage = await self._look_at_cache(client) if self._owner.is_busy and not misses else 0.0
                if misses >= HEALTH_MISSES:
                    self._tell(Kind.UNHEALTHY, detail=f"no answer to {misses} health checks in a row")
        finally:
            stable.cancel()

    def _begin_warm_up(self, client: EngineClient, pause_s: float) -> asyncio.Task[None]:
        self._warming = self._run(partial(self._warm_up, client, pause_s), "warm-up")
        return self._warming

    async def _warm_up(self, client: EngineClient, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        if self._owner.is_busy:
            return  # somebody's own request does it
        begun_at = self._world.clock.now()
        try:
            await client.warm_up()
        except VllamaError as error:  # no reason to stop it: whether it lives, its health says
            event(log, logging.WARNING, "worker.cold", worker=self._name, why=error.message)
            return
        spent = round(self._world.clock.now() - begun_at, 3)
        event(log, logging.INFO, "worker.warm", worker=self._name, s=spent)

    def _end_warm_up(self) -> None:
        if self._warming is not None:
            self._warming.cancel()

    async def _prefetch(self, page_cache: PageCache) -> None:
        begun_at = self._world.clock.now()
        done = await page_cache.prefetch(Path(self._model.path))
        spent = round(self._world.clock.now() - begun_at, 3)
        facts = {"why": done.why} if done.why else {}
        event(log, logging.INFO, "worker.prefetch", worker=self._name, bytes=done.count_bytes, s=spent, **facts)

    def _end_prefetch(self) -> None:
        if self._prefetching is not None:
            self._prefetching.cancel()

    def _choose_loader(self) -> tuple[Loader, bool]:
        """The loader, and whether there were several. Raises as ``Engine.command``."""
        engine = self._world.engine
        loaders = engine.loaders(self._model)
        return self._world.starting.loaders.choose(engine.identity(self._model), loaders), len(loaders) > 1

    async def _look_at_cache(self, client: EngineClient) -> float:
        try:
            async with asyncio.timeout(CACHE_LOOK_S):
                return await client.cache_usage()
        except (VllamaError, TimeoutError):  # a figure for people: whether the engine lives, its health says
            return 0.0

    async def _watch_memory(self, child: Child) -> None:
        """Measure now and then, and when told to: what is loaded is seen at once, not seconds later."""
        while True:
            is_loaded = self.context_length > 0
            interval_s = READY_MEASURE_INTERVAL_S if is_loaded else LOADING_MEASURE_INTERVAL_S
            self._measure.clear()
            try:
                self.pids = await asyncio.to_thread(child.pids)
                self.memory_bytes = await asyncio.to_thread(child.memory_bytes)
                self.cpu_s = await asyncio.to_thread(child.cpu_seconds)
            except OSError as error:  # too many open files: no reason to stop an engine that serves
                event(log, logging.WARNING, "worker.unmeasured", worker=self._name, why=str(error))
            if self._place.devices:
                await self._world.memory.refresh()
                self.device_bytes = self._world.memory.own_bytes(self._holder)
            if is_loaded:
                self.settled_bytes = self.memory_bytes
                await self._owner.measured()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._measure.wait()

    async def _suspend(self, level: int) -> None:
        client, memory = self._connected(), self._world.memory
        try:
            # Before the first sleep it learns what the engine says when it is well, later it changes nothing.
            await client.canary()
            await memory.refresh()
            before = memory.own_bytes(self._holder)
            await client.sleep(level)
        except VllamaError as error:
            self._tell(Kind.CALL_FAILED, detail=error.message)
            return
        left = before
        for _ in range(SLEEP_LOOKS):
            await memory.refresh()
            left = memory.own_bytes(self._holder)
            if left <= before // 2:  # also where the driver does not tell: 0 of 0
                self._tell(Kind.SUSPEND_DONE)
                return
            await asyncio.sleep(MEMORY_POLL_S)
        self._tell(Kind.CALL_FAILED, detail=f"asleep, it still holds {gib(left)} of {gib(before)}")

    async def _resume(self) -> None:
        client, memory = self._connected(), self._world.memory
        asleep = memory.own_bytes(self._holder)
        try:
            await client.wake()
            await client.canary()
        except VllamaError as error:
            self._tell(Kind.CALL_FAILED, detail=error.message)
            return
        await memory.refresh()
        held = memory.own_bytes(self._holder)
        full_on = memory.ledger.reservations[self._holder].full_on
        reserved = sum(count for index, count in full_on.items() if index != HOST)
        if asleep and not asleep < held <= reserved + MEMORY_SLACK_BYTES:
            self._tell(Kind.CALL_FAILED, detail=f"awake, it holds {gib(held)}, and {gib(reserved)} are its own")
            return
        self._tell(Kind.RESUME_DONE)

    def _connected(self) -> EngineClient:
        assert self.client is not None, f"{self._name} has no engine"
        return self.client

    async def _ask(self, client: EngineClient) -> None:
        try:
            is_alive = await client.is_healthy()
        finally:
            self._is_asking = False
        if is_alive:
            self._owner.cleared()
        else:
            self._tell(Kind.UNHEALTHY, detail="it failed a request and is not healthy any more")

    async def _kill_tree(self) -> None:
        if self._child is not None:
            await self._child.kill_tree()
        self._tell(Kind.TREE_GONE)

    async def _tidy(self) -> None:
        self.abandon()
        if self.client is not None:
            await self.client.close()
        await asyncio.to_thread(shutil.rmtree, self._places.folder, ignore_errors=True)

    async def _release(self) -> None:
        await self._tidy()
        # Drivers give memory back a while after the process has gone. The deadline of RELEASING bounds the wait.
        while not await self._world.memory.has_returned(self._holder):  # noqa: ASYNC110 - drivers do not tell
            await asyncio.sleep(MEMORY_POLL_S)
        self._tell(Kind.MEMORY_BACK)

    # --- the worker boundary -------------------------------------------------------------------------------------

    def _tell(self, kind: Kind, cause: Reason | None = None, detail: str = "") -> None:
        self._owner.happened(self.number, kind, cause, detail)

    def _run(self, work: Work, what: str) -> asyncio.Task[None]:
        task = self._world.spawn_task(self._guarded(work, what), f"{self._name}/{what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Work, what: str) -> None:
        try:
            await work()
        except Exception as error:  # the worker boundary: one model's bug is not everyone's
            log.exception("worker.bug worker=%s in=%s", self._name, what)
            self._tell(Kind.UNHEALTHY, Reason.INTERNAL, f"internal error while handling {what}: {error}")


def _describe_exit(status: int) -> str:
    return f"it was ended by signal {-status}" if status < 0 else f"it exited with status {status}"
