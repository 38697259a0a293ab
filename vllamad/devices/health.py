"""What ails a GPU that answers (floor 2): Xid events, memory that cannot be repaired, the driver's own verdict.

It is handed the driver's library and never loads it; everything here happens in the thread that asks the driver.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

HARMLESS_XIDS = frozenset({13, 31, 43, 45, 68, 109}) | {63, 94, 154}
"""Xid events after which a card goes on. The first six are faults of the program that ran (NVIDIA's device plugin for
Kubernetes leaves the same out, ``internal/rm/health.go``); 63 and 94 are memory errors that the card has contained, and
154 only says that the recovery action has changed, which is read by itself."""

_RECOVERY_FIELD = 230
"""NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: what the driver itself says is needed. Older drivers do not tell."""
_RECOVERY_WORDS = {
    1: "a reset of the GPU",
    2: "a reboot",
    3: "an end to all work over NVLink with it",
    4: "its work to end, then a reset of the GPU",
}
_UNSIGNED_INT = 1
"""NVML_VALUE_TYPE_UNSIGNED_INT."""

_MOST_EVENTS = 64
"""Xid events that are taken in by one reading: a card that storms must not hold up the rest."""
_EVENT_WAIT_MS = 1
"""As short as can be without being 0, of which NVIDIA does not say what it means."""

_log = logging.getLogger(__name__)


class Card(NamedTuple):
    """A card that the driver lists. ``uuid`` is "" if it does not even say which one it is; ``error`` is why."""

    number: int
    handle: Any
    uuid: str
    error: Exception | None = None


class Tolerant:
    """Asks for what a card or a driver may not tell."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def __call__(self, call: Callable[..., Any], *args: Any) -> Any:
        """What the driver tells, or None. Only that a card is lost is raised: then nothing else counts."""
        try:
            return call(*args)
        except self._nvml.NVMLError_GpuIsLost:
            raise
        except self._nvml.NVMLError:
            return None


class Health:
    """Of all cards, from one start of the driver to its end."""

    def __init__(self, nvml: Any, optional: Tolerant) -> None:
        self._nvml = nvml
        self._optional = optional
        self._events: Any = None
        with contextlib.suppress(nvml.NVMLError):
            self._events = nvml.nvmlEventSetCreate()
        self._watched: set[str] = set()
        self._xids: dict[str, int] = {}

    def watch(self, cards: Sequence[Card]) -> None:
        """Ask to be told of Xid events, and take in what has come. A critical one sticks until the driver is started
        anew, or the card was lost and is back."""
        nvml = self._nvml
        if self._events is None:
            return
        with contextlib.suppress(nvml.NVMLError):
            for card in cards:
                if card.uuid not in self._watched:
                    self._watched.add(card.uuid)
                    self._xids.pop(card.uuid, None)
                    kinds = nvml.nvmlEventTypeXidCriticalError
                    self._optional(nvml.nvmlDeviceRegisterEvents, card.handle, kinds, self._events)
            for _ in range(_MOST_EVENTS):
                # Raises a time-out when there are no more.
                event = nvml.nvmlEventSetWait(self._events, _EVENT_WAIT_MS)
                uuid, xid = str(nvml.nvmlDeviceGetUUID(event.device)), int(event.eventData)
                _log.warning("devices.xid uuid=%s xid=%d", uuid, xid)
                if xid not in HARMLESS_XIDS:
                    self._xids[uuid] = xid

    def forget(self, uuid: str) -> None:
        """The card is lost: when it is back, it has been reset."""
        self._watched.discard(uuid)

    def ailments(self, card: Card, ecc_errors: int | None) -> Iterator[str]:
        """Why nothing may be placed on it, worst first; nothing if it is well. Raises that it is lost."""
        action = self._recovery_action(card.handle)
        if action:
            yield f"reset: the driver asks for {_RECOVERY_WORDS.get(action, f'recovery action {action}')}"
        if card.uuid in self._xids:
            yield f"xid: {self._xids[card.uuid]}, see the kernel's log"
        rows = self._optional(self._nvml.nvmlDeviceGetRemappedRows, card.handle)
        if rows is not None and rows[3]:
            yield "ecc: bad memory could not be remapped, replace the card"
        elif rows is None and ecc_errors:
            # A card that remaps its rows goes on after an error; an older one does not.
            yield f"ecc: {ecc_errors} uncorrectable errors"

    def _recovery_action(self, handle: Any) -> int:
        values = self._optional(self._nvml.nvmlDeviceGetFieldValues, handle, [_RECOVERY_FIELD])
        if values is None or values[0].nvmlReturn != 0 or values[0].valueType != _UNSIGNED_INT:
            return 0
        return int(values[0].value.uiVal)
