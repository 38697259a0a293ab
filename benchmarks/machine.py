"""What the kernel tells of this machine and of single processes. Linux only, as the daemon."""

import os
import platform
import re
import time
from pathlib import Path
from typing import Any

from vllama import __version__

PROC = Path("/proc")
_CPU_CLOCK = 2


def cpu_s(pid: int) -> float:
    """User and system time of a process with all its threads, in seconds.

    The sum of utime and stime in ``/proc/PID/stat``, but to the nanosecond instead of a hundredth of a second: the
    number of the clock is what clock_getcpuclockid(3) returns.
    """
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK)


def resident_mb(pid: int) -> float:
    """Resident memory, in millions of bytes."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", (PROC / str(pid) / "status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def facts() -> dict[str, Any]:
    """What a reader must know to judge the numbers."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", (PROC / "cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", (PROC / "meminfo").read_text(), re.MULTILINE)
    return {
        "vllama": __version__,
        "python": platform.python_version(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 1024**2, 1) if memory else None,
        "load_average_before": list(os.getloadavg()),
        "other_engines": running_engines(),
    }


def running_engines() -> int:
    """Engines that run here already, whoever started them: they share the cores."""
    count = 0
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            try:
                count += b"\0vllm.entrypoints" in (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended meanwhile
    return count
