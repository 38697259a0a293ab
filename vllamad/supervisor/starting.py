"""What makes starts shorter (floor 3): weights that are in memory before the engine asks for them, a choice of loaders,
and a first request that is nobody's."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vllamad.domain.loaders import Loader, choose
from vllamad.domain.ports import LoadTimes, PageCache
from vllamad.host.logs import event

log = logging.getLogger("vllamad.worker")


class WarmUp(StrEnum):
    """When an engine that was started does for the first time what it does slowly for the first time."""

    BEFORE_READY = "before-ready"
    AFTER_READY = "after-ready"
    OFF = "off"


class Loaders:
    """What was seen of loaders, by model, and which to take next. ``times`` is asked once and told what is new."""

    def __init__(self, times: LoadTimes | None = None) -> None:
        self._times = times
        self._seen: dict[str, dict[str, float | None]] = {}
        self._is_news = False

    async def recall(self) -> None:
        """Read what was seen before this daemon started. Until then every loader is new."""
        if self._times is not None:
            self._seen = await asyncio.to_thread(self._times.load)

    def choose(self, key: str, loaders: Sequence[Loader]) -> Loader:
        """The loader for the model with this key: see ``domain.loaders.choose``."""
        return choose(loaders, self._seen.get(key, {}))

    def took(self, key: str, loader: Loader, seconds: float) -> None:
        """Weights were read in so much time."""
        self._note(key, loader, seconds)

    def failed(self, key: str, loader: Loader) -> None:
        """An engine did not start with it: this model is not loaded so again, until something of it is replaced."""
        self._note(key, loader, None)

    async def keep(self) -> None:
        """Write what is new, if there is anything."""
        if self._times is not None and self._is_news:
            self._is_news = False
            await asyncio.to_thread(self._times.record, {key: dict(seen) for key, seen in self._seen.items()})

    def _note(self, key: str, loader: Loader, seconds: float | None) -> None:
        # The newest last: the oldest are forgotten first.
        seen = self._seen.pop(key, {})
        self._seen[key] = seen | {loader.key: seconds}
        self._is_news = True
        event(log, logging.DEBUG, "worker.loader", loader=loader.key, s=seconds)


@dataclass(slots=True)
class Starting:
    """How engines are started from now on: a reload puts other values here. Without ``page_cache`` weights are not
    fetched beforehand."""

    page_cache: PageCache | None = None
    warm_up: WarmUp = WarmUp.OFF
    loaders: Loaders = field(default_factory=Loaders)
