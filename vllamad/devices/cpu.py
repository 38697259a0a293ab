"""The machine's own memory and what its processor can do (floor 2): fills ``DeviceProbe`` where no GPU is.

Memory is the lesser of the machine's and that of every control group around us (a container, a systemd slice):
beyond it the kernel kills, however much the machine has. A budget, where one is set, is a limit of the same kind, but
nobody enforces it: it is what the house plans with.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vllamad.domain.ports import DeviceReading

DEVICE = "CPU"
UUID = "cpu"
"""Of the one device of its kind."""

NO_LIMIT_BYTES = 2**60
"""The old kind of control group says "no limit" by a number near 2^63."""


class CpuProbe:
    """Reads ``/proc`` and the control groups; these files answer at once, so no thread is needed. ``budget_bytes`` is
    what all workers together may have, 0 for what the machine has; who holds how much of it is the ledger's business,
    so ``free_bytes`` only says that no more is there to be had. The paths are for tests."""

    def __init__(
        self, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup"), *, budget_bytes: int = 0
    ) -> None:
        self._proc = proc
        self._groups = groups
        self._budget_bytes = budget_bytes
        self._problem = ""

    @property
    def problem(self) -> str:
        """See ``DeviceProbe.problem``."""
        return self._problem

    async def read(self) -> list[DeviceReading]:
        """See ``DeviceProbe.read``."""
        return self.read_now()

    def read_now(self) -> list[DeviceReading]:
        """The same without waiting: one reading, [] if the kernel does not tell."""
        try:
            meminfo = _keyed((self._proc / "meminfo").read_text())
            total, free = meminfo["MemTotal"] * 1024, meminfo["MemAvailable"] * 1024
        except (OSError, KeyError, ValueError) as error:
            self._problem = f"unreadable: {self._proc / 'meminfo'}: {error!r}"
            return []
        self._problem = ""
        for limit, used in self._limits():
            total, free = min(total, limit), min(free, max(0, limit - used))
        if self._budget_bytes:
            total, free = min(total, self._budget_bytes), min(free, self._budget_bytes)
        return [DeviceReading(DEVICE, total, free, uuid=UUID, kind="cpu")]

    def _limits(self) -> Iterator[tuple[int, int]]:
        """Limit and use of every control group around us that has a limit."""
        for files, folder in self._folders():
            with contextlib.suppress(OSError, ValueError):
                limit = int((folder / files.limit).read_text())
                used = int((folder / files.used).read_text())
                if limit < NO_LIMIT_BYTES:
                    # Cached files count as used, but go when someone needs the room.
                    cached = _keyed((folder / "memory.stat").read_text()).get(files.cached, 0)
                    yield limit, max(0, used - cached)

    def _folders(self) -> Iterator[tuple["_Files", Path]]:
        try:
            lines = (self._proc / "self" / "cgroup").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            _number, controllers, path = line.split(":", 2)
            if not controllers:
                files, root = _UNIFIED, self._groups
            elif "memory" in controllers.split(","):
                files, root = _LEGACY, self._groups / "memory"
            else:
                continue
            group = Path(path.lstrip("/"))
            # In a container the path may be the host's, which does not exist in here; the root then is our own group.
            for folder in (group, *group.parents):
                yield files, root / folder


class _Files(NamedTuple):
    """Names in a control group's folder, and the line of ``memory.stat`` with what is only cached."""

    limit: str
    used: str
    cached: str


_UNIFIED = _Files("memory.max", "memory.current", "inactive_file")
_LEGACY = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True if this processor computes in bfloat16 at speed: AVX-512 on x86 (its kernels widen to float32 in registers),
    the bf16 extension on ARM. True also where the kernel does not say: the engine's own choice then stands."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return True
    flags = {
        flag
        for line in text.splitlines()
        if line.partition(":")[0].strip() in {"flags", "Features"}
        for flag in line.partition(":")[2].split()
    }
    return not flags or bool(flags & {"avx512f", "bf16"})


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself, "" where the kernel does not say (ARM)."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _keyed(text: str) -> dict[str, int]:
    """Lines of a name and a number, such as ``MemTotal:  24 kB`` or ``inactive_file 24``."""
    pairs = (line.replace(":", " ").split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdigit()}
