"""A daemon that takes the place of another in the same process: what stays, who is served, and what refuses it."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.daemon import ROOT, Daemon
from tests.fakes.hub import HubServer, tiny_model
from vllama.control.v1 import daemon_pb2, daemon_pb2_grpc

NewHouse = Callable[..., Daemon]
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": MESSAGES, "stream": False}
ENDLESS = {"tokens": 100_000, "token_delay_s": 0.01}
SCRIPT = "import sys\nfrom vllamad.__main__ import main\nsys.exit(main())\n"


def worker(daemon: Daemon) -> dict[str, Any]:
    """The only one."""
    (one,) = daemon.workers()
    return one


def upgrade(daemon: Daemon, *words: str) -> "subprocess.Popen[str]":
    """vllamactl upgrade in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "vllamactl", f"--socket={daemon.socket}", "upgrade", *words],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(running: "subprocess.Popen[str]") -> tuple[int, str]:
    """How it ended, and what it told a person."""
    _data, text = running.communicate(timeout=60)
    return running.returncode, text


def heal(daemon: Daemon) -> None:
    """Have the only engine behave from now on."""
    (path,) = (daemon.runtime / "workers").glob("*/s")
    with socket.socket(socket.AF_UNIX) as engine:
        engine.connect(str(path))
        engine.sendall(b"POST /_fake/faults HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert b" 200 " in engine.recv(4096)


def scripted(new_house: NewHouse, **models: dict[str, object]) -> tuple[Daemon, Path]:
    """A daemon that runs from a script of ours, which a test can replace by another version."""
    daemon = new_house(start=False, models=models)
    script = daemon.root / "entry.py"
    script.write_text(SCRIPT)
    daemon.program = [sys.executable, str(script)]
    return daemon.start(), script


def test_models_processes_and_what_was_known_of_them_stay(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {}})
    assert daemon.request("POST", "/api/chat", CHAT | {"keep_alive": "20m"}).status == 200
    before, said = worker(daemon), daemon.ctl("logs", "tiny").stdout
    daemon.told.clear()
    done = daemon.ctl("upgrade")
    assert "took over from" in done.stderr and "kept tiny:latest" in done.stderr
    # The service manager is told as of a reload, and the process is the same for it.
    daemon.wait_told("RELOADING=1", 15)
    daemon.wait_told("READY=1", 15)
    after, status = worker(daemon), daemon.json("status")
    assert (status["pid"], status["upgrades"], status["state"]) == (daemon.child and daemon.child.pid, 1, "SERVING")
    same = ("pid", "name", "incarnation", "start_time", "load_duration", "context_length", "cache_tokens")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert after["reserved_bytes"] == before["reserved_bytes"]
    # Its keep-alive goes on; it is not begun anew.
    expires, expired = (datetime.fromisoformat(one["expire_time"]) for one in (after, before))
    assert abs(expires - expired) < timedelta(seconds=5)
    assert daemon.ctl("logs", "tiny").stdout.startswith(said)
    answer = daemon.request("POST", "/api/chat", CHAT)
    assert answer.status == 200 and answer.json()["load_duration"] < 1e9
    # A second time, and what happens to the engine afterwards is seen as ever.
    assert "kept tiny:latest" in daemon.ctl("upgrade").stderr
    os.kill(after["pid"], signal.SIGKILL)
    daemon.wait_log(f"process.exit title=tiny:latest pid={after['pid']} status=-9")
    assert daemon.request("POST", "/api/chat", CHAT).status == 200
    assert worker(daemon)["pid"] != after["pid"]


def test_under_load_nobody_is_refused_and_streams_end_as_they_should(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {}, "slow": {"tokens": 100, "token_delay_s": 0.01}})
    assert daemon.request("POST", "/api/chat", CHAT).status == 200
    assert daemon.request("POST", "/api/chat", CHAT | {"model": "slow"}).status == 200
    pids = {one["model"]: one["pid"] for one in daemon.workers()}
    is_over, statuses = threading.Event(), list[int]()

    def ask() -> None:
        while not is_over.is_set():
            statuses.append(daemon.request("POST", "/api/chat", CHAT).status)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    stream = daemon.open_stream("/api/chat", {"model": "slow", "messages": MESSAGES})
    assert stream.line()["message"]
    running = upgrade(daemon)
    assert stream.rest()[-1]["done_reason"] in {"stop", "length"}
    status, text = told(running)
    count = len(statuses)
    while len(statuses) < count + 8:
        time.sleep(0.01)
    is_over.set()
    for client in clients:
        client.join()
    assert (status, set(statuses)) == (0, {200}), text
    assert {one["model"]: one["pid"] for one in daemon.workers()} == pids


def test_a_stream_that_takes_too_long_gets_its_error_in_band(new_house: NewHouse) -> None:
    daemon = new_house(models={"endless": ENDLESS})
    stream = daemon.open_stream("/api/chat", {"model": "endless", "messages": MESSAGES})
    assert stream.line()["message"]
    before = worker(daemon)
    running = upgrade(daemon, "--drain", "2s")
    assert running.stderr is not None and "1 request in flight" in running.stderr.readline()
    # It is not to be called off, and whoever tries is told so.
    running.send_signal(signal.SIGINT)
    status, text = told(running)
    assert status == 130 and "the upgrade goes on without you" in text
    daemon.wait_log("daemon.taken_over")
    assert "the daemon is being upgraded" in stream.rest()[-1]["error"]
    after = worker(daemon)
    assert (after["pid"], after["leases"]) == (before["pid"], 0)
    # The engine does not generate for nobody: a new request gets its place at once.
    again = daemon.open_stream("/api/chat", {"model": "endless", "messages": MESSAGES})
    assert again.line()["message"]
    again.hang_up()


def test_an_upload_is_finished(new_house: NewHouse) -> None:
    """It holds no lease, and most of it comes after the daemon has begun to leave."""
    daemon = new_house()
    content = os.urandom(1000)
    head = f"POST /api/blobs/sha256:{hashlib.sha256(content).hexdigest()} HTTP/1.1\r\nHost: localhost\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as upload:
        upload.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode())
        running = upgrade(daemon)
        daemon.wait_log("daemon.upgrade drain_s")
        for at in range(0, len(content), 50):
            upload.sendall(content[at : at + 50])
            time.sleep(0.05)  # all in all longer than everything else that the daemon waits for
        answer = upload.recv(4096)
        assert answer.startswith(b"HTTP/1.1 201"), answer
        assert upload.recv(4096) == b"", "the connection ends with its answer"
    assert told(running)[0] == 0


def test_a_load_goes_on_and_who_waits_for_it_is_told_to_ask_again(new_house: NewHouse) -> None:
    daemon = new_house(models={"late": {"sick_health": True}})
    waiting = daemon.open_waiting("/api/chat", CHAT | {"model": "late"})
    daemon.wait_log("Application startup complete")
    before = worker(daemon)
    assert before["state"] == "STARTING"
    assert told(upgrade(daemon, "--drain", "0s"))[0] == 0
    refused = waiting.result()
    assert refused.status == 503 and "the daemon is stopping" in refused.json()["error"]
    during = worker(daemon)
    assert (during["state"], during["pid"], during["load_phase"]) == ("STARTING", before["pid"], before["load_phase"])
    heal(daemon)
    assert daemon.request("POST", "/api/chat", CHAT | {"model": "late"}).status == 200
    after = worker(daemon)
    assert (after["pid"], after["incarnation"]) == (before["pid"], before["incarnation"])
    assert after["start_time"] == before["start_time"], "its load is counted from its begin"


def test_what_was_still_to_be_loaded_again_is_loaded_by_the_successor(new_house: NewHouse) -> None:
    daemon = new_house(start=False, models={"late": {"sick_health": True}, "tiny": {}})
    now = time.time()
    instants = {"keep_alive_s": 300.0, "expire_time": now + 300, "tries": 0}
    models = [
        {"name": f"{name}:latest", "used_time": now - age} | instants for age, name in enumerate(("late", "tiny"))
    ]
    (daemon.state / "loaded.json").write_text(json.dumps({"format": 1, "models": models}))
    daemon.start()
    # Two are not loaded at a time.
    daemon.wait_log("restore.load model=tiny:latest")
    daemon.wait_log("Application startup complete")
    assert told(upgrade(daemon, "--drain", "0s"))[0] == 0
    heal(daemon)
    daemon.wait_log("model=tiny:latest from=STARTING to=READY")
    assert sorted(one["model"] for one in daemon.workers()) == ["late:latest", "tiny:latest"]


def test_engines_that_were_forked_stay_and_there_is_a_zygote_again(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {}, "other": {}}, VLLAMA_ENGINE_ZYGOTE="auto")
    assert daemon.request("POST", "/api/chat", CHAT).status == 200
    before = worker(daemon)
    assert f"process.fork title=tiny:latest pid={before['pid']}" in daemon.log_text()
    daemon.ctl("upgrade")
    assert worker(daemon)["pid"] == before["pid"]
    daemon.wait_log("zygote.ready", count=2)
    assert daemon.request("POST", "/api/chat", CHAT | {"model": "other"}).status == 200
    assert "process.fork title=other:latest" in daemon.log_text()
    daemon.ctl("stop", "tiny")
    assert all(one["model"] == "other:latest" for one in daemon.workers())


def test_what_needs_a_restart_is_in_force_and_who_is_configured_otherwise_is_loaded_anew(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {}, "other": {}})
    for name in ("tiny", "other"):
        assert daemon.request("POST", "/api/chat", CHAT | {"model": name}).status == 200
    pids = {one["model"]: one["pid"] for one in daemon.workers()}
    file = daemon.root / "config/vllama/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[control]\ngroup = "nogroup"\n[[model]]\nmatch = "other"\ncontext_length = 256\n')
    done = daemon.ctl("upgrade")
    assert "kept tiny:latest; ended other:latest" in done.stderr
    assert "handover.ended" in daemon.log_text() and "configured otherwise" in daemon.log_text()
    # It was loaded, so it is loaded again, as it is configured now.
    assert daemon.request("POST", "/api/chat", CHAT | {"model": "other"}).status == 200
    after = {one["model"]: one for one in daemon.workers()}
    assert after["tiny:latest"]["pid"] == pids["tiny:latest"]
    assert (after["other:latest"]["pid"] == pids["other:latest"], after["other:latest"]["context_length"]) == (
        False,
        256,
    )
    assert '"nogroup"' in daemon.ctl("config").stdout


def test_a_pull_goes_on_by_itself(new_house: NewHouse) -> None:
    with HubServer() as hub:
        files = tiny_model(rows=40_000)
        hub.add_repo("org/tiny", files)
        hub.pause_after("model.safetensors", len(files["model.safetensors"]) // 2)
        daemon = new_house(HF_ENDPOINT=hub.url)
        pull = subprocess.Popen(
            [sys.executable, "-m", "vllamactl", f"--socket={daemon.socket}", "pull", "org/tiny"],
            env=daemon.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert hub.paused.wait(60)
        running = upgrade(daemon)
        daemon.wait_log("daemon.taken_over")
        hub.heal()
        assert told(running)[0] == 0
        _data, text = pull.communicate(timeout=60)
        assert pull.returncode == 0 or "goes on with a pull by itself" in text
        daemon.ctl("pull", "org/tiny")
        assert "org/tiny" in daemon.ctl("list").stdout


def test_a_program_that_does_not_start_or_cannot_take_over_changes_nothing(new_house: NewHouse) -> None:
    daemon, script = scripted(new_house, tiny={})
    assert daemon.request("POST", "/api/chat", CHAT).status == 200
    before = worker(daemon)
    ready = daemon.ctl("upgrade", "--dry-run")
    assert "can take over from" in ready.stderr and "tiny:latest would stay loaded" in ready.stderr
    script.write_text("raise SystemExit('its library is missing')\n")
    refused = daemon.ctl("upgrade", check=False)
    assert refused.returncode != 0 and "does not start: its library is missing" in refused.stderr
    assert "nothing has changed" in refused.stderr
    script.write_text('print(\'{"part": "config", "version": "9.9", "handover": 99}\')\n')
    refused = daemon.ctl("upgrade", check=False)
    assert refused.returncode != 0 and "9.9: it cannot take over from this one" in refused.stderr
    script.write_text(SCRIPT)
    file = daemon.root / "config/vllama/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[scheduler]\nmax_queue = 0\n")
    refused = daemon.ctl("upgrade", check=False)
    assert refused.returncode == 78 and f"{file}:2: scheduler.max_queue: found 0" in refused.stderr
    file.unlink()
    script.write_text("import os, sys\nsys.argv += [f'--state-dir={os.getcwd()}/elsewhere']\n" + SCRIPT)
    refused = daemon.ctl("upgrade", check=False)
    assert refused.returncode == 78 and "the state folder would be" in refused.stderr
    assert worker(daemon)["pid"] == before["pid"] and daemon.json("status").get("upgrades", 0) == 0
    assert daemon.request("POST", "/api/chat", CHAT).status == 200


def test_a_program_that_cannot_be_executed_in_the_end_leaves_the_old_one_serving(new_house: NewHouse) -> None:
    daemon = new_house(start=False, models={"tiny": {}, "slow": ENDLESS})
    # An interpreter of its own, which can be taken away.
    own = daemon.root / "python"
    own.symlink_to(Path(sys.executable).resolve())
    daemon.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "proto"), *sys.path])
    # Acceptors could not be executed again either, and then the daemon ends.
    daemon.environment["VLLAMA_SERVER_PROCESSES"] = "1"
    daemon.program = [str(own), "-m", "vllamad"]
    daemon.start()
    assert daemon.request("POST", "/api/chat", CHAT).status == 200
    before = worker(daemon)
    own.unlink()
    refused = daemon.ctl("upgrade", check=False)
    assert refused.returncode == 1 and "python: no such file" in refused.stderr
    assert "nothing has changed" in refused.stderr
    own.symlink_to(Path(sys.executable).resolve())
    stream = daemon.open_stream("/api/chat", {"model": "slow", "messages": MESSAGES})
    assert stream.line()["message"]
    running = upgrade(daemon)
    daemon.wait_log("daemon.upgrade drain_s")
    own.unlink()
    stream.hang_up()
    status, text = told(running)
    assert status != 0 and "did not take over: the daemon that ran goes on" in text
    assert "ERROR daemon.not_upgraded" in daemon.log_text()
    assert daemon.request("POST", "/api/chat", CHAT).status == 200
    assert {one["model"]: one["pid"] for one in daemon.workers()}["tiny:latest"] == before["pid"]


def test_a_program_that_fails_after_all_is_told_and_leaves_nothing(new_house: NewHouse) -> None:
    daemon, script = scripted(new_house, tiny={})
    assert daemon.request("POST", "/api/chat", CHAT).status == 200
    script.write_text("import sys\nif '--check' not in sys.argv:\n    sys.exit('no, after all')\n" + SCRIPT)
    status, text = told(upgrade(daemon, "--drain", "1s"))
    assert status != 0 and "cannot upgrade the daemon" in text
    assert daemon.child is not None and daemon.child.wait(15) == 1
    assert "no, after all" in daemon.log_text()
    # As after any end of a daemon: its engines end with it, and the next start loads again.
    daemon.wait_no_processes()
    script.write_text(SCRIPT)
    daemon.start()
    daemon.wait_log("restore.load")
    assert daemon.request("POST", "/api/chat", CHAT).status == 200


def test_a_stop_meanwhile_wins(new_house: NewHouse) -> None:
    daemon = new_house(models={"endless": ENDLESS})
    stream = daemon.open_stream("/api/chat", {"model": "endless", "messages": MESSAGES})
    assert stream.line()["message"]
    running = upgrade(daemon)
    daemon.wait_log("daemon.upgrade drain_s")
    refused = daemon.ctl("upgrade", check=False)
    assert refused.returncode == 7 and "is being upgraded already" in refused.stderr
    daemon.send_signal(signal.SIGTERM)
    daemon.wait_told("STOPPING=1", 15)
    stream.hang_up()
    assert daemon.child is not None and daemon.child.wait(30) == 0
    assert told(running)[0] != 0
    assert daemon.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_around_the_change_are_not_lost(new_house: NewHouse, number: int) -> None:
    """Sent again and again over the whole change: none of them may end the process by its default, and none is lost."""
    daemon = new_house(models={"tiny": {}})
    assert daemon.request("POST", "/api/chat", CHAT).status == 200
    running = upgrade(daemon)
    daemon.wait_log("daemon.upgrade drain_s")
    daemon.told.clear()
    if number == signal.SIGHUP:
        while running.poll() is None:
            daemon.send_signal(number)
            time.sleep(0.005)
        assert told(running)[0] == 0
        assert daemon.request("POST", "/api/chat", CHAT).status == 200
        return
    # While the process is on its way to another program: after the faces have closed, before the new ones are open.
    daemon.wait_told("RELOADING=1", 15)
    time.sleep(0.1)
    daemon.send_signal(number)
    assert daemon.child is not None and daemon.child.wait(30) == 0
    assert told(running)[0] != 0


def test_a_stop_when_it_is_too_late_to_stay_is_the_successors(new_house: NewHouse) -> None:
    """Between the last look whether somebody asked to stop and the change, and while engines are still to be adopted.
    These end for nothing less than SIGKILL, and nobody does that for a daemon without a service manager."""
    daemon = new_house(models={"deaf": {"ignore_term": True, "leave_grandchild": True}})
    assert daemon.request("POST", "/api/chat", CHAT | {"model": "deaf"}).status == 200
    # One who follows holds the control socket open for a while.
    follower = subprocess.Popen(
        [sys.executable, "-m", "vllamactl", f"--socket={daemon.socket}", "logs", "-f"],
        env=daemon.environment,
        stdout=subprocess.PIPE,
    )
    assert follower.stdout is not None and follower.stdout.readline()
    daemon.told.clear()
    running = upgrade(daemon)
    daemon.wait_told("RELOADING=1", 15)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.child is not None and daemon.child.wait(30) == 0
    assert daemon.processes() == []
    assert told(running)[0] != 0
    follower.communicate(timeout=15)
    assert daemon.log_text().count("daemon.stop signal") == 2 and daemon.log_text().count("daemon.ready") == 2


def test_a_second_upgrade_waits_until_the_first_one_is_over(new_house: NewHouse) -> None:
    """Engines that are still to be adopted would be nobody's."""
    daemon = new_house(models={"tiny": {}})
    assert daemon.request("POST", "/api/chat", CHAT).status == 200
    before = worker(daemon)
    os.kill(before["pid"], signal.SIGSTOP)  # the successor waits for its answer
    first = upgrade(daemon)
    daemon.wait_log("process.adopt")
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel, pytest.raises(grpc.RpcError) as refused:
        daemon_pb2_grpc.DaemonStub(channel).Upgrade(daemon_pb2.UpgradeRequest(), timeout=2)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # pyright: ignore[reportAttributeAccessIssue,reportUnknownMemberType]
    os.kill(before["pid"], signal.SIGCONT)
    assert told(first)[0] == 0
    assert daemon.ctl("upgrade").returncode == 0
    assert worker(daemon)["pid"] == before["pid"] and daemon.json("status")["upgrades"] == 2
