"""Install the official JavaScript client, once per lock file, and print the node_modules folder that has it.

Usage: python scripts/javascript_client.py

The versions are those of tests/e2e/javascript/package-lock.json; npm fetches them as it is configured. The folder lives
in the user's cache folder under the hash of that file. Without node on the machine nothing is printed, and the tests
that need it are skipped. Data goes to stdout, talk to stderr.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "tests" / "e2e" / "javascript"
LOCK = PACKAGE / "package-lock.json"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    return Path(cache) / "vllama" / "javascript" / digest


def install() -> Path | None:
    """Return the node_modules folder; fetches the packages the first time. None without node."""
    target = cache_folder()
    modules = target / "node_modules"
    if shutil.which("node") is None:
        say("• node is not installed: the JavaScript client is not tested")
        return None
    if modules.exists():
        return modules
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("✗ node is installed, but npm is not\nhint: it fetches the official JavaScript client")
    say("→ fetching the official JavaScript client (npm, 0.3 MB, once)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name) / "client"
        folder.mkdir()
        for file in (PACKAGE / "package.json", LOCK):
            shutil.copy(file, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            sys.exit(f"✗ npm ci failed:\n{result.stdout}{result.stderr}\nhint: npm must reach its registry")
        try:
            folder.rename(target)  # whole or not at all: another checkout may be looking
        except OSError:
            if not modules.exists():  # else that one was first: a folder is not replaced by a folder
                raise
    return modules


if __name__ == "__main__":
    print(install() or "")
