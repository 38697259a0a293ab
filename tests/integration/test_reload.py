"""Another configuration while the daemon serves: by vllamactl, by SIGHUP, under load, and with a file that is wrong."""

import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.daemon import Daemon, running
from vllama.control.v1 import daemon_pb2 as pb
from vllama.control.v1 import daemon_pb2_grpc

NewHouse = Callable[..., Daemon]
CHAT = {"messages": [{"role": "user", "content": "hi"}], "stream": False}


@dataclass
class Configured:
    """A daemon, and the file that it reads."""

    daemon: Daemon

    @property
    def file(self) -> Path:
        return self.daemon.root / "config/vllama/config.toml"

    def write(self, text: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(text)
        self.file.chmod(0o600)

    def reload(self, text: str | None = None, *, dry_run: bool = False) -> pb.ReloadResponse:
        """Asked over the control socket, without the cost of a new vllamactl."""
        if text is not None:
            self.write(text)
        with grpc.insecure_channel(f"unix:{self.daemon.socket}") as channel:
            answer: pb.ReloadResponse = daemon_pb2_grpc.DaemonStub(channel).Reload(pb.ReloadRequest(dry_run=dry_run))
        return answer

    def settings(self) -> dict[str, pb.Setting]:
        with grpc.insecure_channel(f"unix:{self.daemon.socket}") as channel:
            answer = daemon_pb2_grpc.DaemonStub(channel).GetConfig(pb.GetConfigRequest())
        return {one.key: one for one in answer.settings}

    def worker(self, model: str) -> dict[str, Any]:
        """The worker of a model that is not on its way out."""
        mine = [one for one in self.daemon.workers() if one["model"] == f"{model}:latest" and one["state"] == "READY"]
        assert len(mine) == 1, self.daemon.workers()
        return mine[0]

    def is_allowed(self, origin: str) -> bool:
        """Whether a page from there may ask."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=60)
        connection.request("GET", "/api/version", headers={"Origin": origin})
        answer = connection.getresponse()
        connection.close()
        return answer.status == 200 and answer.headers["Access-Control-Allow-Origin"] == origin

    def chat(self, model: str) -> int:
        return self.daemon.request("POST", "/api/chat", {"model": model, **CHAT}).status


@pytest.fixture(scope="module")
def shared() -> Iterator[Configured]:
    models = {"tiny": {}, "other": {}, "slow": {"tokens": 100_000, "token_delay_s": 0.01}, "late": {"load_s": 60.0}}
    with running(models=models) as daemon:
        yield Configured(daemon)


@pytest.fixture
def house(shared: Configured) -> Iterator[Configured]:
    """The same, with an empty file in force."""
    yield shared
    shared.reload("")


@dataclass
class Load:
    """Clients that ask again and again on new connections; every status is kept."""

    house: Configured
    statuses: list[int] = field(default_factory=list[int])

    def __enter__(self) -> "Load":
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._is_over.is_set():
            self.statuses.append(self.house.chat("tiny"))

    def go_on(self) -> None:
        """Return when some more requests have been answered."""
        until, deadline = len(self.statuses) + 4, time.monotonic() + 60
        while len(self.statuses) < until:
            assert time.monotonic() < deadline, f"no answers any more: {self.statuses[-8:]}"
            time.sleep(0.01)


def test_under_load_no_request_fails_and_what_is_loaded_as_before_is_not_touched(house: Configured) -> None:
    assert house.chat("tiny") == house.chat("other") == 200
    tiny, other = house.worker("tiny"), house.worker("other")
    with Load(house) as load:
        load.go_on()
        for number in range(4):
            house.reload(
                f"[scheduler]\nmax_queue = {100 + number}\n[models]\nkeep_alive = {600 + number}\n"
                f'[server]\norigins = ["https://{number}.example"]\nmax_body_bytes = "{number + 1}MiB"\n'
                f'[engine]\nterm_grace = {number + 1}\n[models.aliases]\n"alias-{number}" = "tiny"\n'
            )
            load.go_on()
        assert house.chat("alias-3") == 200 and house.chat("alias-2") == 404
        assert house.is_allowed("https://3.example") and not house.is_allowed("https://2.example")
        assert house.daemon.request("POST", "/api/chat", b" " * (4 * 1024 * 1024 + 1)).status == 413
        told = house.reload('[[model]]\nmatch = "other"\ncontext_length = 512\n')
        load.go_on()
        assert [(one.model, pb.ModelChange.Kind.Name(one.kind)) for one in told.models] == [
            ("other:latest", "LOADED_ANEW"),
            ("tiny:latest", "KEEP_ALIVE"),
        ]
        assert house.worker("tiny")["pid"] == tiny["pid"], "it is healthy and as it would be loaded now"
        # The model that is asked: those who have begun finish, those who wait get the new worker.
        house.reload('[engine]\ncpu_kv_bytes = "128MiB"\n[[model]]\nmatch = "tiny"\ncontext_length = 256\n')
        load.go_on()
    assert set(load.statuses) == {200}
    again = house.worker("tiny")
    assert (again["context_length"], again["pid"] == tiny["pid"]) == (256, False)
    command = Path(f"/proc/{again['pid']}/cmdline").read_bytes().decode().split("\0")
    assert command[command.index("--kv-cache-memory-bytes") + 1] == str(128 << 20)
    assert house.chat("other") == 200
    assert house.worker("other")["pid"] != other["pid"]


def test_time_limits_hold_from_the_next_wait_on(house: Configured) -> None:
    question = {"model": "late", **CHAT}
    house.reload("[scheduler]\nload_wait = 0.2\n")
    assert "it was not ready within" in house.daemon.request("POST", "/api/chat", question).json()["error"]
    house.daemon.ctl("stop", "--force", "late")
    house.reload("[engine]\nstart_timeout = 0.2\n")
    assert "not ready after 0.2 s" in house.daemon.request("POST", "/api/chat", question).json()["error"]


def test_a_dry_run_tells_what_would_happen_and_changes_nothing(house: Configured) -> None:
    assert house.chat("tiny") == 200
    before = house.worker("tiny")
    house.write(
        '[scheduler]\nmax_queue = 9\n[control]\ngroup = "x"\n[[model]]\nmatch = "tiny"\npin = true\ndtype = "float32"\n'
    )
    shown = house.daemon.ctl("reload", "--dry-run")
    table = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert "at once" in table["scheduler.max_queue"] and "needs a restart" in table["control.group"]
    assert f"{house.file}:2" in table["scheduler.max_queue"]
    assert "tiny:latest is loaded with other settings: it leaves now, and is loaded anew at once" in shown.stdout
    assert "this was a dry run, 1 needs a restart" in shown.stderr
    document = house.daemon.json("reload", "--dry-run")
    assert document["dry_run"] and {one["key"]: one["effect"] for one in document["changes"]} == {
        "control.group": "AT_RESTART",
        "scheduler.max_queue": "AT_ONCE",
        "model[tiny].pin": "AT_ONCE",
        "model[tiny].dtype": "AT_LOAD",
    }
    after = house.worker("tiny")
    assert all(after[name] == before[name] for name in ("pid", "state", "is_pinned", "context_length"))
    assert house.settings()["scheduler.max_queue"].value == "512"
    assert not house.settings()["control.group"].HasField("pending")


def test_what_needs_a_restart_is_shown_as_not_in_force(house: Configured) -> None:
    port = str(house.daemon.port)
    house.reload("[control]\ngroup = 'nobody'\n")
    setting = house.settings()["control.group"]
    assert (setting.value, setting.pending.after) == ('"vllama"', '"nobody"')
    assert '"vllama" (after a restart: "nobody")' in house.daemon.ctl("config").stdout
    status = house.daemon.ctl("status").stdout
    assert "Needs a restart" in status and port in status
    house.reload("")
    assert "Needs a restart" not in house.daemon.ctl("status").stdout


def test_a_file_that_is_wrong_changes_nothing_and_is_told_with_its_line(house: Configured) -> None:
    house.reload("[scheduler]\nmax_queue = 5\n")
    house.write("[scheduler]\nmax_queue = 0\nmax_qeue = 7\n")
    for words in (("reload",), ("reload", "--dry-run")):
        refused = house.daemon.ctl(*words, check=False)
        assert refused.returncode == 78
        assert f"{house.file}:2: scheduler.max_queue: found 0" in refused.stderr
        assert f"{house.file}:3: unknown key scheduler.max_qeue: did you mean scheduler.max_queue?" in refused.stderr
        assert "hint: nothing has changed" in refused.stderr
    assert house.daemon.log_text().count("ERROR config.unchanged") == 1
    assert house.settings()["scheduler.max_queue"].value == "5"
    assert house.chat("tiny") == 200


def test_sighup_reloads_and_tells_the_service_manager(house: Configured) -> None:
    house.daemon.told.clear()
    house.write('[logging]\nlevel = "debug"\n')
    house.daemon.send_signal(signal.SIGHUP)
    house.daemon.wait_told("RELOADING=1\nMONOTONIC_USEC=", 15)
    house.daemon.wait_told("READY=1", 15)
    assert house.settings()["logging.level"].value == '"debug"'
    house.daemon.request("GET", "/health")  # a line of its own from this level on
    house.daemon.wait_log("DEBUG http.request")
    house.reload('[logging]\nlevel = "warning"\n')
    before = house.daemon.log_text()
    assert house.chat("tiny") == 200
    assert house.daemon.log_text() == before
    house.reload("")


def test_a_key_that_is_revoked_opens_nothing_from_then_on(house: Configured) -> None:
    old, new = "the-old-key-of-many-1", "the-new-key-of-many-2"

    def ask(key: str, path: str = "/api/tags", body: object = None) -> tuple[http.client.HTTPConnection, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", house.daemon.port, timeout=60)
        data = json.dumps(body).encode() if body else None
        connection.request("POST" if body else "GET", path, data, {"Authorization": f"Bearer {key}"})
        return connection, connection.getresponse()

    def status(key: str) -> int:
        connection, answer = ask(key)
        connection.close()
        return answer.status

    house.reload(f'[auth]\napi_keys = ["{old}"]\n')
    assert (status(old), status(new)) == (200, 401)
    connection, stream = ask(old, "/api/chat", {"model": "slow", "messages": CHAT["messages"]})
    assert stream.status == 200 and stream.readline()
    told = house.reload(f'[auth]\napi_keys = ["{new}"]\n')
    assert [(one.after, one.note) for one in told.changes] == [('"***"', "1 new, 1 revoked")]
    assert (status(old), status(new)) == (401, 200)
    assert stream.readline(), "what has begun goes on"
    connection.close()
    assert old not in house.daemon.log_text() and new not in house.daemon.log_text()


def test_on_the_way_out_a_reload_is_refused(new_house: NewHouse) -> None:
    daemon = new_house(models={"slow": {"tokens": 100_000, "token_delay_s": 0.01}})
    stream = daemon.open_stream("/api/chat", {"model": "slow", "messages": CHAT["messages"]})
    assert stream.line()
    daemon.send_signal(signal.SIGTERM)
    daemon.wait_told("STOPPING=1", 15)
    refused = daemon.ctl("reload", check=False)
    assert refused.returncode == 7 and "the daemon is stopping" in refused.stderr
    daemon.send_signal(signal.SIGHUP)
    daemon.wait_log("config.refused")
    assert not any("RELOADING" in message for message in daemon.told)
    daemon.send_signal(signal.SIGTERM)
    stream.hang_up()
