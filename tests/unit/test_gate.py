"""The gate and the supervisor together, over fakes: who waits, who is granted, and what happens when things break."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.world import FakeDevice, FakeEngine, FakeLauncher, FakeRing, FakeSizing, make_model
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model, Recipe
from vllamad.domain.names import ModelRef
from vllamad.domain.worker import Kind, State
from vllamad.domain.workload import Limits
from vllamad.gate.gate import Gate, GateLimits, ModelRules
from vllamad.models.sizing import Sizing
from vllamad.supervisor.lease import Lease
from vllamad.supervisor.limits import WorkerLimits
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.supervisor import Supervisor
from vllamad.supervisor.worker import WorkerHandle

A, B = make_model("a"), make_model("b")
PATIENCE_S = 5.0
ONE_MODEL = GateLimits(Limits(max_loaded=1))


class House:
    """A supervisor and a gate over fakes, in one event loop."""

    def __init__(self, folder: Path, limits: GateLimits) -> None:
        self.device = FakeDevice()
        self.memory = DeviceMemory()
        self.clock = FakeClock()
        self.launcher = FakeLauncher()
        self.engine = FakeEngine(self.launcher)
        self.supervisor = Supervisor(
            self.clock,
            self.engine,
            self.launcher,
            self.memory,
            folder,
            WorkerLimits(),
            FakeRing,
        )
        self.sizing = FakeSizing(self.engine)
        self.gate = Gate(
            self.clock,
            self.supervisor,
            self.memory,
            cast(Sizing, self.sizing),
            limits,
            lambda _model: ModelRules(limits.idle_s),
        )

    async def look_at_devices(self, kind: str = "cpu") -> None:
        self.device.kind = kind
        await self.memory.use(self.device, 0.0)
        self.gate.open()

    def state(self, model: Model) -> State:
        handles = self.supervisor.of(model)
        return handles[0].state if handles else State.STOPPED

    def worker(self, model: Model) -> WorkerHandle:
        """The one worker of a model."""
        (handle,) = self.supervisor.of(model)
        return handle

    async def until(self, model: Model, state: State) -> None:
        """Wait for a state; on failure say what was seen last."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.supervisor.wait_until(lambda: self.state(model) is state)
        except TimeoutError:
            pytest.fail(f"{model.name} is {self.state(model)}, never {state}")

    async def ready(self, model: Model) -> None:
        """Let the newest engine become healthy."""
        await self.until(model, State.STARTING)
        self.launcher.last.healthy.set()
        await self.until(model, State.READY)

    def ask(self, model: Model, keep_alive_s: float | None = None) -> "Caller":
        return Caller(self, model, keep_alive_s)


class Caller:
    """A request that holds its lease until it is told to go."""

    def __init__(self, house: House, model: Model, keep_alive_s: float | None) -> None:
        self.go = asyncio.Event()
        self.lease: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run(house, model, keep_alive_s))

    async def _run(self, house: House, model: Model, keep_alive_s: float | None) -> None:
        async with house.gate.lease(model, keep_alive_s=keep_alive_s) as lease:
            self.lease.set_result(lease)
            await self.go.wait()

    async def leave(self) -> None:
        self.go.set()
        await self.task


@asynccontextmanager
async def house_of(limits: GateLimits) -> AsyncIterator[House]:
    with TemporaryDirectory() as folder:
        house = House(Path(folder), limits)
        started = asyncio.Event()
        running = asyncio.create_task(house.supervisor.run(started))
        await started.wait()
        await house.look_at_devices()
        try:
            yield house
        finally:
            house.gate.close()
            for child in house.launcher.children:
                child.is_unkillable = False
            await asyncio.wait_for(house.supervisor.stop_all(0.0), PATIENCE_S)
            running.cancel()
            await asyncio.wait([running])


def in_house(test: Callable[[House], Awaitable[None]], limits: GateLimits | None = None) -> None:
    async def run() -> None:
        async with asyncio.timeout(4 * PATIENCE_S), house_of(limits or ONE_MODEL) as house:
            await test(house)

    asyncio.run(run(), debug=True)


def test_however_many_wait_the_model_is_loaded_once() -> None:
    async def test(house: House) -> None:
        callers = [house.ask(A) for _ in range(5)]
        await house.until(A, State.STARTING)
        assert [view.waiting for view in house.supervisor.views()] == [5]
        await house.ready(A)
        leases = await asyncio.gather(*(caller.lease for caller in callers))
        assert [view.waiting for view in house.supervisor.views()] == [0], "who was granted does not wait any more"
        assert len(house.launcher.children) == 1
        assert house.gate.active == 5
        assert all(lease.load_ns > 0 and lease.context_length == 2048 for lease in leases)
        for caller in callers:
            await caller.leave()
        assert house.gate.active == 0

    in_house(test)


def test_a_ready_model_is_granted_without_waiting() -> None:
    async def test(house: House) -> None:
        first = house.ask(A)
        await house.ready(A)
        await first.lease
        assert [view.waiting for view in house.supervisor.views()] == [0]
        await first.leave()
        async with house.gate.lease(A):
            assert house.gate.waiting == 0

    in_house(test)


def test_a_client_that_leaves_the_queue_leaves_no_trace() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.until(A, State.STARTING)
        caller.task.cancel()
        await asyncio.wait([caller.task])
        assert house.gate.waiting == 0
        await house.ready(A)
        handle = house.worker(A)
        assert handle.record.leases == 0

    in_house(test)


def test_a_client_that_leaves_in_the_turn_it_is_granted_gives_its_lease_back() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.until(A, State.STARTING)
        handle = house.worker(A)
        house.launcher.last.healthy.set()
        await house.until(A, State.READY)  # granted in the step to READY, before the caller's task runs again
        caller.task.cancel()
        await asyncio.wait([caller.task])
        assert handle.record.leases == 0
        assert house.gate.active == 0

    in_house(test)


def test_a_load_that_fails_tells_everyone_why_with_the_engines_last_lines() -> None:
    async def test(house: House) -> None:
        callers = [house.ask(A) for _ in range(3)]
        await house.until(A, State.STARTING)
        house.launcher.last.say("ValueError: no such architecture")
        house.launcher.last.exit(1)
        results = await asyncio.gather(*(caller.task for caller in callers), return_exceptions=True)
        for error in results:
            assert isinstance(error, VllamaError)
            assert error.reason is Reason.ENGINE_START_FAILED
            assert "no such architecture" in error.message
            assert "no such architecture" in str(error.facts["log"])
        assert house.launcher.last.tree_is_gone

    in_house(test)


def test_a_load_that_takes_too_long_is_a_timeout_and_the_tree_goes() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.until(A, State.STARTING)
        house.clock.advance(600.0)
        with pytest.raises(VllamaError) as caught:
            await caller.task
        assert caught.value.reason is Reason.START_TIMEOUT
        assert house.launcher.last.tree_is_gone

    in_house(test)


def test_an_engine_that_cannot_be_started_is_an_honest_error() -> None:
    async def test(house: House) -> None:
        house.launcher.error = VllamaError(Reason.ENGINE_START_FAILED, "cannot execute /no/python")
        caller = house.ask(A)
        with pytest.raises(VllamaError, match="/no/python"):
            await caller.task
        house.launcher.error = None
        with pytest.raises(VllamaError, match=r"failed once.*tried again in 10 s") as caught:
            await house.ask(A).task
        assert caught.value.retry_after_s == 10
        house.clock.advance(10.0)
        again = house.ask(A)  # the next request tries anew
        await house.ready(A)
        await again.leave()

    in_house(test)


def test_an_engine_that_dies_breaks_its_leases_with_the_cause() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        lease = await caller.lease
        stream = await lease.open("/v1/chat/completions", b"{}")
        reading = asyncio.create_task(stream.read())
        house.launcher.last.exit(0)  # exit status 0 proves nothing
        with pytest.raises(VllamaError) as caught:
            await reading
        assert caught.value.reason is Reason.ENGINE_DIED
        await house.until(A, State.BACKOFF)
        await caller.leave()  # the late return of a broken lease is a no-op
        house.clock.advance(5.0)
        await house.ready(A)
        assert len(house.launcher.children) == 2

    in_house(test)


def test_nobody_is_sent_to_an_engine_that_has_just_failed_until_it_says_that_it_lives() -> None:
    async def test(house: House) -> None:
        for is_dead in (False, True):
            caller = house.ask(A)
            if house.state(A) is not State.READY:
                await house.ready(A)
            child = house.launcher.last
            stream = await (await caller.lease).open("/v1/chat/completions", b"{}")
            child.healthy.clear()  # the next health check hangs until the test decides
            house.engine.clients[-1].streams[-1].feed(b'data: {"error": {"message": "EngineCore died"}}\n\n')
            chunks = stream.chunks()
            assert b"error" in await anext(chunks)
            await chunks.aclose()
            other = house.ask(A)
            await asyncio.sleep(0)
            assert not other.lease.done()
            child.is_hung = is_dead
            child.healthy.set()
            if is_dead:
                await house.until(A, State.BACKOFF)
                house.clock.advance(5.0)
                await house.ready(A)
            await other.lease
            assert len(house.launcher.children) == (2 if is_dead else 1)
            for each in (caller, other):
                await each.leave()

    in_house(test)


def test_requests_that_wait_survive_a_restart_of_the_worker() -> None:
    async def test(house: House) -> None:
        first = house.ask(A)
        await house.ready(A)
        await first.leave()
        house.launcher.last.exit(-9)
        await house.until(A, State.BACKOFF)
        caller = house.ask(A)
        house.clock.advance(5.0)
        await house.ready(A)
        await caller.leave()

    in_house(test)


def test_idle_time_unloads_and_a_request_for_ever_does_not() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.leave()
        house.clock.advance(299.0)
        assert house.state(A) is State.READY
        house.clock.advance(2.0)
        await house.until(A, State.STOPPED)
        assert house.launcher.last.was_terminated
        forever = house.ask(B, keep_alive_s=float("inf"))
        await house.ready(B)
        await forever.leave()
        house.clock.advance(1e7)
        assert house.state(B) is State.READY

    in_house(test)


def test_keep_alive_zero_unloads_when_the_request_is_over() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A, keep_alive_s=0.0)
        await house.ready(A)
        await caller.lease
        house.clock.advance(1.0)
        assert house.state(A) is State.READY
        await caller.leave()
        house.clock.advance(0.0)
        await house.until(A, State.STOPPED)

    in_house(test)


def test_another_model_waits_for_the_running_request_and_then_gets_the_slot() -> None:
    async def test(house: House) -> None:
        a = house.ask(A)
        await house.ready(A)
        await a.lease
        b = house.ask(B)
        await asyncio.sleep(0)
        assert house.state(A) is State.READY, "a busy model is not evicted"
        late = house.ask(A)
        await asyncio.sleep(0)
        assert not late.lease.done(), "a claimed model takes no new requests"
        await a.leave()
        await house.ready(B)
        await b.leave()
        await house.ready(A)
        await late.leave()
        assert any("evict a" in decided.text for decided in house.supervisor.decisions)

    in_house(test)


def test_a_full_queue_refuses_with_the_numbers() -> None:
    async def test(house: House) -> None:
        waiting = [house.ask(A) for _ in range(2)]
        await house.until(A, State.STARTING)
        with pytest.raises(VllamaError) as caught:
            async with house.gate.lease(A):
                pass
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.facts["limit"] == 2
        assert int(caught.value.facts["retry_after_s"]) >= 1
        await house.ready(A)
        for caller in waiting:
            await caller.leave()

    in_house(test, GateLimits(Limits(max_loaded=1, queue=2)))


def test_a_request_does_not_wait_for_ever() -> None:
    async def test(house: House) -> None:
        with pytest.raises(VllamaError) as caught:
            async with house.gate.lease(A):
                pass
        assert caught.value.reason is Reason.DEADLINE_EXCEEDED

    in_house(test, GateLimits(Limits(max_loaded=1), wait_s=0.05))


def test_a_closed_gate_refuses_those_who_wait_and_those_who_come() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.until(A, State.STARTING)
        house.gate.close()
        for refused in (caller.task, house.ask(A).task):
            with pytest.raises(VllamaError) as caught:
                await refused
            assert caught.value.reason is Reason.DRAINING

    in_house(test)


def test_a_deaf_engine_is_killed_after_its_grace() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.leave()
        house.launcher.last.ignores_term = True
        house.supervisor.stop(house.worker(A).holder)
        await house.until(A, State.STOPPING)
        house.clock.advance(21.0)
        await house.until(A, State.STOPPED)
        assert house.launcher.last.tree_is_gone

    in_house(test)


def test_an_engine_that_is_not_ready_yet_is_not_waited_for_long() -> None:
    """vLLM does not look at signals while it loads."""

    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.until(A, State.STARTING)
        house.launcher.last.ignores_term = True
        caller.task.cancel()
        house.supervisor.stop(house.worker(A).holder)
        assert house.state(A) is State.STOPPING
        house.clock.advance(1.9)
        assert house.state(A) is State.STOPPING
        house.clock.advance(0.2)
        await house.until(A, State.STOPPED)

    in_house(test)


def test_an_unkillable_tree_is_a_leak_that_nobody_reuses() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.leave()
        child = house.launcher.last
        child.ignores_term = child.is_unkillable = True
        house.supervisor.stop(house.worker(A).holder)
        house.clock.advance(21.0)
        await house.until(A, State.KILLING)
        house.clock.advance(11.0)
        await house.until(A, State.FAILED)
        for model in (A, B):
            with pytest.raises(VllamaError) as caught:
                async with house.gate.lease(model):
                    pass
            assert caught.value.reason is Reason.WONT_FIT

    in_house(test)


def test_a_model_that_was_pulled_anew_is_restarted_for_the_next_request() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.leave()
        anew = make_model("a", digest="e" * 64)
        newer = house.ask(anew)
        await house.ready(anew)
        assert (await newer.lease).model.digest == "e" * 64
        assert house.state(A) is State.STOPPED
        await newer.leave()
        assert len(house.launcher.children) == 2

    in_house(test)


def test_models_that_are_served_alike_share_a_worker() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        child = replace(A, ref=ModelRef.parse("child"), recipe=Recipe(ancestors=("a:latest",), system="Be brief."))
        other = house.ask(child)
        assert (await other.lease).model is child
        assert len(house.launcher.children) == 1
        assert house.supervisor.of(child) == house.supervisor.of(A)
        assert house.supervisor.views()[0].leases == 2
        await other.leave()
        await caller.leave()

    in_house(test)


def test_shutdown_waits_for_running_requests_and_then_breaks_them() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        lease = await caller.lease
        stopping = asyncio.create_task(house.supervisor.stop_all(30.0))
        await house.until(A, State.DRAINING)
        assert lease.broken is None
        house.clock.advance(31.0)
        await asyncio.wait_for(stopping, PATIENCE_S)
        assert lease.broken is not None
        assert lease.broken.reason is Reason.DRAINING
        await caller.leave()

    in_house(test)


def test_a_second_signal_shortens_every_deadline_and_skips_no_step() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.lease
        child = house.launcher.last
        child.ignores_term = True
        stopping = asyncio.create_task(house.supervisor.stop_all(30.0))
        await house.until(A, State.DRAINING)
        house.supervisor.hurry()
        house.clock.advance(0.0)  # both graces, to drain and to terminate, are over in the same instant
        assert child.was_terminated
        await asyncio.wait_for(stopping, PATIENCE_S)
        assert child.tree_is_gone
        await caller.leave()

    in_house(test)


def test_a_gpu_worker_is_stopped_only_when_its_memory_is_back() -> None:
    async def test(house: House) -> None:
        await house.look_at_devices("cuda")
        caller = house.ask(A)
        await house.until(A, State.STARTING)
        await asyncio.sleep(0)  # the reading of before the start
        house.device.free_bytes -= 4 << 30
        await house.ready(A)
        await caller.leave()
        house.supervisor.stop(house.worker(A).holder)
        await house.until(A, State.RELEASING)
        assert house.launcher.last.tree_is_gone
        other = house.ask(B)
        await asyncio.sleep(0)
        assert house.state(B) is State.STOPPED, "nobody gets memory that has not been seen to be free"
        house.device.free_bytes += 4 << 30
        await house.ready(B)
        await other.leave()

    in_house(test)


def test_memory_that_does_not_come_back_is_not_waited_for_for_ever() -> None:
    async def test(house: House) -> None:
        await house.look_at_devices("cuda")
        caller = house.ask(A)
        await house.until(A, State.STARTING)
        await asyncio.sleep(0)
        house.device.free_bytes -= 4 << 30
        await house.ready(A)
        await caller.leave()
        house.supervisor.stop(house.worker(A).holder)
        await house.until(A, State.RELEASING)
        house.clock.advance(11.0)
        assert house.state(A) is State.STOPPED

    in_house(test)


def test_progress_of_a_load_reaches_who_waits() -> None:
    async def test(house: House) -> None:
        seen: list[str] = []

        async def ask() -> None:
            async with house.gate.lease(A, on_progress=lambda view: seen.append(view.load_phase)):
                pass

        task = asyncio.create_task(ask())
        await house.until(A, State.STARTING)
        house.launcher.last.say("phase loading weights")
        await house.ready(A)
        await task
        assert "loading weights" in seen

    in_house(test)


def test_who_joins_a_load_is_told_at_once_how_far_it_is() -> None:
    async def test(house: House) -> None:
        seen: list[str] = []
        first = house.ask(A)
        await house.until(A, State.STARTING)

        async def join() -> None:
            async with house.gate.lease(A, on_progress=lambda view: seen.append(view.load_phase)):
                pass

        joining = asyncio.create_task(join())
        await asyncio.sleep(0)
        assert seen == ["starting"]
        await house.ready(A)
        await joining
        await first.leave()

    in_house(test)


def test_a_crowded_model_gets_another_worker_and_requests_go_where_there_are_fewest() -> None:
    async def test(house: House) -> None:
        house.sizing.replicas = 2
        first = house.ask(A)
        await house.ready(A)
        await first.lease
        second = house.ask(A)  # granted at once; its worker is crowded from now on
        await second.lease
        await house.supervisor.wait_until(lambda: len(house.supervisor.of(A)) == 2)
        house.launcher.last.healthy.set()
        await house.supervisor.wait_until(lambda: all(one.takes_requests for one in house.supervisor.of(A)))
        third = house.ask(A)
        await third.lease
        assert [one.record.leases for one in house.supervisor.of(A)] == [2, 1]
        assert [one.holder for one in house.supervisor.of(A)] == ["a:latest", "a:latest#2"]
        house.gate.set_keep_alive(A, 0.0)
        for caller in (first, second, third):
            await caller.leave()
        house.clock.advance(0.0)
        await house.supervisor.wait_until(lambda: not house.supervisor.handles())

    in_house(test, GateLimits(Limits(crowd=2)))


def test_a_keep_alive_is_the_models_whichever_of_its_workers_serves() -> None:
    async def test(house: House) -> None:
        house.sizing.replicas = 2
        callers = [house.ask(A), house.ask(A)]
        await house.ready(A)
        await house.supervisor.wait_until(lambda: len(house.supervisor.of(A)) == 2)
        house.launcher.last.healthy.set()
        await house.supervisor.wait_until(lambda: all(one.takes_requests for one in house.supervisor.of(A)))
        for caller in callers:
            await caller.lease
            await caller.leave()
        last = house.ask(A, keep_alive_s=0.0)
        await last.lease
        await last.leave()
        house.clock.advance(0.0)
        await house.supervisor.wait_until(lambda: not house.supervisor.handles())

    in_house(test, GateLimits(Limits(crowd=2)))


def test_who_failed_and_is_started_again_has_the_keep_alive_that_was_asked_for_now() -> None:
    async def test(house: House) -> None:
        first = house.ask(A, keep_alive_s=7.0)
        await house.until(A, State.STARTING)
        house.launcher.last.exit(1)
        with pytest.raises(VllamaError):
            await first.task
        house.clock.advance(60.0)  # the breaker lets the next one try
        second = house.ask(A)
        await house.ready(A)
        await second.lease
        assert house.worker(A).keep_alive_s == ONE_MODEL.idle_s
        await second.leave()

    in_house(test)


def test_callers_of_a_model_take_turns() -> None:
    async def test(house: House) -> None:
        order: list[str] = []

        async def ask(caller: str) -> None:
            async with house.gate.lease(A, caller=caller):
                order.append(caller)
                house.clock.advance(1.0)
                await asyncio.sleep(0)

        flood = [asyncio.create_task(ask("flood")) for _ in range(4)]
        await house.until(A, State.STARTING)
        calm = asyncio.create_task(ask("calm"))
        await asyncio.sleep(0)
        await house.ready(A)
        await asyncio.gather(*flood, calm)
        assert order.index("calm") <= 2, order

    in_house(test, GateLimits(Limits(parallel=1)))


def test_who_may_not_evict_gets_free_memory_or_none() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.leave()
        with pytest.raises(VllamaError, match="there is no room for it as things are") as caught:
            async with house.gate.lease(B, may_evict=False):
                pass
        assert caught.value.reason is Reason.WONT_FIT
        assert house.state(A) is State.READY

    in_house(test)


def test_a_retry_waits_while_its_device_loads_another() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.leave()
        house.launcher.last.exit(-9)
        await house.until(A, State.BACKOFF)
        other = house.ask(B)
        await house.until(B, State.STARTING)
        loading = house.launcher.last
        house.clock.advance(3.0)
        assert house.state(A) is State.BACKOFF, "engines look at what is free while they load: one at a time"
        loading.healthy.set()
        await other.lease
        house.clock.advance(1.0)
        await house.ready(A)
        await other.leave()

    in_house(test, GateLimits())


def test_a_model_that_is_served_otherwise_while_requests_wait_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(house: House) -> None:
        callers = [house.ask(A) for _ in range(2)]
        await asyncio.sleep(0)
        assert house.gate.waiting == 2
        usual = house.engine.identity
        monkeypatch.setattr(house.engine, "identity", lambda model: f"{usual(model)} with an adapter")
        await house.ready(A)
        for caller in callers:
            await caller.lease
        for _ in range(5):
            await asyncio.sleep(0)
        assert [handle.state for handle in house.supervisor.handles()] == [State.READY]
        for caller in callers:
            await caller.leave()

    in_house(test, GateLimits())


def test_what_was_measured_before_it_was_ready_is_not_what_it_holds() -> None:
    async def test(house: House) -> None:
        house.device.free_bytes = 12 << 30
        await house.memory.refresh()
        caller = house.ask(A)
        await house.until(A, State.STARTING)
        child, handle = house.launcher.last, house.worker(A)
        while not handle.memory_bytes:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        measured = threading.Event()
        child.memory_bytes = lambda: 2 << 30 if measured.wait(PATIENCE_S) else 0
        house.device.free_bytes -= 2 << 30
        await house.ready(A)
        await house.memory.refresh()
        seen = house.memory.ledger.foreign[0]
        measured.set()
        assert seen == 4 << 30, "others hold no more than before"
        await caller.leave()

    in_house(test)


def test_who_waits_to_be_started_again_uses_nothing() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.leave()
        house.launcher.last.exit(1)
        await house.until(A, State.BACKOFF)
        await house.memory.refresh()
        assert house.memory.ledger.foreign[0] == 8 << 30
        assert house.memory.ledger.free(0) == 6 << 30

    in_house(test)


def test_a_forced_stop_does_not_wait_for_a_queue_that_never_ends() -> None:
    async def test(house: House) -> None:
        first, second = house.ask(A), house.ask(A)
        await house.ready(A)
        lease = await first.lease
        child, handle = house.launcher.last, house.worker(A)
        handle.stop_at_once()
        await house.until(A, State.STARTING)
        assert child.tree_is_gone
        assert lease.broken is not None
        await first.leave()
        await house.ready(A)
        await second.leave()

    in_house(test, GateLimits(Limits(parallel=1)))


def test_a_drain_that_was_shortened_and_taken_back_is_not_remembered() -> None:
    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        lease, handle = await caller.lease, house.worker(A)
        handle.drain_within(1.0)
        house.supervisor.stop(handle.holder)
        handle.start(None)
        house.supervisor.stop(handle.holder)
        house.clock.advance(2.0)
        assert lease.broken is None, "nobody was in a hurry this time"
        await caller.leave()

    in_house(test)


def test_an_engine_that_hangs_while_it_falls_asleep_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllamad.supervisor.incarnation.READY_HEALTH_INTERVAL_S", 0.0)

    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.leave()
        child, handle = house.launcher.last, house.worker(A)
        child.switches.clear()
        handle.post(Kind.SUSPEND)
        child.is_hung = True
        await house.until(A, State.STOPPED)
        assert child.tree_is_gone

    in_house(test)


def test_the_part_of_the_cache_in_use_is_looked_at_while_there_are_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllamad.supervisor.incarnation.READY_HEALTH_INTERVAL_S", 0.0)

    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.lease
        house.engine.clients[-1].usage = 0.41
        for _ in range(20):
            await asyncio.sleep(0)
        assert house.worker(A).view().cache_usage == 0.41
        await caller.leave()
        assert house.worker(A).view().cache_usage == 0.0

    in_house(test)


def test_nobody_leaves_while_requests_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(house: House) -> None:
        callers = [house.ask(A, keep_alive_s=0.0) for _ in range(2)]
        await house.until(A, State.STARTING)
        monkeypatch.setattr("vllamad.gate.gate.QUICK_LOOK_S", -1.0)
        house.gate._look(0.01)  # as after a look that took long
        house.launcher.last.healthy.set()
        await house.until(A, State.READY)
        house.clock.advance(0.0)
        assert house.state(A) is State.READY
        for caller in callers:
            await caller.lease
            await caller.leave()
        house.clock.advance(0.0)
        await house.until(A, State.STOPPED)
        assert len(house.launcher.children) == 1

    in_house(test)


def test_nobody_stays_for_requests_that_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(house: House) -> None:
        caller = house.ask(A, keep_alive_s=0.0)
        await house.until(A, State.STARTING)
        house.gate._look(0.1)
        house.launcher.last.healthy.set()
        await house.until(A, State.READY)
        house.clock.advance(0.0)
        caller.task.cancel()
        await asyncio.wait([caller.task])
        house.clock.advance(10.0)
        await house.until(A, State.STOPPED)

    in_house(test)


def test_what_was_given_up_unkillable_may_still_be_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vllamad.supervisor.incarnation.READY_HEALTH_INTERVAL_S", 0.0)

    async def test(house: House) -> None:
        caller = house.ask(A)
        await house.ready(A)
        await caller.leave()
        child = house.launcher.last
        child.ignores_term = child.is_unkillable = True
        house.supervisor.stop(house.worker(A).holder)
        house.clock.advance(21.0)
        await house.until(A, State.KILLING)
        house.clock.advance(11.0)
        await house.until(A, State.FAILED)
        child.is_hung = True
        for _ in range(50):
            await asyncio.sleep(0)
        assert "worker.illegal" not in caplog.text

    in_house(test)


def test_a_bug_in_the_planner_is_told_and_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> object:
        raise ZeroDivisionError("a bug")

    async def test(house: House) -> None:
        monkeypatch.setattr("vllamad.gate.gate.plan", broken)
        with pytest.raises(VllamaError, match="internal error while deciding") as caught:
            await house.ask(A).task
        assert caught.value.reason is Reason.INTERNAL
        assert house.gate.waiting == 0
        assert "gate.bug" in caplog.text

    in_house(test)
