"""The daemon as an administrator meets it: start, look, stop, and what keeps it from starting."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes.daemon import Daemon

NewHouse = Callable[..., Daemon]


def test_it_says_ready_serves_on_both_faces_and_stops_cleanly(new_house: NewHouse) -> None:
    daemon = new_house()
    assert any("STATUS=0 models loaded, 0 requests" in told for told in daemon.told)
    assert daemon.request("GET", "/").body == b"Ollama is running"
    daemon.wait_log("engine.version")  # it serves before it has looked at its engine
    status = daemon.json("status")
    assert status["state"] == "SERVING"
    assert status["engine"]["device"] == "cpu"
    assert daemon.stop() == 0
    assert daemon.leftovers() == []


def test_the_socket_is_for_its_group_only(new_house: NewHouse) -> None:
    daemon = new_house()
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(daemon.runtime.stat().st_mode) == 0o750
    assert stat.S_IMODE((daemon.runtime / "workers").stat().st_mode) == 0o700


def test_any_grpc_tool_can_ask_for_health_and_services(new_house: NewHouse) -> None:
    daemon = new_house()
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked)
        names = {service.name for service in listed.list_services_response.service}
    assert {f"vllama.control.v1.{name}" for name in ("Models", "Workers", "Operations", "Daemon", "Inference")} <= names


def test_a_stale_socket_is_replaced(new_house: NewHouse) -> None:
    daemon = new_house()
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start()
    assert daemon.json("status")["state"] == "SERVING"


def test_a_second_daemon_on_the_same_state_folder_is_refused(new_house: NewHouse) -> None:
    first = new_house()
    second = new_house(f"--state-dir={first.state}", start=False)
    child = second.launch()
    assert child.wait(20) == 6
    assert f"vllamad runs already as process {first.child.pid}" in second.log_text() if first.child else False
    assert "hint:" in second.log_text()
    assert first.json("status")["state"] == "SERVING"


def test_a_second_daemon_on_the_same_runtime_folder_or_socket_harms_nobody(new_house: NewHouse) -> None:
    first = new_house(models={"tiny": {}})
    first.ctl("load", "tiny")
    before = set(first.processes())
    for where in (f"--runtime-dir={first.runtime}", f"--socket={first.socket}"):
        second = new_house(where, start=False)
        assert second.launch().wait(20) == 6, second.log_text()
        assert where.partition("=")[0] in second.log_text(), "the hint says what to change"
    assert set(first.processes()) == before
    assert first.workers()[0]["state"] == "READY"


def test_a_port_that_is_taken_is_named_with_its_holder(new_house: NewHouse) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        daemon = new_house(f"--port={port}", start=False)
        assert daemon.launch().wait(20) == 6
        text = daemon.log_text()
        assert f"127.0.0.1:{port}: the port is taken by" in text
        assert str(os.getpid()) in text
        assert "--port" in text


def test_a_bad_configuration_is_78_and_changes_nothing(new_house: NewHouse) -> None:
    daemon = new_house(start=False, VLLAMA_ENGINE_PYTHN="/usr/bin/python3")
    assert daemon.launch().wait(20) == 78
    assert "VLLAMA_ENGINE_PYTHON" in daemon.log_text(), "the nearest name is the remedy"
    assert not daemon.state.exists()


def test_check_tells_good_from_bad(new_house: NewHouse) -> None:
    daemon = new_house(start=False)
    for extra, status in ((), 0), (("--log-level=loud",), 78):
        result = subprocess.run(
            [sys.executable, "-m", "vllamad", "--check", *extra],
            env=daemon.environment,
            cwd=daemon.root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == status, result.stderr
    assert not daemon.state.exists()


def test_an_unusable_state_folder_is_said_plainly(new_house: NewHouse) -> None:
    daemon = new_house(start=False)
    daemon.state.write_text("a file, where a folder should be")
    assert daemon.launch().wait(20) == 8
    assert str(daemon.state) in daemon.log_text()


def test_sigint_stops_as_sigterm_does(new_house: NewHouse) -> None:
    assert new_house().stop(signal.SIGINT) == 0


def test_json_log_lines_are_json(new_house: NewHouse) -> None:
    daemon = new_house("--log-format=json")
    daemon.request("GET", "/nope")
    daemon.stop()
    lines = [json.loads(line) for line in daemon.log_text().splitlines()]
    assert any("daemon.ready" in str(line.values()) for line in lines)


def test_without_an_engine_it_serves_and_says_what_is_missing(new_house: NewHouse) -> None:
    daemon = new_house(VLLAMA_ENGINE_PYTHON="/nowhere/python", models={"tiny": {}})
    answer = daemon.request("POST", "/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]})
    assert answer.status == 500
    assert "/nowhere/python" in answer.json()["error"]
    health = daemon.request("GET", "/health")
    assert health.status == 503
    assert "/nowhere/python" in health.json()["engine"]["problem"]
    assert "/nowhere/python" in daemon.ctl("status").stdout


def test_config_shows_where_a_value_comes_from(new_house: NewHouse) -> None:
    daemon = new_house(OLLAMA_KEEP_ALIVE="90", VLLAMA_MODELS_KEEP_ALIVE="2m")
    rows = {row["key"]: row for row in daemon.json("config")["settings"]}
    row = rows["models.keep_alive"]
    assert row["value"] == '"2m"'
    assert row["source"] == "VLLAMA_MODELS_KEEP_ALIVE"
    assert any("OLLAMA_KEEP_ALIVE" in lost for lost in row["overrode"])


def test_settings_reach_the_engine_and_secrets_do_not(new_house: NewHouse) -> None:
    daemon = new_house(
        start=False,
        models={"tiny": {}},
        HF_TOKEN="hf_secret",
        HTTPS_PROXY="http://127.0.0.1:9",
        CUDA_VISIBLE_DEVICES="1",
    )
    folder = daemon.root / "config" / "vllama"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        '[engine]\nargs = ["--seed", "3"]\n\n[[model]]\nmatch = "tiny"\ncontext_length = 512\nargs = ["--further"]\n'
    )
    daemon.start()
    daemon.ctl("load", "tiny")
    (worker,) = daemon.workers()
    command = Path(f"/proc/{worker['pid']}/cmdline").read_bytes().decode().split("\0")
    assert command[command.index("--max-model-len") + 1] == "512"
    assert command[-4:-1] == ["--seed", "3", "--further"]
    assert worker["context_length"] == 512
    environment = Path(f"/proc/{worker['pid']}/environ").read_bytes().decode()
    assert "CUDA_VISIBLE_DEVICES=1" in environment
    for name in ("HF_TOKEN", "hf_secret", "NOTIFY_SOCKET", "PROXY"):
        assert name not in environment, name


def test_preloaded_models_are_ready_without_being_asked_for(new_house: NewHouse) -> None:
    daemon = new_house("--preload=tiny", "--preload=nobody", models={"tiny": {}})
    daemon.ctl("load", "tiny")  # joins what is on its way
    (worker,) = daemon.workers()
    assert (worker["state"], worker["incarnation"]) == ("READY", 1)
    assert "daemon.preload model=nobody" in daemon.log_text(), "a wrong name is told and stops nothing"
