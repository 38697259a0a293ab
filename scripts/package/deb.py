#!/usr/bin/env python3
"""Build the Debian package, with dpkg-deb alone and without root.

Usage: python -m scripts.package.deb [--into FOLDER] [--compression xz|zstd|none]

Prints the path of the package. It is for this machine's architecture and for the minor version of the Python that runs
this, since it brings compiled modules: python3.11 on Debian 12. The same sources give the same package, byte for byte.

Whoever releases it says who they are as for Debian's own tools, by DEBFULLNAME and DEBEMAIL; else the head of
packaging/deb/changelog tells.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path

from scripts.package.files import DEBIAN_ENGINE_NEEDS, DEBIAN_NEEDS, FILES, NAME, ROOT
from scripts.package.stage import PYTHON, stage

DEBIAN = ROOT / "packaging/deb"
SCRIPTS = ("postinst", "prerm", "postrm")
CONTROL = """\
Package: {name}
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {kibibytes}
Pre-Depends: init-system-helpers (>= 1.54)
Depends: {python}, {needs}, systemd
Recommends: {python}-venv, {python}-dev, {engine_needs}
Section: net
Priority: optional
Description: language models behind Ollama's, OpenAI's and Anthropic's APIs
 vllamad supervises vLLM workers, one for each loaded model, and answers the
 clients of Ollama, OpenAI and Anthropic on 127.0.0.1:11434. vllamactl pulls,
 runs, lists and stops models.
 .
 The engine, vLLM, is not in this package: `vllamactl engine install` brings
 it. On GPUs it compiles small programs at run time, and needs gcc and
 Python's headers for that; on CPU it needs libnuma1.
"""


class BuildFailed(Exception):
    """The package cannot be built; the text says why and what to do."""


def changelog_head() -> tuple[str, int]:
    """The version that is built, and its time in seconds: all times in the package, so that it can be made again."""
    text = (DEBIAN / "changelog").read_text()
    version = re.match(rf"{NAME} \(([^)]+)\) ", text)
    stamp = re.search(r"^ -- .*>  (.+)$", text, re.MULTILINE)
    if version is None or stamp is None:
        raise BuildFailed("packaging/deb/changelog: its head is no entry of a Debian changelog")
    return version[1], int(os.environ.get("SOURCE_DATE_EPOCH") or parsedate_to_datetime(stamp[1]).timestamp())


def maintainer(environ: Mapping[str, str]) -> str:
    """Who answers for the package."""
    head = re.search(r"^ -- (.+) <(.+)>  ", (DEBIAN / "changelog").read_text(), re.MULTILINE)
    if head is None:
        raise BuildFailed("packaging/deb/changelog: its head does not say who made it")
    return f"{environ.get('DEBFULLNAME') or head[1]} <{environ.get('DEBEMAIL') or head[2]}>"


def pack(root: Path, package: Path, version: str, *, when: int, compression: str = "xz") -> Path:
    """Make a package out of a tree that stage() made; the tree gets a folder DEBIAN. Returns the package's path."""
    if shutil.which("dpkg-deb") is None:
        raise BuildFailed("dpkg-deb is not installed: build on Debian or Ubuntu, or apt install dpkg")
    control = root / "DEBIAN"
    shutil.rmtree(control, ignore_errors=True)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}" for path in files]
    kibibytes = sum(-(-path.stat().st_size // 1024) for path in files)
    control.mkdir()
    (control / "md5sums").write_text("\n".join(sums) + "\n")
    (control / "conffiles").write_text("".join(f"{file.path}\n" for file in FILES if file.is_config))
    fields = {
        "maintainer": maintainer(os.environ),
        "name": NAME,
        "version": version,
        "architecture": architecture(),
        "python": PYTHON,
    }
    fields |= {"needs": ", ".join(DEBIAN_NEEDS), "engine_needs": ", ".join(DEBIAN_ENGINE_NEEDS)}
    (control / "control").write_text(CONTROL.format(**fields, kibibytes=kibibytes))
    for name in SCRIPTS:
        shutil.copy(DEBIAN / name, control)
    for path in control.iterdir():
        path.chmod(0o755 if path.name in SCRIPTS else 0o644)
    control.chmod(0o755)
    for path in [root, *root.rglob("*")]:
        os.utime(path, (when, when), follow_symlinks=False)
    package.parent.mkdir(parents=True, exist_ok=True)
    level = {"xz": ["-z6"], "zstd": ["-z3"], "none": []}[compression]
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", f"-Z{compression}", *level, "--build", str(root), str(package)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"SOURCE_DATE_EPOCH": str(when)},
    )
    return package


def architecture() -> str:
    """Debian's name for this machine's."""
    return subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "dist", help="folder for the package (default: dist)")
    parser.add_argument("--compression", choices=["xz", "zstd", "none"], default="xz")
    options = parser.parse_args()
    try:
        version, when = changelog_head()
        name = f"{NAME}_{version}_{architecture()}.deb"
        with tempfile.TemporaryDirectory(prefix="vllama-deb-") as scratch:
            root = Path(scratch) / "root"
            stage(root)
            print(pack(root, options.into / name, version, when=when, compression=options.compression))
    except BuildFailed as problem:
        sys.exit(f"✗ {problem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
