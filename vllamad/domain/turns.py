"""Whose turn it is (floor 1): the order of models, of requests within a model, and who is one too many.

Three fairnesses, each against one flood. Between *priorities*: a level is worth some seconds of waiting, so that a low
one gets there. Between *models*: the oldest request first; but one that waits for a model without a worker goes, after
a while, before those whose models are being served, or a long queue would keep its place for as long as it is long. A
model for which another was stopped goes first: the other's older requests would else have that one loaded again.
Between *callers* of a model: round-robin, the one who was served longest ago first. A caller who comes new counts as
served when it came, so that a stream of new ones does not starve those who are there.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from vllama.reasons import ROWS, Reason
from vllamad.domain.workload import Limits, Refuse, Waiter, Wanted

MAX_RETRY_AFTER_S = 60
"""Longer than a minute no client should be sent away: places in the queue come free all the time."""


def head_start(waiter: Waiter, limits: Limits) -> tuple[float, int]:
    """When it came, as it were: each level of priority moves it forward. It does not change while it waits, so nobody
    is overtaken for ever."""
    return waiter.since - waiter.priority * limits.aging_s, waiter.number


def order_models(
    queues: Mapping[str, Sequence[Waiter]],
    served: Collection[str],
    room_made_for: Collection[str],
    limits: Limits,
    now: float,
) -> list[str]:
    """The keys in the order in which they are looked at. ``served`` are those whose workers take requests: what waits
    for one of them counts as having waited for ``turn_s`` at most. Those that others were stopped for go first."""

    latest = now - limits.turn_s

    def rank(key: str) -> tuple[bool, float, bool, int]:
        is_later = key not in room_made_for
        start, number = min(head_start(waiter, limits) for waiter in queues[key])
        if key not in served:
            return is_later, start, False, number
        capped = min(max(waiter.since, latest) - waiter.priority * limits.aging_s for waiter in queues[key])
        return is_later, capped, any(waiter.since <= latest for waiter in queues[key]), number

    return sorted(queues, key=rank)


def turn_comes_at(queue: Iterable[Waiter], top: int, limits: Limits) -> float:
    """When a model that waits for a worker goes before every served one with requests of priority ``top``."""
    return min(head_start(waiter, limits)[0] for waiter in queue) + limits.turn_s + top * limits.aging_s


def order_requests(
    queue: Iterable[Waiter], served_at: Mapping[tuple[str, str], float], limits: Limits, now: float
) -> list[Waiter]:
    """A model's requests in the order in which they are granted."""
    queue = sorted(queue, key=lambda waiter: waiter.number)
    top = max((waiter.priority for waiter in queue), default=0)
    places: dict[tuple[int, str], int] = {}
    ranked: list[tuple[tuple[int, int, float, int], Waiter]] = []
    for waiter in queue:
        # Age lifts a request up to the highest that waits, not beyond: old ones of a flood stay among their equals.
        aged = min(top, waiter.priority + max(0, int((now - waiter.since) / limits.aging_s)))
        place = places.get((aged, waiter.caller), 0)
        places[aged, waiter.caller] = place + 1
        last = max(waiter.since, served_at.get((waiter.key, waiter.caller), waiter.since))
        ranked.append(((-aged, place, last, waiter.number), waiter))
    ranked.sort(key=lambda pair: pair[0])
    return [waiter for _rank, waiter in ranked]


def one_too_many(left: Iterable[Waiter], models: Mapping[str, Wanted], limits: Limits) -> list[Refuse]:
    """Refusals for what does not fit into the queues. A model's own bound hits its newest; the bound of all hits the
    longest queue (its longest caller, the newest of that), so that a flood is turned away and not who comes after it.
    Lower priorities go first."""
    queues: dict[str, list[Waiter]] = {}
    for waiter in sorted(left, key=lambda waiter: (-waiter.priority, waiter.number)):
        queues.setdefault(waiter.key, []).append(waiter)
    refusals: list[Refuse] = []
    for key, queue in queues.items():
        while limits.queue_per_model and len(queue) > limits.queue_per_model:
            why = f"{limits.queue_per_model} requests wait for {models[key].name} already"
            refusals.append(_full(_of_longest_caller(queue), models[key], why))
    total = sum(len(queue) for queue in queues.values())
    while total > limits.queue:
        total -= 1
        lowest = min(queue[-1].priority for queue in queues.values() if queue)
        queue = max(
            (queue for queue in queues.values() if queue and queue[-1].priority == lowest),
            key=lambda queue: (len(queue), queue[-1].number),
        )
        key = queue[-1].key
        why = f"{limits.queue} requests wait already, {len(queue)} of them for {models[key].name}"
        refusals.append(_full(_of_longest_caller(queue), models[key], why))
    return refusals


def _of_longest_caller(queue: list[Waiter]) -> Waiter:
    """Take the newest of the caller who has most, among those of the lowest priority."""
    lowest = [waiter for waiter in queue if waiter.priority == queue[-1].priority]
    counts: dict[str, int] = {}
    for waiter in lowest:
        counts[waiter.caller] = counts.get(waiter.caller, 0) + 1
    chosen = max(lowest, key=lambda waiter: (counts[waiter.caller], waiter.number))
    queue.remove(chosen)
    return chosen


def _full(waiter: Waiter, model: Wanted, why: str) -> Refuse:
    usual = ROWS[Reason.QUEUE_FULL].retry_after_s or 1
    after = min(MAX_RETRY_AFTER_S, max(usual, round(model.load_cost_s)))
    return Refuse(waiter.number, Reason.QUEUE_FULL, f"server busy: {why}", after)


def without_expired(
    waiting: Iterable[Waiter], models: Mapping[str, Wanted], now: float
) -> tuple[list[Waiter], list[Refuse]]:
    """Who still has time, and refusals for the others."""
    left: list[Waiter] = []
    refusals: list[Refuse] = []
    for waiter in waiting:
        if now < waiter.deadline:
            left.append(waiter)
        else:
            why = f"cannot serve {models[waiter.key].name}: it was not ready within {now - waiter.since:.0f} s"
            refusals.append(Refuse(waiter.number, Reason.DEADLINE_EXCEEDED, why))
    return left, refusals
