"""Pulling through the whole house: vllamactl and HTTP, the daemon, a child, and a hub of our own on loopback."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.daemon import Daemon
from tests.fakes.hub import HubServer, tiny_model

NewHouse = Callable[..., Daemon]
REPO = "org/tiny"
WEIGHTS = "model.safetensors"
ROWS = 40_000
PATIENCE_S = 60.0


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo(REPO, tiny_model(rows=ROWS))
        yield server


def start_pull(daemon: Daemon, *words: str) -> "subprocess.Popen[str]":
    """vllamactl pull in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "vllamactl", f"--socket={daemon.socket}", "--json", "pull", *words],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_half(pull: "subprocess.Popen[str]", hub: HubServer, size: int) -> None:
    """Wait until half of the weights have arrived on disk, by what the operation reports. (The hub pauses when it has
    sent them, which is earlier.)"""
    assert hub.paused.wait(PATIENCE_S)
    assert pull.stdout is not None
    last: dict[str, object] = {}
    for line in pull.stdout:
        last = json.loads(line)
        for file in last.get("progress", {}).get("files", []):
            if file["path"] == WEIGHTS and file["completed_bytes"] >= size // 2:
                return
    raise AssertionError(f"the pull ended before its half: {last}")


def test_a_repository_is_pulled_listed_shown_served_and_removed_under_its_name(
    new_house: NewHouse, hub: HubServer
) -> None:
    daemon = new_house(HF_ENDPOINT=hub.url)
    pulled = daemon.ctl("pull", REPO)
    assert "✓" in pulled.stderr + pulled.stdout
    (model,) = daemon.json("list")["models"]
    assert model["name"] == "org/tiny:latest"
    assert daemon.json("show", REPO)["repository"] == REPO
    body = {"model": REPO, "prompt": "hello", "stream": False, "options": {"num_predict": 2}}
    answer = daemon.request("POST", "/api/generate", body)
    assert answer.json()["model"] == REPO
    served = sum(hub.served_bytes.values())
    daemon.ctl("pull", REPO)
    assert hub.served_bytes[WEIGHTS] < 2 * len(tiny_model(rows=ROWS)[WEIGHTS])
    assert sum(hub.served_bytes.values()) - served < 10_000, "pulling again costs a look, not a download"
    daemon.ctl("rm", "--force", REPO)
    assert daemon.json("list")["models"] == []
    assert not any((daemon.state / "models" / "blobs").iterdir()), "its bytes went with it"


def test_http_pull_streams_ollamas_lines(new_house: NewHouse, hub: HubServer) -> None:
    daemon = new_house(HF_ENDPOINT=hub.url)
    lines = daemon.open_stream("/api/pull", {"model": REPO}).rest()
    statuses = [line["status"] for line in lines]
    assert statuses[0] == "pulling manifest"
    assert statuses[-1] == "success"
    assert any(line.get("digest", "").startswith("sha256:") for line in lines)
    unknown = daemon.request("POST", "/api/pull", {"model": "org/nothing", "stream": False})
    assert unknown.status == 500
    assert unknown.json()["error"] == "pull model manifest: file does not exist"


def test_a_hub_that_is_down_is_told_with_the_remedy(new_house: NewHouse, hub: HubServer) -> None:
    daemon = new_house(HF_ENDPOINT=hub.url)
    hub.stop()
    refused = daemon.ctl("pull", REPO, check=False)
    assert refused.returncode == 7
    assert "vllamactl: cannot" in refused.stderr and "HF_ENDPOINT" in refused.stderr


def test_two_pulls_of_one_model_are_one_download(new_house: NewHouse, hub: HubServer) -> None:
    daemon = new_house(HF_ENDPOINT=hub.url)
    hub.pause_after(WEIGHTS, 1000)
    first = start_pull(daemon, REPO)
    assert hub.paused.wait(PATIENCE_S)
    second = daemon.json("pull", "--detach", REPO)
    assert second["name"] == "operations/1"
    hub.heal()
    assert first.wait(PATIENCE_S) == 0
    first.communicate()
    assert hub.served_bytes[WEIGHTS] <= len(tiny_model(rows=ROWS)[WEIGHTS]) + 1


def test_ctrl_c_cancels_and_the_next_pull_resumes(new_house: NewHouse, hub: HubServer) -> None:
    daemon = new_house(HF_ENDPOINT=hub.url)
    size = len(tiny_model(rows=ROWS)[WEIGHTS])
    hub.pause_after(WEIGHTS, size // 2)
    pull = start_pull(daemon, REPO)
    wait_half(pull, hub, size)
    pull.send_signal(signal.SIGINT)
    assert pull.wait(PATIENCE_S) == 130
    pull.communicate()
    with daemon.log.open() as log:
        assert "reason=CANCELLED" in log.read()
    hub.heal()
    before = hub.served_bytes[WEIGHTS]
    daemon.ctl("pull", REPO)
    assert hub.served_bytes[WEIGHTS] - before < size // 2 + 1


def test_sigterm_during_a_pull_ends_the_child_and_keeps_the_bytes(new_house: NewHouse, hub: HubServer) -> None:
    daemon = new_house(HF_ENDPOINT=hub.url)
    size = len(tiny_model(rows=ROWS)[WEIGHTS])
    hub.pause_after(WEIGHTS, size // 2)
    pull = start_pull(daemon, REPO)
    wait_half(pull, hub, size)
    assert daemon.stop() == 0
    assert pull.wait(PATIENCE_S) != 0
    pull.communicate()
    hub.heal()
    daemon.start()
    assert daemon.json("list")["models"] == [], "half a model is no model"
    before = hub.served_bytes[WEIGHTS]
    daemon.ctl("pull", REPO)
    assert hub.served_bytes[WEIGHTS] - before < size // 2 + 1


def test_a_gated_model_names_the_remedy(new_house: NewHouse, hub: HubServer) -> None:
    hub.add_repo("org/gated", tiny_model(), gated=True, token="hf_good")
    daemon = new_house(HF_ENDPOINT=hub.url)
    refused = daemon.ctl("pull", "org/gated", check=False)
    assert refused.returncode == 5
    assert "HF_TOKEN" in refused.stderr
    daemon.stop()
    daemon.environment["HF_TOKEN"] = "hf_good"
    daemon.start()
    daemon.ctl("pull", "org/gated")
    assert "hf_good" not in daemon.log_text()
    assert "hf_good" not in daemon.ctl("config", "--show").stdout


def test_a_store_that_cannot_be_written_is_told(new_house: NewHouse, hub: HubServer) -> None:
    daemon = new_house(HF_ENDPOINT=hub.url)
    staging = daemon.state / "models" / "staging"
    staging.rmdir() if staging.is_dir() else None
    staging.write_text("in the way")  # root, as tests may run, ignores permissions
    refused = daemon.ctl("pull", REPO, check=False)
    assert refused.returncode == 8
    assert str(staging) in refused.stderr


def test_a_bar_with_bytes_lives_on_a_terminal(new_house: NewHouse, hub: HubServer) -> None:
    daemon = new_house(HF_ENDPOINT=hub.url)
    size = len(tiny_model(rows=ROWS)[WEIGHTS])
    hub.pause_after(WEIGHTS, size // 2)
    controller, terminal = pty.openpty()
    pull = subprocess.Popen(
        [sys.executable, "-m", "vllamactl", f"--socket={daemon.socket}", "pull", REPO],
        env=daemon.environment | {"TERM": "xterm", "COLUMNS": "100"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    seen = bytearray()
    half_done = threading.Event()

    def read() -> None:
        while True:
            try:
                data = os.read(controller, 4096)
            except OSError:  # the other side of a pty has closed
                return
            if not data:
                return
            seen.extend(data)
            if b" 50 %" in seen:
                half_done.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert hub.paused.wait(PATIENCE_S)
    assert half_done.wait(PATIENCE_S), bytes(seen)
    hub.heal()
    assert pull.wait(PATIENCE_S) == 0
    reader.join(10)
    os.close(controller)
    text = seen.decode(errors="replace")
    assert "━" in text and "2.6 MB/5.1 MB" in text and "✓" in text, text


def test_progress_as_json_is_one_object_a_line(new_house: NewHouse, hub: HubServer) -> None:
    daemon = new_house(HF_ENDPOINT=hub.url)
    lines = [json.loads(line) for line in daemon.ctl("--json", "pull", REPO).stdout.splitlines()]
    assert lines[-1]["done"] is True
