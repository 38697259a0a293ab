"""Make, or bring up to date, the daemon's environment of this checkout.

Usage: python scripts/daemon_env.py FOLDER EXTRA [EXTRA ...]

Installs the checkout, editable, with its extras into the virtual environment FOLDER, by a recent pip (and setuptools,
which builds the package) that are kept in the user's cache folder: the pip that Python brings along takes twice as long
to find the packages. Needs nothing but Python 3.11+ with venv.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["pip>=25,<27", "setuptools>=77,<90"]


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "vllama" / f"pip-setuptools-py{sys.version_info.major}.{sys.version_info.minor}"


def run(command: list[str], **environment: str) -> None:
    """Run pip; its notes on indexes that lack a package are of no interest."""
    result = subprocess.run(
        command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING: Location")]
    if result.returncode != 0:
        sys.exit("\n".join([*lines, "✗ the daemon's packages could not be installed: pip must reach its index"]))


def recent_tools() -> Path:
    """The folder of a recent pip and setuptools; fetched once, by the pip that Python brings along."""
    folder = cache_folder()
    if not (folder / "pip").is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            venv.create(Path(scratch) / "env", with_pip=True)
            python, target = str(Path(scratch) / "env/bin/python"), Path(scratch) / "target"
            quietly = ["install", "-q", "--disable-pip-version-check"]
            run([python, "-m", "pip", *quietly, "--target", str(target), *TOOLS])
            if not folder.exists():
                target.rename(folder)
    return folder


def main(folder: Path, extras: list[str]) -> None:
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, symlinks=True)
    what = f".[{','.join(extras)}]"
    # Without compiling: Python does that for the modules that are imported, when they are.
    flags = ["--quiet", "--no-compile", "--no-input", "--disable-pip-version-check", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *flags, "-e", what]
    run(command, PYTHONPATH=str(recent_tools()))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
