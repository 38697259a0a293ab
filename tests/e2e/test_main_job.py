"""The main job, end to end: official clients, a real model, true counts, and days on which things die.

The tests run in this order on one daemon: the later ones kill what the earlier ones use.
"""

import asyncio
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.e2e.conftest import MODEL
from tests.e2e.real_engine import engine_metric
from tests.fakes.daemon import Daemon

pytestmark = pytest.mark.engine

QUESTION = "What is the capital of France?"
GREEDY = {"temperature": 0, "num_predict": 16}
RELOAD_S = 300.0


def ready_worker(daemon: Daemon) -> dict[str, Any]:
    (worker,) = daemon.workers()
    assert worker["state"] == "READY", worker
    return worker


def chat(text: str, **options: object) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "options": GREEDY | options}


def test_the_official_client_gets_the_right_answer_with_true_counts(real: Daemon) -> None:
    client = ollama.Client(host=real.url)
    answer = client.chat(MODEL, [{"role": "user", "content": QUESTION}], options=GREEDY)
    assert "Paris" in (answer.message.content or "")
    assert answer.done_reason == "stop"
    assert answer.eval_count and answer.eval_duration and answer.prompt_eval_count and answer.prompt_eval_duration
    assert (answer.load_duration or 0) > 1e9, "the first answer waited for the load"
    assert (answer.total_duration or 0) >= (answer.load_duration or 0) + answer.eval_duration
    before = engine_metric(real, "vllm:generation_tokens_total")
    again = client.chat(MODEL, [{"role": "user", "content": QUESTION}], options=GREEDY)
    assert engine_metric(real, "vllm:generation_tokens_total") - before == again.eval_count
    assert (again.load_duration or 0) < 1e9


def test_streaming_sync_and_async_say_the_same(real: Daemon) -> None:
    message = [{"role": "user", "content": QUESTION}]
    parts = list(ollama.Client(host=real.url).chat(MODEL, message, options=GREEDY, stream=True))
    spoken = "".join(part.message.content or "" for part in parts)

    async def ask() -> str:
        stream = await ollama.AsyncClient(host=real.url).chat(MODEL, message, options=GREEDY, stream=True)
        return "".join([part.message.content or "" async for part in stream])

    assert "Paris" in spoken
    assert asyncio.run(ask()) == spoken
    assert len(parts) > 3, "tokens arrive one by one"
    assert parts[-1].done and parts[-1].eval_count


def test_generate_continues_its_own_context(real: Daemon) -> None:
    client = ollama.Client(host=real.url)
    first = client.generate(MODEL, "My name is Bob.", options=GREEDY)
    assert first.context and first.eval_count
    second = client.generate(MODEL, "What is my name?", options=GREEDY, context=list(first.context))
    assert second.context and list(second.context)[: len(first.context)] == list(first.context)
    assert (second.prompt_eval_count or 0) > len(first.context)


def test_options_reach_the_engine(real: Daemon) -> None:
    def say(**options: object) -> dict[str, Any]:
        return real.request("POST", "/api/chat", chat("Count to ten.", **options) | {"stream": False}).json()

    assert say(num_predict=3)["eval_count"] == 3
    assert say(num_predict=3)["done_reason"] == "length"
    text = say()["message"]["content"]
    assert len(text) > 8
    stopped = say(stop=[text[5:8]])["message"]["content"]
    assert stopped == text[: text.index(text[5:8])]
    warm = {"temperature": 1.5, "seed": 7}
    assert say(**warm)["message"]["content"] == say(**warm)["message"]["content"]


def test_a_json_schema_binds_the_answer(real: Daemon) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    body = chat(QUESTION, num_predict=24) | {"stream": False, "format": schema}
    answer = real.request("POST", "/api/chat", body).json()
    assert answer["message"]["content"].replace(" ", "") in {'{"city":"Paris"}', '{"city":"Rome"}'}


def test_show_and_ps_tell_the_truth(real: Daemon) -> None:
    client = ollama.Client(host=real.url)
    shown = client.show(MODEL)
    assert shown.details and shown.details.parameter_size == "134.52M"
    assert shown.modelinfo and shown.modelinfo["llama.context_length"] == 8192
    (running,) = client.ps().models
    resident = sum(
        int(re.findall(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[0]) * 1024
        for pid in real.processes()
    )
    assert running.size and 0.7 < running.size / resident < 1.3
    assert running.size_vram == 0
    assert running.context_length == ready_worker(real)["context_length"] or running.context_length


def test_run_answers_through_the_control_socket(real: Daemon) -> None:
    spoken = real.ctl("run", MODEL, QUESTION, "--temperature", "0", "--num-predict", "16", "--verbose")
    assert "Paris" in spoken.stdout
    assert "tokens/s" in spoken.stderr


def test_sixteen_at_once_are_all_answered_and_counted(real: Daemon) -> None:
    before = engine_metric(real, "vllm:generation_tokens_total")
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda number: real.request("POST", "/api/chat", chat(f"Say {number}.", num_predict=8)).lines()[-1],
                range(16),
            )
        )
    assert all(answer["done"] for answer in answers)
    total = sum(answer["eval_count"] for answer in answers)
    assert engine_metric(real, "vllm:generation_tokens_total") - before == total


def test_a_client_that_hangs_up_cancels_the_engines_work(real: Daemon) -> None:
    stream = real.open_stream("/api/chat", chat("Tell me a very long story.", num_predict=2000))
    assert "message" in stream.line()
    stream.hang_up()
    deadline = time.monotonic() + 20
    while engine_metric(real, "vllm:num_requests_running") > 0:  # the gauge moves with the engine's steps
        assert time.monotonic() < deadline, "the engine still works for a client that has gone"
        real.request("POST", "/api/chat", chat("Hi.", num_predict=1))
    assert ready_worker(real)["leases"] == 0


def test_a_prompt_longer_than_the_context_is_an_error_not_a_crash(real: Daemon) -> None:
    body = {
        "model": MODEL,
        "prompt": "word " * 20000,
        "options": GREEDY,
        "stream": False,
        "truncate": False,
        "shift": False,
    }
    answer = real.request("POST", "/api/generate", body)
    assert answer.status == 400
    assert "context" in answer.json()["error"]


def test_an_upgrade_keeps_the_engine_and_the_next_answer_is_there_at_once(real: Daemon) -> None:
    before, processes = ready_worker(real), set(real.processes())
    stream = real.open_stream("/api/chat", chat("Tell me a very long story.", num_predict=2000))
    assert "message" in stream.line()
    assert real.ctl("upgrade", "--drain", "0s").returncode == 0
    assert "the daemon is being upgraded" in stream.rest()[-1]["error"]
    answer = ollama.Client(host=real.url).chat(MODEL, [{"role": "user", "content": QUESTION}], options=GREEDY)
    assert "Paris" in (answer.message.content or "") and (answer.load_duration or 0) < 1e9
    after = ready_worker(real)
    assert (after["pid"], after["incarnation"], after["leases"]) == (before["pid"], before["incarnation"], 0)
    assert set(real.processes()) == processes
    assert engine_metric(real, "vllm:num_requests_running") == 0, "what nobody waits for any more was given up"


def test_engine_core_killed_in_mid_stream_is_an_in_band_error_and_the_worker_returns(real: Daemon) -> None:
    worker = ready_worker(real)
    stream = real.open_stream("/api/chat", chat("Tell me a very long story.", num_predict=2000))
    assert "message" in stream.line()
    for pid in real.processes():
        if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    lines = stream.rest()
    assert "error" in lines[-1]
    assert not any(line.get("done") for line in lines)
    answer = real.request("POST", "/api/chat", chat(QUESTION) | {"stream": False}, timeout=RELOAD_S)
    assert "Paris" in answer.json()["message"]["content"]
    assert ready_worker(real)["incarnation"] == worker["incarnation"] + 1


def test_the_daemon_killed_leaves_no_process_and_starts_again(real: Daemon) -> None:
    before = set(real.processes())
    assert len(before) >= 2, "API server and engine core"
    real.kill()
    real.wait_no_processes(30.0)
    real.start()
    assert not before & set(real.processes())
    assert [model["name"] for model in real.json("list")["models"]] == [MODEL]


def test_sigterm_during_a_load_stops_cleanly(real: Daemon) -> None:
    waiting = real.open_waiting("/api/chat", chat(QUESTION))
    deadline = time.monotonic() + 60
    while "Initializing a V1 LLM engine" not in real.log_text().rpartition("daemon.ready")[2]:
        assert time.monotonic() < deadline, real.log_text()[-2000:]
        time.sleep(0.02)  # the engine needs the processor
    assert real.stop() == 0
    assert waiting.result().status == 503
    assert real.processes() == []
    assert real.leftovers() == []
