"""Loading and unloading as wishes of people (floor 3): what `load`, `stop`, `rm` and an empty prompt ask for."""

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model
from vllamad.domain.operation import Operation, OperationKind, Progress
from vllamad.domain.view import WorkerView
from vllamad.domain.worker import Goal, State
from vllamad.gate.gate import Gate
from vllamad.models.catalog import Catalog
from vllamad.operations.registry import Operations, Report
from vllamad.supervisor.supervisor import Supervisor
from vllamad.supervisor.worker import WorkerHandle

CALLER = "vllamactl"
"""Whom loads by hand are from, among the callers of a model."""

AT_REST = frozenset({State.STOPPED, State.FAILED})


def load_progress(view: WorkerView) -> Progress:
    """What a worker's picture says about how far its loading is."""
    if view.state is State.BACKOFF:
        return Progress("waiting to try again", view.error.message if view.error else "")
    return Progress(view.load_phase, fraction=view.load_fraction)


class Loading:
    """Joins the catalogue, the gate and the supervisor."""

    def __init__(self, catalog: Catalog, gate: Gate, supervisor: Supervisor, operations: Operations) -> None:
        self._catalog = catalog
        self._gate = gate
        self._supervisor = supervisor
        self._operations = operations
        catalog.on_change = self.tidy

    def start(self, name: str, keep_alive_s: float | None = None, *, may_evict: bool = True) -> Operation:
        """Load a model because a person wants it, or join its loading; done when its worker is READY."""
        model = self._catalog.resolve(name)

        async def work(report: Report) -> None:
            report(Progress("waiting for a place"))
            await self._load(model, keep_alive_s, may_evict, report)

        return self._operations.start_or_join(OperationKind.START, model.name, model.ref.key, work)

    async def _load(self, model: Model, keep_alive_s: float | None, may_evict: bool, report: Report) -> None:
        try:
            async with self._gate.lease(
                model,
                keep_alive_s=keep_alive_s,
                caller=CALLER,
                on_progress=lambda view: report(load_progress(view)),
                is_wish=True,
                may_evict=may_evict,
            ):
                report(Progress("ready", fraction=1.0))
        except VllamaError as error:
            if not may_evict:  # nobody waits for it who would be told
                self._supervisor.decided(f"{model.name} is not loaded: {error.message}")
            raise

    def stop(self, name: str, force: bool = False) -> Operation:
        """Unload a model; done when no process of it is left. ``force`` does not wait for requests in flight."""
        model = self._catalog.resolve(name)

        async def work(report: Report) -> None:
            report(Progress("stopping"))
            await self.unload(model, force)

        return self._operations.start_or_join(OperationKind.STOP, model.name, f"{model.ref.key} {force}", work)

    async def remove(self, name: str, force: bool) -> int:
        """Remove a model; while it is loaded only if ``force`` is set, and then its worker goes first. A worker that
        serves other models too stays."""
        model = self._catalog.resolve_own(name)
        if self._sharers(model):
            return await self._catalog.remove(name)
        handles = [handle for handle in self._supervisor.of(model) if handle.state not in AT_REST]
        if handles and not force:
            leases = sum(handle.record.leases for handle in handles)
            raise VllamaError(
                Reason.MODEL_IN_USE,
                f"cannot remove {model.name}: it is loaded ({leases} requests)",
                f"stop it first (vllamactl stop {model.name}), or use --force",
                model=model.name,
            )
        await self.unload(model, force=True)
        return await self._catalog.remove(name)

    def tidy(self) -> None:
        """Models have come, changed or gone: stop workers that serve none any more, and call the others by a name that
        there is."""
        served: dict[str, list[Model]] = {}
        for model in self._catalog.list():
            served.setdefault(self._supervisor.key(model), []).append(model)
        for handle in self._supervisor.handles():
            models = served.get(handle.key, [])
            if models:
                if handle.model.ref.key not in {model.ref.key for model in models}:
                    handle.model = models[0]
            elif handle.state not in AT_REST and handle.record.goal is not Goal.STOP:
                why = "no model is served this way any more (replaced, removed, or with adapters now)"
                self._supervisor.decided(f"stop {handle.model.name}: {why}")
                self._supervisor.stop(handle.holder)

    def _sharers(self, model: Model) -> list[Model]:
        """Other models that the same worker serves."""
        key = self._supervisor.key(model)
        others = (other for other in self._catalog.list() if other.ref.key != model.ref.key)
        return [other for other in others if self._supervisor.key(other) == key]

    async def unload(self, model: Model, force: bool) -> None:
        """Return when every worker of it is at rest; raises INTERNAL if processes cannot be ended."""
        handles = self._supervisor.of(model)
        lives = [(handle, handle.record.incarnation) for handle in handles]
        for handle in handles:
            if force:
                handle.stop_at_once()
            else:
                self._supervisor.stop(handle.holder)
        for handle, incarnation in lives:
            await self._supervisor.wait_until(lambda of=handle, life=incarnation: _is_over(of, life))
            if handle.record.incarnation != incarnation:
                continue
            if handle.error is not None:
                raise handle.error
            if handle.state is State.READY:
                raise VllamaError(
                    Reason.MODEL_IN_USE,
                    f"cannot unload {model.name}: requests came for it before it was down",
                    "stop its clients, or use --force",
                    model=model.name,
                )


def _is_over(handle: WorkerHandle, incarnation: int) -> bool:
    """True if this life of a worker has ended, or will not: somebody wants it again."""
    if handle.state in AT_REST or handle.record.incarnation != incarnation:
        return True
    return handle.state is State.READY and handle.record.goal is Goal.RUN
