"""The daemon with a zygote: engines come from it, and it may come and go."""

import os
import re
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.daemon import Daemon, running

PROMPT = {"model": "tiny", "prompt": "Hi", "stream": False}


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    models = {"tiny": {}, "other": {}, "endless": {"tokens": 100_000, "token_delay_s": 0.01}}
    with running(models=models, environment={"VLLAMA_ENGINE_ZYGOTE": "auto"}) as daemon:
        daemon.wait_log("zygote.ready")
        yield daemon


def zygote(daemon: Daemon) -> dict[str, object]:
    (one,) = daemon.json("status")["engine"]["zygotes"]
    return one


def test_an_engine_is_forked_and_status_shows_from_what(house: Daemon) -> None:
    assert house.request("POST", "/api/generate", PROMPT).status == 200
    (worker,) = house.workers()
    assert f"process.fork title=tiny:latest pid={worker['pid']}" in house.log_text()
    one = zygote(house)
    assert one["state"] == "ready" and one["forked"] == 1 and int(str(one["memory_bytes"])) > 1 << 20
    assert re.search(r"zygote ready: .*1 engine forked from it \(pid \d+\)", house.ctl("status").stdout)
    house.ctl("stop", "tiny")
    assert house.processes() == []


def test_a_stream_outlives_the_zygote_and_the_next_model_gets_another(house: Daemon) -> None:
    before = zygote(house)["pid"]
    stream = house.open_stream("/api/generate", {"model": "endless", "prompt": "Hi"})
    assert stream.line()["response"]
    os.kill(int(str(before)), signal.SIGKILL)
    house.wait_log("zygote.ended")
    assert stream.line()["response"]
    # Meanwhile engines are executed; whoever asks is served either way.
    assert house.request("POST", "/api/generate", PROMPT | {"model": "other"}).status == 200
    house.wait_log("zygote.ready", count=2)
    assert stream.line()["response"]
    stream.hang_up()
    assert zygote(house)["pid"] not in {before, 0}


def test_a_crash_of_a_forked_engine_is_seen_and_mended(house: Daemon) -> None:
    assert house.request("POST", "/api/generate", PROMPT).status == 200
    pid = next(worker["pid"] for worker in house.workers() if worker["model"] == "tiny:latest")
    os.kill(pid, signal.SIGKILL)
    house.wait_log(f"process.exit title=tiny:latest pid={pid} status=-9")
    assert house.request("POST", "/api/generate", PROMPT).status == 200


def test_killed_daemon_takes_zygote_and_engines_along(new_house: Callable[..., Daemon]) -> None:
    daemon = new_house(models={"tiny": {"ignore_term": True}}, VLLAMA_ENGINE_ZYGOTE="auto")
    assert daemon.request("POST", "/api/generate", PROMPT).status == 200
    assert "process.fork" in daemon.log_text()
    daemon.kill()
    daemon.start()
    daemon.wait_log("zygote.ready", count=2)
    assert daemon.request("POST", "/api/generate", PROMPT).status == 200


def test_it_can_be_turned_off(new_house: Callable[..., Daemon]) -> None:
    daemon = new_house(models={"tiny": {}}, VLLAMA_ENGINE_ZYGOTE="off")
    assert daemon.request("POST", "/api/generate", PROMPT).status == 200
    assert not daemon.json("status")["engine"].get("zygotes")
    assert "process.fork" not in daemon.log_text()
