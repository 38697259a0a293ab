"""What to load again after a start (floor 1): from what was loaded when the daemon ended, with what is left of each
keep-alive.

A restart (an upgrade, a crash, a reboot) should be a pause for clients, not minutes of loading at their first request
afterwards. What nobody would have found loaded any more is not loaded again.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

MOST_TRIES = 2
"""Starts that may load a model again without it getting ready. A model whose load takes the daemon along (the machine
has no memory left, the driver hangs) would end every start; the second try is for a daemon that was killed by chance
while it loaded."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is loaded, or is to be loaded again. Instants are wall time: they outlive the machine's start."""

    name: str
    """The ModelRef as it was typed."""
    keep_alive_s: float
    """``math.inf``: for ever."""
    used_time: float
    """When its last request ended; now, while it has some."""
    expire_time: float | None
    """When it leaves; ``math.inf``: never (a pinned one too), None: not known, because it is in use."""
    tries: int = 0
    """How many starts have begun to load it again since it was ready last."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Load this model again. ``left_s`` is how long it may stay idle at first, counted from when it is ready, unless
    somebody uses it; from its first request on ``keep_alive_s`` holds as ever.

    Both are here because neither says the other: with only what is left, a model with five minutes would have seconds
    after every later request; with only the whole, daemons that are restarted often would keep what nobody uses.
    """

    name: str
    keep_alive_s: float
    left_s: float


def to_restore(models: Iterable[LoadedModel], now: float) -> list[Restore]:
    """What to load again at the wall time ``now``, the one that was used last first; so whoever has room for some only
    takes the first ones. What is in use when the daemon ends has its whole keep-alive."""
    wanted: list[Restore] = []
    for model in sorted(models, key=lambda each: -each.used_time):
        left_s = math.inf if model.expire_time is None else model.expire_time - now
        # What is in use has the whole, and nothing has more: the clock may have been set back meanwhile.
        left_s = min(model.keep_alive_s, left_s)
        if left_s > 0 and model.tries < MOST_TRIES:
            wanted.append(Restore(model.name, model.keep_alive_s, left_s))
    return wanted


def as_tried(models: Iterable[LoadedModel], now: float) -> list[LoadedModel]:
    """The same models as they are to be recorded before the first of them is loaded again: tried once more. What is not
    to be restored is left out. Keep each until it is ready (then record it as any that is loaded) or has failed."""
    models = list(models)
    names = {each.name for each in to_restore(models, now)}
    return [replace(model, tries=model.tries + 1) for model in models if model.name in names]


def is_valid(model: LoadedModel) -> bool:
    """False for what nobody can have recorded: instants and spans that are no numbers, or negative."""
    numbers = (model.keep_alive_s, model.used_time, model.expire_time or 0.0, model.tries)
    return bool(model.name) and not any(math.isnan(each) or each < 0 for each in numbers)
