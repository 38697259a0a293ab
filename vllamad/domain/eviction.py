"""Who may be asked to leave, and what that costs (floor 1).

The cost of a worker is what it takes to come back, times how likely that is wanted soon: who has been idle for t
seconds is wanted about once in t seconds, or once in its usual gap where that is longer (a moment after its request a
rarely used model is not hot). So the unit is seconds of loading per second; costs of several add up, which weighs one
large victim against many small ones. Freshly loaded ones are *protected*, or two models that want one place would do
nothing but load; but, once they have served who waits for them, not against someone who has waited for longer than the
protection lasts.
"""

from collections.abc import Collection, Iterable

from vllamad.domain.worker import Held, State
from vllamad.domain.workload import Limits, Worker

SOONEST_S = 1.0
"""Who is wanted more often than this counts as wanted once a second: that is busy, whatever its leases say now."""

_ENDING = frozenset({State.STOPPING, State.KILLING, State.RELEASING})


def protection_s(worker: Worker, limits: Limits) -> float:
    """How long it stays after it became ready."""
    return limits.hysteresis * worker.load_cost_s


def protected_for(worker: Worker, is_waited_for: bool, waited_s: float, limits: Limits, now: float) -> float:
    """Seconds until it may be asked to leave for somebody who has waited so long by now; 0: at once. One that is itself
    waited for has its turn first: else two who have both waited long would take the place from each other for ever,
    and neither be served."""
    lasts_s = protection_s(worker, limits)
    left_s = max(0.0, worker.ready_since + lasts_s - now)
    return left_s if is_waited_for else min(left_s, max(0.0, lasts_s - waited_s))


def cost_of(worker: Worker, is_waited_for: bool, now: float) -> float:
    """What it costs to evict an idle worker."""
    idle_s = 0.0 if is_waited_for else max(now - worker.idle_since, worker.gap_s)
    return worker.load_cost_s / max(SOONEST_S, idle_s)


def idle_costs(
    workers: Iterable[Worker], waited_for: Collection[str], waited_s: float, limits: Limits, now: float
) -> dict[str, float]:
    """By holder: those that can go at once, or go already. ``waited_for`` are keys that somebody waits for; the one who
    asks has waited ``waited_s``."""
    costs: dict[str, float] = {}
    for worker in workers:
        is_waited_for = worker.key in waited_for
        if worker.is_leaving:
            # Taken back, one that drains goes on serving; one whose engine ends would have to load again all the same.
            is_saved = is_waited_for and worker.state not in _ENDING
            costs[worker.holder] = worker.load_cost_s if is_saved else 0.0
        elif _is_crashed_for_nobody(worker, is_waited_for):
            costs[worker.holder] = 0.0
        elif worker.is_pinned or protected_for(worker, is_waited_for, waited_s, limits, now) > 0:
            continue
        elif worker.is_asleep or (worker.takes_requests and worker.leases == 0):
            costs[worker.holder] = cost_of(worker, is_waited_for, now)
    return costs


def lasting_costs(
    workers: Iterable[Worker], waited_for: Collection[str], waited_s: float, limits: Limits, now: float
) -> dict[str, float]:
    """The same, with busy ones: those that can be kept from new requests until they are idle. These costs do not
    change while a worker serves, so the same ones are chosen every time until they have all fallen idle: with costs
    that move, the choice could move for ever."""
    costs: dict[str, float] = {}
    for worker in workers:
        is_waited_for = worker.key in waited_for
        if worker.is_leaving or _is_crashed_for_nobody(worker, is_waited_for):
            costs[worker.holder] = 0.0
        elif worker.is_pinned or protected_for(worker, is_waited_for, waited_s, limits, now) > 0:
            continue
        elif worker.is_asleep or worker.takes_requests:
            costs[worker.holder] = worker.load_cost_s
    return costs


def _is_crashed_for_nobody(worker: Worker, is_waited_for: bool) -> bool:
    is_crashed = worker.state is State.BACKOFF and worker.held is not Held.LEAKED
    return is_crashed and not is_waited_for and not worker.is_pinned
