"""NVIDIA GPUs (floor 2): fills ``DeviceProbe``; the only module that imports pynvml.

The driver's library blocks, for seconds when a GPU is reset and for ever when it has fallen off the bus, so it is asked
in one thread of its own (``asking.py``). Every fact but who a card is may be missing: older cards and drivers do not
tell it, and that is no fault. A card that was there once stays in the readings, whatever becomes of it.

Not tried on a real card yet, only on a library of our own that behaves as NVIDIA describes theirs: that
``total - reserved`` is what CUDA gives to a process; how long a freed byte takes to show; that Xid events reach a
process without privileges, and that asking for them does not wait; what a card that is lost answers; the recovery
action. ``tests/contract/device_claims.py`` has the claims that run on a machine with a driver as they are.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vllamad.devices.asking import Asker
from vllamad.devices.health import Card, Health, Tolerant
from vllamad.devices.visible import visible_positions
from vllamad.domain.ports import DeviceReading

DEADLINE_S = 3.0

_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What the driver said; ``problem`` is why it said nothing."""

    readings: list[DeviceReading]
    problem: str = ""


def driver_versions() -> tuple[str, str]:
    """Return the driver's version ("570.86.15") and the newest CUDA that it runs ("12.8"); "" for what it does not say.
    Blocks as the driver does: call it in a thread of its own."""
    import pynvml

    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return "", ""
    try:
        optional = Tolerant(nvml)
        cuda = int(optional(nvml.nvmlSystemGetCudaDriverVersion_v2) or 0)
        newest = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""
        return str(optional(nvml.nvmlSystemGetDriverVersion) or ""), newest
    finally:
        nvml.nvmlShutdown()


class NvmlProbe:
    """Asks the driver. ``visible`` is the ``CUDA_VISIBLE_DEVICES`` that workers will have: other GPUs are left out.
    ``ask`` is for tests."""

    def __init__(
        self, deadline_s: float = DEADLINE_S, visible: str | None = None, ask: Callable[[], Answer] | None = None
    ) -> None:
        self._deadline_s = deadline_s
        self._asker = Asker(ask or _Driver(visible).ask, deadline_s, "nvml")
        self._known: list[DeviceReading] = []
        self._problem = ""

    @property
    def problem(self) -> str:
        """See ``DeviceProbe.problem``."""
        return self._problem

    async def read(self) -> list[DeviceReading]:
        """See ``DeviceProbe.read``. If the driver is silent, what was known stays, unhealthy."""
        try:
            answer = await self._asker.answer()
        except TimeoutError:
            self._note(f"silent: the NVIDIA driver did not answer in {self._deadline_s:g} s")
            return [one.unanswered(self._problem) for one in self._known]
        self._note(answer.problem)
        self._known = answer.readings
        return list(self._known)

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.warning("devices.problem driver=nvml problem=%s", problem)
        elif self._problem and not problem:
            _log.info("devices.answering driver=nvml devices_before=%d", len(self._known))
        self._problem = problem


class _Driver:
    """The driver's library, loaded by the first question, in the thread that asks it. Everything here happens there."""

    def __init__(self, visible: str | None) -> None:
        self._visible = visible
        self._is_missing = False
        self._is_started = False
        self._nvml: Any = None
        self._optional: Tolerant
        self._health: Health
        self._peers: dict[frozenset[str], bool] = {}
        self._known: dict[str, DeviceReading] = {}

    def ask(self) -> Answer:
        """Every GPU that workers can see. A driver that fails is started anew the next time (it may have been
        updated), one that is not there is not asked again."""
        if self._is_missing:
            return Answer([], "no NVIDIA driver: libnvidia-ml.so.1 was not found")
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
            self._optional = Tolerant(pynvml)
        try:
            if not self._is_started:
                self._start()
            count = int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            return self._failed(error)
        readings = self._read_all([self._card(index) for index in range(count)])
        self._tell_changes(readings)
        self._known = {one.key: one for one in readings}
        return Answer(readings)

    # --- the driver as a whole -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._nvml.nvmlInit()
        self._is_started = True
        self._peers.clear()
        self._health = Health(self._nvml, self._optional)

    def _failed(self, error: Exception) -> Answer:
        if isinstance(error, self._nvml.NVMLError_LibraryNotFound):
            self._is_missing = True
            return self.ask()
        if self._is_started:
            # The library counts its users: without this, the next start would be none.
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._is_started = False
        problem = f"driver: {error}"
        if isinstance(error, self._nvml.NVMLError_LibRmVersionMismatch):
            problem += " The driver was updated: reboot, or unload its module and restart vllamad"
        self._known = {key: one.unanswered(problem) for key, one in self._known.items()}
        return Answer(list(self._known.values()), problem)

    # --- which cards there are -----------------------------------------------------------------------------------

    def _card(self, index: int) -> Card:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            return Card(index, handle, str(self._nvml.nvmlDeviceGetUUID(handle)))
        except (self._nvml.NVMLError, ValueError) as error:
            return Card(index, None, "", error)

    def _read_all(self, cards: Sequence[Card]) -> list[DeviceReading]:
        # A card that may not be opened is not there for CUDA either, and its number does not count.
        cards = [card for card in cards if not isinstance(card.error, self._nvml.NVMLError_NoPermission)]
        named = {card.uuid for card in cards}
        # One that does not say who it is is the one that had its number, unless that one answers at another.
        before = {one.index: key for key, one in self._known.items() if key not in named}
        cards = [card if card.uuid else card._replace(uuid=before.pop(card.number, "")) for card in cards]
        cards = [cards[position] for position in visible_positions(self._visible, [card.uuid for card in cards])]
        healthy = [card for card in cards if card.error is None]
        self._health.watch(healthy)
        readings = [self._one(card, healthy) for card in cards]
        listed = {one.key for one in readings}
        for key, one in self._known.items():
            if one.uuid and key not in listed:
                self._health.forget(key)
                readings.append(one.unanswered("lost: the driver does not list it any more"))
        return sorted(readings, key=lambda one: one.index)

    # --- one card ------------------------------------------------------------------------------------------------

    def _one(self, card: Card, others: Sequence[Card]) -> DeviceReading:
        try:
            if card.error is not None:
                raise card.error
            reading = self._facts(card, others)
            ailments = [*self._health.ailments(card, reading.ecc_errors)]
            if reading.is_mig:
                ailments.append("mig: the GPU is cut into slices, which are not supported")
            return replace(reading, is_healthy=not ailments, reason="; ".join(ailments))
        except (self._nvml.NVMLError, ValueError) as error:
            reason = f"unreadable: {error}"
            if isinstance(error, self._nvml.NVMLError_GpuIsLost):
                reason = f"lost: {error} (it fell off the bus)"
                self._health.forget(card.uuid)
            known = self._known.get(card.uuid) or DeviceReading(f"GPU {card.number}", 0, 0, uuid=card.uuid)
            return replace(known.unanswered(reason), index=card.number)

    def _facts(self, card: Card, others: Sequence[Card]) -> DeviceReading:
        nvml, handle = self._nvml, card.handle
        total, free, reserved = self._memory(handle)
        rates = self._optional(nvml.nvmlDeviceGetUtilizationRates, handle)
        mig = self._optional(nvml.nvmlDeviceGetMigMode, handle)
        return DeviceReading(
            str(nvml.nvmlDeviceGetName(handle)),
            total,
            free,
            index=card.number,
            uuid=card.uuid,
            reserved_bytes=reserved,
            used_by_pid=self._used_by_pid(handle),
            temperature_c=self._optional(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            utilisation=None if rates is None else rates.gpu / 100,
            capability=self._optional(nvml.nvmlDeviceGetCudaComputeCapability, handle),
            nvlink_peers=tuple(other.uuid for other in others if self._is_peer(card, other)),
            ecc_errors=self._optional(
                nvml.nvmlDeviceGetTotalEccErrors,
                handle,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvml.NVML_VOLATILE_ECC,
            ),
            is_mig=mig is not None and mig[0] == nvml.NVML_DEVICE_MIG_ENABLE,
        )

    def _memory(self, handle: Any) -> tuple[int, int, int]:
        """Total, free and reserved bytes. Drivers before 510 do not tell what they reserve."""
        nvml = self._nvml
        memory = self._optional(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        if memory is not None:
            return int(memory.total), int(memory.free), int(memory.reserved)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.total), int(memory.free), 0

    def _used_by_pid(self, handle: Any) -> dict[int, int]:
        nvml = self._nvml
        used: dict[int, int] = {}
        # By version: without one, nvidia-ml-py answers an older driver with an exception that is no NVMLError.
        for ask in (nvml.nvmlDeviceGetComputeRunningProcesses_v3, nvml.nvmlDeviceGetGraphicsRunningProcesses_v3):
            for one in self._optional(ask, handle) or ():
                if one.usedGpuMemory is not None:
                    # A process that does both is in both lists, with all that it has.
                    used[int(one.pid)] = max(used.get(int(one.pid), 0), int(one.usedGpuMemory))
        return used

    def _is_peer(self, card: Card, other: Card) -> bool:
        if other.uuid == card.uuid:
            return False
        pair = frozenset({card.uuid, other.uuid})
        if pair not in self._peers:
            nvml = self._nvml
            try:
                status = nvml.nvmlDeviceGetP2PStatus(card.handle, other.handle, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
            except nvml.NVMLError_GpuIsLost:
                # Of which of the two it does not say; each tells of itself, and the cable is asked for again.
                return False
            except nvml.NVMLError:
                status = nvml.NVML_P2P_STATUS_UNKNOWN
            self._peers[pair] = status == nvml.NVML_P2P_STATUS_OK
        return self._peers[pair]

    def _tell_changes(self, readings: Sequence[DeviceReading]) -> None:
        for one in readings:
            before = self._known.get(one.key)
            if not one.is_healthy and (before is None or before.reason != one.reason):
                _log.warning(
                    "devices.unhealthy index=%d uuid=%s name=%s reason=%s", one.index, one.uuid, one.name, one.reason
                )
            elif one.is_healthy and before is not None and not before.is_healthy:
                _log.info("devices.healthy index=%d uuid=%s name=%s", one.index, one.uuid, one.name)
