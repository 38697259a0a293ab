"""Make the engine's own environment, once per lock file, and print the path of its interpreter.

Usage: python scripts/engine_env.py [--device auto|cpu|cuda] [--where]

The environment lives in the user's cache folder ($VLLAMA_ENGINES, else $XDG_CACHE_HOME/vllama/engines, else
~/.cache/vllama/engines) under the hash of its lock file, so that a second checkout with the same lock finds it in no
time. Needs nothing but Python 3.11+ with venv. Data (the path) goes to stdout, talk to stderr.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {"cpu": ROOT / "requirements" / "engine-cpu.lock", "cuda": ROOT / "requirements" / "engine-cuda.lock"}
# The CPU builds of torch are on PyTorch's own index, not on PyPI; some mirrors have them under the first.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
COMPLETE = ".complete"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def detect_device() -> str:
    """cuda where the driver's own tool finds a GPU, else cpu."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "cpu"
    works = subprocess.run([tool, "-L"], capture_output=True, timeout=60, check=False)
    return "cuda" if works.returncode == 0 and b"GPU" in works.stdout else "cpu"


def engines_folder() -> Path:
    chosen = os.environ.get("VLLAMA_ENGINES")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "vllama" / "engines"


def environment_folder(device: str) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(LOCKS[device].read_bytes() + version.encode()).hexdigest()[:16]
    return engines_folder() / f"{device}-py{version}-{digest}"


def pip_install(python: Path, device: str, log: Path) -> bool:
    """Install the lock; True if that worked. Both tries write to ``log``."""
    base = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    # A lock names every package. --no-deps, because the CPU lock leaves three out on purpose: PyPI's torchvision,
    # torchaudio and torchcodec do not fit the CPU build of torch and break text models that need none of them.
    what = ["--no-deps", "-r", str(LOCKS[device])]
    tries = [base + what]
    if device == "cpu":
        tries.append([*base, "--extra-index-url", TORCH_CPU_INDEX, *what])
    for number, command in enumerate(tries):
        if number:
            say("• not everything was found there: trying once more with PyTorch's CPU index")
        with log.open("ab") as output:
            output.write(("$ " + " ".join(command) + "\n").encode())
            output.flush()
            if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode == 0:
                return True
    return False


def make(device: str) -> Path:
    """Return the interpreter of the environment; builds it if it is not there. Safe to run twice at once."""
    folder = environment_folder(device)
    python = folder / "bin" / "python"
    if (folder / COMPLETE).exists() and python.exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / COMPLETE).exists() and python.exists():
            return python  # somebody else has built it while we waited
        say(f"→ engine environment ({device}): {folder}")
        say("  this installs vLLM and torch, several GB, once; it takes some minutes")
        started = time.monotonic()
        log = folder.parent / f"{folder.name}.log"
        log.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        if not pip_install(python, device, log):
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            say(f"{tail}\n✗ the engine's packages could not be installed; the whole log: {log}")
            say("hint: pip must reach an index that has them. Behind a proxy or mirror, configure pip (pip config);")
            say(f"hint: for CPU builds of torch it needs {TORCH_CPU_INDEX} or a mirror of it.")
            sys.exit(1)
        (folder / COMPLETE).write_text("complete\n")
        say(f"✓ engine environment ready after {time.monotonic() - started:.0f} s")
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--where", action="store_true", help="print the folder, make nothing")
    options = parser.parse_args()
    device = detect_device() if options.device == "auto" else options.device
    print(environment_folder(device) if options.where else make(device))


if __name__ == "__main__":
    main()
