"""Wiring and the tree of tasks (floor 5): the only place that picks concrete classes.

    daemon ── supervisor ── one branch per worker (exit, health, kill, ...)
           ├─ operations ── one task per pull, create, load, unload
           ├─ zygotes ── one that keeps a process to fork engines from
           ├─ engine probe, then the gate opens; on CPU a self-test, once
           ├─ housekeeping (status line, devices, orphans)
           ├─ records (what is loaded, room on the disk)
           ├─ watch (the service manager's watchdog), if there is one
           ├─ reload (the configuration anew, when somebody asks)
           ├─ acceptors ── one for each process that takes connections, where there are several
           └─ http and control, which keep tasks of their own

A crash in one of these branches ends the daemon, and the service manager starts it again; a crash below a worker or an
operation ends that one only.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllama import __version__
from vllamad.config.engine_python import find_engine_python
from vllamad.config.loaded import Loaded
from vllamad.config.settings import Settings
from vllamad.control.daemon import DaemonService, DaemonStatus
from vllamad.control.inference import InferenceService
from vllamad.control.models import ModelsService
from vllamad.control.operations import OperationsService
from vllamad.control.server import ControlServer
from vllamad.control.workers import WorkersService
from vllamad.departure import Departure
from vllamad.devices.cpu import CpuProbe, processor_name
from vllamad.devices.nvml import NvmlProbe
from vllamad.domain.budget import MARGIN_SHARE
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import Handover
from vllamad.domain.ladder import Rules
from vllamad.domain.model import Model
from vllamad.domain.names import ModelRef
from vllamad.domain.ports import EngineVersion
from vllamad.domain.self_test import SelfTest, key_of
from vllamad.domain.view import DeviceView
from vllamad.domain.worker import Held, State
from vllamad.engine.command import EngineOptions, ModelOptions, identity_of
from vllamad.engine.engine import VllmEngine
from vllamad.engine.testing import run_self_test
from vllamad.engine.version import EngineProbe
from vllamad.from_settings import (
    configured,
    engine_options,
    gate_limits,
    is_local,
    is_loopback,
    model_options,
    model_rules,
    policy,
    sizing_rules,
    worker_limits,
)
from vllamad.gate.gate import Gate, ModelRules
from vllamad.host.clock import RealClock
from vllamad.host.logs import add_sink, event, set_level
from vllamad.host.notify import SystemdNotifier, watchdog_interval_s
from vllamad.host.page_cache import PosixPageCache
from vllamad.host.signals import Signals
from vllamad.host.succession import ask_successor
from vllamad.http.server import HttpServer, make_app, use_policy
from vllamad.http.services import Services
from vllamad.hub.children import child_environment
from vllamad.hub.convert import GgufConverter
from vllamad.hub.footprints import FootprintStore
from vllamad.hub.load_times import LoadTimesFile
from vllamad.hub.loaded import LoadedFile
from vllamad.hub.pull import HuggingFaceHub
from vllamad.hub.self_tests import SelfTestFile
from vllamad.hub.shapes import read_shape
from vllamad.hub.store import ModelStore
from vllamad.hub.uploads import UploadFolder
from vllamad.models.catalog import Catalog
from vllamad.models.loading import Loading
from vllamad.models.receiving import Receiving
from vllamad.models.reconciling import Consequence, Reconciling, Terms
from vllamad.models.restoring import Restoring
from vllamad.models.sizing import Sizing, SizingRules
from vllamad.models.taking_over import TakingOver
from vllamad.operations.registry import Operations
from vllamad.operations.reloading import Reloaded, Reloading
from vllamad.operations.self_testing import SelfTesting
from vllamad.operations.upgrading import Upgrade, Upgrading
from vllamad.process import cgroup
from vllamad.process.child import PosixLauncher
from vllamad.process.output import LineRing
from vllamad.showing import Picture, health, summary
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.starting import Loaders, Starting, WarmUp
from vllamad.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from vllamad.acceptors.acceptors import Acceptors

log = logging.getLogger("vllamad.daemon")

HOUSEKEEPING_S = 2.0
OWN_LINES = 2000
ENGINE_SILENCE_S = 600.0
"""A stream that brings nothing for so long is broken: a long prompt on a CPU takes minutes to its first token, and an
engine whose core hangs takes for ever."""
GPU_DRIVER = Path("/dev/nvidiactl")
"""There when NVIDIA's driver is loaded, but for some virtual machines; looking costs nothing, unlike asking NVML."""
FIRST_LOOKS = 20
"""Readings that a driver gets to answer at all, three seconds each."""


class Daemon:
    """One run of vllamad, from a configuration to its end. The locks of its folders are the caller's.
    ``reread`` reads the configuration again, as at start. ``http`` are sockets that the service manager listens on for
    us; then nothing is bound. ``handed`` is what a daemon before us in this process has left, ``program`` what may take
    our place."""

    def __init__(
        self,
        loaded: Loaded,
        environ: Mapping[str, str],
        reread: Callable[[], Loaded],
        http: Sequence[socket.socket] = (),
        handed: Handover | None = None,
        program: Sequence[str] = (),
    ) -> None:
        loop = asyncio.get_running_loop()
        settings, places = loaded.settings, loaded.places
        self._loaded = loaded
        self._environ = environ
        self._started = time.time()
        self._state = "STARTING"
        self._handed = handed
        self._bound_to = f"{settings.server.host}:{settings.server.port}"
        bound, http = _sockets_of(handed, http, self._bound_to)
        self._sockets = tuple(http)
        self._stop = asyncio.Event()
        self._free_bytes = 0
        self._killed = 0
        """Processes of an earlier daemon's engines that had to be killed."""
        self._engine_version = EngineVersion(python="")
        self._prefers_bfloat16: bool | None = None
        self._clock = RealClock(loop)
        self._notifier = SystemdNotifier(environ)
        self._signals = Signals(
            lambda _name: self._stop.set(), lambda _name: self._supervisor.hurry(), lambda: self._reloading.hang_up()
        )
        self._own_lines = LineRing(OWN_LINES)
        self._end_sink = add_sink(self._keep_line, loop.call_soon_threadsafe)

        self._python = python = find_engine_python(settings.engine.python, Path(sys.prefix), places.engines).path
        self._launcher = PosixLauncher(
            str(places.runtime),
            cgroup.settle(),
            places.state / "shared-memory.json",
            [one.child for one in handed.workers] if handed else (),
        )
        self._has_driver = GPU_DRIVER.exists()
        self._gpus = NvmlProbe(visible=environ.get("CUDA_VISIBLE_DEVICES"))
        self._memory = DeviceMemory()
        engine = VllmEngine(
            self._engine_options(settings),
            EngineProbe(python, self._launcher, device=settings.engine.device, has_gpu=self._has_gpu),
            self._model_options,
            idle_s=ENGINE_SILENCE_S,
        )
        self._engine = engine
        self._operations = Operations(self._clock)
        self._page_cache = PosixPageCache(_available_bytes)
        self._starting = Starting(loaders=Loaders(LoadTimesFile(places.state / "loaders.json")))
        self._set_starting(settings)
        self._supervisor = Supervisor(
            self._clock,
            engine,
            self._launcher,
            self._memory,
            places.worker_sockets,
            worker_limits(settings),
            lambda: LineRing(settings.engine.log_lines),
            Rules(is_on=settings.scheduler.sleep == "auto"),
            self._starting,
        )
        self._sizing = Sizing(
            engine,
            self._memory,
            FootprintStore(places.state / "footprints.json"),
            read_shape,
            self._sizing_rules,
        )
        self._supervisor.on_measured = self._sizing.measured
        self._gate = Gate(
            self._clock,
            self._supervisor,
            self._memory,
            self._sizing,
            gate_limits(settings),
            self._rules,
            lambda model: self._catalog.as_it_is(model),
        )
        store = ModelStore(places.models)
        self._hub = hub = HuggingFaceHub(
            self._launcher,
            sys.executable,
            settings.models.hub_endpoint,
            settings.models.hub_token,
            settings.models.pull_workers,
            environ,
            blobs=store.blobs,
        )
        converter = GgufConverter(self._launcher, str(python), environ)
        uploads = UploadFolder(places.models / "uploads", store.blobs)
        self._catalog = Catalog(
            store,
            hub,
            converter,
            uploads,
            self._operations,
            engine.quantizations,
            self._configured,
            dict(settings.models.aliases),
        )
        self._loading = Loading(self._catalog, self._gate, self._supervisor, self._operations)
        self._restoring = Restoring(
            LoadedFile(places.state / "loaded.json"),
            self._catalog,
            self._gate,
            self._supervisor,
            self._operations,
            self._clock,
            is_on=settings.models.restore,
        )
        self._taking_over = TakingOver(
            handed.workers if handed else (),
            self._catalog,
            self._gate,
            self._supervisor,
            self._sizing,
            self._rules,
        )
        self._has_taken_over = asyncio.Event()
        """Nothing that was handed to us waits to be gone on with."""
        self._upgrading = Upgrading(
            lambda: ask_successor(self._launcher, program, environ),
            places,
            self._models_that_go_on,
            lambda: tuple(one.model.name for one in self._supervisor.handles() if one.record.held is Held.LEAKED),
        )
        self._control = ControlServer(
            places.socket,
            settings.control.group,
            ModelsService(self._catalog, self._loading, self._sizing),
            WorkersService(self._supervisor, self._loading, self._catalog, self._own_lines),
            OperationsService(self._operations),
            DaemonService(self._supervisor, self._status, lambda: self._loaded.shown(), self._reload, self._upgrade),
            InferenceService(self._catalog, self._gate, self._clock),
        )
        services = Services(
            self._catalog,
            Receiving(uploads),
            self._loading,
            self._operations,
            self._gate,
            self._supervisor,
            self._health,
        )
        is_shared = settings.server.processes > 1
        self._web = make_app(services, policy(settings, self._sockets), is_behind=is_shared)
        self._acceptors = self._make_acceptors(settings, http or bound) if is_shared else None
        self._http = self._acceptors or HttpServer(self._web, settings.server.host, settings.server.port, http or bound)
        self._self_testing = SelfTesting(
            self._clock,
            SelfTestFile(places.state / "self-test.json"),
            self._test_processor,
            self._is_quiet,
            self._heed,
        )
        self._reconciling = Reconciling(self._catalog, self._supervisor, self._preload)
        self._reloading = Reloading(
            reread, self, self._notifier.reloading, lambda: self._notifier.ready(self._summary())
        )
        self._departure = Departure(
            self._gate,
            self._supervisor,
            self._operations,
            self._restoring,
            self._reloading,
            self._upgrading,
            self._taking_over,
            self._http,
            self._control,
            self._notifier,
            self._clock,
            self._stop,
        )

    def _make_acceptors(self, settings: Settings, sockets: Sequence[socket.socket]) -> "Acceptors":
        # Imported here: who has one process pays nothing for others.
        from vllamad.acceptors.acceptors import Acceptors, Outfit

        places, server = self._loaded.places, settings.server
        return Acceptors(
            server.processes,
            server.host,
            server.port,
            sockets,
            Outfit(
                # In the folder that lets nobody else in, and whose name is short enough for a socket.
                places.worker_sockets / "http",
                ENGINE_SILENCE_S,
                child_environment(self._environ, with_network=True),
                places.runtime,
            ),
            policy(settings, self._sockets),
            settings.logging.level,
            self._launcher,
            self._catalog,
            self._gate,
            lambda sockets: HttpServer(self._web, sockets=sockets),
        )

    # --- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> Handover | None:
        """Serve until a signal asks to stop, and leave nothing behind; or until somebody asks for an upgrade, and leave
        what is returned. Raises what keeps it from starting."""
        handover: Handover | None = None
        self._signals.install(asyncio.get_running_loop())
        try:
            async with asyncio.TaskGroup() as tasks:
                branches = [
                    await _started(tasks, self._supervisor.run, "supervisor"),
                    await _started(tasks, self._operations.run, "operations"),
                    await _started(tasks, self._launcher.zygotes.run, "zygotes"),
                ]
                try:
                    await self._start()
                    if self._acceptors is not None:
                        branches.append(await _started(tasks, self._acceptors.run, "acceptors"))
                    branches.append(tasks.create_task(self._look_at_engine(), name="engine"))
                    branches.append(tasks.create_task(self._keep_house(), name="housekeeping"))
                    branches.append(tasks.create_task(self._keep_records(), name="records"))
                    branches.append(tasks.create_task(self._keep_watch(), name="watch"))
                    branches.append(tasks.create_task(self._reloading.run(), name="reload"))
                    self._serve()
                    handover = await self._until_the_end()
                finally:
                    if handover is None:
                        await self._shut_down()
                    for branch in branches:
                        branch.cancel()
        finally:
            self._signals.remove(asyncio.get_running_loop())
            self._end_sink()
        return handover

    @property
    def is_asked_to_stop(self) -> bool:
        """Somebody wants it to end."""
        return self._stop.is_set()

    async def _until_the_end(self) -> Handover | None:
        """Serve; what is handed over at the end, None if it was asked to stop."""
        stop, wish = asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(self._upgrading.wished())
        try:
            await asyncio.wait({stop, wish}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._stop.is_set() else await self._hand_over(wish.result())
        finally:
            stop.cancel()
            wish.cancel()

    async def _start(self) -> None:
        """Everything that may refuse to start, cheapest refusal first. Whoever can ask finds every model: they are
        known before the port is open, and requests wait at the gate for the rest."""
        await self._catalog.load()
        await self._starting.loaders.recall()
        await self._http.start()
        self._killed = await self._launcher.kill_leftovers()
        await asyncio.to_thread(self._supervisor.clean_up, self._handed.workers if self._handed else ())
        await self._look_at_disk()
        await self._control.start()
        # Last: a start that is refused, by a port that is taken, has not tried to load anything.
        await self._restoring.begin()

    def _serve(self) -> None:
        self._state = "SERVING" if self._handed is None else "UPGRADING"
        spent = time.time() - self._started
        event(
            log,
            logging.INFO,
            "daemon.ready",
            http=self._url(),
            socket=self._loaded.places.socket,
            state=self._loaded.places.state,
            models=len(self._catalog.list()),
            start_s=round(spent, 3),
        )
        self._tell_address()
        self._notifier.ready(self._summary())
        if self._handed is None:
            self._load_what_is_wanted(())

    def _load_what_is_wanted(self, loaded: Collection[str]) -> None:
        preloaded = [str(ModelRef.parse(name)) for name in self._settings.models.preload]
        for name in preloaded:
            if name not in loaded:  # else it would be used by that, and its keep-alive begun anew
                self._preload(name, False)
        self._restoring.load_again(but=[*preloaded, *loaded])

    def _tell_address(self) -> None:
        """What a file says of the address, and has no effect, is told."""
        if not self._sockets:
            return
        server, addresses = self._settings.server, ", ".join(self._http.addresses)
        sources = {key: self._loaded.values[key].source for key in ("server.host", "server.port")}
        is_other = {
            "server.host": is_loopback(server.host) != is_local(self._sockets),
            "server.port": not any(address.endswith(f":{server.port}") for address in self._http.addresses),
        }
        for key, source in sources.items():
            if source != "default" and is_other[key]:
                text = f"{source}: {key} has no effect: systemd listens on {addresses} (systemctl edit vllamad.socket)"
                event(log, logging.WARNING, "config.warning", text=text)

    def _preload(self, name: str, may_evict: bool) -> None:
        try:
            self._loading.start(name, may_evict=may_evict)
        except VllamaError as error:
            event(log, logging.ERROR, "daemon.preload", model=name, reason=error.reason, error=error.message)

    async def _look_at_engine(self) -> None:
        """Requests wait at the gate until it is known what runs them."""
        self._engine_version = await self._engine.version()
        if self._engine_version.problem:
            event(
                log,
                logging.ERROR,
                "engine.unusable",
                problem=self._engine_version.problem,
                hint=self._engine_version.hint,
            )
        self._keep_zygote()
        await self._look_at_devices()
        key = self._self_test_key()
        is_known = not key or await self._self_testing.recall(key)
        if self._handed is not None:
            await self._take_over(self._handed)
        self._gate.open()
        if not is_known:
            await self._self_testing.run(key)

    def _self_test_key(self) -> str:
        """What a self-test here would hold for; "" if there is nothing to find out."""
        engine, version = self._settings.engine, self._engine_version
        if not engine.self_test or engine.dtype != "auto" or self._engine.self_test() is None:
            return ""
        cores = len(os.sched_getaffinity(0))
        return key_of(processor_name(), cores, f"{version.distribution} {version.version}")

    async def _test_processor(self, key: str) -> SelfTest:
        command = self._engine.self_test()
        assert command is not None, "there is nothing to test"
        return await run_self_test(self._launcher, command, key)

    def _is_quiet(self) -> bool:
        is_loading = any(view.state is State.STARTING for view in self._supervisor.views())
        return not (self._gate.active or self._gate.waiting or is_loading)

    def _heed(self, found: SelfTest) -> None:
        """From the next load on; what is loaded serves on as it is."""
        self._supervisor.decided(found.sentence)
        before = self._engine_options(self._settings)
        self._prefers_bfloat16 = found.prefers_bfloat16
        if (now := self._engine_options(self._settings)) == before:
            return
        self._engine.use(now)
        self._sizing.forget()
        for handle in self._supervisor.handles():
            handle.outdate()

    def _keep_zygote(self) -> None:
        """Before anybody asks for a model: whoever asks now waits for it, and gets it sooner than without."""
        if command := self._engine.zygote():
            self._launcher.zygotes.keep(command)

    async def _has_gpu(self) -> bool:
        return self._has_driver or bool(await self._gpus.read())

    async def _look_at_devices(self) -> None:
        engine = self._settings.engine
        if self._engine_version.device == "cuda":
            await self._memory.use(self._gpus, 1 - engine.gpu_memory_utilization, CpuProbe())
            looks = 1
            # Waking the driver of many GPUs takes longer than a reading may: requests wait for it meanwhile.
            while not self._memory.readings and self._gpus.problem.startswith("silent") and looks < FIRST_LOOKS:
                looks += 1
                await self._memory.refresh()
            if self._killed:
                await self._memory.settle(engine.release_timeout_s)
        else:
            budget = engine.cpu_memory_bytes
            # A number that was given is meant: it has its margin already.
            await self._memory.use(CpuProbe(budget_bytes=budget), 0.0 if budget else MARGIN_SHARE)

    # --- from one daemon to the next -----------------------------------------------------------------------------

    async def _take_over(self, handed: Handover) -> None:
        """Go on where a daemon before us in this process has left."""
        taken = await self._taking_over.take_over()
        if self._stop.is_set():
            return
        if taken.ended:
            await self._memory.settle(self._settings.engine.release_timeout_s)
        await self._memory.settle_in()
        event(
            log,
            logging.INFO,
            "daemon.taken_over",
            from_=handed.version,
            to=__version__,
            models=len(taken.models),
            ended=taken.ended,
            away_s=round(self._clock.now() - handed.left_at, 3),
        )
        self._state = "SERVING"
        self._load_what_is_wanted(taken.models)
        for name in handed.pulls:
            self._pull_on(name)
        self._has_taken_over.set()

    def _pull_on(self, name: str) -> None:
        try:
            self._catalog.pull(name)
        except VllamaError as error:
            event(log, logging.ERROR, "daemon.pull", model=name, reason=error.reason, error=error.message)

    async def _upgrade(self, drain_s: float | None, is_dry_run: bool) -> Upgrade:
        if self._handed is not None:
            await self._has_taken_over.wait()  # what it was handed is not known to the supervisor before
        longest = self._settings.server.drain_s if drain_s is None else drain_s
        upgrade = await self._upgrading.upgrade(longest, is_dry_run=is_dry_run)
        if not is_dry_run:
            self._state = "UPGRADING"  # before it is answered: whoever asks next sees it
        return upgrade

    def _models_that_go_on(self) -> tuple[str, ...]:
        return tuple(sorted({one.model.name for one in self._supervisor.handles() if one.can_be_handed_over}))

    async def _hand_over(self, drain_s: float) -> Handover | None:
        """Leave without ending what is loaded; None: it was asked to stop meanwhile."""
        self._notifier.status(self._summary())
        handover = await self._departure.hand_over(
            drain_s, count=self._count + 1, bound_to="" if self._sockets else self._bound_to
        )
        await self._starting.loaders.keep()
        return handover

    async def _shut_down(self) -> None:
        settings = self._settings
        self._state = "DRAINING"
        self._has_taken_over.set()  # whoever waits for that is told that we stop
        longest = settings.server.drain_s + settings.engine.term_grace_s + settings.engine.kill_grace_s
        await self._departure.shut_down(settings.server.drain_s, longest)
        await self._starting.loaders.keep()

    async def _look_at_disk(self) -> None:
        """A disk that fails is the store's business to tell; it is no reason to stop serving what is loaded."""
        try:
            self._free_bytes = await self._catalog.free_bytes()
        except VllamaError as error:
            if self._free_bytes:
                event(log, logging.ERROR, "daemon.storage", reason=error.reason, error=error.message)
            self._free_bytes = 0

    async def _keep_house(self) -> None:
        shown = ""
        while True:
            await self._memory.refresh()
            await self._reap_orphans()
            summary = self._summary()
            if summary != shown:
                self._notifier.status(summary)
                shown = summary
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _keep_records(self) -> None:
        """What waits for the disk: one that does not answer holds up nothing else."""
        while True:
            await self._look_at_disk()
            await self._restoring.note()
            await self._starting.loaders.keep()
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _keep_watch(self) -> None:
        """Tell the service manager's watchdog that the loop that serves turns and that the supervisor lives.

        It is a branch of its own: a disk or a driver that does not answer holds up housekeeping, and is no reason to
        end every worker."""
        watchdog_s = watchdog_interval_s(self._environ)
        if watchdog_s is None:
            return
        while True:
            await self._supervisor.answer()
            self._notifier.watchdog()
            # A message may get lost, see ``notify.py``: several fit into what is allowed.
            await asyncio.sleep(min(HOUSEKEEPING_S, watchdog_s))

    async def _reap_orphans(self) -> None:
        try:
            await self._launcher.reap_orphans()
        except OSError as error:  # too many open files: they are still there at the next look
            event(log, logging.WARNING, "daemon.orphans", error=str(error))

    def _keep_line(self, text: str) -> None:
        self._own_lines.append(text)

    # --- another configuration -----------------------------------------------------------------------------------

    @property
    def in_force(self) -> Loaded:
        """See ``reloading.House``."""
        return self._loaded

    def foresee(self, then: Loaded) -> tuple[Consequence, ...]:
        """See ``reloading.House``."""
        now = self._settings
        is_outdated = self._engine_options(now) != self._engine_options(then.settings)
        return self._reconciling.foresee(self._terms(now), self._terms(then.settings), is_outdated=is_outdated)

    def take_over(self, then: Loaded, consequences: Sequence[Consequence]) -> None:
        """See ``reloading.House``. What is asked for by each request (rules and options of models) follows by itself:
        it is read from what is in force. The others are told; who waits for a model comes last."""
        settings = then.settings
        self._loaded = then
        set_level(settings.logging.level)
        self._engine.use(self._engine_options(settings))
        self._keep_zygote()
        self._sizing.forget()
        self._supervisor.use(worker_limits(settings))
        self._set_starting(settings)
        self._hub.use(settings.models.hub_endpoint, settings.models.hub_token, settings.models.pull_workers)
        self._catalog.use_aliases(dict(settings.models.aliases))
        use_policy(self._web, policy(settings, self._sockets))
        if self._acceptors is not None:
            self._acceptors.use(policy(settings, self._sockets), settings.logging.level)
        self._gate.use(gate_limits(settings))
        self._reconciling.carry_out(consequences)
        self._loading.tidy()

    async def settle(self) -> None:
        """See ``reloading.House``."""
        if self._acceptors is not None:
            await self._acceptors.settle()
        await self._gate.reckon_anew()

    async def _reload(self, is_dry_run: bool) -> Reloaded:
        return await self._reloading.reload(is_dry_run=is_dry_run)

    def _terms(self, settings: Settings) -> Terms:
        return Terms(
            identity=lambda model: identity_of(configured(settings, model), self._options_of(settings, model)),
            rules=lambda model: model_rules(settings, model),
            preload=settings.models.preload,
        )

    # --- what the faces show -------------------------------------------------------------------------------------

    def _summary(self) -> str:
        return summary(self._supervisor.views(), self._gate.active, self._gate.waiting, self._state)

    def _url(self) -> str:
        addresses = self._http.addresses
        return f"http://{addresses[0]}" if addresses else ""

    async def _status(self) -> DaemonStatus:
        places = self._loaded.places
        # First: all else is of one moment.
        zygotes = await asyncio.to_thread(self._launcher.zygotes.views)
        acceptors = await asyncio.to_thread(self._acceptors.views) if self._acceptors is not None else []
        return DaemonStatus(
            state=self._state,
            pid=os.getpid(),
            start_time=self._started,
            http_url=self._url(),
            socket_path=str(places.socket),
            state_folder=str(places.state),
            memory_bytes=_resident_bytes(),
            engine=self._engine_version,
            models=len(self._catalog.list()),
            models_bytes=self._catalog.total_bytes(),
            free_bytes=self._free_bytes,
            active=self._gate.active,
            waiting=self._gate.waiting,
            devices=self._device_views(),
            zygotes=zygotes,
            waits=list(self._gate.waits.values()),
            decisions=list(self._supervisor.decisions),
            needs_restart=self._loaded.pending,
            acceptors=acceptors,
            upgrades=self._count,
        )

    def _device_views(self) -> list[DeviceView]:
        readings = {self._memory.index(one): one for one in self._memory.readings}
        ledger = self._memory.ledger
        return [
            DeviceView.of(device, readings[index], ledger)
            for index, device in ledger.devices.items()
            if index in readings
        ]

    def _health(self) -> dict[str, Any]:
        seen = Picture(
            state=self._state,
            version=__version__,
            uptime_s=time.time() - self._started,
            memory_bytes=_resident_bytes(),
            engine=self._engine_version,
            workers=self._supervisor.views(),
            devices=self._device_views(),
            models_bytes=self._catalog.total_bytes(),
            free_bytes=self._free_bytes,
            active=self._gate.active,
            waiting=self._gate.waiting,
            queue_limit=self._settings.scheduler.max_queue,
        )
        return health(seen)

    # --- what is in force, for whoever asks for a model ------------------------------------------------------------

    @property
    def _count(self) -> int:
        """How often this process was taken over."""
        return self._handed.count if self._handed is not None else 0

    @property
    def _settings(self) -> Settings:
        return self._loaded.settings

    def _engine_options(self, settings: Settings) -> EngineOptions:
        cache = self._loaded.places.cache
        return engine_options(settings, self._python, cache, self._environ, self._prefers_bfloat16)

    def _set_starting(self, settings: Settings) -> None:
        self._starting.page_cache = self._page_cache if settings.engine.prefetch else None
        self._starting.warm_up = WarmUp(settings.engine.warm_up)

    def _configured(self, model: Model) -> Model:
        return configured(self._settings, model)

    def _options_of(self, settings: Settings, model: Model) -> ModelOptions:
        return model_options(settings, model, self._catalog.adapter_rank(model))

    def _model_options(self, model: Model) -> ModelOptions:
        return self._options_of(self._settings, model)

    def _rules(self, model: Model) -> ModelRules:
        return model_rules(self._settings, model)

    def _sizing_rules(self, model: Model) -> SizingRules:
        return sizing_rules(self._settings, model)


def _sockets_of(
    handed: Handover | None, passed: Sequence[socket.socket], bound_to: str
) -> tuple[list[socket.socket], list[socket.socket]]:
    """What the predecessor had bound and is wanted still, and what the service manager listens on."""
    if handed is None:
        return [], list(passed)
    sockets = [socket.socket(fileno=descriptor) for descriptor in handed.http]
    for each in sockets:
        each.set_inheritable(False)
    if not handed.bound_to:
        return [], sockets
    if handed.bound_to == bound_to:
        return sockets, []
    for each in sockets:
        each.close()
    return [], []


async def _started(
    tasks: asyncio.TaskGroup, run: Callable[[asyncio.Event], Coroutine[Any, Any, None]], name: str
) -> asyncio.Task[None]:
    """Start a branch that lives until it is cancelled, and return when it is up."""
    started = asyncio.Event()
    task = tasks.create_task(run(started), name=name)
    await started.wait()
    return task


def _available_bytes() -> int:
    """Memory that is to be had now, within every limit around us; 0 where the kernel does not tell."""
    return sum(one.free_bytes for one in CpuProbe().read_now())


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
