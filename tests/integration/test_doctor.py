"""`vllamactl doctor` on this machine: with a daemon that is well, and with what goes wrong, one thing at a time."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.daemon import FAKE_PYTHON, Daemon, running
from tests.fakes.hub import HubServer

NOBODY = 65534
OFFLINE = "http://127.0.0.1:1"
"""A hub that is not there: nothing leaves this machine."""


@dataclass(frozen=True)
class Report:
    """What one run left."""

    status: int
    out: str
    err: str

    def __getitem__(self, check: str) -> tuple[str, str, str]:
        """State, text and remedy of a check."""
        (found,) = [one for one in json.loads(self.out)["checks"] if one["id"] == check]
        return found["state"], found["text"], found["remedy"]

    @property
    def failed(self) -> list[str]:
        return [one["id"] for one in json.loads(self.out)["checks"] if one["state"] == "fail"]


def doctor(environment: dict[str, str], *words: str, prefix: tuple[str, ...] = (), cwd: str = "/") -> Report:
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "vllamactl", "doctor", "--timeout=60", *words],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Report(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def house(hub: HubServer) -> Iterator[Daemon]:
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "secret", "VLLAMA_CONTROL_GROUP": "daemon"}
    with running(environment=environment, models={"tiny": {}}) as daemon:
        daemon.ctl("load", "tiny")
        yield daemon


def asking(daemon: Daemon) -> dict[str, str]:
    """What somebody has who knows where the daemon is, and nothing else of it."""
    return {"PATH": os.environ["PATH"], "HOME": str(daemon.root), "VLLAMA_SOCKET": str(daemon.socket)}


WELL = ("program", "folders", "config", "socket", "daemon", "version", "port", "engine", "hub", "leftovers")


def test_a_daemon_that_is_well(house: Daemon) -> None:
    found = doctor(asking(house), "--json")
    assert (found.status, found.failed) == (0, []), found
    assert {check: found[check][0] for check in WELL} == dict.fromkeys(WELL, "ok"), found.out
    assert f"pid {house.child.pid}, {house.url}" in found["daemon"][1] if house.child else False
    # It looked with the daemon's environment, not with the asker's.
    assert str(house.state) in found["folders"][1] and "token of ann" in found["hub"][1]
    assert "fake_python" in found["engine"][1]
    assert "secret" not in found.out + found.err
    assert json.loads(found.out)["failed"] == 0


def test_the_page_fits_a_terminal(house: Daemon) -> None:
    found = doctor(asking(house))
    lines = found.out.splitlines()
    assert found.status == 0 and found.err == ""
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("no problems")
    assert any(line.startswith("✓ daemon") for line in lines)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="becomes another user by setpriv")
def test_another_user_is_told_how_to_get_in(house: Daemon) -> None:
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    house.root.chmod(0o711)
    found = doctor(asking(house) | {"HOME": "/nonexistent", "HF_ENDPOINT": OFFLINE}, "--json", prefix=become)
    if not found.out:
        pytest.skip(f"nobody may run this interpreter: {found.err[-200:]}")
    assert found.status == 1 and "socket" in found.failed
    assert found["socket"][2].startswith("sudo usermod -aG daemon "), found["socket"]
    assert found["daemon"][0] == "skipped" and "sudo" in found["daemon"][2]


def test_a_daemon_that_hangs(house: Daemon) -> None:
    house.send_signal(signal.SIGSTOP)
    try:
        found = doctor(asking(house), "--json", "--timeout=4")
    finally:
        house.send_signal(signal.SIGCONT)
    assert found.status == 1 and house.child is not None
    state, text, _remedy = found["daemon"]
    assert state == "fail" and f"pid {house.child.pid}" in text and "does not answer" in text


# --- without a daemon


@pytest.fixture
def alone(short_folder: Path) -> dict[str, str]:
    """The environment of somebody whose daemon would be well, if it ran."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(short_folder),
        "HF_ENDPOINT": OFFLINE,
        "VLLAMA_STATE_DIR": f"{short_folder}/state",
        "VLLAMA_SOCKET": f"{short_folder}/state/run/vllamad.sock",
        "VLLAMA_SERVER_PORT": "0",
        "VLLAMA_ENGINE_PYTHON": str(FAKE_PYTHON),
    }


def test_a_daemon_that_does_not_run(alone: dict[str, str]) -> None:
    found = doctor(alone, "--json")
    assert (found.status, found.failed) == (1, ["daemon"]), found.out
    assert "no daemon at" in found["daemon"][1]
    assert found["hub"][0] == "warn", "offline is no failure"
    assert found["engine"][0] == found["config"][0] == "ok"
    assert not Path(alone["VLLAMA_STATE_DIR"]).exists(), "it only looks"


def test_several_things_that_are_wrong_are_all_told(alone: dict[str, str], hub: HubServer, short_folder: Path) -> None:
    (short_folder / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        broken = {
            "VLLAMA_SERVER_PORT": str(taken.getsockname()[1]),
            "VLLAMA_ENGINE_PYTHON": "/no/such/python",
            "VLLAMA_STATE_DIR": f"{short_folder}/file/state",
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "forged-forged",
        }
        found = doctor(alone | broken, "--json")
    assert found.failed == ["folders", "daemon", "port", "engine", "hub"]
    assert "file is not a folder" in found["folders"][1]
    assert f"(pid {os.getpid()}, " in found["port"][1] and f"kill {os.getpid()}" in found["port"][2]
    assert "/no/such/python" in found["engine"][1] and "engine.python" in found["engine"][2]
    assert "refuses the token of HF_TOKEN" in found["hub"][1]
    assert "forged" not in found.out + found.err


def test_a_wrong_configuration_is_told_with_its_line(alone: dict[str, str], short_folder: Path) -> None:
    file = short_folder / "config.toml"
    file.write_text("[server]\nprot = 1\n")
    found = doctor(alone | {"VLLAMA_CONFIG": str(file)}, "--json")
    assert found["config"][0] == "fail" and f"{file}:2" in found["config"][1]
    assert found["engine"] == ("skipped", "not known while the configuration is wrong", "")


def test_what_an_earlier_daemon_left(alone: dict[str, str]) -> None:
    run = Path(alone["VLLAMA_STATE_DIR"]) / "run"
    run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(alone["VLLAMA_SOCKET"])
    mark = {"VLLAMA_WORKER": f"{run}:1234"}
    orphan = subprocess.Popen(["sleep", "60"], env=alone | mark)
    try:
        found = doctor(alone, "--json")
    finally:
        orphan.kill()
        orphan.wait()
    assert "left by a daemon that is gone" in found["socket"][1]
    assert found["leftovers"][0] == "warn" and f"pid {orphan.pid} (sleep)" in found["leftovers"][1]
