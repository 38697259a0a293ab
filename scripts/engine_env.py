"""Make the engine's own environment, once per lock file, and print the path of its interpreter.

Usage: python scripts/engine_env.py [--device auto|cpu|cuda] [--where]

The environment lives in the user's cache folder ($VLLAMA_ENGINES, else $XDG_CACHE_HOME/vllama/engines, else
~/.cache/vllama/engines) under the hash of its lock file, so that a second checkout with the same lock finds it in no
time. Needs nothing but Python 3.11+ with venv. Data (the path) goes to stdout, talk to stderr. Where vllama is
installed, `vllamactl engine install` does this.
"""

import argparse
import fcntl
import hashlib
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # nothing is installed yet

from vllamactl.engine_environment import NotMade, Recipe, detect_device, is_complete, locked_version, make  # noqa: E402

LOCKS = {"cpu": ROOT / "requirements" / "engine-cpu.lock", "cuda": ROOT / "requirements" / "engine-cuda.lock"}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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


def ensure(device: str) -> Path:
    """Return the interpreter of the environment; builds it if it is not there. Safe to run twice at once."""
    folder = environment_folder(device)
    python = folder / "bin" / "python"
    if is_complete(folder):
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete(folder):
            return python  # somebody else has built it while we waited
        say(f"→ engine environment ({device}): {folder}")
        say("  this installs vLLM and torch, several GB, once; it takes some minutes")
        started = time.monotonic()
        try:
            make(folder, Recipe(device, locked_version(LOCKS[device], device), LOCKS[device]))
        except NotMade as problem:
            for line in problem.lines:
                say(line)
            say(f"✗ {problem.message}; the whole log: {problem.log}")
            say(f"hint: {problem.hint}")
            sys.exit(1)
        say(f"✓ engine environment ready after {time.monotonic() - started:.0f} s")
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--where", action="store_true", help="print the folder, make nothing")
    options = parser.parse_args()
    device = detect_device() if options.device == "auto" else options.device
    print(environment_folder(device) if options.where else ensure(device))


if __name__ == "__main__":
    main()
