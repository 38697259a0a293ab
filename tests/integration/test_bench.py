"""`vllamactl bench` with the real daemon and engines that misbehave: figures, comparisons, failures, Ctrl-C, starts."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.daemon import Daemon, running

MODELS: dict[str, dict[str, object]] = {
    "tiny": {},
    "slow": {"tokens": 1000, "token_delay_s": 0.02},
    "short": {"tokens": 3},
    "breaks": {"half_stream": 3},
}
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    with running(models=MODELS, environment={"VLLAMA_ENGINE_BACKOFF": "50ms"}) as daemon:
        # A proxy between would be what is measured; there is none at this address.
        daemon.environment |= {"HTTP_PROXY": NOWHERE, "http_proxy": NOWHERE, "ALL_PROXY": NOWHERE}
        yield daemon


def bench(house: Daemon, *words: str) -> Any:
    """What `bench --json` prints."""
    return house.json("bench", *words)


def samples(document: Any, side: str = "vllama") -> list[dict[str, Any]]:
    return [each for turn in document["rounds"] if turn["side"] == side for each in turn["samples"]]


@pytest.mark.parametrize("api", ["ollama", "openai"])
def test_every_request_is_measured_and_counted_by_the_server(house: Daemon, api: str) -> None:
    found = bench(house, "slow", "--api", api, "-c", "1,3", "-n", "3", "--max-tokens", "5", "--goodput", "ttft:60000")
    assert [turn["concurrency"] for turn in found["rounds"]] == [1, 3]
    for sample in samples(found):
        assert (sample["tokens"], sample["ending"], sample["fault"]) == (5, "length", None)
        assert sample["sent_s"] < sample["first_s"] < sample["end_s"]
    for figures in found["figures"]:
        assert (figures["answered"], figures["failed"], figures["goodput"]["share"]) == (3, 0, 1.0)
        # The fake waits so long before each token; nothing here can be quicker.
        assert figures["latency_s"]["p50"] >= 4 * 0.02 and figures["per_token_s"]["min"] >= 0.015
        assert figures["latency_s"]["p90"] is None and figures["latency_s"]["p99"] is None
    one, three = (turn["samples"] for turn in found["rounds"])
    assert all(a["end_s"] <= b["sent_s"] for a, b in pairwise(one)), "one user asks one at a time"
    assert max(each["sent_s"] for each in three) < min(each["end_s"] for each in three), "three ask at once"
    (side,) = found["sides"]
    assert side["details"]["quantization_level"] == "BF16"
    assert found["environment"]["daemon"]["engine"]["device"] == "cpu"
    assert not found["is_partial"]


def test_prompts_are_distinct_and_a_workload_is_sent_as_it_is(house: Daemon, tmp_path: Path) -> None:
    workload = tmp_path / "rows.jsonl"
    workload.write_text('{"prompt": "one two"}\n{"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}\n')
    sent = bench(house, "tiny", "--workload", str(workload), "-n", "4", "--max-tokens", "3")
    assert [(each["prompt_tokens"], each["tokens"]) for each in samples(sent)] == [(6, 3), (5, 2)] * 2
    marked = bench(house, "tiny", "--prompt", "hi", "-n", "2", "--max-tokens", "2")
    assert [each["prompt_tokens"] for each in samples(marked)] == [6, 6], "a word more: the mark"
    assert not bench(house, "tiny", "--prompt", "hi", "--same", "-n", "1")["plan"]["is_distinct"]


def test_an_open_loop_counts_from_when_a_request_was_due(house: Daemon) -> None:
    found = bench(house, "tiny", "--rate", "200", "-n", "20", "--max-tokens", "2", "--seed", "3")
    again = bench(house, "tiny", "--rate", "200", "-n", "20", "--max-tokens", "2", "--seed", "3")
    due = [sample["intended_s"] for sample in samples(found)]
    assert due == sorted(due) == [sample["intended_s"] for sample in samples(again)]
    assert all(sample["sent_s"] >= sample["intended_s"] for sample in samples(found))
    assert found["figures"][0]["rate"] == 200


def test_two_sides_are_asked_the_same_in_turns_and_compared(house: Daemon) -> None:
    words = ["tiny", "-c", "2", "-n", "4", "--rounds", "5", "--max-tokens", "4", "--against", "openai"]
    found = bench(house, *words, f"{house.url}/v1")
    assert [turn["side"] for turn in found["rounds"]] == ["vllama", "openai", "openai", "vllama"] * 2 + [
        "vllama",
        "openai",
    ]
    mine, other = samples(found), samples(found, "openai")
    assert len(mine) == len(other) == 20
    (level,) = found["comparison"]
    assert level["same_texts"] == 1.0 and level["notes"] == []
    latency = next(each for each in level["measures"] if each["measure"] == "latency")
    assert len(latency["pair_ratios"]) == 5 and latency["ratio"] == sorted(latency["pair_ratios"])[2]
    page = house.ctl("bench", *words, f"127.0.0.1:{house.port}", "--against-model", "short", "-q").stdout
    assert "not comparable where answers count whole: 20 of 20 answers are not of the same length" in page
    assert "openai, 2 users: 20 of 20 answers were ended by the model, not by their limit" in page
    assert "both sides are the same server" in page


def test_who_is_slower_is_found_out(house: Daemon) -> None:
    words = ["tiny", "-c", "2", "-n", "2", "--rounds", "5", "--max-tokens", "4"]
    found = bench(house, *words, "--against", "ollama", house.url, "--against-model", "slow")
    (level,) = found["comparison"]
    better = {each["measure"]: each["better"] for each in level["measures"]}
    assert better["latency"] == better["tokens"] == better["per token"] == "vllama"
    assert level["notes"] == [], "the same number of tokens, and of the same prompts"


def test_failures_are_no_fast_answers_and_decide_the_exit_status(house: Daemon) -> None:
    told = house.ctl("bench", "breaks", "-n", "2", "--warmup", "0", "--goodput", "ttft:60000", "--json", check=False)
    assert told.returncode == 8
    assert "vllamactl: 2 of 2 requests failed, such as: " in told.stderr
    found = json.loads(told.stdout)
    (figures,) = found["figures"]
    assert (figures["answered"], figures["failed"], figures["latency_s"]) == (0, 2, None)
    assert figures["tokens_per_s"] == 0 and figures["goodput"]["share"] == 0
    assert sum(figures["faults"].values()) == 2


def test_what_cannot_be_asked_at_all_is_told_at_once(house: Daemon, tmp_path: Path) -> None:
    for words, status, says in (
        (["nope"], 3, "'nope' not found"),
        (["tiny", "--against", "ollama", NOWHERE], 4, f"cannot ask {NOWHERE}"),
        (["tiny", "--against", "ollama", house.url, "--against-model", "nope"], 3, "no warm-up request was answered"),
        (["tiny", "--workload", str(tmp_path / "none")], 2, "No such file"),
        (["tiny", "-c", "0"], 2, "must be whole numbers from 1 on"),
        (["tiny", "--goodput", "speed:1"], 2, "'speed:1' is no limit"),
        (["tiny", "--url", NOWHERE, "-n", "1"], 4, "no warm-up request was answered (connection)"),
    ):
        result = house.ctl("bench", *words, check=False)
        assert (result.returncode, result.stdout) == (status, ""), result.stdout + result.stderr
        assert says in result.stderr
        assert result.stderr.startswith("vllamactl: cannot ") and "hint: " in result.stderr


def test_without_a_daemon_an_address_is_enough(house: Daemon) -> None:
    alone = house.ctl("--socket", "/nowhere", "bench", "tiny", "--url", house.url, "-n", "2", "--max-tokens", "2")
    assert alone.stdout.startswith(f"127.0.0.1:{house.port} 0.")


class Stranger(BaseHTTPRequestHandler):
    """A server of OpenAI's API that wants a key and tells nothing about itself."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer sesame":
            self.answer(401, b'{"error": {"message": "who are you?", "code": null}}')
        elif self.path != "/v1/chat/completions":
            self.answer(404, b"{}")
        else:
            text = {"choices": [{"delta": {"content": "one"}, "finish_reason": "length"}]}
            usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
            events = [f"data: {json.dumps(chunk)}\r\n\r\n" for chunk in (text, usage)]
            self.answer(200, "".join([": hello\r\n\r\n", *events, "data: [DONE]\r\n\r\n"]).encode())

    def do_GET(self) -> None:
        self.answer(404, b"not here")

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what goes wrong is in the answer."""


@pytest.fixture
def stranger() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_a_stranger_gets_its_own_key_and_what_it_does_not_tell_is_said(
    house: Daemon, stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["bench", "tiny", "-n", "2", "--max-tokens", "2", "--rounds", "1", "--against", "openai", stranger]
    refused = house.ctl(*words, check=False)
    assert (refused.returncode, "who are you?" in refused.stderr) == (5, True)
    monkeypatch.setitem(house.environment, "VLLAMA_AGAINST_API_KEY", "sesame")
    page = house.ctl(*words).stdout
    assert "openai\n  tiny (precision not told) at http://127.0.0.1:" in page
    assert "note: openai does not tell its precision" in page
    assert "not comparable" not in page, "two tokens are two tokens"
    assert "the same prompts are 1" in page and "and 5 for openai" in page


def test_ctrl_c_shows_what_there_is_and_says_that_it_is_partial(house: Daemon) -> None:
    house.ctl("load", "slow")
    words = ["bench", "slow", "-c", "1,2", "-n", "2", "--rounds", "1000", "--max-tokens", "4"]
    child = subprocess.Popen(
        [sys.executable, "-m", "vllamactl", f"--socket={house.socket}", *words],
        env=house.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    while "2 users, round 1 of 1000" not in child.stderr.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    page, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "PARTIAL: interrupted before the end" in page and "latency, median" in page
    assert said.rstrip().endswith("interrupted: this is what there was until then")
    assert "Traceback" not in said


def test_starts_are_measured_from_the_request_on_and_leave_the_model_as_it_was(house: Daemon) -> None:
    house.ctl("stop", "tiny")
    found = bench(house, "tiny", "--start", "--repeat", "2")
    assert [start["kind"] for start in found["starts"]] == ["cold", "cold"]
    for start in found["starts"]:
        assert 0 < start["engine_s"] <= start["first_token_s"]
        spans = sum(phase["duration_s"] for phase in start["phases"])
        assert spans + start["answer_s"] == pytest.approx(start["first_token_s"])
    house.ctl("stop", "tiny")  # joins what the bench has begun: it was not loaded before
    assert not [worker for worker in house.workers() if worker["model"] == "tiny:latest"]
    house.ctl("load", "tiny", "--keep-alive", "-1")
    page = house.ctl("bench", "tiny", "--start", "--repeat", "1").stdout
    assert page.startswith("tiny:latest loaded once, on cpu\n") and "once loaded: request to first token" in page
    (worker,) = [worker for worker in house.workers() if worker["model"] == "tiny:latest"]
    assert worker["state"] == "READY" and "expire_time" not in worker, "for ever, as before"
    assert house.ctl("bench", "tiny", "--start", "--swap-with", "short", check=False).returncode == 2


def test_a_model_that_is_used_is_not_unloaded_for_a_bench(house: Daemon) -> None:
    stream = house.open_stream("/api/chat", {"model": "slow", "messages": [{"role": "user", "content": "hi"}]})
    assert stream.line()["message"]["content"]
    try:
        refused = house.ctl("bench", "slow", "--start", check=False)
        assert refused.returncode == 6
        assert "1 requests use it" in refused.stderr
    finally:
        stream.hang_up()
