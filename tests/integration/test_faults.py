"""Bad days, each with what must hold afterwards: honest answers, and no process, socket or folder left behind."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.daemon import Daemon

NewHouse = Callable[..., Daemon]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
ENDLESS = {"tokens": 100_000, "token_delay_s": 0.01}
"""An engine whose answers go on until somebody ends them."""


def chat(model: str, **more: object) -> dict[str, object]:
    return {"model": model, **CHAT, **more}


def core_of(worker: dict[str, Any], daemon: Daemon) -> int:
    """The engine core: the process of the worker that is not its leader."""
    (core,) = [pid for pid in daemon.processes() if pid != worker["pid"]]
    return core


def test_an_engine_that_dies_while_loading_is_told_with_its_last_lines(new_house: NewHouse) -> None:
    daemon = new_house(models={"broken": {"die_while_loading": True}})
    answer = daemon.request("POST", "/api/chat", chat("broken"))
    assert answer.status == 500
    assert "cannot load broken" in answer.json()["error"]
    assert "Error" in answer.json()["error"], "the engine's own words are in it"
    (worker,) = daemon.workers()
    assert worker["state"] == "FAILED"
    shown = daemon.ctl("ps").stdout
    assert "failed" in shown
    refused = daemon.ctl("load", "broken", check=False)
    assert refused.returncode == 8
    assert "vllamactl logs broken" in refused.stderr
    daemon.wait_no_processes()


def test_an_engine_that_never_gets_ready_is_a_timeout(new_house: NewHouse) -> None:
    daemon = new_house(VLLAMA_ENGINE_START_TIMEOUT="1s", models={"slow": {"never_ready": True}})
    answer = daemon.request("POST", "/api/chat", chat("slow"))
    assert answer.status == 500
    assert "not ready after 1 s" in answer.json()["error"]
    daemon.wait_no_processes()


@pytest.mark.parametrize(
    "fault", [{"half_stream": 3, "token_delay_s": 0.02}, {"error_in_stream": 3, "token_delay_s": 0.02}]
)
def test_an_engine_that_fails_in_mid_stream_is_an_in_band_error(new_house: NewHouse, fault: dict[str, int]) -> None:
    daemon = new_house(models={"brittle": fault})
    stream = daemon.open_stream("/api/chat", chat("brittle", options={"num_predict": 50}))
    lines = stream.rest()
    assert stream.status == 200
    assert "error" in lines[-1], lines
    assert not any(line.get("done") for line in lines), "a broken stream never ends as if whole"


@pytest.mark.parametrize("victim", ["leader", "core"])
def test_kill_9_in_mid_stream_breaks_the_stream_and_the_worker_comes_back(new_house: NewHouse, victim: str) -> None:
    daemon = new_house(VLLAMA_ENGINE_BACKOFF="100ms", models={"tiny": ENDLESS})
    stream = daemon.open_stream("/api/chat", chat("tiny", options={"num_predict": 1_000_000}))
    assert stream.line()["message"]["content"]
    (worker,) = daemon.workers()
    os.kill(worker["pid"] if victim == "leader" else core_of(worker, daemon), signal.SIGKILL)
    lines = stream.rest()
    assert "error" in lines[-1]
    assert not any(line.get("done") for line in lines)
    again = daemon.request("POST", "/api/chat", chat("tiny", stream=False, options={"num_predict": 2}))
    assert again.status == 200
    (worker,) = daemon.workers()
    assert worker["incarnation"] == 2
    assert len(daemon.processes()) == 2, "leader and core of the new life, nothing of the old one"


def test_an_engine_that_dies_while_idle_is_restarted_and_told(new_house: NewHouse) -> None:
    daemon = new_house(VLLAMA_ENGINE_BACKOFF="100ms", models={"tiny": {}})
    daemon.ctl("load", "tiny")
    os.kill(daemon.workers()[0]["pid"], signal.SIGKILL)
    daemon.wait_log("incarnation=2 load_s")
    assert "cause=ENGINE_DIED" in daemon.log_text()
    assert daemon.workers()[0]["state"] == "READY"


def test_an_engine_that_keeps_dying_is_given_up_with_its_cause(new_house: NewHouse) -> None:
    daemon = new_house(
        VLLAMA_ENGINE_BACKOFF="10ms", VLLAMA_ENGINE_RESTART_ATTEMPTS="2", models={"mortal": {"die_after": 0.5}}
    )
    daemon.ctl("load", "mortal", check=False)
    daemon.wait_log("to=FAILED")
    (worker,) = daemon.workers()
    assert worker["state"] == "FAILED"
    assert worker["failure"]["reason"] == "ENGINE_DIED"
    daemon.wait_no_processes()


def test_a_deaf_engine_and_its_hidden_child_are_killed(new_house: NewHouse) -> None:
    daemon = new_house(
        VLLAMA_ENGINE_TERM_GRACE="200ms", models={"deaf": {"ignore_term": True, "leave_grandchild": True}}
    )
    daemon.ctl("load", "deaf")
    assert len(daemon.processes()) == 2
    daemon.ctl("stop", "deaf")
    assert daemon.processes() == []
    assert daemon.leftovers() == [daemon.socket]


def test_kill_9_of_the_daemon_leaves_no_process_and_the_next_start_works(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": ENDLESS})
    stream = daemon.open_stream("/api/chat", chat("tiny", options={"num_predict": 1_000_000}))
    stream.line()
    assert len(daemon.processes()) == 2
    daemon.kill()
    daemon.wait_no_processes()
    daemon.start()
    assert daemon.request("POST", "/api/chat", chat("tiny", stream=False, options={"num_predict": 1})).status == 200


def test_kill_9_of_the_daemon_with_a_deaf_engine_is_cleaned_up_at_the_next_start(new_house: NewHouse) -> None:
    daemon = new_house(models={"deaf": {"ignore_term": True, "leave_grandchild": True}})
    daemon.ctl("load", "deaf")
    daemon.kill()
    left = daemon.processes()
    assert left, "the fault works: it does not end by itself"
    daemon.start()
    # A child that looks into the engine's interpreter may be there: it is the new daemon's.
    assert not set(left) & set(daemon.processes())
    assert "process.leftovers" in daemon.log_text()


def test_sigterm_during_a_load_ends_the_load_at_once(new_house: NewHouse) -> None:
    daemon = new_house(models={"slow": {"never_ready": True}})
    waiting = daemon.open_waiting("/api/chat", chat("slow"))
    daemon.wait_log("to=STARTING")
    assert daemon.stop() == 0
    answer = waiting.result()
    assert answer.status == 503
    assert "stopping" in answer.json()["error"]
    assert daemon.processes() == []
    assert daemon.leftovers() == []


def test_shutdown_lets_a_running_stream_finish(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": ENDLESS})
    stream = daemon.open_stream("/api/chat", chat("tiny", options={"num_predict": 30}))
    stream.line()
    daemon.send_signal(signal.SIGTERM)
    lines = stream.rest()
    assert lines[-1]["done"] and lines[-1]["eval_count"] == 30
    assert daemon.stop() == 0


def test_a_second_signal_does_not_wait(new_house: NewHouse) -> None:
    daemon = new_house(VLLAMA_SERVER_DRAIN="60s", models={"tiny": ENDLESS})
    stream = daemon.open_stream("/api/chat", chat("tiny", options={"num_predict": 1_000_000}))
    stream.line()
    daemon.send_signal(signal.SIGTERM)
    daemon.wait_log("to=DRAINING")
    assert daemon.stop() == 0
    lines = stream.rest()
    assert "error" in lines[-1]


def test_idle_models_leave_by_themselves(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {}})
    daemon.request("POST", "/api/chat", chat("tiny", stream=False, keep_alive="300ms", options={"num_predict": 1}))
    daemon.wait_log("to=STOPPED")
    assert daemon.workers() == []
    assert daemon.processes() == []


def test_models_share_the_memory_and_take_turns_where_it_is_too_little(new_house: NewHouse) -> None:
    room_for_two = {"VLLAMA_ENGINE_CPU_MEMORY_BYTES": "4GiB"}
    daemon = new_house(models={"first": {}, "second": {}, "third": {}}, **room_for_two)
    loaded: list[set[str]] = []
    for name in ("first", "second", "third"):
        answer = daemon.request("POST", "/api/chat", chat(name, stream=False, options={"num_predict": 1}))
        assert answer.status == 200, answer
        loaded.append({worker["model"].removesuffix(":latest") for worker in daemon.workers()})
    status = daemon.json("status")
    (device,) = status["devices"]
    assert loaded[:2] == [{"first"}, {"first", "second"}]
    assert len(loaded[2]) == 2 and "third" in loaded[2]
    assert int(device["reserved_bytes"]) == sum(int(worker["reserved_bytes"]) for worker in daemon.workers())
    assert int(device["reserved_bytes"]) + int(device["giveable_bytes"]) <= int(device["usable_bytes"]) == 4 << 30
    assert "to fit third:latest: needs" in daemon.ctl("status").stdout


def test_a_model_that_can_never_fit_is_refused_with_the_numbers(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {}}, VLLAMA_ENGINE_CPU_MEMORY_BYTES="1GiB", VLLAMA_ENGINE_DTYPE="float32")
    answer = daemon.request("POST", "/v1/chat/completions", chat("tiny"))
    assert answer.status == 422
    assert "it can never fit: needs 1.6 GiB" in answer.body.decode()
    fit = daemon.ctl("show", "tiny", "--fit").stdout
    assert fit.startswith("not: needs 1.6 GiB, CPU has 1.0 GiB")


def test_two_models_take_turns_in_one_slot(new_house: NewHouse) -> None:
    one = {"VLLAMA_SCHEDULER_MAX_LOADED_MODELS": "1"}
    daemon = new_house(models={"first": {}, "second": {}}, **one)
    for name in ("first", "second", "first"):
        answer = daemon.request("POST", "/api/chat", chat(name, stream=False, options={"num_predict": 1}))
        assert answer.status == 200, answer
        assert [worker["model"] for worker in daemon.workers()] == [f"{name}:latest"]
    assert "evict first" in daemon.ctl("status").stdout


def test_a_client_that_leaves_the_queue_is_dropped(new_house: NewHouse) -> None:
    daemon = new_house(models={"slow": {"never_ready": True}})
    waiting = daemon.open_waiting("/api/chat", chat("slow"))
    daemon.wait_log("to=STARTING")
    assert daemon.json("status")["waiting_requests"] == 1
    waiting.hang_up()
    daemon.wait_log("status=499")
    assert daemon.json("status")["waiting_requests"] == 0
    daemon.ctl("stop", "slow")


def test_an_unreadable_model_folder_is_told(new_house: NewHouse) -> None:
    daemon = new_house()
    result = daemon.ctl("create", "x", "--from", "/nowhere/model", check=False)
    assert result.returncode == 2
    assert "/nowhere/model" in result.stderr
    folder = daemon.root / "empty"
    folder.mkdir()
    result = daemon.ctl("create", "x", "--from", str(folder), check=False)
    assert result.returncode == 2
    assert "no safetensors" in result.stderr
