"""The engines that are installed in a state folder, and which of them the daemon uses (floor 3).

engines/cpu-0.32.0-1a2b3c4d/    one environment each, made by engine_environment.py
engines/current                 a link to the one that the daemon takes at its next start
engines/previous                the one before, for a rollback
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllamactl.engine_environment import COMPLETE, Recipe, is_complete, locked_version
from vllamactl.exits import CtlError

CURRENT = "current"
PREVIOUS = "previous"

GIB = 1024**3
NEEDED_BYTES = {"cpu": 5 * GIB, "cuda": 12 * GIB}
"""Free space asked for: at most 3.9 and 9.8 GiB were seen to be taken while 0.32.0 was installed on x86-64, since the
wheels lie beside what is unpacked of them; 3.3 and 8.0 GiB stay."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One that is installed. ``made_time`` is in seconds since 1970; ``use`` is "current", "previous" or ""."""

    name: str
    device: str
    version: str
    made_time: float
    size_bytes: int
    folder: Path
    use: str

    def plain(self) -> dict[str, object]:
        """Return it as JSON for scripts."""
        return {**asdict(self), "folder": str(self.folder), "python": str(self.folder / "bin/python")}


def lock_file(device: str) -> Path | None:
    """Return the lock that came with this version: installed beside it, or in the checkout it runs from."""
    checkout = Path(__file__).resolve().parents[1]
    for folder in (Path(sys.prefix) / "share" / "vllama", checkout):
        lock = folder / "requirements" / f"engine-{device}.lock"
        if lock.is_file():
            return lock
    return None


def recipe(device: str, version: str = "", lock: Path | None = None) -> Recipe:
    """Return what to install: the given lock, else ours if it is of the asked version, else whatever pip finds."""
    lock = lock or lock_file(device)
    try:
        if lock and version in ("", found := locked_version(lock, device)):
            return Recipe(device, found, lock)
    except (OSError, ValueError) as problem:
        raise CtlError("INVALID_REQUEST", f"cannot read the lock: {problem}", "name another file: --lock") from problem
    if not version:
        raise CtlError("NOT_FOUND", f"no lock file for {device} came with vllama", "name one: --lock FILE")
    return Recipe(device, version, None)


def environment_name(recipe: Recipe, python_version: str) -> str:
    """Return ``cpu-0.32.0-1a2b3c4d``: the same packages for the same Python have the same name."""
    digest = hashlib.sha256(recipe.content + python_version.encode()).hexdigest()[:8]
    return f"{recipe.device}-{recipe.version}-{digest}"


class Engines:
    """The folder ``engines`` of a state folder."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "engines"

    # --- looking ---

    def all(self) -> list[Engine]:
        """Return what is installed and complete, the newest first. Raises CtlError if it may not be looked at."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except PermissionError as problem:
            raise self._denied("look into", "run it as root, or as a member of the group vllama") from problem
        uses = {self.target(link): link for link in (PREVIOUS, CURRENT)}
        found = [
            self._read(name, uses)
            for name in names
            if name not in (CURRENT, PREVIOUS) and is_complete(self.folder / name)
        ]
        return sorted(found, key=lambda engine: engine.made_time, reverse=True)

    def find(self, name: str) -> Engine:
        """Return the engine of that name, or the only one whose name begins like that."""
        engines = self.all()
        matches = [engine for engine in engines if engine.name == name] or [
            engine for engine in engines if engine.name.startswith(name)
        ]
        if len(matches) == 1:
            return matches[0]
        there = ", ".join(engine.name for engine in matches or engines) or "none"
        if matches:
            raise CtlError("INVALID_REQUEST", f"{name} may be any of {there}", "write more of the name")
        raise CtlError("NOT_FOUND", f"there is no engine {name} in {self.folder}", f"installed: {there}")

    def target(self, link: str) -> str:
        """Return the name that ``current`` or ``previous`` leads to; "" if there is no such link."""
        try:
            return str((self.folder / link).readlink())
        except OSError:
            return ""

    def _read(self, name: str, uses: Mapping[str, str]) -> Engine:
        folder = self.folder / name
        facts: dict[str, Any] = json.loads((folder / COMPLETE).read_text())
        return Engine(
            name,
            str(facts["device"]),
            str(facts["version"]),
            float(facts["made_time"]),
            int(facts["size_bytes"]),
            folder,
            uses.get(name, ""),
        )

    # --- changing ---

    @contextmanager
    def held(self, needed_bytes: int = 0) -> Generator[None]:
        """Let nobody else change it for the length of the block. Raises CtlError if this user may not, if somebody
        does already, or if there is no room for ``needed_bytes``."""
        self._prepare()
        free = shutil.disk_usage(self.folder).free
        if free < needed_bytes:
            raise CtlError(
                "STORAGE_FULL",
                f"{self.folder} has {free / GIB:.1f} GiB free, and an engine needs {needed_bytes / GIB:.0f} GiB",
                "make room, for instance: vllamactl engine list, vllamactl engine remove NAME",
                {"free_bytes": str(free), "needed_bytes": str(needed_bytes)},
            )
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as problem:
                raise CtlError(
                    "ALREADY_RUNNING", f"somebody else changes {self.folder} now", "wait until that is done"
                ) from problem
            yield

    def _prepare(self) -> None:
        # Others have to read it: the daemon is another user than root.
        os.umask(0o022)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except PermissionError as problem:
            raise self._denied("write to") from problem
        if not os.access(self.folder, os.W_OK):
            raise self._denied("write to")
        # What the daemon's user could put there must not lead root elsewhere.
        if self.folder.is_symlink() or self.folder.stat().st_uid != os.geteuid():
            raise self._denied("change", "it is another user's, or a link: run this as its owner, or remove it")

    def _denied(self, what: str, hint: str = "") -> CtlError:
        hint = hint or "for the service: sudo vllamactl engine ...; for a daemon of your own: --state-dir FOLDER"
        return CtlError("PERMISSION_DENIED", f"no permission to {what} {self.folder}", hint)

    def use(self, name: str) -> None:
        """Make it the one that the daemon takes at its next start."""
        before = self.target(CURRENT)
        if before == name:
            return
        if before:
            self._link(PREVIOUS, before)
        self._link(CURRENT, name)

    def remove(self, engine: Engine) -> None:
        """Take it from the disk. The one in use is refused."""
        if engine.use == CURRENT:
            raise CtlError(
                "INVALID_REQUEST", f"{engine.name} is the one in use", "choose another first: vllamactl engine use NAME"
            )
        # First it stops to count: an interrupted removal leaves nothing that looks whole.
        (engine.folder / COMPLETE).unlink()
        shutil.rmtree(engine.folder)
        (self.folder / f"{engine.name}.log").unlink(missing_ok=True)
        if engine.use == PREVIOUS:
            (self.folder / PREVIOUS).unlink()

    def _link(self, link: str, name: str) -> None:
        unfinished = self.folder / f".{link}.tmp"
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(name)
        unfinished.replace(self.folder / link)  # at once: whoever looks finds the old one or the new one
