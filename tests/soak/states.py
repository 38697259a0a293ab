"""The states of a worker that can be held from outside, and how. Each returns what is held: the requests in flight, the
engine's processes, and unloads that are under way.

Times are those of ``matrix.ENVIRONMENT``: a state is held for a second or two, long enough to strike.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from tests.soak.asking import Asking
from tests.soak.questions import Kind, Wire
from tests.soak.small_card import SLOW_S, SmallCard
from tests.soak.victims import Victim
from tests.soak.world import World, until

LOAD_S = 1.5
SAYS_S = 15.0
LAG_S = 2.5
"""How late memory returns where RELEASING is held."""


@dataclass
class Held:
    """A worker in a state."""

    asks: list[Asking] = field(default_factory=list)
    victim: Victim | None = None
    unloading: list["asyncio.Task[None]"] = field(default_factory=list)
    let_go: Callable[[], Awaitable[object]] | None = None
    """What held it by a fault holds it no longer."""


Enter = Callable[[World, str, dict[str, object]], Awaitable[Held]]
"""``extra`` are faults that the life which is held has besides."""


async def starting(world: World, model: str, extra: dict[str, object]) -> Held:
    """It loads, and two requests wait for it."""
    world.next_life(model, load_s=LOAD_S, **extra)
    asks = [_ask(world, model, Wire.CHAT), _ask(world, model, Wire.OPENAI_WHOLE)]
    shown = await world.in_state(model, "STARTING")
    return Held(asks, await _grown(shown.pid))


async def ready_idle(world: World, model: str, extra: dict[str, object]) -> Held:
    """It serves, and nobody asks."""
    world.next_life(model, **extra)
    return Held([], await _loaded(world, model))


async def ready_streaming(world: World, model: str, extra: dict[str, object]) -> Held:
    """Two streams are in the middle, and a third client waits for an answer in one piece."""
    world.next_life(model, **extra)
    victim = await _loaded(world, model)
    asks = [_ask(world, model, wire) for wire in (Wire.CHAT, Wire.OPENAI, Wire.CHAT_WHOLE)]
    for ask in asks[:2]:
        if not await ask.has_said(2, SAYS_S):
            raise TimeoutError(f"no stream: {await ask.outcome()}")
    return Held(asks, victim)


async def draining(world: World, model: str, extra: dict[str, object]) -> Held:
    """The same, and somebody unloads it."""
    held = await ready_streaming(world, model, extra)
    held.unloading.append(_unload(world, model))
    await world.in_state(model, "DRAINING")
    return held


async def stopping(world: World, model: str, extra: dict[str, object]) -> Held:
    """It was told to end and is deaf to it, all of it; a request waits that wants it back."""
    world.next_life(model, ignore_term=True, leave_grandchild=True, **extra)
    victim = await _loaded(world, model)
    unloading = _unload(world, model)
    await world.in_state(model, "STOPPING")
    return Held([await _waiting(world, model)], victim, [unloading])


async def killing(world: World, model: str, extra: dict[str, object]) -> Held:
    """All are dead but the process that tidies shared memory: it is frozen, and the daemon gives it two seconds."""
    world.next_life(model, **extra)
    victim = await _loaded(world, model)
    victim.freeze_tidier()
    unloading = _unload(world, model)
    await world.in_state(model, "KILLING")
    return Held([await _waiting(world, model)], victim, [unloading])


async def backoff(world: World, model: str, extra: dict[str, object]) -> Held:
    """It died while it served; a request waits for the next try."""
    world.next_life(model, **extra)
    victim = await _loaded(world, model)
    victim.kill_leader()
    await world.in_state(model, "BACKOFF")
    return Held([await _waiting(world, model)])


async def failed(world: World, model: str, extra: dict[str, object]) -> Held:
    """It cannot be loaded."""
    world.next_life(model, die_while_loading=True, **extra)
    outcome = await _ask(world, model, Wire.CHAT).outcome()
    if outcome.kind is not Kind.ERROR:
        raise AssertionError(f"loading should have failed: {outcome}")
    await world.in_state(model, "FAILED")
    return Held()


async def releasing(world: World, model: str, extra: dict[str, object]) -> Held:
    """All are dead, and the card keeps their memory for a while; a request waits that wants it back."""
    assert isinstance(world, SmallCard)
    world.next_life(model, **extra)
    await _loaded(world, model)
    world.machine.lag_s = LAG_S
    unloading = _unload(world, model)
    await world.in_state(model, "RELEASING")
    return Held([await _waiting(world, model)], None, [unloading], _soon(world))


async def suspending(world: World, model: str, extra: dict[str, object]) -> Held:
    """Another is wanted, for which there is no room beside it, and it takes its time to fall asleep."""
    world.next_life(model, load_s=SLOW_S, hang_sleep=True, **extra)
    victim = await _loaded(world, model)
    asks = [_ask(world, "other", Wire.CHAT)]
    await world.in_state(model, "SUSPENDING")
    return Held(asks, victim, [], lambda: world.misbehave(victim, model))


async def suspended(world: World, model: str, extra: dict[str, object]) -> Held:
    """It sleeps, and another serves in its place."""
    world.next_life(model, load_s=SLOW_S, **extra)
    victim = await _loaded(world, model)
    await _loaded(world, "other")
    await world.in_state(model, "SUSPENDED")
    return Held([], victim)


async def resuming(world: World, model: str, extra: dict[str, object]) -> Held:
    """It is wanted again, and takes its time to wake."""
    world.next_life(model, load_s=SLOW_S, hang_wake=True, **extra)
    victim = await _loaded(world, model)
    await _loaded(world, "other")
    await world.in_state(model, "SUSPENDED")
    asks = [_ask(world, model, Wire.CHAT), _ask(world, model, Wire.OPENAI_WHOLE)]
    await world.in_state(model, "RESUMING")
    return Held(asks, victim, [], lambda: world.misbehave(victim, model))


HOLDS: dict[str, Enter] = {
    "STARTING": starting,
    "READY, idle": ready_idle,
    "READY, streams": ready_streaming,
    "DRAINING": draining,
    "STOPPING": stopping,
    "KILLING": killing,
    "BACKOFF": backoff,
    "FAILED": failed,
    "RELEASING": releasing,
    "SUSPENDING": suspending,
    "SUSPENDED": suspended,
    "RESUMING": resuming,
}
"""All but STOPPED, in which there is nothing to strike."""

ON_CARD = frozenset({"RELEASING", "SUSPENDING", "SUSPENDED", "RESUMING"})
"""Held on a GPU only: on CPU nothing sleeps, and memory is back when its processes have ended."""


def _ask(world: World, model: str, wire: Wire) -> Asking:
    return world.ask(world.models[model].asked(f"{wire.name.lower()}-of-{model}", wire), deadline_s=100.0)


def _unload(world: World, model: str) -> "asyncio.Task[None]":
    async def unload() -> None:
        # The daemon may be killed under whoever asks.
        with suppress(grpc.RpcError):
            await world.stop_model(model)

    return asyncio.create_task(unload())


def _soon(world: SmallCard) -> Callable[[], Awaitable[object]]:
    async def return_soon() -> None:
        world.machine.lag_s = 0.0

    return return_soon


async def _waiting(world: World, model: str) -> Asking:
    """A request that the daemon has put into its queue."""
    ask = _ask(world, model, Wire.CHAT)

    async def is_there() -> bool:
        shown = await world.worker(model)
        return ask.is_over or (shown is not None and shown.waiting + shown.leases > 0)

    await until(is_there, SAYS_S)
    return ask


async def _loaded(world: World, model: str) -> Victim:
    outcome = await world.ask(world.models[model].asked("hello", limit=3)).outcome()
    if outcome.kind is not Kind.WHOLE:
        raise AssertionError(f"cannot load {model}: {outcome}")
    return await _grown((await world.in_state(model, "READY")).pid)


async def _grown(leader: int) -> Victim:
    """A tree is struck when it is whole."""

    async def is_whole() -> bool:
        # Looked up anew each time: the marker is that of the program, not of what started it.
        return bool(Victim(leader).core())

    if not await until(is_whole, SAYS_S):
        raise TimeoutError(f"no engine core: {Victim(leader).members()}")
    return Victim(leader)
