"""Every verb of vllamactl against a scripted control server: output, JSON, quiet, requests, exit statuses."""

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.fakes.control_server import DIGEST, NOW, ControlServer, at, failure, model, worker
from vllama import __version__
from vllama.control.v1 import daemon_pb2, models_pb2, workers_pb2
from vllama.control.v1.inference_pb2 import ChatResponse, Finish
from vllama.control.v1.operations_pb2 import Progress
from vllama.reasons import ROWS, Reason
from vllamactl import cli


@dataclass
class Result:
    """What a command line left."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Ctl = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[ControlServer]:
    with tempfile.TemporaryDirectory(prefix="ctl") as folder, ControlServer(Path(folder) / "d.sock") as running:
        yield running


@pytest.fixture
def ctl(server: ControlServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Run a command line in this process."""
    monkeypatch.setenv("VLLAMA_SOCKET", str(server.socket))

    def run(*arguments: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status = cli.run(list(arguments))
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


# --- what is there


def test_list(ctl: Ctl, server: ControlServer) -> None:
    server.answers.models.append(model("org/repo:main", 4_700_000_000))
    assert ctl("list").out.splitlines() == [
        "NAME             ID              SIZE      MODIFIED",
        f"smollm2:135m     {DIGEST[:12]}    271 MB    3 days ago",
        f"org/repo:main    {DIGEST[:12]}    4.7 GB    3 days ago",
    ]
    assert ctl("ls", "ORG").out.count("\n") == 2
    assert ctl("--quiet", "list").out == "smollm2:135m\norg/repo:main\n"
    listed = ctl("list", "--json").document["models"]
    assert [row["name"] for row in listed] == ["smollm2:135m", "org/repo:main"]
    assert listed[0]["path"] == "/models/smollm2:135m"
    assert listed[0]["capabilities"] == ["completion"]
    assert listed[0]["size_bytes"] == 270_900_000
    assert "template" not in listed[0]


def test_ps(ctl: Ctl, server: ControlServer) -> None:
    starting = workers_pb2.Worker.STARTING
    server.answers.workers.append(
        worker(
            "qwen3:0.6b", starting, load_phase="loading weights", load_fraction=0.4, memory_bytes=0, context_length=0
        )
    )
    server.answers.workers.append(
        worker("big:70b", leases=1, device="gpu 0,1", device_bytes=10**11, cpu_time=Duration(seconds=61))
    )
    rows = [line.split("    ") for line in ctl("ps").out.splitlines()]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "CPU", "STATE", "UNTIL"],
        ["smollm2:135m", DIGEST[:12], "1.2 GB", "100% CPU", "8192", "-", "ready", "4 minutes from now"],
        ["qwen3:0.6b", DIGEST[:12], "-", "100% CPU", "-", "-", "starting", "loading weights 40 %"],
        ["big:70b", DIGEST[:12], "100 GB", "100% GPU", "8192", "61 s", "ready", "busy"],
    ]
    assert ctl("ps", "-q").out.split() == ["smollm2:135m", "qwen3:0.6b", "big:70b"]
    shown = ctl("ps", "--json").document["workers"]
    assert [row["state"] for row in shown] == ["READY", "STARTING", "READY"]
    assert shown[1]["load_fraction"] == 0.4


def test_a_failure_is_told_with_what_the_engine_said_last(ctl: Ctl, server: ControlServer) -> None:
    broken = failure(Reason.ENGINE_START_FAILED, "cannot load smollm2: no room", "see its log")
    broken.facts["log"] = "\n".join(f"line {number}" for number in range(20))
    server.answers.workers[:] = [worker("smollm2:135m", workers_pb2.Worker.FAILED, failure=broken)]
    listed = ctl("ps")
    assert listed.out.splitlines()[1].split()[-4:] == ["failed", "engine", "start", "failed"]
    assert listed.err.splitlines()[:2] == ["cannot load smollm2: no room", "hint: see its log"]
    assert listed.err.splitlines()[-1] == "| line 19"
    page = ctl("show", "smollm2:135m").out
    assert "  Worker\n    failed on cpu, engine start failed\n    cannot load smollm2: no room\n" in page
    assert page.endswith("    | line 19\n")
    assert ctl("show", "smollm2:135m", "--json").document["workers"][0]["state"] == "FAILED"


def test_ps_of_nothing_is_a_header(ctl: Ctl, server: ControlServer) -> None:
    server.answers.workers.clear()
    assert ctl("ps").out.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "CPU", "STATE", "UNTIL"]
    assert ctl("ps", "--json").document == {"workers": []}
    assert ctl("ps", "--quiet").out == ""


def test_status(ctl: Ctl, server: ControlServer) -> None:
    server.answers.status = daemon_pb2.GetStatusResponse(
        version="0.1.0",
        state=daemon_pb2.GetStatusResponse.SERVING,
        pid=4242,
        start_time=at(time.time() - 400),
        http_url="http://127.0.0.1:11434",
        engine=daemon_pb2.Engine(python="/opt/python", version="vllm 0.32.0", device="cpu"),
        workers=[
            worker("smollm2:135m"),
            worker(
                "broken:latest",
                workers_pb2.Worker.FAILED,
                failure=failure(Reason.ENGINE_START_FAILED, "cannot start broken: the engine ended", "read its log"),
            ),
        ],
        models=3,
        waiting_requests=2,
        storage=daemon_pb2.Storage(models_bytes=2_000_000_000, free_bytes=200_000_000_000),
        decisions=[daemon_pb2.Decision(time=at(NOW), text="evict a to fit b")],
        waits=["b waits (2, 3 s): GPU 0 loads a: one load at a time"],
        devices=[
            daemon_pb2.Device(
                name="GPU 0",
                total_bytes=80 << 30,
                reserved_bytes=34 << 30,
                foreign_bytes=1288490188,
                giveable_bytes=36 << 30,
                loading="a",
                temperature_c=41,
                utilisation=0.5,
            ),
            daemon_pb2.Device(name="GPU 1", total_bytes=80 << 30, problem="lost: it fell off the bus"),
        ],
    )
    page = ctl("status").out
    for expected in (
        "✓ vllamad 0.1.0, serving for 6 minutes (pid 4242)",
        "http        http://127.0.0.1:11434",
        "engine      vllm 0.32.0 on cpu",
        "models      3 on disk, 1 loaded",
        "requests    0 running, 2 waiting",
        "storage     2 GB of models, 200 GB free",
        "device      GPU 0: 34.0 GiB of 80.0 GiB reserved, others hold 1.2 GiB, 36.0 GiB to give, loads a, 41 °C, "
        "50 % busy",
        "device      GPU 1: nothing is placed on it: lost: it fell off the bus",
        "Waiting\n  b waits (2, 3 s): GPU 0 loads a: one load at a time",
        "✗    broken:latest    failed",
        "cannot start broken: the engine ended",
        "hint: read its log",
        "evict a to fit b",
    ):
        assert expected in page
    assert ctl("status", "-q").out == "serving\n"
    assert ctl("status", "--json").document["engine"]["version"] == "vllm 0.32.0"


def test_show_fit(ctl: Ctl, server: ControlServer) -> None:
    server.answers.fit = models_pb2.FitModelResponse(
        sentence="fits on GPU 1 with 34,000 tokens of cache; or on 2 GPUs with 90,000 tokens of cache",
        footprints=[
            models_pb2.Footprint(
                devices=1,
                weights_bytes=16 << 30,
                kv_bytes_per_token=131072,
                activation_bytes=1 << 30,
                overhead_bytes=900 << 20,
                origin="estimated",
            )
        ],
        notes=["its family is not known"],
    )
    lines = ctl("show", "smollm2:135m", "--fit").out.splitlines()
    assert lines[0] == server.answers.fit.sentence
    assert lines[2].split() == ["DEVICES", "WEIGHTS", "CACHE/1K", "TOKENS", "BATCH", "ENGINE", "NUMBERS"]
    assert [cell.strip() for cell in lines[3].split("    ") if cell.strip()] == [
        "1", "16.0 GiB", "125 MiB", "1.0 GiB", "900 MiB", "estimated",
    ]  # fmt: skip
    assert lines[-1] == "note: its family is not known"
    assert ctl("show", "smollm2:135m", "--fit", "-q").out == server.answers.fit.sentence + "\n"
    assert ctl("show", "smollm2:135m", "--fit", "--json").document["footprints"][0]["origin"] == "estimated"
    assert ctl("show", "nobody", "--fit").status == 3


def test_show(ctl: Ctl, server: ControlServer) -> None:
    server.answers.models[0].template = "{{ x }}\n"
    server.answers.models[0].license = "Apache\n\nVersion 2\nmore"
    server.answers.models[0].files.add(path="model.safetensors", digest="sha256:ab", size_bytes=5)
    page = ctl("show", "smollm2:135m").out
    assert "    architecture        llama\n    parameters          134.52M\n    context length      8192\n" in page
    assert "  Capabilities\n    completion\n" in page
    assert "  License\n    Apache\n    Version 2\n    ...\n" in page
    assert page.endswith("  Worker\n    ready on cpu, 4 minutes from now\n")
    assert ctl("show", "smollm2:135m", "--template").out == "{{ x }}\n"
    assert ctl("show", "smollm2:135m", "--license").out == "Apache\n\nVersion 2\nmore\n"
    assert ctl("show", "smollm2:135m", "--files").out.splitlines()[1] == "model.safetensors    5 B     sha256:ab"
    assert ctl("show", "smollm2:135m", "--json").document["files"][0]["path"] == "model.safetensors"
    server.answers.models[0].template = ""
    without = ctl("show", "smollm2:135m", "--template")
    assert (without.status, without.out) == (3, "")
    assert without.err.startswith("vllamactl: cannot show smollm2:135m: smollm2:135m has no template\nhint: ")


def test_config(ctl: Ctl, server: ControlServer) -> None:
    server.answers.settings = [
        daemon_pb2.Setting(
            key="server.port",
            value="1",
            source="/etc/x:3",
            overrode=["default: 11434"],
            help="Port.",
            is_reloadable=True,
        ),
        daemon_pb2.Setting(key="server.host", value='"::1"', source="default"),
    ]
    assert ctl("config").out.splitlines() == [
        "KEY            VALUE    SOURCE",
        "server.port    1        /etc/x:3",
        'server.host    "::1"    default',
    ]
    assert ctl("config", "--show").out == (
        "# Port.\n# from /etc/x:3\n# over default: 11434\nserver.port = 1\n\n"
        '# from default; a change needs a restart\nserver.host = "::1"\n'
    )
    assert ctl("config", "-q").out == "server.port\nserver.host\n"
    assert ctl("config", "--json").document["settings"][0]["overrode"] == ["default: 11434"]


def test_logs(ctl: Ctl, server: ControlServer) -> None:
    def line(text: str, missed: int = 0) -> workers_pb2.StreamLogsResponse:
        return workers_pb2.StreamLogsResponse(
            line=workers_pb2.LogLine(time=at(NOW), origin="smollm2:135m", text=text), missed=missed
        )

    server.answers.logs = [line("one"), line("two", missed=3)]
    result = ctl("logs", "smollm2:135m", "-n", "5")
    assert (result.out, result.err) == ("one\ntwo\n", "[missed 3 lines]\n")
    request = server.requests("StreamLogs")[0]
    assert (request.model, request.tail_lines, request.follow) == ("smollm2:135m", 5, False)
    assert ctl("logs", "-n", "all", "--json").documents[1] == {
        "time": "2026-09-21T14:13:20Z",
        "origin": "smollm2:135m",
        "text": "two",
        "missed": 3,
    }
    assert server.requests("StreamLogs")[1].tail_lines == -1
    assert ctl("logs", "-n", "0").status == 2


def test_version(ctl: Ctl, server: ControlServer) -> None:
    server.answers.status.version = "9.9.9"
    assert ctl("version").out == f"vllamactl {__version__}\nvllamad 9.9.9\n"
    assert ctl("version", "--json").document == {"client": __version__, "daemon": "9.9.9", "engine": None}
    assert ctl("--version").out == f"vllamactl {__version__}\n"
    alone = ctl("--socket", "/nowhere/d.sock", "version")
    assert (alone.status, alone.out) == (0, f"vllamactl {__version__}\n")
    assert "cannot reach the daemon" in alone.err


def test_another_version_is_mentioned_once(ctl: Ctl, server: ControlServer) -> None:
    server.answers.version = "9.9.9"
    result = ctl("cp", "smollm2:135m", "mine")
    assert result.err.count("9.9.9") == 1
    assert server.metadata["vllama-client-version"] == __version__
    assert ctl("list", "--quiet").err == ""
    server.answers.version = __version__
    assert ctl("list").err == ""


# --- what changes something


def test_rm(ctl: Ctl, server: ControlServer) -> None:
    server.answers.workers.clear()
    result = ctl("rm", "smollm2:135m")
    assert (result.status, result.out, result.err) == (0, "", "✓ removed smollm2:135m, freed 271 MB\n")
    assert ctl("rm", "smollm2:135m", "-q").out == "smollm2:135m\n"


def test_rm_goes_on_after_a_failure_and_tells_it(ctl: Ctl, server: ControlServer) -> None:
    server.answers.models.append(model("other:latest"))
    result = ctl("rm", "smollm2:135m", "nope", "other:latest")
    assert result.status == ROWS[Reason.MODEL_IN_USE].exit
    assert result.err.splitlines() == [
        "vllamactl: cannot remove smollm2:135m: it is loaded",
        "hint: unload it: vllamactl stop smollm2:135m",
        "vllamactl: cannot remove nope: model 'nope' not found",
        "hint: pull it first: vllamactl pull nope",
        "✓ removed other:latest, freed 271 MB",
    ]
    forced = ctl("rm", "--force", "smollm2:135m", "nope", "--json")
    assert forced.status == 3
    assert forced.document["removed"] == [{"name": "smollm2:135m", "freed_bytes": 270_900_000}]
    assert forced.document["failed"][0]["reason"] == "MODEL_NOT_FOUND"


def test_cp(ctl: Ctl, server: ControlServer) -> None:
    assert ctl("cp", "smollm2:135m", "mine").err == "✓ copied smollm2:135m to mine\n"
    assert ctl("cp", "smollm2:135m", "mine", "--json").document["name"] == "mine"
    request = server.requests("CopyModel")[0]
    assert (request.source, request.destination) == ("smollm2:135m", "mine")
    assert ctl("cp", "nope", "mine").status == 3


def test_pull_without_a_terminal_says_its_phases(ctl: Ctl, server: ControlServer) -> None:
    server.answers.script.steps = [
        Progress(phase="resolving"),
        Progress(phase="downloading", completed_bytes=1, total_bytes=270_900_000),
        Progress(phase="downloading", completed_bytes=2, total_bytes=270_900_000),
    ]
    result = ctl("pull", "qwen3:0.6b")
    assert (result.status, result.out) == (0, "")
    assert result.err.splitlines() == [
        "→ pulling qwen3:0.6b: resolving",
        "→ pulling qwen3:0.6b: downloading",
        "✓ pulled qwen3:0.6b (271 MB in 12 s)",
    ]
    quiet = ctl("pull", "--quiet", "qwen3:0.6b")
    assert (quiet.out, quiet.err) == ("", "")
    snapshots = ctl("--json", "pull", "qwen3:0.6b").documents
    assert [snapshot["done"] for snapshot in snapshots] == [False, False, False, True]
    assert snapshots[1]["progress"]["total_bytes"] == 270_900_000
    assert snapshots[0]["kind"] == "PULL"


def test_pull_detached(ctl: Ctl, server: ControlServer) -> None:
    result = ctl("pull", "--detach", "qwen3:0.6b")
    assert (result.status, result.out) == (0, "operations/7\n")
    assert server.requests("WatchOperation") == []
    assert ctl("pull", "-d", "qwen3:0.6b", "--json").document["name"] == "operations/7"


def test_pull_that_fails_later(ctl: Ctl, server: ControlServer) -> None:
    server.answers.script.failure = failure(
        Reason.HUB_FORBIDDEN, "cannot pull org/gated: its licence was not accepted", "accept it", status="403"
    )
    result = ctl("pull", "org/gated", "--json")
    assert result.status == 5
    assert result.err == "vllamactl: cannot pull org/gated: its licence was not accepted\nhint: accept it\n"
    *snapshots, last = result.documents
    assert snapshots[-1]["failure"]["reason"] == "HUB_FORBIDDEN"
    assert last["error"]["facts"] == {"status": "403"}


def test_load_and_stop(ctl: Ctl, server: ControlServer) -> None:
    assert ctl("load", "smollm2:135m", "--keep-alive", "1h30m").err.endswith("✓ loaded smollm2:135m (in 12 s)\n")
    assert server.requests("StartWorker")[0].keep_alive.seconds == 5400
    ctl("load", "smollm2:135m")
    assert not server.requests("StartWorker")[1].HasField("keep_alive")
    assert ctl("stop", "smollm2:135m", "--force").err.endswith("✓ stopped smollm2:135m (in 12 s)\n")
    assert server.requests("StopWorker")[0].force
    wrong = ctl("load", "smollm2:135m", "--keep-alive", "5x")
    assert wrong.status == 2
    assert "'5x' is not a duration" in wrong.err


def test_load_that_fails_shows_the_engines_last_lines(ctl: Ctl, server: ControlServer) -> None:
    server.answers.script.failure = failure(
        Reason.ENGINE_START_FAILED, "cannot start smollm2:135m: the engine ended", "read the log", log="line 1\nline 2"
    )
    result = ctl("load", "smollm2:135m")
    assert result.status == 8
    assert result.err.endswith(
        "vllamactl: cannot start smollm2:135m: the engine ended\n    line 1\n    line 2\nhint: read the log\n"
    )


def test_create(ctl: Ctl, server: ControlServer, tmp_path: Path) -> None:
    weights = tmp_path / "w.gguf"
    weights.touch()
    assert ctl("create", "mine", "--from", str(weights)).err.endswith("✓ created mine (in 12 s)\n")
    ctl("create", "mine", "--from", str(tmp_path))
    ctl("create", "mine", "--from", "qwen3:0.6b")
    requests = server.requests("CreateModel")
    assert [request.WhichOneof("from") for request in requests] == ["from_gguf", "from_folder", "from_model"]
    assert requests[0].from_gguf == str(weights)
    missing = ctl("create", "mine", "-f", "Modelfile")
    assert missing.status == 2
    assert "cannot read Modelfile" in missing.err and "hint: use --from" in missing.err
    assert ctl("create", "mine").status == 2
    recipe = tmp_path / "Modelfile"
    recipe.write_text("FROM ./w.gguf\n")
    ctl("create", "mine", "-f", str(recipe))
    ctl("create", "mine", "--from", "qwen3:0.6b", "-f", str(recipe))
    alone, both = server.requests("CreateModel")[-2:]
    assert (alone.WhichOneof("from"), alone.modelfile, alone.folder) == (None, b"FROM ./w.gguf\n", str(tmp_path))
    assert (both.from_model, both.modelfile) == ("qwen3:0.6b", b"FROM ./w.gguf\n")
    assert ctl("create", "mine", "--from", "/nowhere.gguf").status == 2


# --- asking


def answer(*texts: str, finish: bool = True) -> list[ChatResponse]:
    end = Finish(
        reason="stop",
        prompt_tokens=12,
        completion_tokens=8,
        total_duration=Duration(seconds=1, nanos=234_000_000),
        prompt_duration=Duration(nanos=60_000_000),
        generation_duration=Duration(nanos=800_000_000),
    )
    return [*(ChatResponse(text=text) for text in texts), *([ChatResponse(finish=end)] if finish else [])]


def test_run_with_a_prompt(ctl: Ctl, server: ControlServer) -> None:
    server.answers.chat = [ChatResponse(thinking="hm"), *answer("Pa", "ris.")]
    result = ctl(
        "run", "smollm2:135m", "capital", "of France?", "--system", "be brief", "--temperature", "0", "--seed", "7",
        "--stop", "x", "--format", "json", "--no-think", "--keep-alive", "-1", "--verbose",
    )  # fmt: skip
    assert (result.status, result.out) == (0, "Paris.\n")
    assert "eval rate:            10.00 tokens/s\n" in result.err
    assert "prompt eval rate:     200.00 tokens/s\n" in result.err
    assert "load duration" not in result.err
    request = server.requests("Chat")[0]
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "be brief"),
        ("user", "capital of France?"),
    ]
    assert (request.options.temperature, request.options.seed, request.format) == (0.0, 7, "json")
    assert request.options.HasField("temperature") and list(request.options.stop) == ["x"]
    assert request.HasField("think") and not request.think
    assert request.keep_alive.seconds == -1


def test_run_reads_a_piped_prompt(ctl: Ctl, server: ControlServer) -> None:
    server.answers.chat = answer("ok")
    ctl("run", "smollm2:135m", stdin="from the pipe\n")
    ctl("run", "smollm2:135m", "sum up:", stdin="a text\nof two lines\n")
    prompts = [request.messages[0].content for request in server.requests("Chat")]
    assert prompts == ["from the pipe", "sum up:\n\na text\nof two lines"]
    empty = ctl("run", "smollm2:135m")
    assert (empty.status, empty.err.splitlines()[0]) == (2, "vllamactl: cannot run smollm2:135m: the prompt is empty")


def test_run_as_json_is_one_event_a_line(ctl: Ctl, server: ControlServer) -> None:
    server.answers.chat = [ChatResponse(loading=Progress(phase="importing", fraction=0.1)), *answer("Paris")]
    events = ctl("run", "smollm2:135m", "x", "--json").documents
    assert [next(iter(event)) for event in events] == ["loading", "text", "finish"]
    assert events[2]["finish"]["total_duration_s"] == 1.234


def test_run_pulls_what_is_not_here(ctl: Ctl, server: ControlServer) -> None:
    server.answers.chat = answer("hi")
    result = ctl("run", "qwen3:0.6b", "hello")
    assert result.out == "hi\n"
    assert "✓ pulled qwen3:0.6b" in result.err
    assert [name for name, _ in server.calls] == ["GetModel", "PullModel", "WatchOperation", "GetModel", "Chat"]


def test_run_that_breaks_keeps_what_came_and_fails(ctl: Ctl, server: ControlServer) -> None:
    server.answers.errors["Chat"] = failure(Reason.ENGINE_DIED, "cannot answer: the engine ended", "ask again")
    result = ctl("run", "smollm2:135m", "x")
    assert (result.status, result.out) == (8, "")
    assert result.err == "vllamactl: cannot answer: the engine ended\nhint: ask again\n"


# --- failures


@pytest.mark.parametrize("reason", [reason for reason, row in ROWS.items() if row.grpc])
def test_every_reason_reaches_the_exit_status(ctl: Ctl, server: ControlServer, reason: Reason) -> None:
    server.answers.errors["ListWorkers"] = failure(reason, "no é", "do this", size_bytes="9")
    result = ctl("ps", "--json")
    assert result.status == ROWS[reason].exit
    assert result.err == "vllamactl: cannot list what is loaded: no é\nhint: do this\n"
    assert result.document == {
        "error": {"reason": reason, "message": "no é", "hint": "do this", "facts": {"size_bytes": "9"}}
    }


def test_no_daemon(ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllamactl.client.WAIT_S", 0.1)
    missing = ctl("--socket", str(tmp_path / "d.sock"), "ps")
    assert missing.status == 4
    assert missing.err.startswith(
        f"vllamactl: cannot reach the daemon: tried {tmp_path}/d.sock (not there)\nhint: start"
    )
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "stale.sock"))
    stale = ctl("ps", "--socket", str(tmp_path / "stale.sock"))
    assert stale.status == 4
    assert "(nobody listens)" in stale.err


def test_a_daemon_that_is_just_starting_is_waited_for(tmp_path: Path) -> None:
    place = tmp_path / "d.sock"
    with (
        subprocess.Popen(
            [sys.executable, "-m", "vllamactl", "--socket", str(place), "ps", "-q"], stdout=subprocess.PIPE, text=True
        ) as client,
        ControlServer(place),
    ):
        out, _ = client.communicate(timeout=10)
    assert (client.returncode, out) == (0, "smollm2:135m\n")


def test_no_permission(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may open everything, so the refusal is put where the kernel would give it.
    monkeypatch.setattr("vllamactl.client._knock", lambda _path: PermissionError(13, "Permission denied"))
    result = ctl("ps")
    assert result.status == 5
    assert "no permission to open" in result.err and "group vllama" in result.err


def test_an_operation_that_never_ended_is_no_success(ctl: Ctl, server: ControlServer) -> None:
    server.answers.script.forgets_the_end = True
    result = ctl("load", "smollm2:135m")
    assert result.status == 1
    assert "stopped telling about operations/7 before its end" in result.err


def test_an_answer_without_its_end_is_no_success(ctl: Ctl, server: ControlServer) -> None:
    server.answers.chat = answer("Pa", finish=False)
    result = ctl("run", "smollm2:135m", "x")
    assert (result.status, result.out) == (1, "Pa\n")
    assert result.err.startswith("vllamactl: cannot run smollm2:135m: the answer broke off before its end\nhint: ")


def test_a_daemon_that_goes_away_in_the_middle(ctl: Ctl, server: ControlServer) -> None:
    server.answers.script.holds = True
    server.answers.script.steps = []

    def leave() -> None:
        assert server.held.wait(10)
        server.stop()

    leaving = threading.Thread(target=leave)
    leaving.start()
    result = ctl("load", "smollm2:135m")
    leaving.join(10)
    assert result.status == 4
    assert "went away" in result.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pul"], "did you mean pull?"),
        (["frobnicate"], "vllamactl --help"),
        (["rm"], "missing argument"),
        (["ps", "--nope"], "no such option"),
        (["--json"], "missing command"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["frob", "x"], "there is no such verb"),
    ],
)
def test_usage_errors(ctl: Ctl, arguments: list[str], says: str) -> None:
    result = ctl(*arguments)
    assert result.status == 2
    assert result.err.startswith("vllamactl: cannot ")
    assert says in result.err


def test_help(ctl: Ctl) -> None:
    alone = ctl()
    assert alone.status == 2
    assert ctl("--help").out == alone.out
    assert ctl("ps", "-h").status == 0
    for verb in cli.VERBS:
        assert ctl(verb, "--help").out.startswith(f"Usage: vllamactl {verb}")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(ctl: Ctl, shell: str) -> None:
    script = ctl("completion", shell).out
    assert f"_VLLAMACTL_COMPLETE={shell}_complete" in script


def in_a_process(server: ControlServer, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vllamactl", *arguments],
        env={**os.environ, "VLLAMA_SOCKET": str(server.socket), **env},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=20,
        check=False,
    )


def test_completion_knows_the_models(server: ControlServer) -> None:
    done = in_a_process(server, _VLLAMACTL_COMPLETE="bash_complete", COMP_WORDS="vllamactl run smo", COMP_CWORD="2")
    assert done.stdout == "plain,smollm2:135m\n"


def test_the_entry_passes_status_and_output(server: ControlServer) -> None:
    done = in_a_process(server, "list", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "smollm2:135m\n", "")
    assert in_a_process(server, "show", "nope").returncode == 3


def test_a_reader_that_leaves_is_no_error(server: ControlServer) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "vllamactl", "list"],
            env={**os.environ, "VLLAMA_SOCKET": str(server.socket)},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")
