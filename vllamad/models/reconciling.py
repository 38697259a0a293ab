"""What another configuration means for the models that are loaded (floor 3).

What happens to each is foreseen first, as a list that people read in a dry run too, and is then carried out as it
stands there. Models that are loaded as they would be loaded anew are not touched.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model
from vllamad.domain.worker import Goal
from vllamad.gate.gate import ModelRules
from vllamad.models.catalog import Catalog
from vllamad.models.loading import AT_REST
from vllamad.supervisor.supervisor import Supervisor
from vllamad.supervisor.worker import WorkerHandle


@dataclass(frozen=True, slots=True)
class Terms:
    """What a configuration says of models. ``identity`` tells what a model would be loaded as (``Engine.identity``),
    given the model as it was made; ``preload`` are names."""

    identity: Callable[[Model], str]
    rules: Callable[[Model], ModelRules]
    preload: Sequence[str]


class What(StrEnum):
    """What happens to a model."""

    LOADED_ANEW = "loaded anew"
    """Its worker leaves, and it is loaded with other settings."""
    NEXT_LOAD = "next load"
    """It serves on as it is; its next load is another one."""
    KEEP_ALIVE = "keep-alive"
    """It stays, for longer or shorter than before."""
    LOADED = "loaded"
    """It is wanted from the start, and is not there yet."""


@dataclass(frozen=True, slots=True)
class Consequence:
    """What happens to one model, and ``text`` in a sentence. ``holder`` is the worker that it happens to."""

    what: What
    model: str
    text: str
    holder: str = ""
    rules: ModelRules | None = None
    is_wanted: bool = False
    """It is loaded without being asked for."""


class Reconciling:
    """Joins the catalogue and the supervisor. ``load`` starts to load a model, by its name; the flag says whether
    others may have to leave for it."""

    def __init__(self, catalog: Catalog, supervisor: Supervisor, load: Callable[[str, bool], None]) -> None:
        self._catalog = catalog
        self._supervisor = supervisor
        self._load = load

    def foresee(self, now: Terms, then: Terms, *, is_outdated: bool) -> tuple[Consequence, ...]:
        """What happens when ``then`` takes the place of ``now``. ``is_outdated``: engines would be started with other
        settings than their models', which no identity tells."""
        served: dict[str, list[Model]] = {}
        for model in self._catalog.plain():
            served.setdefault(then.identity(model), []).append(model)
        preloaded = self._resolved(then.preload)
        handles = sorted(self._supervisor.handles(), key=lambda handle: handle.name)
        found: list[Consequence] = []
        for handle in handles:
            if handle.state in AT_REST or handle.record.goal is Goal.STOP:
                continue
            models = served.get(handle.key, [])
            if not models:
                is_wanted = then.rules(handle.model).is_pinned or handle.model.ref.key in preloaded
                found.append(_leaves(handle, is_wanted=is_wanted))
                continue
            # It may serve several, and the one that it was loaded for may be served otherwise from now on.
            model = next((one for one in models if one.ref.key == handle.model.ref.key), models[0])
            if is_outdated and not handle.is_outdated:
                text = f"{model.name} serves on as it was started; its next load goes by the new settings"
                found.append(Consequence(What.NEXT_LOAD, model.name, text, handle.holder))
            if kept := _kept(handle, model.name, now.rules(handle.model), then.rules(model)):
                found.append(kept)
        before = self._resolved(now.preload)
        loaded = {handle.model.ref.key for handle in handles if handle.record.will_serve}
        for key, name in preloaded.items():
            if key not in before and key not in loaded:
                text = f"{name} is loaded, if there is memory free for it"
                found.append(Consequence(What.LOADED, name, text, is_wanted=True))
        return tuple(found)

    def carry_out(self, consequences: Sequence[Consequence]) -> None:
        """Make it so, once the new configuration is in force. Synchronous: what takes time is only begun."""
        for one in consequences:
            handle = self._supervisor.get(one.holder) if one.holder else None
            match one.what:
                case What.LOADED_ANEW:
                    self._supervisor.decided(one.text)
                    self._supervisor.stop(one.holder)
                case What.NEXT_LOAD if handle is not None:
                    handle.outdate()
                case What.KEEP_ALIVE if handle is not None and one.rules is not None:
                    handle.configure(one.rules.idle_s, is_pinned=one.rules.is_pinned)
                case _:
                    pass
        # What was there before may take its own place again; what is new takes nobody's.
        for name, what in {one.model: one.what for one in consequences if one.is_wanted}.items():
            self._load(name, what is What.LOADED_ANEW)

    def _resolved(self, names: Sequence[str]) -> Mapping[str, str]:
        """Names by the keys of the models that they mean; one that means none stands for itself."""
        found: dict[str, str] = {}
        for name in names:
            try:
                model = self._catalog.resolve(name)
                found[model.ref.key] = model.name
            except VllamaError:
                found[name] = name  # who loads it says what is wrong with it
        return found


def _leaves(handle: WorkerHandle, *, is_wanted: bool) -> Consequence:
    name, leases = handle.model.name, handle.record.leases
    requests = f"{leases} request{'' if leases == 1 else 's'}"
    when = f"leaves when its {requests} {'has' if leases == 1 else 'have'} finished" if leases else "leaves now"
    again = "is loaded anew at once" if is_wanted else "is loaded anew with the next request"
    text = f"{name} is loaded with other settings: it {when}, and {again}"
    return Consequence(What.LOADED_ANEW, name, text, handle.holder, is_wanted=is_wanted)


def _kept(handle: WorkerHandle, name: str, now: ModelRules, then: ModelRules) -> Consequence | None:
    """What becomes of its keep-alive: a pin holds whatever was asked for, and what a request asked for wins over what
    is configured."""
    if then.is_pinned:
        text = "" if handle.is_pinned else f"{name} is pinned: it stays loaded"
    elif handle.is_pinned:
        text = f"{name} is not pinned any more: it {_stays(then.idle_s)}"
    elif now.idle_s != then.idle_s and handle.keep_alive_s == now.idle_s:
        text = f"{name} {_stays(then.idle_s)}"
    else:
        text = ""
    return Consequence(What.KEEP_ALIVE, name, text, handle.holder, then) if text else None


def _stays(idle_s: float) -> str:
    if math.isinf(idle_s):
        return "stays loaded while nobody asks for it"
    return f"leaves when nobody has asked for it for {idle_s:g} s from now"
