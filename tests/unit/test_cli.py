"""The parts of vllamactl that need no daemon: numbers and tables as people read them, JSON, sockets, settings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vllama.control.v1.daemon_pb2 import Change, ModelChange, ReloadResponse
from vllama.control.v1.models_pb2 import Model, ModelFile
from vllama.control.v1.operations_pb2 import Progress
from vllama.control.v1.workers_pb2 import Worker
from vllama.reasons import ROWS
from vllamactl import human
from vllamactl.commands import reload
from vllamactl.commands.create import creation
from vllamactl.conversation import PARAMETERS, Conversation
from vllamactl.exits import CtlError, exit_status, explain
from vllamactl.places import socket_candidates
from vllamactl.plain import plain
from vllamactl.progress import Meter, bar, byte_facts
from vllamactl.render import Column, cut, table
from vllamactl.workers import until

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512 B"), (1000, "1 KB"), (1024, "1.0 KB"), (270_900_000, "271 MB"), (4_700_000_000, "4.7 GB"), (0, "0 B")],
)
def test_sizes(count: int, text: str) -> None:
    assert human.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (299, "4 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (3 * 86400, "3 days"),
        (21 * 86400, "3 weeks"),
        (90 * 86400, "3 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert human.span(seconds) == text


def test_a_reload_in_words() -> None:
    one = Change(key="scheduler.max_queue", before="512", after="7", source="/etc/c.toml:2", effect=Change.AT_ONCE)
    keys = Change(key="auth.api_keys", before='"***"', after='"***"', effect=Change.AT_ONCE, note="1 revoked")
    port = Change(key="server.port", before="1", after="2", effect=Change.AT_RESTART)
    gone = Change(key="model[a].pin", before="true", after="", effect=Change.AT_ONCE)
    models = [ModelChange(model="a:latest", text="a:latest is not pinned any more")]
    told = ReloadResponse(changes=[one, keys, port, gone], models=models)
    lines = reload.changes(told, None)
    assert lines[1].split() == ["scheduler.max_queue", "512", "7", "at", "once", "/etc/c.toml:2"]
    assert lines[4].split()[:3] == ["model[a].pin", "true", "-"]
    assert lines[5:] == ["auth.api_keys: 1 revoked", "a:latest is not pinned any more"]
    assert reload.summary(told) == "3 settings changed, 1 needs a restart"
    assert reload.summary(ReloadResponse(changes=[port, port])) == "no settings changed, 2 need a restart"
    dry = ReloadResponse(changes=[one], dry_run=True)
    assert reload.summary(dry) == "1 setting would change: this was a dry run"
    assert reload.changes(ReloadResponse(), None) == []
    assert reload.summary(ReloadResponse()) == "nothing differs from what is in force"


def test_instants() -> None:
    assert human.instant(NOW + 250, NOW) == "4 minutes from now"
    assert human.instant(NOW - 250, NOW) == "4 minutes ago"
    assert human.instant(NOW + 30 * human.YEAR_S, NOW) == "Forever"
    assert human.instant(None, NOW) == "Never"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("300", 300), ("-1", -1), ("0", 0), ("1.5s", 1.5), ("-5m", -300)],
)
def test_durations_as_typed(text: str, seconds: float) -> None:
    assert human.parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "5x", "m", "5 m", "1h30", "--1h3", "forever"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        human.parse_span(text)


def test_json_has_numbers_names_and_every_field() -> None:
    worker = Worker(model="a", state=Worker.READY, memory_bytes=2**40)
    worker.load_duration.FromMilliseconds(1500)
    worker.expire_time.FromSeconds(int(NOW))
    shown = plain(worker)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["memory_bytes"] == 2**40
    assert shown["state"] == "READY"
    assert shown["load_duration_s"] == 1.5
    assert shown["expire_time"] == "2026-09-21T14:13:20Z"
    assert shown["start_time"] is None and shown["failure"] is None
    assert plain(Model(files=[ModelFile(path="x")]))["files"] == [{"path": "x", "digest": "", "size_bytes": 0}]


COLUMNS = (Column("NAME", is_elastic=True), Column("ID", drop=1), Column("SIZE"))


def test_table_is_wide_where_there_is_room_and_never_wider_than_asked() -> None:
    rows = [("smollm2:135m", "a80c4f17acd5", "271 MB"), ("hf.co/organisation/a-long-repository:main", "b", "1.5 GB")]
    assert table(COLUMNS, rows)[1].startswith("smollm2:135m" + " " * 33 + "a80c4f17acd5    271 MB")
    assert table(COLUMNS, [])[0] == "NAME    ID    SIZE"
    narrow = table(COLUMNS, rows, 50)
    assert "ID" not in narrow[0] and "hf.co/organisation/a-long-repository:main" in narrow[2]
    for width in (30, 40, 50, 60, 80):
        assert max(len(line) for line in table(COLUMNS, rows, width)) <= width
    assert table(COLUMNS, rows, 30)[2].split()[0] == "hf.co/organ…itory:main"


def test_cut_keeps_both_ends() -> None:
    assert cut("abcdefgh", 8) == "abcdefgh"
    assert cut("abcdefgh", 5) == "ab…gh"
    assert [len(cut("abcdefgh", width)) for width in range(9)] == list(range(9))


def test_speed_forgets_old_bytes_and_those_of_an_earlier_run() -> None:
    meter = Meter()
    meter.add(0.0, 900)
    assert meter.speed == 0
    for second in range(1, 11):
        meter.add(float(second), 900 + second * 100)
    assert meter.speed == 100
    meter.add(11.0, 5)
    assert meter.speed == 0


def test_bar_and_its_facts() -> None:
    assert bar(0.5, 8, is_unicode=True) == ("━━━━", "────")
    assert bar(7, 4, is_unicode=False) == ("####", "")
    step = Progress(phase="downloading", completed_bytes=121_000_000, total_bytes=270_900_000)
    assert byte_facts(step, 12_000_000) == " 44 %  121 MB/271 MB  12 MB/s  12 s left"
    assert byte_facts(Progress(phase="verifying", completed_bytes=1, total_bytes=2), 1) == " 50 %  1 B/2 B  verifying"


def test_sockets_are_tried_from_the_nearest() -> None:
    assert socket_candidates("/x", {"VLLAMA_SOCKET": "/y"}) == ["/x"]
    assert socket_candidates(None, {"VLLAMA_SOCKET": "/y"}) == ["/y"]
    assert socket_candidates(None, {"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/u"}) == [
        "/run/user/7/vllama/vllamad.sock",
        "/home/u/.local/share/vllama/run/vllamad.sock",
        "/run/vllama/vllamad.sock",
    ]
    assert socket_candidates(None, {"VLLAMA_STATE_DIR": "/s"})[0] == "/s/run/vllamad.sock"


def test_every_reason_has_its_exit_status() -> None:
    assert {reason: exit_status(reason) for reason in ROWS} == {reason: row.exit for reason, row in ROWS.items()}
    assert exit_status("INVENTED_LATER") == 1


def test_errors_say_what_why_and_what_next() -> None:
    error = CtlError("MODEL_NOT_FOUND", "model 'x' not found", "pull it", {"log": "a\nb", "size_bytes": "9"})
    assert explain(error, "show x") == [
        "vllamactl: cannot show x: model 'x' not found",
        "    a",
        "    b",
        "hint: pull it",
    ]
    assert explain(CtlError("WONT_FIT", "cannot start x: too big"), "load x") == ["vllamactl: cannot start x: too big"]


def test_a_conversation_sends_what_was_said_and_set() -> None:
    chat = Conversation("m", system="be brief", think=False, keep_alive_s=-1)
    chat.set_parameter("temperature", ["0.5"])
    chat.set_parameter("top_k", ["3"])
    chat.set_parameter("stop", ["a", "b"])
    chat.answered("hi", "hello")
    request = chat.request("how?")
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "be brief"),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "how?"),
    ]
    assert (request.options.temperature, request.options.top_k, list(request.options.stop)) == (0.5, 3, ["a", "b"])
    assert not request.options.HasField("seed")
    assert request.HasField("think") and not request.think
    assert request.keep_alive.seconds == -1
    assert chat.parameters() == [("temperature", "0.5"), ("top_k", "3"), ("stop", "a, b")]
    chat.clear()
    assert len(chat.request("x").messages) == 2
    assert not Conversation("m").request("x").HasField("think")
    assert not Conversation("m").request("x").HasField("keep_alive")


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("seed", ["x"], "'x' is not a whole number"),
        ("temperature", ["1", "2"], "'1 2' is not a number"),
        ("nonsense", ["1"], "no such parameter"),
        ("num_ctx", ["4096"], "no such parameter"),
    ],
)
def test_wrong_parameters_are_refused(name: str, values: list[str], says: str) -> None:
    with pytest.raises(CtlError, match=says):
        Conversation("m").set_parameter(name, values)


def test_parameters_are_the_fields_of_the_protocol() -> None:
    assert set(PARAMETERS) == {field.name for field in Conversation("m").options.DESCRIPTOR.fields}


def test_create_tells_paths_from_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.gguf").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert creation("n", "weights.gguf").from_gguf == str(tmp_path / "weights.gguf")
    assert creation("n", "./folder").from_folder == str(tmp_path / "folder")
    assert creation("n", "qwen3:0.6b").from_model == "qwen3:0.6b"
    assert creation("n", "org/repo").from_model == "org/repo"
    for missing in ("/nowhere/x.gguf", "no.gguf", "./nothing"):
        with pytest.raises(CtlError, match="there is no file"):
            creation("n", missing)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": Worker.STARTING, "load_phase": "loading weights", "load_fraction": 0.4}, "loading weights 40 %"),
        ({"state": Worker.READY, "leases": 2}, "busy"),
        ({"state": Worker.READY, "is_pinned": True}, "Pinned"),
        ({"state": Worker.DRAINING, "leases": 1}, "finishing requests"),
        ({"state": Worker.BACKOFF}, "trying again soon"),
        ({"state": Worker.READY}, "Forever"),
    ],
)
def test_when_a_worker_leaves(fields: dict[str, object], text: str) -> None:
    assert until(Worker(**fields), NOW) == text  # pyright: ignore


def test_reference_page_is_fresh() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gen_cli_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr


def test_ps_imports_only_what_it_needs() -> None:
    # The verb that measures is there for `--help` and completion: that alone must cost nothing either.
    code = "import sys, vllamactl.commands.ps, vllamactl.commands.bench, vllamactl.cli; print('\\n'.join(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    lazy = {"vllamactl.repl", "vllamactl.doctor", "vllamactl.bench", "vllama.reasons"}
    assert not loaded & {"rich", "prompt_toolkit", "aiohttp", *lazy}
    assert not {name for name in loaded if name.startswith("vllamad")}
