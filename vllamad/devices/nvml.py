"""NVIDIA GPUs (floor 2): fills ``DeviceProbe``; the only module that imports pynvml.

The driver's library blocks, for seconds when a GPU is reset and for ever when it has fallen off the bus. It is asked
in one thread of its own, never in a pool: a thread that hangs there must neither be waited for when the daemon leaves
nor be joined by a second one.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from vllamad.domain.ports import DeviceReading

DEADLINE_S = 3.0

_log = logging.getLogger(__name__)

Question = tuple[asyncio.AbstractEventLoop, "asyncio.Future[list[DeviceReading]]"]


class NvmlProbe:
    """Asks the driver. Without a driver, or while it does not answer, there are no devices. ``read_devices`` is for
    tests."""

    def __init__(
        self, deadline_s: float = DEADLINE_S, read_devices: Callable[[], list[DeviceReading]] | None = None
    ) -> None:
        self._deadline_s = deadline_s
        self._read_devices = read_devices or _Driver().read
        self._questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending: asyncio.Future[list[DeviceReading]] | None = None

    async def read(self) -> list[DeviceReading]:
        """See ``DeviceProbe.read``. Callers that come while the driver is busy share its answer."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._answer, name="nvml", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        if self._pending is None or self._pending.done():
            self._pending = loop.create_future()
            self._questions.put((loop, self._pending))
        try:
            async with asyncio.timeout(self._deadline_s):
                # Shielded: a caller that gives up must not take the answer from the others.
                return list(await asyncio.shield(self._pending))
        except TimeoutError:
            _log.warning("devices.silent driver=nvml deadline_s=%g", self._deadline_s)
            return []

    def _answer(self) -> None:
        while True:
            loop, future = self._questions.get()
            readings = self._read_devices()
            try:
                loop.call_soon_threadsafe(_set, future, readings)
            except RuntimeError:
                # The loop was closed meanwhile: the daemon has left.
                return


def _set(future: "asyncio.Future[list[DeviceReading]]", readings: list[DeviceReading]) -> None:
    if not future.done():
        future.set_result(readings)


class _Driver:
    """The driver's library, loaded by the first question, in the thread that asks it."""

    def __init__(self) -> None:
        self._is_missing = False
        self._nvml: Any = None

    def read(self) -> list[DeviceReading]:
        """Every GPU that tells its memory; [] without a driver. A driver that fails is started anew the next time (it
        may have been updated), one that is not there is not asked again."""
        if self._is_missing:
            return []
        import pynvml

        nvml: Any = pynvml
        try:
            if self._nvml is None:
                nvml.nvmlInit()
                self._nvml = nvml
            count = int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError as error:
            self._is_missing = isinstance(error, nvml.NVMLError_LibraryNotFound)
            if self._nvml is not None:
                _log.warning("devices.failed driver=nvml error=%s", error)
                self._nvml = None
            return []
        readings = (self._one(nvml, index) for index in range(count))
        return [reading for reading in readings if reading is not None]

    @staticmethod
    def _one(nvml: Any, index: int) -> DeviceReading | None:
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = nvml.nvmlDeviceGetName(handle)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            # One that shares the machine's memory does not tell, and a lost one fails; the others still count.
            _log.warning("devices.unreadable index=%d error=%s", index, error)
            return None
        text = name.decode() if isinstance(name, bytes) else str(name)
        return DeviceReading(text, int(memory.total), int(memory.free))
