"""Who may be loaded where, and who is served (floor 1): a workload in, decisions out, each with its sentence.

``plan`` is a pure function of what is true now, asked again whenever something changed (and when ``look_again_at`` has
come); it keeps nothing, but tells its next look for whom it has made room. Models are looked at in turn (``turns``).
One whose workers are ready gets requests granted, each to the worker with the fewest. One that needs a place takes a
free one (``placement``); else it *claims* a place: of workers that leave anyway, else of idle ones, which are stopped,
else of busy ones, which get no new requests until all of the claimed are idle. What is claimed is promised in the
round's ledger, so no younger model gets it. A busy, pinned or protected worker is never stopped.

That nobody starves rests on four things: the order does not change while one waits, protection ends for who has
waited as long as it lasts, the same busy workers are chosen each time until they are idle, and what was stopped for a
model is not started again before that model has its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vllama.reasons import Reason
from vllamad.domain.budget import HOST_KIND, Ledger, Refused, gib
from vllamad.domain.eviction import idle_costs, lasting_costs, protected_for
from vllamad.domain.placement import Demand, Lack, Need, NoPlace, Placement, place
from vllamad.domain.turns import one_too_many, order_models, order_requests, turn_comes_at, without_expired
from vllamad.domain.worker import Goal, Held, State
from vllamad.domain.workload import (
    Decision,
    Grant,
    Plan,
    Refuse,
    Start,
    Stop,
    Wait,
    Waiter,
    Wanted,
    Worker,
    Workload,
)

RETRY_AFTER_S = 60
"""For what others' memory, a leak or a pinned model keeps out: that may pass, but not at once."""

_GOING_UP = frozenset({State.STARTING, State.RESUMING, State.BACKOFF})


def plan(load: Workload, now: float) -> Plan:
    """Decide what to do now. Who is neither granted nor refused waits on; its model's ``Wait`` says why, unless its
    ``Start`` or a ``Stop`` for it does."""
    return _Round(load, now).run()


class _Round:
    """One look. ``ledger`` is what will be true if the decisions so far are carried out, promises included."""

    def __init__(self, load: Workload, now: float) -> None:
        self._load = load
        self._limits = load.limits
        self._now = now
        self._workers = {holder: worker for holder, worker in load.workers.items() if worker.is_here}
        self._of: dict[str, list[Worker]] = {}
        for worker in sorted(self._workers.values(), key=lambda worker: worker.holder):
            self._of.setdefault(worker.key, []).append(worker)
        self._stays = {one.holder for one in self._workers.values() if one.is_pinned and not one.is_leaving}
        self._top = max((waiter.priority for waiter in load.waiting), default=0)
        self._ledger: Ledger = load.ledger
        self._claimed: set[str] = set()
        """Holders whose place an older model counts on."""
        self._kept: set[str] = set()
        """Holders that were on their way out and are taken back."""
        self._room_made_for = set(load.room_made_for)
        self._queues: dict[str, list[Waiter]] = {}
        self._decisions: list[Decision] = []
        self._times: list[float] = []

    def run(self) -> Plan:
        waiting, expired = without_expired(self._load.waiting, self._load.models, self._now)
        self._decisions += expired
        for waiter in waiting:
            self._queues.setdefault(waiter.key, []).append(waiter)
            self._times.append(waiter.deadline)
        served = {one.key for one in self._workers.values() if one.takes_requests}
        for key in order_models(self._queues, served, self._load.room_made_for, self._limits, self._now):
            self._queues[key] = self._grant(key, self._queues[key])
            if self._queues[key]:
                self._serve(self._load.models[key], self._queues[key])
        for key in sorted(self._of):
            self._replicate(key)
        turned_away = {each.number for each in self._decisions if isinstance(each, Refuse)}
        left = [one for queue in self._queues.values() for one in queue if one.number not in turned_away]
        self._decisions += one_too_many(left, self._load.models, self._limits)
        later = [at for at in self._times if at > self._now]
        waited_for = {waiter.key for waiter in left}
        return Plan(tuple(self._decisions), min(later, default=None), frozenset(self._room_made_for & waited_for))

    # --- a model's turn ------------------------------------------------------------------------------------------

    def _grant(self, key: str, queue: list[Waiter]) -> list[Waiter]:
        """Grant what can be granted; return who is left, in order."""
        queue = order_requests(queue, self._load.served_at, self._limits, self._now)
        ready = [one.holder for one in self._of.get(key, []) if one.takes_requests and one.holder not in self._claimed]
        for position, waiter in enumerate(queue):
            open_ = [holder for holder in ready if self._has_room(self._workers[holder])]
            if not open_:
                return queue[position:]
            holder = min(open_, key=lambda holder: (self._workers[holder].leases, holder))
            self._workers[holder] = replace(self._workers[holder], leases=self._workers[holder].leases + 1)
            self._decisions.append(Grant(waiter.number, holder))
        return []

    def _has_room(self, worker: Worker) -> bool:
        return self._limits.parallel == 0 or worker.leases < self._limits.parallel

    def _serve(self, model: Wanted, queue: Sequence[Waiter]) -> None:
        """Nobody more can be granted this model: find out why, and change it if that can be."""
        mine = [self._workers[one.holder] for one in self._of.get(model.key, [])]
        leaked = [one for one in mine if one.held is Held.LEAKED]
        back = [one for one in mine if one.goal is not Goal.RUN and one.state is not State.SUSPENDED]
        back = [one for one in back if one.held is not Held.LEAKED and one.holder not in self._claimed]
        asleep = [one for one in mine if one.is_asleep and one.holder not in self._claimed]
        if any(one.holder in self._claimed for one in mine):
            self._wait(model, "its place goes to who has waited longer")
        elif any(one.state in _GOING_UP and one.goal is Goal.RUN for one in mine):
            self._wait(model, "it is on its way up")
        elif any(one.takes_requests for one in mine):
            self._wait(model, f"each of its {len(mine)} worker(s) has {self._limits.parallel} requests")
        elif any(one.is_suspect for one in mine):
            self._wait(model, "its worker failed a request and is being asked whether it lives")
        elif back:
            self._kept.add(back[0].holder)
            why = f"start {model.name} again: {len(queue)} waiting while it is on its way out"
            self._decisions.append(Start(model.key, back[0].holder, None, why))
        elif asleep:
            self._find_place(model, queue, asleep[0].holder, self._waking(asleep[0].holder), is_new=False)
        elif any(one not in leaked for one in mine):
            self._wait(model, "it starts again when its last engine has ended")
        elif leaked:
            text = "processes of its last engine do not end, and their memory is not free"
            self._refuse(model, queue, text)
        else:
            self._find_place(model, queue, self._new_holder(model), model.demand, is_new=True)

    def _waking(self, holder: str) -> Demand:
        """What a sleeper needs to wake: the rest of its own place, on its own devices."""
        mine = self._ledger.reservations[holder]
        places = [index for index in mine.full_on if self._ledger.devices[index].kind != HOST_KIND]
        more = max(mine.full_on[index] - mine.small_on.get(index, 0) for index in places)
        return Demand((Need(len(places), max(0, more)),), pinned=tuple(sorted(places)))

    # --- a place -------------------------------------------------------------------------------------------------

    def _find_place(self, model: Wanted, queue: Sequence[Waiter], holder: str, demand: Demand, *, is_new: bool) -> None:
        found = place(demand, self._ledger, stays=self._stays)
        if isinstance(found, NoPlace) and found.lack is Lack.NEVER and not is_new:
            # It fits nowhere but where it sleeps; once it is gone, it may be placed anew.
            why = f"stop {model.name}, which cannot wake where it is: {found.numbers}"
            self._decisions.append(Stop(holder, why, may_sleep=False))
            return
        if isinstance(found, NoPlace) and found.lack is Lack.NEVER:
            if isinstance(place(demand, self._ledger.if_empty()), NoPlace):
                self._refuse(model, queue, f"it can never fit: {found.numbers}")
            else:
                self._refuse(model, queue, f"it does not fit as things are: {found.numbers}", RETRY_AFTER_S)
            return
        if is_new and self._is_full_for_ever():
            self._refuse(model, queue, f"all of {self._limits.max_loaded} models are pinned or stuck")
            return
        over = self._over(self._ledger, is_new)
        if isinstance(found, Placement) and over <= 0:
            self._start(model, len(queue), holder, found, is_new=is_new)
            return
        if not any(waiter.may_evict for waiter in queue):
            if isinstance(found, NoPlace) and found.lack is Lack.LOADING:
                self._wait(model, found.numbers)
            else:
                numbers = found.numbers if isinstance(found, NoPlace) else self._too_many()
                self._refuse(model, queue, f"there is no room for it as things are: {numbers}", RETRY_AFTER_S)
            return
        waited_s = self._now - min(waiter.since for waiter in queue)
        others = [
            one
            for one in self._workers.values()
            if one.key != model.key and one.holder not in self._claimed | self._kept
        ]
        # A model that this round has granted everything is not waited for any more: its worker is busy, or it was.
        keys = {key for key, waiting in self._queues.items() if waiting}
        asking = (others, keys, waited_s, self._limits, self._now)
        if self._claim(model, demand, idle_costs(*asking), is_new) or self._claim(
            model, demand, lasting_costs(*asking), is_new
        ):
            return
        shy = [
            (protected_for(one, one.key in keys, waited_s, self._limits, self._now), one)
            for one in others
            if not one.is_pinned
        ]
        self._times += [self._now + seconds for seconds, _one in shy if seconds > 0]
        kept = [f"{one.model} stays for {seconds:.0f} s more" for seconds, one in sorted(shy, key=_soonest) if seconds]
        numbers = found.numbers if isinstance(found, NoPlace) else self._too_many()
        self._wait(model, "; ".join([numbers, *kept[:3]]))

    def _claim(self, model: Wanted, demand: Demand, costs: Mapping[str, float], is_new: bool) -> bool:
        """Promise the model a place that comes free when some of these have left; False if there is none."""
        base = self._ledger.without(self._claimed)
        found = place(demand, base, costs, self._stays)
        then = found if isinstance(found, Placement) else found.then
        if then is None:
            return False
        leavers = list(found.would_fit_after) if isinstance(found, NoPlace) else []
        numbers = found.numbers if isinstance(found, NoPlace) else ""
        more = self._over(base.without(leavers), is_new)
        if more > 0:
            rest = sorted((name for name in costs if name not in leavers), key=lambda name: (costs[name], name))
            if len(rest) < more:
                return False
            leavers += rest[:more]
            numbers = numbers or self._too_many()
        may_sleep = self._over(base, is_new) <= 0  # asleep they count as loaded
        self._claimed.update(leavers)
        self._ledger = self._ledger.promise(f"promised to {model.key}", then.bytes_on)
        self._ask_to_leave(model, [self._workers[name] for name in leavers], numbers, may_sleep=may_sleep)
        return True

    def _ask_to_leave(self, model: Wanted, leavers: Sequence[Worker], numbers: str, *, may_sleep: bool) -> None:
        staying = [one for one in leavers if not one.is_leaving]
        busy = [one for one in staying if one.leases]
        if busy:
            # None is stopped before all can be: an idle one that is loaded may still be saved if the claim is dropped.
            names = ", ".join(f"{one.model} ({one.leases} requests)" for one in busy)
            self._wait(model, f"{numbers}; waits for {names} to finish")
        elif staying:
            self._room_made_for.add(model.key)
            for one in staying:
                idle_s = max(0.0, self._now - one.idle_since)
                state = f"idle {idle_s:.0f} s, {one.load_cost_s:.0f} s to come back"
                why = f"evict {one.model} ({state}) to fit {model.name}: {numbers}"
                self._decisions.append(Stop(one.holder, why, may_sleep))
        elif leavers:
            self._wait(model, f"{numbers}; waits for {', '.join(one.model for one in leavers)} to be gone")
        else:
            self._wait(model, numbers or "waits for those to be gone whose place it gets")

    def _start(self, model: Wanted, waiting: int, holder: str, found: Placement, *, is_new: bool) -> None:
        names = ", ".join(self._ledger.devices[index].name for index in found.devices)
        free = ", ".join(gib(self._ledger.free(index)) for index in found.devices)
        each = " each" if len(found.devices) > 1 else ""
        if is_new:
            after = self._ledger.reserve(holder, found.bytes_on)
            cache = f" with cache for {found.tokens} tokens" if found.cache_bytes else ""
            what = f"start {holder} on {names}{cache}: {waiting} waiting, takes {gib(found.device_bytes)}{each}"
        else:
            after = self._ledger.grow(holder)
            what = f"wake {model.name} on {names}: {waiting} waiting, takes {gib(found.device_bytes)}{each} more"
        if isinstance(after, Refused):
            self._wait(model, after.why)
            return
        self._ledger = after
        self._room_made_for.discard(model.key)
        self._decisions.append(Start(model.key, holder, found if is_new else None, f"{what} of {free} free"))

    def _replicate(self, key: str) -> None:
        """Start another worker for a model whose workers are all crowded. Into free memory only: nobody is evicted for
        it, since a miss of another model costs more than company here."""
        model = self._load.models.get(key)
        if model is None or len(self._of[key]) >= model.replicas:
            return
        mine = [self._workers[one.holder] for one in self._of[key]]
        bound = self._limits.parallel or self._limits.crowd
        is_crowded = all(one.takes_requests and one.leases >= bound for one in mine)
        if not is_crowded or any(one.holder in self._claimed for one in mine):
            return
        found = place(model.demand, self._ledger, stays=self._stays)
        if isinstance(found, Placement) and self._over(self._ledger, is_new=True) <= 0:
            self._start(model, len(self._queues.get(key, [])), self._new_holder(model), found, is_new=True)

    # --- counting and saying -------------------------------------------------------------------------------------

    def _over(self, ledger: Ledger, is_new: bool) -> int:
        """How many must leave before one more may be loaded, where their number is bounded."""
        return len(ledger.reservations) + is_new - self._limits.max_loaded if self._limits.max_loaded else 0

    def _is_full_for_ever(self) -> bool:
        leaked = {one.holder for one in self._ledger.reservations.values() if one.held is Held.LEAKED}
        return 0 < self._limits.max_loaded <= len(leaked | self._stays)

    def _too_many(self) -> str:
        return f"{len(self._load.ledger.reservations)} of {self._limits.max_loaded} models are loaded"

    def _new_holder(self, model: Wanted) -> str:
        """By the model's name, since people read it. One that was replaced on disk may still hold its own."""
        taken = self._ledger.reservations.keys() | self._workers.keys()
        names = (model.name if number == 1 else f"{model.name}#{number}" for number in range(1, len(taken) + 2))
        return next(name for name in names if name not in taken)

    def _refuse(self, model: Wanted, queue: Sequence[Waiter], text: str, retry_after_s: int = 0) -> None:
        why = f"cannot load {model.name}: {text}"
        self._decisions += [Refuse(waiter.number, Reason.WONT_FIT, why, retry_after_s) for waiter in queue]

    def _wait(self, model: Wanted, text: str) -> None:
        queue = self._queues[model.key]
        oldest_s = self._now - min(waiter.since for waiter in queue)
        # Its turn may come by time alone: see ``Limits.turn_s``.
        self._times.append(turn_comes_at(queue, self._top, self._limits))
        self._decisions.append(Wait(model.key, f"{model.name} waits ({len(queue)}, {oldest_s:.0f} s): {text}"))


def _soonest(pair: tuple[float, Worker]) -> tuple[float, str]:
    return pair[0], pair[1].holder
