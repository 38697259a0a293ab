"""HTTP in several processes: the same answers as with one, and what happens when one of them dies."""

import gzip
import http.client
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import ollama
import openai
import pytest

from tests.fakes.daemon import Daemon, Stream, running

NewHouse = Callable[..., Daemon]
HELLO: Any = [{"role": "user", "content": "hello there"}]
ENDLESS = {"tokens": 100_000, "token_delay_s": 0.01}
MODELS = {"tiny": {"has_audio": True}, "endless": ENDLESS, "late": {"load_s": 60.0}}
TWO = {"VLLAMA_SERVER_PROCESSES": "2"}
SEVERAL = 24
"""Connections of which each process gets at least one: that none of them goes to one of two is a matter of 1e-7."""

UNTIL_S = 15.0


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    with running(models=MODELS, environment=TWO | {"VLLAMA_SCHEDULER_MAX_QUEUE": "2"}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def alone() -> Iterator[Daemon]:
    """The same with one process."""
    with running(models=MODELS, environment={"VLLAMA_SERVER_PROCESSES": "1"}) as daemon:
        yield daemon


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + UNTIL_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def queue(house: Daemon) -> dict[str, int]:
    return house.request("GET", "/health").json()["queue"]


def acceptors(house: Daemon) -> list[dict[str, Any]]:
    return house.json("status")["acceptors"]


def open_streams(house: Daemon, count: int) -> list[Stream]:
    """So many that go on until they are ended, each on a connection of its own; the first line of each is read."""
    body = {"model": "endless", "messages": HELLO, "options": {"num_predict": 100_000}}
    streams = [house.open_stream("/api/chat", body) for _ in range(count)]
    assert all(stream.line()["message"]["content"] for stream in streams)
    return streams


def test_the_official_clients_do_not_notice(house: Daemon) -> None:
    client = ollama.Client(host=house.url)
    assert {model.model for model in client.list().models} >= {"tiny:latest", "endless:latest"}
    for _ in range(4):
        parts = list(client.chat("tiny", HELLO, stream=True, options={"num_predict": 3}))
        assert "".join(part.message.content or "" for part in parts) == "one two three"
    assert [model.model for model in client.ps().models] == ["tiny:latest"]
    with pytest.raises(ollama.ResponseError, match="model 'nobody' not found"):
        client.chat("nobody", HELLO)
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="unused", max_retries=0) as asking:
        whole = asking.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2)
        assert whole.choices[0].message.content == "one two"
        chunks = list(asking.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two"
        with pytest.raises(openai.NotFoundError):
            asking.chat.completions.create(model="nobody", messages=HELLO)
        assert "tiny:latest" in {model.id for model in asking.models.list()}


CHAT = {"model": "tiny", "messages": HELLO, "options": {"num_predict": 3}}
SAME: list[tuple[str, str, object, dict[str, str]]] = [
    ("POST", "/api/chat", CHAT, {}),
    ("POST", "/api/chat", CHAT | {"stream": False}, {}),
    ("POST", "/api/generate", {"model": "tiny", "keep_alive": 60}, {}),
    ("POST", "/api/generate", {"model": "tiny", "prompt": "x", "stream": False}, {"Origin": "http://localhost:3000"}),
    ("POST", "/v1/chat/completions", {"model": "tiny", "messages": HELLO, "max_tokens": 3, "stream": True}, {}),
    ("POST", "/v1/messages", {"model": "tiny", "messages": HELLO, "max_tokens": 3}, {}),
    ("POST", "/tokenize", {"model": "tiny", "prompt": "one two"}, {}),
    ("POST", "/api/embed", {"model": "tiny", "input": "x"}, {}),
    ("POST", "/api/chat", gzip.compress(json.dumps(CHAT).encode()), {"Content-Encoding": "gzip"}),
    ("POST", "/api/show", gzip.compress(b'{"model": "tiny"}'), {"Content-Encoding": "gzip"}),
    ("POST", "/api/chat", b"{", {}),
    ("POST", "/api/chat", b"", {}),
    ("POST", "/api/chat", {"model": "nobody", "messages": HELLO}, {}),
    ("POST", "/v1/chat/completions", {"model": "nobody", "messages": HELLO}, {}),
    ("POST", "/v1/messages", {"model": "nobody", "messages": HELLO, "max_tokens": 1}, {}),
    ("POST", "/api/chat", CHAT, {"Origin": "http://evil.example"}),
    ("POST", "/api/chat", CHAT, {"Host": "evil.example"}),
    ("POST", "/api/chat", CHAT, {"Content-Length": str(1 << 40)}),
    ("OPTIONS", "/v1/chat/completions", None, {"Origin": "http://localhost:3000"}),
    ("GET", "/api/chat", None, {}),
    # What the daemon answers itself.
    ("GET", "/", None, {}),
    ("HEAD", "/", None, {}),
    ("HEAD", "/api/version", None, {}),
    ("GET", "/api/version", None, {"Origin": "http://localhost:3000"}),
    ("GET", "/api/version", None, {"Origin": "http://evil.example"}),
    ("GET", "/api/version", None, {"Host": "evil.example"}),
    ("GET", "/v1/models/tiny", None, {"anthropic-version": "2023-06-01"}),
    ("GET", "/v1/models/a%2Fb%20c?x=%C3%A9", None, {}),
    ("POST", "/api/show", {"model": "tiny"}, {}),
    ("POST", "/api/show", b"{", {"Content-Type": "text/x\xe9"}),
    ("POST", "/api/show", {"model": "nobody"}, {"Content-Length": str(1 << 40)}),
    ("DELETE", "/api/delete", {"model": "nobody"}, {}),
    ("GET", "/nothing", None, {}),
    ("GET", "/api//tags/", None, {}),
    ("POST", "/api/push", {"model": "tiny"}, {}),
]


@pytest.mark.parametrize(("method", "path", "body", "more"), SAME, ids=lambda value: str(value)[:40])
def test_the_answer_is_the_same(
    house: Daemon, alone: Daemon, method: str, path: str, body: object, more: dict[str, str]
) -> None:
    assert raw_answer(house, method, path, body, more) == raw_answer(alone, method, path, body, more)


def raw_answer(daemon: Daemon, method: str, path: str, body: object, more: dict[str, str]) -> tuple[object, ...]:
    """Status, headers and body, without what differs from one request to the next: clock, times, and counts of ids."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "127.0.0.1", "Content-Length": str(len(data)), "X-Request-Id": "same", "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in (fields | more).items())
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + data)
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        text = response.read()
    headers = sorted((name.lower(), value) for name, value in response.getheaders() if name.lower() != "date")
    for differs in (rb'"(created|modified)_at":"[^"]+"', rb'"\w+_duration":\d+', rb"(chatcmpl|cmpl|msg)[-_][0-9a-f]+"):
        text = re.sub(differs, b"~", text)
    if b"~" in text:
        headers = [(name, value) for name, value in headers if name != "content-length"]
    return response.status, response.reason, headers, text


def test_every_request_has_one_line_in_the_daemons_log(house: Daemon) -> None:
    for path, body in (("/api/chat", CHAT | {"stream": False}), ("/api/show", {"model": "tiny"})):
        connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=60)
        told = {"X-Request-Id": f"told-{path[5:]}", "X-Vllama-Peer": "8.8.8.8"}
        connection.request("POST", path, json.dumps(body), told)
        assert connection.getresponse().read()
        connection.close()
        house.wait_log(f"http.request id=told-{path[5:]}")
        (line,) = [line for line in house.log_text().splitlines() if f"http.request id=told-{path[5:]}" in line]
        assert "caller=127.0.0.1" in line, "not what a client says of itself"
        assert "model=tiny" in line
    assert "told-chat" in house.ctl("logs").stdout


def test_a_file_streams_to_the_daemon_and_is_there_for_every_process(house: Daemon) -> None:
    client = ollama.Client(host=house.url)
    file = house.root / "big.bin"
    file.write_bytes(os.urandom(3 << 20))
    digest = client.create_blob(file)
    assert [house.request("HEAD", f"/api/blobs/{digest}").status for _ in range(4)] == [200] * 4


def test_connections_are_dealt_out_and_hanging_up_gives_back(house: Daemon) -> None:
    streams = open_streams(house, SEVERAL)
    shown = acceptors(house)
    assert [one["number"] for one in shown] == [1, 2] and all(one["is_ready"] for one in shown)
    requests = [int(one["requests"]) for one in shown]
    assert sum(requests) == SEVERAL and all(requests), requests
    assert queue(house)["active"] == SEVERAL
    for stream in streams:
        stream.hang_up()
    until(lambda: queue(house)["active"] == 0, "a lease is still held")
    house.ctl("stop", "endless")  # waits for leases: it could not end if a request went on


def test_a_queue_that_is_full_and_one_who_leaves_it(house: Daemon) -> None:
    body = {"model": "late", "messages": HELLO}
    waiting = [house.open_waiting("/api/chat", body) for _ in range(2)]
    until(lambda: queue(house)["waiting"] == 2, "they do not wait")
    for path in ("/api/chat", "/v1/chat/completions"):
        refused = house.request("POST", path, body)
        assert refused.status == (503 if path.startswith("/api") else 429), refused
        assert int(refused.headers["retry-after"]) > 0
    waiting[0].hang_up()
    until(lambda: queue(house)["waiting"] == 1, "who has left still waits")
    waiting[1].hang_up()
    until(lambda: queue(house)["waiting"] == 0, "who has left still waits")
    house.ctl("stop", "late")


def test_an_engine_that_dies_is_told_in_the_stream(house: Daemon) -> None:
    streams = open_streams(house, 4)
    (worker,) = [one for one in house.workers() if one["model"] == "endless:latest"]
    os.kill(worker["pid"], signal.SIGKILL)
    for stream in streams:
        assert "engine" in stream.rest()[-1]["error"]
    until(lambda: queue(house)["active"] == 0, "a lease is still held")
    house.ctl("stop", "endless")


def test_one_that_is_killed_takes_only_its_own_streams_along(house: Daemon) -> None:
    streams = open_streams(house, SEVERAL)
    first, second = acceptors(house)
    os.kill(int(first["pid"]), signal.SIGKILL)
    until(lambda: queue(house)["active"] == int(second["requests"]), "leases of the dead one are held")
    broken = 0
    for stream in streams:
        try:
            assert stream.line()["message"]["content"]
        except (http.client.IncompleteRead, ConnectionError, json.JSONDecodeError, TypeError):
            broken += 1
    # One line may still have been on its way to a client of the dead one.
    assert broken <= int(first["requests"])
    # Who comes before the next one is up waits in the queue of its socket, and is refused by nobody.
    answers = [house.request("POST", "/api/chat", CHAT | {"stream": False}) for _ in range(SEVERAL)]
    assert {answer.status for answer in answers} == {200}
    until(lambda: all(one["is_ready"] for one in acceptors(house)), "it does not come again")
    again = acceptors(house)[0]
    assert again["pid"] != first["pid"] and int(again["starts"]) == int(first["starts"]) + 1
    for stream in streams:
        stream.hang_up()
    until(lambda: queue(house)["active"] == 0, "a lease is still held")
    house.ctl("stop", "endless")


def test_what_is_reloaded_holds_in_every_process(house: Daemon) -> None:
    file = house.root / "config/vllama/config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)

    def statuses() -> set[tuple[int, int]]:
        ask = {"model": "tiny", "messages": HELLO, "stream": False, "options": {"num_predict": 1}}
        return {
            (house.request("POST", "/api/chat", ask).status, house.request("GET", "/api/tags").status)
            for _ in range(SEVERAL)
        }

    try:
        file.write_text('[auth]\napi_keys = ["sesame-opens-the-door"]\n[server]\nprocesses = 3\n')
        file.chmod(0o600)
        told = house.ctl("reload").stdout
        assert statuses() == {(401, 401)}
        # The environment says 2, and wins over the file: nothing waits for a restart.
        assert "server.processes" not in told
    finally:
        file.write_text("")
        house.ctl("reload")
    assert statuses() == {(200, 200)}


def test_a_second_daemon_does_not_share_the_port(house: Daemon, new_house: NewHouse) -> None:
    other = new_house(start=False, **TWO)
    other.port = house.port
    assert other.launch().wait(30) == 6
    assert "the port is taken" in other.log_text()


def test_they_die_with_a_daemon_that_is_killed(new_house: NewHouse) -> None:
    daemon = new_house(**TWO, models={"tiny": {}})
    assert daemon.request("POST", "/api/chat", CHAT | {"stream": False}).status == 200
    daemon.kill()
    daemon.wait_no_processes()
    daemon.start()
    assert daemon.request("POST", "/api/chat", CHAT | {"stream": False}).status == 200
    stream = daemon.open_stream("/api/chat", CHAT)
    assert stream.rest()[-1]["done"]
    assert daemon.stop() == 0
    daemon.wait_no_processes()
    assert daemon.leftovers() == []


def test_a_stop_lets_streams_finish_and_tells_those_that_do_not(new_house: NewHouse) -> None:
    slow = {"tokens": 100_000, "token_delay_s": 0.05}
    daemon = new_house(**TWO, VLLAMA_SERVER_DRAIN="2s", models={"endless": slow, "tiny": {}})
    streams = open_streams(daemon, 6)
    body = {"model": "endless", "messages": HELLO, "options": {"num_predict": 10}}
    short = daemon.open_stream("/api/chat", body)
    assert short.line()["message"]["content"]
    daemon.send_signal(signal.SIGTERM)
    assert short.rest()[-1]["done_reason"] == "length", "it had time enough"
    for stream in streams:
        assert "error" in stream.rest()[-1]
    assert daemon.stop() == 0
    daemon.wait_no_processes()
    with pytest.raises(ConnectionRefusedError):
        daemon.request("GET", "/")


def test_an_upgrade_has_others_on_the_same_sockets(new_house: NewHouse) -> None:
    daemon = new_house(**TWO, models={"tiny": {}})
    assert daemon.request("POST", "/api/chat", CHAT | {"stream": False}).status == 200
    before, (engine,) = {one["pid"] for one in acceptors(daemon)}, daemon.workers()
    daemon.ctl("upgrade")
    answers = [daemon.request("POST", "/api/chat", CHAT | {"stream": False}) for _ in range(SEVERAL)]
    assert {answer.status for answer in answers} == {200}
    after = acceptors(daemon)
    assert len(after) == 2 and not before & {one["pid"] for one in after}
    assert [one["pid"] for one in daemon.workers()] == [engine["pid"]]
    assert daemon.stop() == 0
    daemon.wait_no_processes()


PASSES_A_SOCKET = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
os.dup2(listener.fileno(), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_they_share_the_socket_of_the_service_manager(new_house: NewHouse) -> None:
    daemon = new_house(start=False, **TWO, models={"tiny": {}})
    daemon.wrapper = [sys.executable, "-c", PASSES_A_SOCKET]
    daemon.start()
    answers = [daemon.request("POST", "/api/chat", CHAT | {"stream": False}) for _ in range(8)]
    assert {answer.status for answer in answers} == {200}
    assert len(daemon.json("status")["acceptors"]) == 2
