"""Loading again after a start what was loaded when the daemon ended (floor 3).

What is loaded is written down while the daemon runs, not when it ends: it may be killed. The rules are in
``domain/restore.py``.
"""

import asyncio
import logging
import math
from collections.abc import Collection

from vllamad.domain.errors import VllamaError
from vllamad.domain.operation import OperationKind, Progress
from vllamad.domain.ports import Clock, LoadedStore
from vllamad.domain.restore import LoadedModel, Restore, as_tried, to_restore
from vllamad.domain.worker import Goal
from vllamad.gate.gate import Gate
from vllamad.host.logs import event
from vllamad.models.catalog import Catalog
from vllamad.models.loading import load_progress
from vllamad.operations.registry import Operations, Report
from vllamad.supervisor.supervisor import Supervisor
from vllamad.supervisor.worker import WorkerHandle

log = logging.getLogger("vllamad.restoring")

CALLER = "restore"
USED_STEP_S = 60
"""A model in use was used just now, and later than any that is idle: to the end of the minute, or it would be written
down at every look."""


class Restoring:
    """Knows what was loaded, and keeps the record of what is. ``is_on`` False only keeps the record, for a daemon that
    is told otherwise next time."""

    def __init__(
        self,
        store: LoadedStore,
        catalog: Catalog,
        gate: Gate,
        supervisor: Supervisor,
        operations: Operations,
        clock: Clock,
        *,
        is_on: bool,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._gate = gate
        self._supervisor = supervisor
        self._operations = operations
        self._clock = clock
        self._is_on = is_on
        self._wanted: list[Restore] = []
        self._tried: dict[str, LoadedModel] = {}
        """What is still to be loaded again, by name, as it stands in the record."""
        self._is_stopped = False

    async def begin(self) -> None:
        """Read what was loaded, and write down that it is tried once more: before the first of it is loaded, since that
        may take the daemon along."""
        if not self._is_on:
            return
        entries, now = await asyncio.to_thread(self._store.load), self._clock.time()
        self._wanted = to_restore(entries, now)
        self._tried = {one.name: one for one in as_tried(entries, now)}
        await self.note()

    def load_again(self, but: Collection[str] = ()) -> None:
        """Start to load it, the one that was used last first, each into memory that is free. ``but`` are names that are
        loaded, or are going to be."""
        for one in self._wanted:
            try:
                model = self._catalog.resolve(one.name)
                if model.name in but:
                    self._tried.pop(one.name, None)
                    continue
                self._operations.start_or_join(
                    OperationKind.START,
                    model.name,
                    f"{model.ref.key} again",
                    lambda report, wanted=one: self._load(wanted, report),
                )
            except VllamaError as error:
                self._failed(one.name, error)

    async def note(self) -> None:
        """Write down what is loaded now; nothing is written if that has not changed."""
        if self._is_stopped:
            return
        entries = {handle.model.name: entry for handle in self._supervisor.handles() if (entry := self._entry(handle))}
        await asyncio.to_thread(self._store.record, (self._tried | entries).values())

    def stop(self) -> None:
        """Leave the record as it is: from here on models are unloaded because the daemon ends."""
        self._is_stopped = True

    async def _load(self, wanted: Restore, report: Report) -> None:
        model = self._catalog.resolve(wanted.name)
        event(log, logging.INFO, "restore.load", model=model.name, left_s=round(wanted.left_s, 1))
        try:
            async with self._gate.lease(
                model,
                keep_alive_s=wanted.keep_alive_s,
                caller=CALLER,
                on_progress=lambda view: report(load_progress(view)),
                may_evict=False,
            ):
                report(Progress("ready", fraction=1.0))
        except VllamaError as error:
            self._failed(wanted.name, error)
            raise
        self._tried.pop(wanted.name, None)
        for handle in self._supervisor.of(model):
            handle.expire_within(wanted.left_s)

    def _failed(self, name: str, error: VllamaError) -> None:
        self._tried.pop(name, None)
        event(log, logging.WARNING, "restore.failed", model=name, reason=error.reason, error=error.message)

    def _entry(self, handle: WorkerHandle) -> LoadedModel | None:
        view = handle.view()
        if not view.is_loaded or handle.record.goal is Goal.STOP:
            return None  # one that sleeps is loaded as well
        now = self._clock.time()
        used = (now // USED_STEP_S + 1) * USED_STEP_S if view.leases else now - (self._clock.now() - handle.idle_since)
        expires = math.inf if handle.is_pinned else view.expire_time
        if expires is not None and not math.isinf(expires):
            expires = round(expires)
        return LoadedModel(handle.model.name, view.idle_s, round(used, 1), expires)
