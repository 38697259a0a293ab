"""What a daemon that was killed leaves behind, and that its successor clears it away and nothing else."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.daemon import Daemon
from vllamad.hub.store import ModelStore

NewHouse = Callable[..., Daemon]
DEAF: dict[str, object] = {"ignore_term": True, "leave_grandchild": True, "shared_memory": True}
"""An engine that does not end with its daemon."""
MODELS = {"serving": {**DEAF, "tokens": 100_000, "token_delay_s": 0.01}, "loading": {**DEAF, "load_s": 60.0}}


def chat(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


def worker(daemon: Daemon, model: str) -> dict[str, Any]:
    return next(each for each in daemon.workers() if each["model"] == f"{model}:latest")


def wait_for(what: str, is_true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def shared(pid: int) -> Path:
    return Path(f"/dev/shm/vllama-fake-{pid}")


def interrupted_work(daemon: Daemon) -> list[Path]:
    """What is on disk while models are made: as it lies there at the moment of a kill."""
    models = daemon.state / "models"
    conversion = ModelStore(models).staging("conversion", is_resumable=False) / "model.safetensors"
    digest = "0" * 64
    left = [
        models / "manifests" / ".tmp-1-library+x=latest.json",
        models / "blobs" / f".tmp-1-sha256-{digest}",
        models / "blobs" / f"sha256-{digest}",
        models / "folders" / f".tmp-1-{digest}" / "config.json",
        models / "staging" / ".tmp-1-1" / "0",
        models / "uploads" / ".tmp-1-abcdef",
        conversion,
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    return left


def test_kill_9_while_one_model_serves_and_another_loads_is_cleared_away_by_the_next_start(new_house: NewHouse) -> None:
    daemon = new_house(VLLAMA_SCHEDULER_MAX_LOADED_MODELS="2", VLLAMA_ENGINE_TERM_GRACE="200ms", models=MODELS)
    stream = daemon.open_stream("/api/chat", chat("serving", options={"num_predict": 1_000_000}))
    assert stream.line()
    waiting = daemon.open_waiting("/api/chat", chat("loading"))
    wait_for("both are known", lambda: len(daemon.workers()) == 2 and all(each["pid"] for each in daemon.workers()))
    files = [shared(each["pid"]) for each in daemon.workers()]
    wait_for("both run", lambda: all(path.exists() for path in files) and len(daemon.processes()) == 4)
    half = interrupted_work(daemon)
    download = ModelStore(daemon.state / "models").staging("download") / "partial"
    download.write_bytes(b"kept")

    daemon.kill()
    left = daemon.processes()
    assert len(left) == 4, "the fault works: nobody ends by itself"
    assert len(list((daemon.runtime / "workers").iterdir())) == 2
    stream.hang_up()
    waiting.hang_up()
    daemon.start()

    # A child that looks into the engine's interpreter may be there: it is the new daemon's.
    assert not set(left) & set(daemon.processes())
    assert not [path for path in files if path.exists()]
    # What was loaded may be loading again, in a folder of its own.
    assert {path.parent for path in daemon.leftovers()} <= {daemon.runtime, *worker_folders(daemon)}
    assert not [path for path in half if path.exists()]
    assert download.read_bytes() == b"kept", "a download is resumed, not begun anew"
    answer = daemon.request("POST", "/api/chat", chat("serving", stream=False, options={"num_predict": 1}))
    assert answer.status == 200


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGABRT])
def test_no_signal_leaves_an_engine_behind_or_keeps_the_next_start_from_serving(
    new_house: NewHouse, number: int
) -> None:
    daemon = new_house(models={"tiny": {"shared_memory": True}})
    daemon.ctl("load", "tiny")
    path = shared(worker(daemon, "tiny")["pid"])
    daemon.stop(number)
    daemon.wait_no_processes()
    assert not path.exists()
    daemon.start()
    assert daemon.request("POST", "/api/chat", chat("tiny", stream=False, options={"num_predict": 1})).status == 200


def worker_folders(daemon: Daemon) -> list[Path]:
    return [daemon.runtime / "workers", *(path.parent for path in (daemon.runtime / "workers").rglob("s"))]


def test_shared_memory_of_engines_that_were_killed_with_their_daemon_is_removed(new_house: NewHouse) -> None:
    """As after the kernel, or an impatient service manager, has ended everyone at once."""
    daemon = new_house(VLLAMA_ENGINE_TERM_GRACE="200ms", models={"tiny": DEAF})
    daemon.ctl("load", "tiny")
    path = shared(worker(daemon, "tiny")["pid"])
    notes = daemon.state / "shared-memory.json"
    try:
        wait_for("it is noted", lambda: notes.exists() and path.name in notes.read_text(), 3.0)
        daemon.kill()
        for pid in daemon.processes():
            os.kill(pid, signal.SIGKILL)
        daemon.wait_no_processes()
        assert path.exists()
        daemon.start()
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


def test_what_was_loaded_is_loaded_again_with_the_rest_of_its_keep_alive(new_house: NewHouse) -> None:
    daemon = new_house(models={"a": {}, "b": {}, "briefly": {}})
    for name, keep_alive in (("a", "1h"), ("briefly", "1s"), ("b", -1)):
        assert daemon.request("POST", "/api/generate", {"model": name, "keep_alive": keep_alive}).status == 200
    record = daemon.state / "loaded.json"
    wait_for("all is noted", lambda: record.exists() and '"b:latest"' in record.read_text(), 5.0)
    daemon.kill()
    time.sleep(1.5)
    daemon.start()

    def ready() -> dict[str, dict[str, Any]]:
        return {each["model"]: each for each in daemon.workers() if each["state"] == "READY"}

    wait_for("both are back", lambda: ready().keys() == {"a:latest", "b:latest"})
    shown = {each["name"]: each["expires_at"] for each in daemon.request("GET", "/api/ps").json()["models"]}
    assert len(shown) == 2
    log = daemon.log.read_text()
    assert log.rindex("restore.load model=b:latest") < log.rindex("restore.load model=a:latest"), "who was used last"
    left = float(log.rpartition("restore.load model=a:latest left_s=")[2].split()[0])
    assert 3500 < left < 3600
    daemon.ctl("stop", "a")
    wait_for("it is noted that a is gone", lambda: '"a:latest"' not in record.read_text(), 5.0)
    daemon.stop()
    assert '"b:latest"' in record.read_text(), "an orderly end unloads, and is no reason to forget"
    daemon.start()
    wait_for("b is back", lambda: ready().keys() == {"b:latest"})


def test_restore_can_be_turned_off_and_never_evicts(new_house: NewHouse) -> None:
    daemon = new_house(models={"a": {}, "b": {}}, VLLAMA_ENGINE_CPU_MEMORY_BYTES="4GiB")
    for name in ("a", "b"):
        assert daemon.request("POST", "/api/generate", {"model": name}).status == 200
    wait_for("both are noted", lambda: '"b:latest"' in (daemon.state / "loaded.json").read_text(), 5.0)
    daemon.kill()
    daemon.environment["VLLAMA_ENGINE_CPU_MEMORY_BYTES"] = "2GiB"
    daemon.environment["VLLAMA_MODELS_KEEP_ALIVE"] = "10m"
    # Measurements would make them fit: both are as large as their estimates.
    (daemon.state / "footprints.json").unlink()
    daemon.start()
    daemon.wait_log("restore.failed model=a:latest")
    assert "no room for it as things are" in daemon.log.read_text()
    wait_for("b is back", lambda: [each["model"] for each in daemon.workers()] == ["b:latest"])
    daemon.kill()
    daemon.environment["VLLAMA_MODELS_RESTORE"] = "false"
    daemon.start()
    assert daemon.workers() == []


def test_starts_that_fail_before_anything_is_loaded_do_not_count_as_tries(new_house: NewHouse) -> None:
    daemon = new_house(models={"a": {}})
    assert daemon.request("POST", "/api/generate", {"model": "a", "keep_alive": "1h"}).status == 200
    wait_for("it is noted", lambda: '"a:latest"' in (daemon.state / "loaded.json").read_text(), 5.0)
    daemon.stop()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port, daemon.port = daemon.port, other.getsockname()[1]
        for _ in range(2):
            assert daemon.launch().wait(20) != 0
        daemon.port = port
    daemon.start()
    wait_for("a is back", lambda: [each["model"] for each in daemon.workers()] == ["a:latest"])
