"""``vllamad --check --json``: what a daemon would find on this machine, as facts (floor 5).

One JSON object a line on standard output, each with its ``part``: ``config`` first; if that is valid then ``engine``,
``devices`` and ``hub``, each as soon as it is known, since any of them may take long or never answer. Whoever asks
(``vllamactl doctor``) judges them. Nothing is made, locked, bound or changed; no secret is part of any line.
"""

import asyncio
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from vllama import __version__
from vllamad.config.engine_python import find_engine_python
from vllamad.config.loaded import Loaded
from vllamad.devices.asking import Asker
from vllamad.devices.nvml import NvmlProbe, driver_versions
from vllamad.domain import handover
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Launcher
from vllamad.engine.command import EngineOptions, inherited_environment
from vllamad.engine.version import SUPPORTED, EngineProbe
from vllamad.hub.children import child_environment, run_child
from vllamad.hub.pull import DEFAULT_ENDPOINT
from vllamad.process.child import PosixLauncher

DRIVER_S = 3.0
HUB_S = 3.0
"""How long the hub may take to answer: a person waits."""
GPU_DRIVER = Path("/dev/nvidiactl")

Emit = Callable[[Mapping[str, object]], None]


def emit(line: Mapping[str, object]) -> None:
    """Print a line at once: the reader may be waiting for just this one."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def refused(error: VllamaError) -> dict[str, object]:
    """The part ``config`` of a configuration that cannot be loaded."""
    return {"part": "config", "version": __version__, "problem": error.message, "hint": error.hint or ""}


def config(loaded: Loaded) -> dict[str, object]:
    """The part ``config``: whether it is valid, and what of it tells where to look."""
    settings, places = loaded.settings, loaded.places
    python = find_engine_python(settings.engine.python, Path(sys.prefix), places.engines)
    return {
        "part": "config",
        "version": __version__,
        "handover": handover.FORMAT,
        "problem": "",
        "hint": "",
        "warnings": list(loaded.warnings),
        "files": [str(path) for path in loaded.files],
        "state": str(places.state),
        "runtime": str(places.runtime),
        "cache": str(places.cache),
        "models": str(places.models),
        "socket": str(places.socket),
        "worker_sockets": str(places.worker_sockets),
        "host": settings.server.host,
        "port": settings.server.port,
        "group": settings.control.group,
        "engine_python": str(python.path),
        "engine_chosen_by": python.chosen_by,
        "engine_device": settings.engine.device,
    }


async def look(loaded: Loaded, environ: Mapping[str, str], emit: Emit = emit) -> None:
    """Emit the parts that take time. ``emit`` is for tests."""
    # Another owner than the daemon's: what one that starts just now finds of its own, it kills.
    launcher = PosixLauncher(f"{loaded.places.runtime}#check")
    gpus = NvmlProbe(visible=environ.get("CUDA_VISIBLE_DEVICES"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_engine(loaded, environ, launcher, gpus, emit))
        tasks.create_task(_devices(gpus, emit))
        tasks.create_task(_hub(loaded, environ, launcher, emit))


async def _engine(loaded: Loaded, environ: Mapping[str, str], launcher: Launcher, gpus: NvmlProbe, emit: Emit) -> None:
    settings = loaded.settings.engine
    python = find_engine_python(settings.python, Path(sys.prefix), loaded.places.engines).path

    async def has_gpu() -> bool:
        return _has_driver() or bool(await gpus.read())

    probe = EngineProbe(python, launcher, device=settings.device, has_gpu=has_gpu)
    options = EngineOptions(python, loaded.places.cache, environ, settings.env)
    found = await probe.version(inherited_environment(options))
    emit(
        {
            "part": "engine",
            "python": found.python,
            "distribution": found.distribution,
            "version": found.version,
            "device": found.device,
            "torch_cuda": found.torch_cuda,
            "problem": found.problem,
            "hint": found.hint,
            "supported": list(SUPPORTED),
        }
    )


def _has_driver() -> bool:
    return GPU_DRIVER.exists()


async def _devices(gpus: NvmlProbe, emit: Emit) -> None:
    readings = await gpus.read()
    driver, cuda = "", ""
    if not gpus.problem:
        try:
            driver, cuda = await Asker(driver_versions, DRIVER_S, "nvml-versions").answer()
        except TimeoutError:
            driver = "silent"
    emit(
        {
            "part": "devices",
            "problem": gpus.problem,
            "driver": driver,
            "cuda": cuda,
            "gpus": [{"name": one.name, "bytes": one.total_bytes, "problem": one.reason} for one in readings],
        }
    )


async def _hub(loaded: Loaded, environ: Mapping[str, str], launcher: Launcher, emit: Emit) -> None:
    models = loaded.settings.models
    endpoint = (models.hub_endpoint or DEFAULT_ENDPOINT).rstrip("/")
    token = loaded.values["models.hub_token"]
    found: Mapping[str, object]
    try:
        found = await run_child(
            launcher,
            [sys.executable, "-P", "-m", "vllamad.hub.account"],
            env=child_environment(environ, with_network=True) | {"HF_HUB_DISABLE_TELEMETRY": "1"},
            cwd=Path("/"),
            request={"endpoint": endpoint, "token": models.hub_token, "timeout_s": HUB_S},
            doing="ask the hub who we are",
            on_line=lambda _line: None,
        )
    except VllamaError as error:
        found = {"problem": error.message}
    emit(
        {
            "part": "hub",
            "endpoint": endpoint,
            "has_token": bool(models.hub_token),
            "token_source": token.source if models.hub_token else "",
            "status": found.get("status", 0),
            "user": found.get("user", ""),
            "date": found.get("date", ""),
            "problem": found.get("problem", ""),
        }
    )


def run(loaded: Loaded) -> int:
    """Print every part; returns the exit status, which is that of the configuration: valid."""
    # A daemon that is to be replaced by this program asks it before: what cannot be imported is found out here.
    importlib.import_module("vllamad.app")
    # What is found is in the lines; the adapters' log is for a daemon.
    logging.disable(logging.CRITICAL)
    emit(config(loaded))
    asyncio.run(look(loaded, os.environ))
    return 0
