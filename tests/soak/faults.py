"""What is done to a worker that is held in a state, and what its clients may then be told."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.soak.checks import Checks
from tests.soak.questions import Kind
from tests.soak.small_disk import SmallDisk
from tests.soak.states import HOLDS, ON_CARD, Held
from tests.soak.world import World, until

PATIENCE_S = 90.0
"""Six health checks of five seconds each, as far apart, find out that an engine hangs."""


@dataclass
class Case:
    """One strike."""

    world: World
    model: str
    state: str
    held: Held
    checks: Checks
    is_patient: bool


Strike = Callable[[Case], Awaitable[None]]


async def kill_server(case: Case) -> None:
    _struck(case, case.held.victim is not None and case.held.victim.kill_leader())
    await _ask_headless(case)


async def kill_core(case: Case) -> None:
    _struck(case, case.held.victim is not None and case.held.victim.kill_core())
    await _ask_headless(case)


async def kill_everyone(case: Case) -> None:
    _struck(case, case.held.victim is not None and case.held.victim.kill_everyone())
    await _ask_headless(case)


async def run_out_of_memory(case: Case) -> None:
    _struck(case, case.held.victim is not None and case.held.victim.run_out_of_memory())
    await _ask_headless(case)


async def freeze(case: Case) -> None:
    """Nothing of it runs any more; what ends that is a deadline, the health checks, or a person."""
    _struck(case, case.held.victim is not None and case.held.victim.freeze())
    if case.state in HUNG_FOR_LONG:
        await _end_of_hang(case)


async def hang_health(case: Case) -> None:
    """It works, and does not answer when it is asked whether it lives."""
    if case.state == "STARTING":
        return  # this life was started so
    victim = case.held.victim
    _struck(case, victim is not None and await case.world.misbehave(victim, case.model, **HANGS, ignore_term=True))
    if case.state in {"READY, idle", "READY, streams"}:
        for ask in case.held.asks:
            await ask.outcome()
        await _end_of_hang(case)


async def kill_daemon(case: Case) -> None:
    """SIGKILL, and the next one starts on the same folders."""
    await case.world.kill()
    await case.world.start()


async def leave(case: Case) -> None:
    case.held.asks[0].leave()


async def fill_disk(case: Case) -> None:
    """No room in the runtime and the state folder; then there is some again."""
    world = case.world
    assert isinstance(world, SmallDisk)
    world.fill()
    try:
        for ask in case.held.asks:
            await ask.outcome()
        outcome = await world.ask(world.models["other"].asked("no-room")).outcome()
        case.checks.that(outcome.kind is Kind.ERROR, "no room is told", outcome)
        status, text = await world.health()
        case.checks.that(status in {200, 503}, "/health answers without room", f"{status} {text}")
    finally:
        world.free()


HANGS: dict[str, object] = {"hang_health": True}
RIGHT = frozenset({Kind.WHOLE})
TOLD = frozenset({Kind.ERROR})
EITHER = RIGHT | TOLD
CUT = frozenset({Kind.BROKEN})
STREAMING = {"READY, streams", "DRAINING"}
QUEUED = {"STOPPING", "KILLING", "BACKOFF", "RELEASING", "SUSPENDING", "RESUMING"}
"""States in which the requests that are held wait for the next life, or for another model's."""
HUNG_FOR_LONG = {"READY, idle", "READY, streams", "DRAINING", "SUSPENDING", "SUSPENDED", "RESUMING"}
"""States in which nothing else ends a frozen engine soon."""


@dataclass(frozen=True)
class Fault:
    """``needs`` are the states in which there is something to strike; ``tells`` what the clients in flight must get,
    where it is not one or the other."""

    title: str
    strike: Strike
    needs: frozenset[str]
    why_not: dict[str, str]
    tells: dict[str, frozenset[Kind]] = field(default_factory=dict)
    life: dict[str, object] = field(default_factory=dict)
    """What a life that is struck while STARTING is started with."""


_ALL = frozenset(HOLDS)
_WITH_ENGINE = _ALL - {"KILLING", "BACKOFF", "FAILED", "RELEASING"}
_WITH_CLIENTS = _ALL - {"READY, idle", "FAILED", "SUSPENDED"}
_NO_ENGINE = dict.fromkeys(_ALL, "no engine is alive in this state")
_NO_CLIENT = dict.fromkeys(_ALL, "no client is there in this state")
_ASLEEP = ON_CARD - {"RELEASING"}
_FROZEN = _NO_ENGINE | dict.fromkeys(_ASLEEP, "there the daemon finds out by the same misses as of a frozen one")
_HAS_DISK = dict.fromkeys(ON_CARD, "what is written there is what the states above write")
_NOT_SEEN = "nobody knows what shared memory it had, if all who know die before the first look at it"
_KILLED = dict.fromkeys(STREAMING | {"STARTING"}, TOLD) | dict.fromkeys(QUEUED, RIGHT)
_HUNG = {"STARTING": TOLD, "READY, streams": RIGHT, "DRAINING": RIGHT, "STOPPING": RIGHT}

FAULTS = (
    Fault("server killed", kill_server, _WITH_ENGINE, _NO_ENGINE, _KILLED),
    Fault("core killed", kill_core, _WITH_ENGINE, _NO_ENGINE, _KILLED),
    Fault("all killed", kill_everyone, _WITH_ENGINE - {"STARTING"}, _NO_ENGINE | {"STARTING": _NOT_SEEN}, _KILLED),
    Fault("no memory", run_out_of_memory, _WITH_ENGINE, _NO_ENGINE, _KILLED),
    Fault("frozen", freeze, _WITH_ENGINE, _NO_ENGINE, _KILLED),
    Fault("health hangs", hang_health, _WITH_ENGINE - _ASLEEP, _FROZEN, _HUNG, HANGS),
    Fault("daemon killed", kill_daemon, _ALL, {}, dict.fromkeys(_ALL, CUT)),
    Fault("client gone", leave, _WITH_CLIENTS, _NO_CLIENT, dict.fromkeys(_ALL, RIGHT)),
    Fault("disk full", fill_disk, _ALL - ON_CARD, _HAS_DISK, dict.fromkeys(STREAMING, RIGHT)),
)


def _struck(case: Case, has_hit: bool) -> None:
    """A cell whose blow went astray has tested nothing."""
    case.checks.that(has_hit, "the fault was made")


async def _ask_headless(case: Case) -> None:
    """An API server whose core is gone answers with errors for a second, and one that was killed may be gone before
    the daemon knows: who asks then may be told so."""
    if case.state in {"READY, idle", "SUSPENDED"}:
        question = case.world.models[case.model].asked("is-anybody-there")
        outcome = await case.world.ask(question).outcome()
        case.world.judge(case.checks, question, outcome)
        case.checks.that(outcome.kind in EITHER, "clients in flight get what is due", f"{question}: {outcome}")


async def _end_of_hang(case: Case) -> None:
    """Whoever is patient sees the health checks find it; else somebody unloads it by force."""
    if not case.is_patient:
        await case.world.stop_model(case.model, force=True)
        return
    before = case.held.victim.leader if case.held.victim is not None else 0

    async def is_found() -> bool:
        shown = await case.world.worker(case.model)
        return shown is None or shown.pid != before

    case.checks.that(await until(is_found, PATIENCE_S), "health checks find a hung engine")
