"""Going on with the workers of a daemon that was here before us in the same process (floor 3).

Each is looked at before anybody gets a lease on it. One that nobody would load like this any more, or whose engine does
not answer, is ended; what was loaded is loaded again then as after any start.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import HandedWorker
from vllamad.domain.model import Model
from vllamad.domain.workload import Wanted
from vllamad.gate.gate import Gate, ModelRules
from vllamad.host.logs import event
from vllamad.models.catalog import Catalog
from vllamad.models.sizing import Sizing
from vllamad.supervisor.supervisor import Supervisor

log = logging.getLogger("vllamad.taking_over")


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What became of what was handed over: names of models that go on, and how many workers had to be ended."""

    models: frozenset[str]
    ended: int


class TakingOver:
    """``rules_for`` is what the configuration says about a model."""

    def __init__(
        self,
        handed: Sequence[HandedWorker],
        catalog: Catalog,
        gate: Gate,
        supervisor: Supervisor,
        sizing: Sizing,
        rules_for: Callable[[Model], ModelRules],
    ) -> None:
        self._handed = handed
        self._catalog = catalog
        self._gate = gate
        self._supervisor = supervisor
        self._sizing = sizing
        self._rules_for = rules_for
        self._tries: list[asyncio.Task[str]] | None = None
        self._is_given_up = False

    async def take_over(self) -> TakenOver:
        """Go on with every worker that can be. Call it when devices are known, and before the gate opens; after
        ``give_up`` there is nothing to go on with."""
        if self._is_given_up:
            return TakenOver(frozenset(), 0)
        self._tries = [asyncio.ensure_future(self._try(one)) for one in self._handed]
        kept = await asyncio.gather(*self._tries)
        names = frozenset(name for name in kept if name)
        return TakenOver(names, sum(not name for name in kept))

    async def give_up(self) -> None:
        """The daemon stops: end every engine that nobody has gone on with. When this returns, whatever there still is
        belongs to the supervisor, which ends it."""
        self._is_given_up = True
        if self._tries is None:
            await asyncio.gather(*(self._supervisor.put_down(one) for one in self._handed))
        else:
            await asyncio.gather(*self._tries, return_exceptions=True)

    async def _try(self, handed: HandedWorker) -> str:
        """The name of its model; "" if it had to be ended."""
        try:
            model = self._model_of(handed)
        except VllamaError as error:
            await self._supervisor.put_down(handed)
            return self._ended(handed, error)
        wanted = await self._wanted(model)
        try:
            pinned = self._rules_for(model).is_pinned
            await self._supervisor.take_over(handed, model, wanted, is_pinned=pinned)
        except VllamaError as error:
            return self._ended(handed, error)
        if wanted is not None:
            self._gate.know(wanted)
        return model.name

    async def _wanted(self, model: Model) -> Wanted | None:
        """What it needs; None if that cannot be known now, which is no reason to end one that serves."""
        try:
            return await self._sizing.wanted(model)
        except VllamaError as error:
            event(log, logging.WARNING, "handover.unsized", model=model.name, why=error.message)
            return None

    def _model_of(self, handed: HandedWorker) -> Model:
        model = self._catalog.resolve(handed.model)
        if self._supervisor.key(model) != handed.key:
            raise VllamaError(Reason.CONFIG_INVALID, f"{model.name} is another one, or configured otherwise, now")
        return model

    def _ended(self, handed: HandedWorker, why: VllamaError) -> str:
        event(log, logging.WARNING, "handover.ended", worker=handed.name, model=handed.model, why=why.message)
        return ""
