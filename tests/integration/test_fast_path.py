"""The fast path through the real daemon: engines that have our plugin, that have another one, and that die with it."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.real_engine import UnixConnection
from tests.fakes.daemon import Daemon, running

NewHouse = Callable[..., Daemon]
HELLO = [{"role": "user", "content": "hello <b>you</b>"}]
TIMES = re.compile(rb'"created_at":"[^"]+"|"[a-z_]+_duration":\d+|"model":"[^"]+"')
ENDLESS = {"has_lines": True, "tokens": 100_000, "token_delay_s": 0.01}
MODELS: dict[str, dict[str, object]] = {
    "usual": {"voice": "&"},
    "fast": {"voice": "&", "has_lines": True},
    "older": {"voice": "&", "has_lines": True, "other_lines": True},
    "endless": ENDLESS,
}


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    with running(models=MODELS) as daemon:
        yield daemon


def state(daemon: Daemon, model: str) -> dict[str, Any]:
    """What the fake engine of a model says of itself."""
    for path in (daemon.runtime / "workers").glob("*/s"):
        connection = UnixConnection(path)
        connection.request("GET", "/_fake/state")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        if f"{model}:latest" in found["argv"]:
            return found
    raise AssertionError(f"no engine serves {model}")


def path_of(daemon: Daemon, model: str) -> str:
    """The route that the last request for a model took in its engine."""
    return state(daemon, model)["requests"][-1]["path"]


def fast_path(daemon: Daemon, model: str) -> str:
    (worker,) = [each for each in daemon.workers() if each["model"] == f"{model}:latest"]
    return worker["fast_path"]


@pytest.mark.parametrize("sampling", [{}, {"num_predict": 3}, {"stop": [" two"]}, {"stop": ["wo"], "num_predict": 9}])
@pytest.mark.parametrize("route", ["/api/chat", "/api/generate"])
def test_a_client_sees_no_difference_but_in_times(house: Daemon, route: str, sampling: dict[str, Any]) -> None:
    body = {"messages": HELLO, "prompt": "hello <b>you</b>", "options": sampling}
    seen: dict[str, bytes] = {}
    for model in ("usual", "fast", "older"):
        answer = house.request("POST", route, body | {"model": model})
        assert answer.status == 200 and answer.headers["content-type"] == "application/x-ndjson"
        seen[model] = TIMES.sub(b"", answer.body)
    assert seen["fast"] == seen["usual"] == seen["older"]
    assert b"\\u0026" in seen["fast"] and b'"done":true' in seen["fast"]
    assert path_of(house, "fast") == "/vllama/lines"
    assert path_of(house, "usual") == path_of(house, "older") == "/v1/chat/completions"


def test_the_worker_says_whether_it_is_on(house: Daemon) -> None:
    for model in ("usual", "fast", "older"):
        house.ctl("load", model)
    assert fast_path(house, "fast") == "on"
    assert fast_path(house, "usual") == "the engine has not loaded the plugin"
    assert fast_path(house, "older") == "the engine has loaded another version of the plugin"
    assert re.search("^ +1 with the fast path$", house.ctl("status").stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "more", [{"stream": False}, {"format": "json"}, {"logprobs": True}, {"messages": [*HELLO, {"role": "tool"}] * 2}]
)
def test_what_is_not_plain_goes_the_usual_way(house: Daemon, more: dict[str, Any]) -> None:
    answer = house.request("POST", "/api/chat", {"model": "fast", "messages": HELLO, "options": {}} | more)
    assert answer.status == 200
    is_plain = "messages" in more  # messages of any role are the template's affair
    assert (path_of(house, "fast") == "/vllama/lines") is is_plain


def test_a_refusal_has_its_status(house: Daemon) -> None:
    long = [{"role": "user", "content": "word " * 20_000}]
    answers = [
        house.request("POST", "/api/chat", {"model": model, "messages": long, "truncate": False})
        for model in ("usual", "fast")
    ]
    assert {answer.status for answer in answers} == {400}
    assert answers[0].json() == answers[1].json()


def test_a_conversation_is_shortened_alike(house: Daemon) -> None:
    long = [{"role": "user", "content": f"{number} " * 30} for number in range(9)]
    seen: dict[str, bytes] = {}
    for model in ("usual", "fast"):
        body = {"model": model, "messages": long, "options": {"num_ctx": 100, "num_predict": 4}}
        answer = house.request("POST", "/api/chat", body)
        assert answer.status == 200
        seen[model] = TIMES.sub(b"", answer.body)
        assert len(state(house, model)["requests"][-1]["body"]["messages"]) < len(long)
    assert seen["fast"] == seen["usual"]
    assert path_of(house, "fast") == "/vllama/lines"


def test_a_client_that_hangs_up_ends_the_engines_work(house: Daemon) -> None:
    stream = house.open_stream("/api/chat", {"model": "endless", "messages": HELLO, "options": {"num_predict": 2000}})
    assert stream.line()["message"]["content"]
    assert path_of(house, "endless") == "/vllama/lines"
    stream.hang_up()
    house.ctl("stop", "endless")  # waits for leases: it could not end if the request went on
    assert "endless:latest" not in {worker["model"] for worker in house.workers()}


@pytest.mark.parametrize("fault", [{"half_stream": 3}, {"error_in_stream": 3}])
def test_an_engine_that_fails_in_mid_stream_is_an_in_band_error(new_house: NewHouse, fault: dict[str, int]) -> None:
    daemon = new_house(models={"brittle": {"has_lines": True, "token_delay_s": 0.02} | fault})
    stream = daemon.open_stream("/api/chat", {"model": "brittle", "messages": HELLO, "options": {"num_predict": 50}})
    lines = stream.rest()
    assert stream.status == 200
    assert [line["message"]["content"] for line in lines[:-1]] == ["one", " two", " three"]
    assert "error" in lines[-1]


@pytest.mark.parametrize("victim", ["leader", "core"])
def test_kill_9_in_mid_stream_breaks_the_stream_and_the_worker_comes_back(new_house: NewHouse, victim: str) -> None:
    daemon = new_house(VLLAMA_ENGINE_BACKOFF="100ms", models={"tiny": ENDLESS})
    stream = daemon.open_stream("/api/chat", {"model": "tiny", "messages": HELLO, "options": {"num_predict": 1000000}})
    assert stream.line()["message"]["content"]
    (worker,) = daemon.workers()
    (core,) = [pid for pid in daemon.processes() if pid != worker["pid"]]
    os.kill(worker["pid"] if victim == "leader" else core, signal.SIGKILL)
    lines = stream.rest()
    assert "error" in lines[-1]
    assert not any(line.get("done") for line in lines)
    again = {"model": "tiny", "messages": HELLO, "options": {"num_predict": 2}}
    assert b'"done":true' in daemon.request("POST", "/api/chat", again).body
    assert daemon.workers()[0]["incarnation"] == 2
    assert path_of(daemon, "tiny") == "/vllama/lines"


def test_it_can_be_switched_off(new_house: NewHouse) -> None:
    daemon = new_house(VLLAMA_ENGINE_FAST_PATH="off", models={"fast": {}})
    assert daemon.request("POST", "/api/chat", {"model": "fast", "messages": HELLO}).status == 200
    assert fast_path(daemon, "fast") == "off"
    assert path_of(daemon, "fast") == "/v1/chat/completions"
    assert "engine/lines" not in state(daemon, "fast")["environment"]["PYTHONPATH"]


def test_an_upgrade_asks_the_engines_that_it_takes_over(new_house: NewHouse) -> None:
    daemon = new_house(models={"fast": {"has_lines": True}})
    daemon.ctl("load", "fast")
    daemon.ctl("upgrade")
    assert fast_path(daemon, "fast") == "on"
    assert b'"done":true' in daemon.request("POST", "/api/chat", {"model": "fast", "messages": HELLO}).body
    assert path_of(daemon, "fast") == "/vllama/lines"
