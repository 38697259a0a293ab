"""The simpler rules that the planner is compared with; they see and decide what it does."""

from collections.abc import Mapping
from dataclasses import replace

from vllama.reasons import Reason
from vllamad.domain.budget import Ledger
from vllamad.domain.placement import Demand, Need, Placement, place
from vllamad.domain.workload import Decision, Grant, Plan, Refuse, Start, Stop, Waiter, Wanted, Workload


def least_recently_used(load: Workload, now: float) -> Plan:
    """What most servers do: first come, first served; evict whoever was idle longest until the first one fits."""
    return _simple(load, now, load.models)


def one_per_gpu(load: Workload, now: float) -> Plan:
    """The same, but every model takes its devices whole."""
    whole = load.ledger.budget(0)
    models = {
        key: replace(model, demand=Demand((Need(_size(model.demand, whole), whole),)))
        for key, model in load.models.items()
    }
    return _simple(load, now, models)


def _size(demand: Demand, whole: int) -> int:
    return next(need.size for need in demand.needs if demand.least_bytes(need) <= whole)


def _simple(load: Workload, now: float, models: Mapping[str, Wanted]) -> Plan:
    decisions: list[Decision] = []
    ledger, busy = load.ledger, set[str]()
    is_blocked = False
    queues: dict[str, list[Waiter]] = {}
    for waiter in sorted(load.waiting, key=lambda waiter: waiter.number):
        if now >= waiter.deadline:
            decisions.append(Refuse(waiter.number, Reason.DEADLINE_EXCEEDED, "out of time"))
        else:
            queues.setdefault(waiter.key, []).append(waiter)
    for key, queue in queues.items():
        if key in load.workers and load.workers[key].takes_requests:
            decisions += [Grant(waiter.number, key) for waiter in queue]
            busy.add(key)
    for key in queues:
        if is_blocked or key in load.workers:
            continue
        demand = models[key].demand
        found = place(demand, ledger)
        if isinstance(found, Placement):
            after = ledger.reserve(key, found.bytes_on)
            assert isinstance(after, Ledger)
            ledger = after
            decisions.append(Start(key, key, found, ""))
            continue
        is_blocked = True  # who is first in line is served first
        leaving = {one.holder for one in load.workers.values() if one.is_leaving}
        idle = [one for one in load.workers.values() if one.takes_requests and not one.leases and one.key not in busy]
        for victim in sorted(idle, key=lambda one: one.idle_since):
            then = place(demand, ledger.without(leaving))
            if isinstance(then, Placement) or then.then is not None:
                break
            leaving.add(victim.holder)
            decisions.append(Stop(victim.holder, ""))
    return Plan(tuple(decisions), min((waiter.deadline for waiter in load.waiting), default=None))
