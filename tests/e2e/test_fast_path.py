"""The fast path on the real engine: what its plugin makes a client see is, times aside, what vLLM's own route does."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SETTLE_S, Theatre
from tests.e2e.real_engine import START_DEADLINE_S, UnixConnection
from tests.fakes.daemon import Daemon
from vllamad.dialects.ollama import CHAT_PATH, LINES_PATH
from vllamad.dialects.ollama_stream import ChatStream, GenerateStream, Timing

pytestmark = pytest.mark.engine

PLAIN = "smollm2:plain"
"""The weights with their own template, and a parser for tool calls as most models have one."""

TOOLS = "{%- if tools %}{{ '<tool_call>' }}{% endif %}"

TIMES = re.compile(rb'"created_at":"[^"]+"|"[a-z_]+_duration":\d+')
LINE = re.compile(rb'(.*"(?:content|response)":")((?:[^"\\]|\\.)*)(".*"done":false\})')
NO_TIMING = Timing(total_ns=1, load_ns=1)
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "it comes to its end": ("What is the capital of France?", GREEDY),
    "its length is limited": ("Tell me a long story about the sea.", GREEDY),
    "one token": ("Tell me a long story about the sea.", GREEDY | {"max_tokens": 1}),
    "a stop string": ("What is the capital of France?", GREEDY | {"stop": [" of", "nowhere"]}),
    "a stop string that nearly comes": ("What is the capital of France?", GREEDY | {"stop": [" of Spain"]}),
    "a stop string within a word": ("What is the capital of France?", GREEDY | {"stop": ["capital"]}),
    "what Go escapes": ('Write this HTML again: <p class="a">Fish & <b>chips</b></p>', GREEDY | {"max_tokens": 40}),
    "what looks like a call": ('Write this again: <tool_call>{"name": "f"}</tool_call>', GREEDY | {"max_tokens": 40}),
    "many bytes a letter": ("Write these words again: Grüße, 日本語, 🙂🙃, naïve", GREEDY | {"max_tokens": 40}),
    "by chance": ("Tell me a long story about the sea.", {"temperature": 1.5, "seed": 5, "max_tokens": 40}),
    "it talks on": ("Say yes.", GREEDY | {"add_generation_prompt": False, "continue_final_message": True}),
}


@dataclass(frozen=True)
class Engine:
    """A worker, asked past the daemon that has started it."""

    daemon: Daemon
    socket: Path

    def ask(self, path: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        connection = UnixConnection(self.socket)
        connection.request("POST", path, json.dumps(fields).encode(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    def metric(self, name: str) -> float:
        connection = UnixConnection(self.socket)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE))

    def finished(self) -> int:
        """How many answers the engine has brought to their end."""
        return round(self.metric("vllm:request_success_total"))

    def seen(self, fields: dict[str, Any], reply: ChatStream | GenerateStream, *, is_fast: bool) -> Any:
        """The status, and what a client would see of it; see ``parts``."""
        if is_fast:
            fields = fields | {"vllama_line": reply.expect_lines()}
        status, body = self.ask(LINES_PATH if is_fast else CHAT_PATH, fields)
        if status != 200:
            return status, body
        lines = reply.feed(body, "now")
        if reply.error is None:
            lines += reply.finish("now", NO_TIMING)
        return status, parts(TIMES.sub(b"", lines)), str(reply.error)


def parts(answer: bytes) -> tuple[set[bytes], bytes, bytes]:
    """The lines around their texts, the bytes of all texts, and the last line. Which tokens share a line is chance: the
    engine joins those that come while its server is busy."""
    *lines, last = answer.splitlines()
    found = [match for line in lines if (match := LINE.fullmatch(line))]
    assert len(found) == len(lines)
    return {match[1] + match[3] for match in found}, b"".join(match[2] for match in found), last


@pytest.fixture(scope="module")
def engine(theatre: Theatre, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    daemon = theatre.daemon
    folder = tmp_path_factory.mktemp("plain") / "files"
    shutil.copytree(theatre.folder, folder)
    with (folder / "chat_template.jinja").open("a") as template:
        template.write(TOOLS)
    daemon.ctl("create", PLAIN, "--from", str(folder))
    daemon.ctl("load", PLAIN, timeout=START_DEADLINE_S)
    (worker,) = [each for each in daemon.workers() if each["model"] == PLAIN]
    (socket,) = [path for path in (daemon.runtime / "workers").glob("*/s") if served_name(path) == PLAIN]
    assert worker["fast_path"] == "on", daemon.log_text()[-3000:]
    argv = Path(f"/proc/{worker['pid']}/cmdline").read_text()
    assert "--tool-call-parser" in argv and "--reasoning-parser" not in argv
    try:
        yield Engine(daemon, socket)
    finally:
        daemon.ctl("stop", PLAIN, timeout=START_DEADLINE_S)
        daemon.ctl("rm", PLAIN)


def served_name(socket: Path) -> str:
    connection = UnixConnection(socket)
    connection.request("GET", "/v1/models")
    name: str = json.loads(connection.getresponse().read())["data"][0]["id"]
    connection.close()
    return name


def body_of(prompt: str, sampling: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    if "continue_final_message" in sampling:
        messages.append({"role": "assistant", "content": "Yes, and"})
    return {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **sampling}


@pytest.mark.parametrize("name", CASES)
def test_a_chat_is_the_same_byte_for_byte(engine: Engine, name: str) -> None:
    fields = body_of(*CASES[name])
    engine.ask(CHAT_PATH, fields)  # both find the prompt in the engine's cache
    usual = engine.seen(fields, ChatStream("m"), is_fast=False)
    assert engine.seen(fields, ChatStream("m"), is_fast=True) == usual
    assert usual[0] == 200 and usual[1][1] and b'"done":true' in usual[1][2]


@pytest.mark.parametrize("name", ["it comes to its end", "a stop string", "its length is limited"])
def test_the_token_ids_of_generate_are_the_same(engine: Engine, name: str) -> None:
    fields = body_of(*CASES[name]) | {"return_token_ids": True}
    engine.ask(CHAT_PATH, fields)
    usual = engine.seen(fields, GenerateStream("m", wants_context=True), is_fast=False)
    assert engine.seen(fields, GenerateStream("m", wants_context=True), is_fast=True) == usual
    assert b'"context":[' in usual[1][2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 5},
        {"max_tokens": 0},
        {"stop": [""]},
        {"messages": [{"role": "user", "content": "word " * 20_000}]},
        {"messages": []},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_the_engine_refuses_it_refuses_in_the_same_words(engine: Engine, wrong: dict[str, Any]) -> None:
    fields = body_of("Hi", GREEDY) | wrong
    usual = engine.seen(fields, ChatStream("m"), is_fast=False)
    assert engine.seen(fields, ChatStream("m"), is_fast=True) == usual
    assert usual[0] == 400


def test_a_client_of_the_daemon_gets_such_lines(engine: Engine) -> None:
    body = {"model": PLAIN, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    answer = engine.daemon.request("POST", "/api/chat", body | {"options": {"temperature": 0}}, timeout=60)
    *lines, last = [json.loads(line) for line in answer.body.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == "The capital of France is Paris."
    assert last["done"] and last["eval_count"] == 8 and last["eval_duration"] > 0


def test_a_client_that_hangs_up_ends_the_generation(engine: Engine) -> None:
    question = [{"role": "user", "content": "Tell me a very long story about the sea."}]
    body = {"model": PLAIN, "messages": question, "options": {"temperature": 1.5, "seed": 3}}
    before = engine.finished()
    stream = engine.daemon.open_stream("/api/chat", body)
    assert stream.line()["message"]["content"]
    stream.hang_up()
    deadline = time.monotonic() + SETTLE_S
    asked = 0
    while asked == 0 or engine.metric("vllm:num_requests_running"):
        assert time.monotonic() < deadline, "it goes on for nobody"
        assert engine.ask(CHAT_PATH, body_of("Hi", GREEDY | {"max_tokens": 1}))[0] == 200  # gauges move with steps
        asked += 1
    assert engine.finished() == before + asked, "it was given up, not brought to its end"


def test_a_model_that_thinks_keeps_the_usual_path(theatre: Theatre) -> None:
    assert {each["fast_path"] for each in theatre.daemon.workers() if each["model"] != PLAIN} == {
        "a parser for thinking reads its answers, or one of an unknown kind"
    }
