"""What the daemon says of itself (floor 5): the status line of the unit, and the body of ``/health``. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllamad.domain.ports import EngineVersion
from vllamad.domain.view import DeviceView, WorkerView
from vllamad.domain.worker import State

_LEAVING = {"DRAINING": "stopping: ", "UPGRADING": "upgrading: "}


@dataclass(frozen=True, slots=True)
class Picture:
    """The daemon at one moment. ``state`` is STARTING, SERVING, DRAINING or UPGRADING; ``queue_limit`` is how many may
    wait."""

    state: str
    version: str
    uptime_s: float
    memory_bytes: int
    engine: EngineVersion
    workers: Sequence[WorkerView]
    devices: Sequence[DeviceView]
    models_bytes: int
    free_bytes: int
    active: int
    waiting: int
    queue_limit: int


def summary(views: Sequence[WorkerView], active: int, waiting: int, state: str) -> str:
    """One line for ``systemctl status``; ``state`` as in ``Picture``."""
    loaded = len({view.model for view in views if view.is_loaded})
    loading = len({view.model for view in views if view.state is State.STARTING})
    failed = len({view.model for view in views if view.state is State.FAILED})
    cache = max((view.cache_usage for view in views), default=0.0)  # of the one that will preempt first
    parts = [
        f"{loaded} model{'' if loaded == 1 else 's'} loaded",
        f"{loading} loading" if loading else "",
        f"{failed} failed" if failed else "",
        f"{active} request{'' if active == 1 else 's'}",
        f"{waiting} waiting" if waiting else "",
        f"{cache * 100:.0f} % KV" if cache else "",
    ]
    return _LEAVING.get(state, "") + ", ".join(part for part in parts if part)


def health(seen: Picture) -> dict[str, Any]:
    """The body of ``/health``; ``status`` is "ok" while requests can be served."""
    problem = seen.engine.problem
    status = "ok" if seen.state == "SERVING" and not problem else seen.state.lower()
    if problem and seen.state == "SERVING":
        status = "no engine"
    return {
        "status": status,
        "daemon": {
            "version": seen.version,
            "state": seen.state.lower(),
            "uptime_s": round(seen.uptime_s, 1),
            "memory_bytes": seen.memory_bytes,
        },
        "engine": {
            "version": f"{seen.engine.distribution} {seen.engine.version}".strip(),
            "device": seen.engine.device,
            "problem": problem or None,
        },
        "workers": [
            {
                "name": view.name,
                "model": view.model,
                "state": view.state.value,
                "requests": view.leases,
                "waiting": view.waiting,
                "memory_bytes": view.memory_bytes,
                "error": view.error.message if view.error else None,
                "log": str(view.error.facts.get("log", "")).splitlines() if view.error else [],
            }
            for view in seen.workers
        ],
        "devices": [
            {
                "name": one.name,
                "kind": one.kind,
                "total_bytes": one.total_bytes,
                "free_bytes": one.free_bytes,
                "reserved_bytes": one.reserved_bytes,
                "foreign_bytes": one.foreign_bytes,
                "problem": one.problem or None,
            }
            for one in seen.devices
        ],
        "storage": {"models_bytes": seen.models_bytes, "free_bytes": seen.free_bytes},
        "queue": {"active": seen.active, "waiting": seen.waiting, "limit": seen.queue_limit},
    }
