"""The package on a machine with the real engine, under the whole hardening of the unit: no drop-in eases anything.

One life in order: installed, started, a model made and asked for, the daemon killed, stopped, purged.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.package.stage import PYTHON
from tests.e2e.real_engine import engine_python, packaged_gguf
from tests.systemd.box import booted, why_not
from tests.systemd.conftest import Figures
from tests.systemd.packaged import PackagedService, Packages

pytestmark = pytest.mark.engine

MODEL = "smollm2:135m"
GGUF = "/srv/smollm2.gguf"
OURS = ("/etc", "/var", "/usr", "/run/vllama", "/tmp", "/dev/shm", "/srv")
"""Where a package, a service or an engine could leave something."""

CONFIG = """\
[engine]
cpu_memory_bytes = "5GiB"
cpu_kv_bytes = "256MiB"
"""

ASK = f"""
import ollama
answer = ollama.chat("{MODEL}", [{{"role": "user", "content": "What is the capital of France?"}}],
                     options={{"temperature": 0, "num_predict": 16}})
print(answer.message.content, answer.eval_count)
"""
"""The official client as it comes: no address, no setting."""

LOADED_S = 200.0


@pytest.fixture(scope="module")
def machine(packages: Packages) -> Iterator[PackagedService]:
    """A machine with the package, the engine, and two users; nothing of it runs."""
    if reason := why_not():
        pytest.skip(reason)
    python = engine_python()
    if not (python.parents[1] / "lib" / PYTHON).is_dir() or not Path(f"/usr/bin/{PYTHON}").exists():
        pytest.skip(f"the engine, the package and this machine have to have one {PYTHON}")
    with booted() as box:
        service = PackagedService(box)
        box.run("rm", "-f", "/usr/sbin/policy-rc.d")
        service.before = service.files()
        service.dpkg("--install", str(packages.first))
        service.stop()
        service.add_users()
        service.add_real_engine(python)
        box.write("/etc/vllama/config.d/memory.toml", CONFIG)
        box.run("install", "-m644", str(packaged_gguf()), GGUF)
        yield service


def ask(machine: PackagedService) -> str:
    """What the official client gets."""
    return machine.box.run(f"{sys.prefix}/bin/python", "-c", ASK, timeout=LOADED_S).stdout


def test_the_official_client_is_answered_by_a_forked_engine(machine: PackagedService, figures: Figures) -> None:
    begun = time.monotonic()
    machine.systemctl("start", "vllamad.service")
    figures.tell(f"systemctl start vllamad, real engine installed: {time.monotonic() - begun:.2f} s")
    created = machine.box.run(
        "runuser", "-u", "ann", "--", "vllamactl", "create", MODEL, "--from", GGUF, timeout=LOADED_S
    )
    print(created.stderr)
    begun = time.monotonic()
    assert "Paris" in ask(machine), machine.journal()[-4000:]
    figures.tell(f"first answer, load included: {time.monotonic() - begun:.1f} s")
    (worker,) = machine.ps()
    assert f"process.fork title={MODEL} pid={worker['pid']}" in machine.journal()
    print(machine.journal())
    print(machine.shared_memory(), machine.processes())
