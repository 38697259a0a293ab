"""How much memory models need, for whoever has to decide (floor 3): estimated from their files, replaced by what was
measured, and turned into what the planner asks for.

Reading a model's headers takes the disk, so it is done once and outside the loop; what is known is answered at once.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.budget import HOST_KIND
from vllamad.domain.errors import VllamaError
from vllamad.domain.estimate import estimate, estimates
from vllamad.domain.fit import LEAST_TOKENS, Fit, Room, explain
from vllamad.domain.footprint import EngineSettings, Footprint, footprint_key, when_alone, with_measured
from vllamad.domain.model import Capability, Model
from vllamad.domain.placement import Demand, Need
from vllamad.domain.ports import Engine, Footprints
from vllamad.domain.shape import Shape
from vllamad.domain.workload import Wanted
from vllamad.host.logs import event
from vllamad.supervisor.memory import DeviceMemory
from vllamad.supervisor.worker import WorkerHandle

log = logging.getLogger("vllamad.sizing")

START_S: Mapping[str, float] = {"cpu": 20.0, "cuda": 40.0}
"""What a start takes whatever the size, by device, until it was measured: imports and processes (seen on CPU), and
compiled graphs on GPUs (not measured here)."""
READ_BYTES_PER_S = 1 << 30
"""Weights from a disk, by a cautious guess."""

NEWS_SHARE = 0.02
"""A measurement that is larger by less than this part is not written again."""


@dataclass(frozen=True, slots=True)
class SizingRules:
    """What the configuration says. ``cache_tokens`` is what a model gets on a GPU if it can; on CPU it gets
    ``cpu_kv_bytes``, no more and no less. ``devices`` are the drivers' numbers of the only GPUs that it may use (none:
    any); ``tensor_parallel`` 0 leaves the number of GPUs to the planner."""

    context_length: int = 0
    cache_tokens: int = 131_072
    cpu_kv_bytes: int = 1 << 30
    devices: tuple[int, ...] = ()
    tensor_parallel: int = 0
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Explained:
    """Where a model fits, beside what it was reckoned from: names of devices by their places in ``fit``, and what each
    of them must give by their number."""

    fit: Fit
    devices: tuple[str, ...]
    footprints: Mapping[int, Footprint]


class Sizing:
    """What models need. ``read_shape`` reads a model's folder (blocking)."""

    def __init__(
        self,
        engine: Engine,
        memory: DeviceMemory,
        footprints: Footprints,
        read_shape: Callable[[Path], Shape],
        rules_for: Callable[[Model], SizingRules],
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._footprints = footprints
        self._read_shape = read_shape
        self._rules_for = rules_for
        self._shapes: dict[str, Shape] = {}
        self._wanted: dict[str, Wanted] = {}
        self._devices: tuple[object, ...] = ()
        """Those that ``_wanted`` was reckoned for."""
        self._reloads = 0
        self._costs: dict[str, float] = {}
        self._peaks: dict[str, int] = {}

    # --- what the gate asks --------------------------------------------------------------------------------------

    def known(self, model: Model) -> Wanted | None:
        """What a model needs, if it can be told at once."""
        devices = self._devices_now()
        if devices != self._devices:
            self._devices = devices
            self._wanted.clear()
        wanted = self._wanted.get(self._engine.identity(model))
        if wanted is not None and wanted.name != model.name:
            # Others may share what it is loaded as; whoever asks is told of the model that was asked for.
            wanted = self._wanted[wanted.key] = replace(wanted, name=model.name)
        return wanted

    async def wanted(self, model: Model) -> Wanted:
        """What a model needs. Raises ENGINE_START_FAILED if there is no usable engine, and what reading its files
        fails with."""
        while True:
            reloads = self._reloads
            wanted = self.known(model) or await self._reckon(model)
            if reloads == self._reloads:
                return wanted

    def forget(self) -> None:
        """What was reckoned goes by a configuration that is not in force any more. What was measured stays."""
        self._reloads += 1
        self._wanted.clear()

    async def _reckon(self, model: Model) -> Wanted:
        devices, reloads = self._devices_now(), self._reloads
        footprints = await self.footprints(model)
        rules, key = self._rules_for(model), self._engine.identity(model)
        weights = footprints[min(footprints)].weights_bytes
        settings = self._engine.memory_settings(model)
        device, has_adapters = settings.device, settings.adapters > 0
        smallest = footprints[min(footprints)]
        guess_s = START_S.get(device, 20.0) + weights / READ_BYTES_PER_S
        cost_s = self._costs.get(key) or smallest.load_s or guess_s
        wanted = Wanted(
            key,
            model.name,
            self._demand(model, footprints, rules),
            cost_s,
            rules.replicas,
            weights_bytes=weights * smallest.devices,
            left_bytes=smallest.overhead_bytes,
            host_bytes=smallest.host_bytes,
            # Out of caution: engines with adapters were seen to come back wrong (vLLM's issue 53888), and where a model
            # sees or is quantised at load, one token would not tell.
            can_sleep=device == "cuda" and not has_adapters,
            can_reload=not (model.recipe.quantize or Capability.VISION in model.capabilities),
        )
        if self._devices == devices == self._devices_now() and reloads == self._reloads:
            self._wanted[key] = wanted
        return wanted

    def note_load(self, key: str, load_s: float) -> None:
        """A load took so long."""
        if self._costs.get(key) != load_s:
            self._costs[key] = load_s
            self._wanted.pop(key, None)

    # --- footprints ----------------------------------------------------------------------------------------------

    async def footprints(self, model: Model) -> dict[int, Footprint]:
        """By the number of devices: what each of them must give. One at least."""
        settings = self._engine.memory_settings(model)
        shape = await self._shape(model)
        devices = [one for one in self._memory.ledger.devices.values() if one.kind != HOST_KIND]
        kinds = list(dict.fromkeys(one.kind for one in devices))
        count = 1 if settings.device == "cpu" else max(1, len(devices))
        found = estimates(shape, settings, count)
        wish = self._rules_for(model).tensor_parallel
        if wish and settings.device != "cpu":
            found = {wish: estimate(shape, settings, wish)}
        version = await self._version()
        return {
            size: await asyncio.to_thread(self._measured, model, version, settings, size, kinds, one)
            for size, one in found.items()
        }

    async def fit(self, model: Model) -> Explained:
        """Say what fits where. Raises as ``wanted``."""
        footprints = await self.footprints(model)
        settings = self._engine.memory_settings(model)
        rules = self._rules_for(model)
        ledger = self._memory.ledger
        allowed = self._pinned(rules)
        rooms = [
            Room(one.name, one.total_bytes - int(one.total_bytes * ledger.margin_share), ledger.free(one.index))
            for one in ledger.devices.values()
            if one.kind != HOST_KIND and (not allowed or one.index in allowed)
        ]
        is_cpu = settings.device == "cpu"
        fit = explain(
            footprints,
            rooms,
            noun="CPU" if is_cpu else "GPU",
            least_tokens=self._least_tokens(model, rules),
            cache_bytes=rules.cpu_kv_bytes if is_cpu else 0,
        )
        return Explained(fit, tuple(room.name for room in rooms), footprints)

    async def measured(self, handle: WorkerHandle) -> None:
        """A ready worker was measured: keep what it took, if that is news. Never raises: an estimate is enough."""
        model, contents = handle.model, self._engine.identity(handle.model)
        if handle.placement is None or handle.is_outdated or handle.key != contents:
            return  # what it runs with is configured otherwise now: the measurement would go under the wrong name
        size = len(handle.placement.devices)
        self.note_load(handle.key, handle.load_s)
        try:
            settings = self._engine.memory_settings(model)
            is_cpu = settings.device == "cpu"
            held = handle.device_bytes // size
            if is_cpu:
                held = when_alone(handle.memory_bytes, len(self._memory.ledger.reservations))
            cache = self._rules_for(model).cpu_kv_bytes if is_cpu else handle.placement.cache_bytes
            version = await self._version()
            kind = self._memory.ledger.devices[handle.placement.devices[0]].kind
            key = footprint_key(contents, version, settings, size, kind)
            if held <= self._peaks.get(key, 0) * (1 + NEWS_SHARE):
                return
            shape = await self._shape(model)
            seen = with_measured(
                estimate(shape, settings, size),
                weights_bytes=handle.taken.weights_bytes,
                cache_bytes=cache if shape.layers else 0,
                cache_tokens=handle.taken.cache_tokens,
                held_bytes=held,
                host_bytes=0 if is_cpu else handle.memory_bytes,
                has_run_batch=not is_cpu,
                load_s=round(handle.load_s, 1),
            )
            self._peaks[key] = held
            await asyncio.to_thread(self._footprints.record, key, seen, model=model.name, engine_version=version)
            self._wanted.pop(contents, None)
            event(log, logging.INFO, "sizing.measured", model=model.name, held_bytes=held, devices=size)
        except VllamaError as error:
            event(log, logging.WARNING, "sizing.unmeasured", model=model.name, why=error.message)

    # --- inside --------------------------------------------------------------------------------------------------

    def _devices_now(self) -> tuple[object, ...]:
        return tuple((one.index, one.kind, one.total_bytes) for one in self._memory.ledger.devices.values())

    def _measured(
        self, model: Model, version: str, settings: EngineSettings, size: int, kinds: list[str], otherwise: Footprint
    ) -> Footprint:
        """What was measured on these kinds of devices, the most; an estimate where one was not tried."""
        contents = self._engine.identity(model)
        found = [self._footprints.find(footprint_key(contents, version, settings, size, kind)) for kind in kinds]
        return max((one or otherwise for one in found), key=lambda one: one.base_bytes, default=otherwise)

    async def _shape(self, model: Model) -> Shape:
        shape = self._shapes.get(model.path)
        if shape is None:
            try:
                shape = await asyncio.to_thread(self._read_shape, Path(model.path))
            except OSError as error:
                raise VllamaError(
                    Reason.STORAGE_FAILED,
                    f"cannot read the files of {model.name}: {error}",
                    f"check the disk, or pull it again: vllamactl pull {model.name}",
                    model=model.name,
                ) from error
            self._shapes[model.path] = shape
        return shape

    async def _version(self) -> str:
        version = await self._engine.version()
        return f"{version.distribution} {version.version}"

    def _demand(self, model: Model, footprints: Mapping[int, Footprint], rules: SizingRules) -> Demand:
        pinned = self._pinned(rules)
        if self._engine.memory_settings(model).device == "cpu":
            one = footprints[1]
            cache = rules.cpu_kv_bytes if one.has_cache else 0
            return Demand((Need(1, one.base_bytes + cache),), pinned=pinned)
        needs = tuple(Need(size, one.fixed_bytes, one.kv_bytes_per_token) for size, one in sorted(footprints.items()))
        least = self._least_tokens(model, rules)
        return Demand(needs, least, max(least, rules.cache_tokens), pinned)

    def _least_tokens(self, model: Model, rules: SizingRules) -> int:
        """A context that was asked for has to fit, or the engine refuses to start; the model's own is cut by it."""
        most = model.details.context_length or LEAST_TOKENS
        return min(rules.context_length, most) if rules.context_length else min(LEAST_TOKENS, most)

    def _pinned(self, rules: SizingRules) -> tuple[int, ...]:
        """Our numbers of the devices that a model was pinned to; one that is not there is kept as a number that no
        device has, so that a pin to a lost GPU does not come to mean any GPU."""
        ours = {one.index: self._memory.index(one) for one in self._memory.readings if one.kind == "cuda"}
        if not ours and self._memory.readings:
            return ()  # engines on CPU have no GPU to be pinned to
        return tuple(index if (index := ours.get(number)) is not None else _NO_DEVICE for number in rules.devices)


_NO_DEVICE = -1000
