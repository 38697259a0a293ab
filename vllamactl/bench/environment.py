"""What a reader must know to judge the numbers (floor 4): this machine, this program, and the daemon's own words."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllama import __version__
from vllama.control.v1.daemon_pb2 import GetStatusResponse
from vllamactl.client import Client
from vllamactl.plain import plain

_SETTINGS = re.compile(r"(engine\.(?!python)|models\.cache_tokens|scheduler\.sleep)")
"""Settings that say how the engine runs."""


def machine() -> dict[str, Any]:
    """The machine that asks, before anything is asked."""
    return {
        "vllamactl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _find("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": 1024 * int(_find("/proc/meminfo", r"^MemTotal:\s+(\d+) kB") or 0),
        "load_average": list(os.getloadavg()),
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


async def daemon(client: Client, status: GetStatusResponse) -> dict[str, Any]:
    """What the daemon tells of itself, its engine and its devices. Where its files lie is nobody's business."""
    told = plain(status)
    settings = await client.get_config()
    return {
        "version": told["version"],
        "engine": {name: told["engine"][name] for name in ("version", "device")} if told["engine"] else None,
        "devices": [
            {name: device[name] for name in ("name", "product", "kind", "total_bytes")} for device in told["devices"]
        ],
        "settings": {each.key: each.value for each in settings if _SETTINGS.match(each.key)},
    }


def _find(file: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""
