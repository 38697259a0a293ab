#!/usr/bin/env python3
"""Lay out what a package puts on a machine, below a folder: the files of the list in files.py, and nothing else.

Usage: python -m scripts.package.stage [--rpm] FOLDER      (--rpm: where distributions with rpm expect them)

The daemon's environment is put together from requirements/daemon.lock with hashes, compiled, and cached in the user's
cache folder; the repository's own packages come on top. It is for the minor version of the Python that runs this, and
for this machine's architecture. Needs Python 3.11+ with venv, and pip that reaches an index. No root.
"""

import argparse
import compileall
import gzip
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from py_compile import PycInvalidationMode

from scripts.daemon_env import recent_tools, run
from scripts.install_units import with_program
from scripts.package.files import FILES, HOME, NAME, ROOT, File

LOCK = ROOT / "requirements/daemon.lock"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"lib/{PYTHON}/site-packages"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "vllamad", "vllamactl", "proto", "requirements")
LAYOUT = "2"
"""Of the cached environment; another number makes it anew."""

LAUNCHER = """\
#!{home}/bin/python3 -I
import sys

from {program}.__main__ import main

sys.exit(main())
"""
# -I: neither the environment of whoever calls it nor the folder it is called in gets a say in what is imported.


def stage(root: Path, *, is_rpm: bool = False) -> None:
    """Fill ``root``, which is empty or not there yet."""
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise SystemExit(f"✗ {root} is not empty: name another folder")
    home = root / HOME.lstrip("/")
    shutil.copytree(third_party(), home, symlinks=True)
    _add_own(home)
    for file in FILES:
        place = file.place(is_rpm=is_rpm)
        if file.is_tree or not place:
            continue
        path = root / place.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_content(file, home))
        path.chmod(file.mode)
    _settle(home)
    for path in root.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
        elif not path.is_symlink() and path.is_relative_to(home):
            path.chmod(0o644)


# --- the environment -------------------------------------------------------------------------------------------------


def third_party() -> Path:
    """The environment with everything but our own packages, compiled; made once for each lock, Python and machine."""
    digest = hashlib.sha256(LOCK.read_bytes() + f"{LAYOUT}{PYTHON}{platform.machine()}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllama"
    folder = cache / f"package-{PYTHON}-{digest}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "env"
        venv.create(made, symlinks=True)
        _pip(made, "--require-hashes", "-r", str(LOCK))
        _compile(made)
        if not folder.exists():
            made.rename(folder)
    return folder


def _add_own(home: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / NAME  # setuptools builds in the folder that it is given
        copy.mkdir()
        for name in SOURCES:
            source = ROOT / name
            unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
            (shutil.copytree(source, copy / name, ignore=unwanted) if source.is_dir() else shutil.copy(source, copy))
        _pip(home, str(copy))
    for package in ("vllamad", "vllamactl", "vllama"):
        _compile(home, package)


def _pip(environment: Path, *words: str) -> None:
    flags = [
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--no-input",
        "--disable-pip-version-check",
        "--no-build-isolation",
    ]
    command = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install", *flags, *words]
    # An administrator's constraints are no part of what a package is made of.
    run(command, PYTHONPATH=str(recent_tools()), PIP_CONSTRAINT="")


def _compile(environment: Path, package: str = "") -> None:
    """Compile for good: nobody may write there later, and a source that never changes need not be looked at."""
    compileall.compile_dir(
        str(environment / SITE / package),
        quiet=1,
        force=True,
        workers=0,
        stripdir=str(environment),
        prependdir=HOME,
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )


def _settle(home: Path) -> None:
    """Turn an environment of this machine into one of the machine where it will be: no trace of here is left."""
    shutil.rmtree(home / "bin")
    for unwanted in ("include", "lib64"):
        path = home / unwanted
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    (home / "bin").mkdir()
    depth = len(Path(HOME).parts) - 1  # from HOME/bin up to /usr
    (home / "bin" / PYTHON).symlink_to("../" * depth + f"bin/{PYTHON}")
    for name in ("python3", "python"):
        (home / "bin" / name).symlink_to(PYTHON)
    version = PYTHON.removeprefix("python")
    (home / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n")
    for folder in (home / SITE).glob("*.dist-info"):
        # The package manager owns the files, and pip is told so by what is missing (PEP 627).
        for name in ("RECORD", "REQUESTED", "direct_url.json"):
            (folder / name).unlink(missing_ok=True)
        (folder / "INSTALLER").write_text("package\n")


# --- single files ----------------------------------------------------------------------------------------------------


def _content(file: File, home: Path) -> bytes:
    name = Path(file.path).name
    match file.source:
        case "<launcher>":
            return LAUNCHER.format(home=HOME, program=name).encode()
        case "<manual>":
            page = _ask(home, "-m", "scripts.package.manual", name.removesuffix(".gz"))
            return gzip.compress(page, mtime=0)
        case "<completion>":
            shell = next(each for each in ("bash", "fish", "zsh") if each in file.path)
            return _ask(home, "-m", "vllamactl", "completion", shell)
        case "<copyright>":
            return copyright_page(home).encode()
        case "<changelog>":
            return gzip.compress((ROOT / "packaging/deb/changelog").read_bytes(), mtime=0)
        case source if source.endswith(".service"):
            return with_program((ROOT / source).read_text(), "/usr/bin/vllamad").encode()
        case source:
            return (ROOT / source).read_bytes()


def _ask(home: Path, *words: str) -> bytes:
    """What the programs say about themselves, run by the environment as it lies here."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [str(home / "bin/python"), *words], cwd="/", env=environment, check=True, capture_output=True
    ).stdout


def copyright_page(home: Path) -> str:
    """Return the licences of everything in the package, in Debian's machine-readable form (DEP 5)."""
    apache = "On Debian systems the whole text is in /usr/share/common-licenses/Apache-2.0."
    parts = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: vllama",
        f"Files: *\nCopyright: 2026 the authors of vllama\nLicense: Apache-2.0\n {apache}",
    ]
    for metadata in sorted((home / SITE).glob("*.dist-info/METADATA")):
        facts = HeaderParser().parsestr(metadata.read_text(encoding="utf-8", errors="replace"))
        if facts["Name"] == NAME:
            continue
        texts = [
            path
            for path in metadata.parent.rglob("*")
            if path.is_file() and path.name.upper().startswith(("LICEN", "COPYING"))
        ]
        where = ", ".join(sorted(f"{HOME}/{path.relative_to(home)}" for path in texts))
        author = facts["Author"] or facts["Author-email"] or facts["Maintainer-email"] or "its authors"
        parts.append(
            f"Files: {HOME.lstrip('/')}/{SITE}/{metadata.parent.name}/*\n"
            f"Copyright: {' '.join(author.split())}\n"
            f"License: {_licence(facts)}\n"
            f" The licence of {facts['Name']} {facts['Version']} and of its modules.\n"
            f" Its text: {where or 'with its sources on the Python Package Index'}"
        )
    return "\n\n".join(parts) + "\n"


def _licence(facts: Message) -> str:
    """The licence that a distribution's metadata names, on one line."""
    given = facts["License-Expression"] or facts["License"] or ""
    if given and "\n" not in given:
        return given
    classifiers = facts.get_all("Classifier") or []
    trove = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License")]
    return ", ".join(trove) or "see its metadata"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rpm", action="store_true")
    options = parser.parse_args()
    stage(options.folder, is_rpm=options.rpm)
    return 0


if __name__ == "__main__":
    sys.exit(main())
