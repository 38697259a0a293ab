"""What the daemon relies on about an engine, as claims that run on the fake and on the real one.

A claim is a function over a ``Running`` engine, or over a ``Reached`` one if it only asks. ``test_engine_port.py`` runs
them on the fake, ``tests/e2e`` on vLLM.
"""

import asyncio
import base64
import json
import math
import os
import signal
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model, ModelDetails, Source, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.ports import EnginePlace, LoadStep, WorkerPlaces
from vllamad.engine.client import UdsEngineClient
from vllamad.engine.command import EngineOptions, ModelOptions
from vllamad.engine.engine import VllmEngine
from vllamad.engine.version import EngineProbe
from vllamad.process import tree
from vllamad.process.child import ComingChild, PosixChild, PosixLauncher
from vllamad.process.output import LineRing

HEALTH_POLL_S = 0.02
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass
class Reached:
    """An engine that serves, whoever started it."""

    client: UdsEngineClient

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        stream = await self.client.open("POST", path, json.dumps(body).encode())
        return stream.status, json.loads(await stream.read())

    async def events(self, path: str, body: dict[str, Any]) -> list[str]:
        stream = await self.client.open("POST", path, json.dumps(body | {"stream": True}).encode())
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = (await stream.read()).decode()
        assert text.endswith("\n\n")
        return [event.removeprefix("data: ") for event in text.split("\n\n") if event]


@dataclass
class Running(Reached):
    """One of our own, with everything that a claim may want to look at."""

    child: PosixChild | ComingChild
    launcher: PosixLauncher
    places: WorkerPlaces
    ring: LineRing
    steps: list[tuple[float, LoadStep]] = field(default_factory=list[tuple[float, LoadStep]])


def make_model(path: Path, name: str = "smollm2:135m", **more: Any) -> Model:
    defaults: dict[str, Any] = {"details": ModelDetails(context_length=8192)}
    return Model(ModelRef.parse(name), "0" * 64, (), str(path), 0.0, Source(SourceKind.FOLDER), **(defaults | more))


@asynccontextmanager
async def running(
    python: Path,
    model: Model,
    folder: Path,
    *,
    deadline_s: float,
    environment: dict[str, str] | None = None,
    chosen: ModelOptions | None = None,
    cache_folder: Path | None = None,
    idle_s: float | None = None,
    is_forked: bool = False,
) -> AsyncIterator[Running]:
    """Start an engine as the supervisor does, and end its whole tree afterwards; ``is_forked`` from a zygote, else it
    is executed."""
    launcher = PosixLauncher(str(folder))
    inherited = dict(os.environ) | (environment or {})
    options = EngineOptions(
        python=python,
        cache_folder=cache_folder or folder / "cache",
        inherited=inherited,
        env_names=tuple(environment or ()),
        # Room for one request of the model's full length, in float32 too.
        cpu_kv_bytes=512 * 1024**2,
        cpu_count=len(os.sched_getaffinity(0)),
        has_bfloat16="avx512f" in Path("/proc/cpuinfo").read_text(),  # noqa: ASYNC240
        zygote="on" if is_forked else "off",
    )
    probe = EngineProbe(python, launcher)
    engine = VllmEngine(options, probe, lambda _model: chosen or ModelOptions(), idle_s=idle_s)
    version = await engine.version()
    assert not version.problem, version
    # Names of sockets are short: under pytest's own folders they would not fit.
    places = WorkerPlaces(folder / "s", folder)
    ring = LineRing()
    started = time.monotonic()
    steps: list[tuple[float, LoadStep]] = []

    def take(line: str) -> None:
        ring.append(line)
        if step := engine.read_phase(line):
            steps.append((time.monotonic() - started, step))

    zygotes_started = asyncio.Event()
    zygotes = asyncio.create_task(launcher.zygotes.run(zygotes_started))
    await zygotes_started.wait()
    child = launcher.spawn(engine.command(model, places, EnginePlace()), take)
    client = engine.connect(places.socket)
    try:
        await _healthy(child, client, ring, deadline_s)
        steps.append((time.monotonic() - started, LoadStep("healthy", 1.0)))
        yield Running(client, child, launcher, places, ring, steps)
    finally:
        await client.close()
        await child.kill_tree()
        forked = [view.forked for view in launcher.zygotes.views()]
        zygotes.cancel()
        await asyncio.wait([zygotes])
        assert forked == [1] * is_forked
        assert not tree.members(0, f"{folder}:").processes


async def _healthy(child: PosixChild | ComingChild, client: UdsEngineClient, ring: LineRing, deadline_s: float) -> None:
    exited = asyncio.create_task(child.wait())
    try:
        async with asyncio.timeout(deadline_s):
            while not await client.is_healthy():
                assert not exited.done(), f"ended with {exited.result()}: {_tail(ring)}"
                await asyncio.sleep(HEALTH_POLL_S)
    except TimeoutError:
        raise AssertionError(f"not healthy within {deadline_s} s; last lines: {_tail(ring)}") from None
    finally:
        exited.cancel()


def _tail(ring: LineRing) -> str:
    return "\n".join(line.text for line in ring.tail(30))


# --- the claims ------------------------------------------------------------------------------------------------------


async def loading_shows_steps_in_order(engine: Running) -> None:
    phases = list(dict.fromkeys(step.phase for _, step in engine.steps))
    assert phases == ["import", "engine", "weights", "cache", "routes", "ready", "healthy"]
    fractions = [step.fraction for _, step in engine.steps]
    assert fractions == sorted(fractions)
    assert any(step.detail.endswith("tokens") for _, step in engine.steps)


async def context_length_is_the_models(engine: Running) -> None:
    assert await engine.client.context_length() == 8192


async def answers_make_sense_and_count_their_tokens(engine: Running) -> None:
    status, body = await engine.post(
        "/v1/chat/completions", {"model": "smollm2:135m", "messages": QUESTION, "temperature": 0, "max_tokens": 12}
    )
    assert status == 200
    choice = body["choices"][0]
    assert choice["message"]["content"] == "The capital of France is Paris."
    assert choice["finish_reason"] == "stop"
    assert body["model"] == "smollm2:135m"
    assert body["usage"]["completion_tokens"] in {7, 8}
    assert body["usage"]["prompt_tokens"] > 7
    assert body["usage"]["prompt_tokens_details"] is None or "cached_tokens" in body["usage"]["prompt_tokens_details"]
    assert body["metrics"]["time_to_first_token_ms"] > 0
    assert body["metrics"]["generation_time_ms"] > 0


async def any_model_name_is_served(engine: Running) -> None:
    """And its own is what answers show, in bytes that can be replaced: on every wire, whole and streamed."""
    await engine.client.context_length()
    name = engine.client.served_name
    assert name
    for path, asked in (
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/chat/completions", {"messages": QUESTION}),
        ("/v1/messages", {"messages": QUESTION}),
        ("/v1/responses", {"input": "Hi"}),
    ):
        body = {"model": "Some/Other:name", "max_tokens": 1, "max_output_tokens": 1, "temperature": 0, **asked}
        for stream in (False, True):
            answer = await engine.client.open("POST", path, json.dumps(body | {"stream": stream}).encode())
            text = (await answer.read()).decode()
            assert answer.status == 200, text
            assert f'"model":{json.dumps(name)}' in text and "Some/Other" not in text


async def chat_streams_have_role_text_reason_usage_and_end(engine: Running) -> None:
    request = {"messages": QUESTION, "temperature": 0, "max_tokens": 4, "stream_options": {"include_usage": True}}
    *events, done = await engine.events("/v1/chat/completions", request)
    assert done == "[DONE]"
    first, *middle, last = [json.loads(event) for event in events]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in middle)
    assert text == "The capital of France"
    assert middle[-1]["choices"][0]["finish_reason"] == "length"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["metrics"]["time_to_first_token_ms"] > 0


async def completion_streams_have_no_role(engine: Running) -> None:
    request = {"prompt": "Once upon", "temperature": 0, "max_tokens": 2, "stream_options": {"include_usage": True}}
    *events, done = await engine.events("/v1/completions", request)
    assert done == "[DONE]"
    *chunks, last = [json.loads(event) for event in events]
    assert all("text" in chunk["choices"][0] for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 2


async def stop_words_end_the_text_without_showing(engine: Running) -> None:
    stops = ["Paris"] + [f"never {n}" for n in range(40)]
    status, body = await engine.post(
        "/v1/chat/completions", {"messages": QUESTION, "temperature": 0, "max_tokens": 12, "stop": stops}
    )
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "The capital of France is "
    assert body["choices"][0]["stop_reason"] == "Paris"


async def json_mode_gives_compact_json(engine: Running) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer", "multipleOf": 1}}, "required": ["answer"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    request = {"messages": QUESTION, "temperature": 0, "max_tokens": 24, "response_format": response_format}
    status, body = await engine.post("/v1/chat/completions", request)
    assert status == 200, body
    text = body["choices"][0]["message"]["content"]
    assert text.startswith('{"answer":')
    assert " " not in text and "\n" not in text


async def logprobs_do_not_stall(engine: Running) -> None:
    before = time.monotonic()
    request = {"messages": QUESTION, "temperature": 0, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}
    status, body = await engine.post("/v1/chat/completions", request)
    assert status == 200
    content = body["choices"][0]["logprobs"]["content"]
    assert [len(each["top_logprobs"]) for each in content] == [2, 2]
    assert time.monotonic() - before < 5


async def bad_requests_get_an_error_object(engine: Running) -> None:
    for wrong in ({"temperature": 3}, {"max_tokens": 0}, {"stop": [""]}, {"max_tokens": 100_000}):
        status, body = await engine.post("/v1/chat/completions", {"messages": QUESTION, **wrong})
        assert status == 400, wrong
        assert set(body["error"]) >= {"message", "type", "param", "code"}
    status, body = await engine.post("/v1/nothing", {})
    assert (status, body) == (404, {"detail": "Not Found"})
    status, _ = await engine.post("/v1/embeddings", {"input": "hi"})
    assert status == 404


async def tokens_can_be_counted(engine: Running) -> None:
    status, body = await engine.post("/tokenize", {"messages": QUESTION})
    assert status == 200
    assert body["count"] == len(body["tokens"]) > 5
    assert body["max_model_len"] == 8192


async def large_bodies_are_taken(engine: Running) -> None:
    status, body = await engine.post("/v1/chat/completions", {"messages": QUESTION, "x": "y" * 3_000_000, "stop": [""]})
    assert status == 400 and "stop" in json.dumps(body)


async def a_closed_stream_aborts_the_request(engine: Running) -> None:
    body = {"messages": QUESTION, "max_tokens": 4000, "ignore_eos": True, "stream": True}
    stream = await engine.client.open("POST", "/v1/chat/completions", json.dumps(body).encode())
    chunks = stream.chunks()
    assert b"data:" in await anext(chunks)
    await _until_running(engine, 1)
    assert 0 < await engine.client.cache_usage() <= 1
    stream.close()
    await _until_running(engine, 0)
    assert await engine.client.cache_usage() == 0
    try:
        async for _ in chunks:
            pass
    except VllamaError as error:
        assert error.reason is Reason.ENGINE_DIED
    stream.close()


async def memory_of_the_tree_is_seen(engine: Running) -> None:
    memory = await asyncio.to_thread(engine.child.memory_bytes)
    assert memory > 10 * 2**20


async def sigterm_ends_it(engine: Running) -> None:
    before = time.monotonic()
    await engine.client.close()
    engine.child.terminate()
    async with asyncio.timeout(20):
        await engine.child.wait()
    print(f"SIGTERM to exit: {time.monotonic() - before:.2f} s")
    await engine.child.kill_tree()
    left = {process.pid for process in tree.members(0, str(engine.places.folder)).processes}
    assert not left - {view.pid for view in engine.launcher.zygotes.views()}


async def _until_running(engine: Running, count: int) -> None:
    """The engine's own count of running requests, by its metrics."""
    seen = ""
    try:
        async with asyncio.timeout(15):
            while True:
                stream = await engine.client.open("GET", "/metrics")
                text = (await stream.read()).decode()
                seen = next(line for line in text.splitlines() if line.startswith("vllm:num_requests_running"))
                if float(seen.rpartition(" ")[2]) == count:
                    return
                await asyncio.sleep(HEALTH_POLL_S)
    except TimeoutError:
        raise AssertionError(f"never {count} requests; last seen: {seen}") from None


Claim = Callable[[Running], Any]


async def it_can_be_warmed_up_again_and_again(engine: Running) -> None:
    await engine.client.warm_up()
    await engine.client.warm_up()
    assert await engine.client.is_healthy()


CLAIMS: tuple[Claim, ...] = (
    it_can_be_warmed_up_again_and_again,
    loading_shows_steps_in_order,
    context_length_is_the_models,
    answers_make_sense_and_count_their_tokens,
    any_model_name_is_served,
    chat_streams_have_role_text_reason_usage_and_end,
    completion_streams_have_no_role,
    stop_words_end_the_text_without_showing,
    json_mode_gives_compact_json,
    logprobs_do_not_stall,
    bad_requests_get_an_error_object,
    tokens_can_be_counted,
    large_bodies_are_taken,
    a_closed_stream_aborts_the_request,
    memory_of_the_tree_is_seen,
)
"""Claims that leave the engine as it was; ``sigterm_ends_it`` does not."""


# --- the claims about sleep ------------------------------------------------------------------------------------------

DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}
"""What these claims need in the environment; on CPU it is all that they need, and nothing is freed."""


async def after_each_level_it_is_the_same(engine: Running) -> None:
    request = {"messages": QUESTION, "temperature": 0, "max_tokens": 12}
    _, before = await engine.post("/v1/chat/completions", request)
    await engine.client.canary()
    for level in (1, 2, 1):
        assert not await engine.client.is_sleeping()
        await engine.client.sleep(level)
        assert await engine.client.is_sleeping()
        await engine.client.wake()
        assert not await engine.client.is_sleeping()
        await engine.client.canary()
        _, after = await engine.post("/v1/chat/completions", request)
        assert after["choices"][0]["message"] == before["choices"][0]["message"]


async def asleep_it_is_healthy_and_lets_requests_wait(engine: Running) -> None:
    """Neither refused nor answered: nobody may be let through to a sleeper."""
    await engine.client.sleep(1)
    assert await engine.client.is_healthy()
    asking = asyncio.create_task(engine.post("/v1/completions", {"prompt": "Once upon", "max_tokens": 2}))
    done, _ = await asyncio.wait({asking}, timeout=0.5)
    assert not done
    await engine.client.wake()
    status, body = await asking
    assert (status, body["choices"][0]["finish_reason"]) == (200, "length")


async def a_second_sleep_is_believed_and_not_done(engine: Running) -> None:
    """Why no level is reached from another: the client asks for none."""
    assert await engine.post("/sleep?level=1", {}) == (200, {"status": "sleeping", "level": 1})
    assert await engine.post("/sleep?level=2", {}) == (200, {"status": "sleeping", "level": 2})
    assert (await engine.post("/wake_up", {}))[1]["status"] == "awake"
    await engine.client.sleep(1)
    try:
        await engine.client.sleep(2)
    except VllamaError as error:
        assert error.reason is Reason.ENGINE_DIED and "sleeps at level 1" in error.message
    else:
        raise AssertionError("it said that it went from level 1 to level 2")
    await engine.client.wake()
    await engine.client.canary()


async def memory_wakes_piece_by_piece(engine: Running) -> None:
    assert (await engine.post("/wake_up", {}))[1]["status"] == "awake"
    assert (await engine.post("/sleep?level=2", {}))[0] == 200
    for tags, status in (("nothing", "sleeping"), ("weights", "sleeping"), ("kv_cache", "awake")):
        assert await engine.post(f"/wake_up?tags={tags}", {}) == (200, {"status": status, "tags": [tags]})
        if tags == "weights":
            assert await engine.post("/collective_rpc", {"method": "reload_weights"}) == (200, {"results": [None]})
    await engine.client.canary()


async def wrong_calls_are_refused(engine: Running) -> None:
    for path, body, expected in (
        ("/sleep?level=3", {}, 400),
        ("/collective_rpc", {}, 400),
        ("/collective_rpc", {"method": "no_such_method"}, 500),
    ):
        status, answer = await engine.post(path, body)
        assert (status, answer["error"]["code"]) == (expected, expected)
    assert not await engine.client.is_sleeping()


SLEEP_CLAIMS: tuple[Claim, ...] = (
    after_each_level_it_is_the_same,
    asleep_it_is_healthy_and_lets_requests_wait,
    a_second_sleep_is_believed_and_not_done,
    memory_wakes_piece_by_piece,
    wrong_calls_are_refused,
)
"""Claims about an engine with ``DEVELOPMENT``; they leave it awake."""


# --- the claims about one that pools ---------------------------------------------------------------------------------


async def texts_become_vectors_of_length_one_in_their_order(engine: Reached) -> None:
    texts = ["the sky is blue", "", "a stitch in time"]
    status, body = await engine.post("/v1/embeddings", {"input": texts})
    assert status == 200, body
    assert [each["index"] for each in body["data"]] == [0, 1, 2]
    vectors = [each["embedding"] for each in body["data"]]
    assert all(abs(math.hypot(*vector) - 1) < 1e-6 for vector in vectors)
    for text, vector in zip(texts, vectors, strict=True):
        status, alone = await engine.post("/v1/embeddings", {"input": [text]})
        assert status == 200
        assert math.dist(vector, alone["data"][0]["embedding"]) < 1e-3


async def base64_holds_the_same_numbers(engine: Reached) -> None:
    _, plain = await engine.post("/v1/embeddings", {"input": ["the sky"]})
    _, coded = await engine.post("/v1/embeddings", {"input": ["the sky"], "encoding_format": "base64"})
    raw = base64.b64decode(coded["data"][0]["embedding"])
    numbers = struct.unpack(f"={len(raw) // 4}f", raw)
    assert math.dist(numbers, plain["data"][0]["embedding"]) < 1e-5


async def usage_counts_the_tokens_of_all_texts(engine: Reached) -> None:
    texts = ["the sky is blue", "", "a stitch in time"]
    counts = [(await engine.post("/tokenize", {"prompt": text}))[1]["count"] for text in texts]
    _, body = await engine.post("/v1/embeddings", {"input": texts})
    assert body["usage"]["prompt_tokens"] == sum(counts)
    assert counts[1] == 2, "a token at either end"


async def long_texts_are_refused_or_cut_as_asked(engine: Reached) -> None:
    limit = await engine.client.context_length()
    request: dict[str, Any] = {"input": ["word " * limit]}
    status, body = await engine.post("/v1/embeddings", request)
    assert status == 400
    assert "maximum context length" in body["error"]["message"]
    for kept, count in ((-1, limit), (limit, limit), (10, 10)):
        status, body = await engine.post("/v1/embeddings", request | {"truncate_prompt_tokens": kept})
        assert (status, body["usage"]["prompt_tokens"]) == (200, count)
    status, body = await engine.post("/v1/embeddings", request | {"truncate_prompt_tokens": limit + 1})
    assert status == 400


async def any_number_of_texts_is_taken_but_none(engine: Reached) -> None:
    status, body = await engine.post("/v1/embeddings", {"input": ["a"] * 300})
    assert (status, len(body["data"])) == (200, 300)
    status, body = await engine.post("/v1/embeddings", {"input": []})
    assert (status, body["error"]["message"]) == (400, "You must pass at least one prompt")


async def dimensions_are_refused(engine: Reached) -> None:
    """But for models that were trained for it: why the daemon cuts."""
    status, body = await engine.post("/v1/embeddings", {"input": ["a"], "dimensions": 4})
    assert status == 400
    assert "Matryoshka" in body["error"]["message"]


async def nothing_is_generated(engine: Reached) -> None:
    for path, request in (("/v1/chat/completions", {"messages": QUESTION}), ("/v1/completions", {"prompt": "a"})):
        assert await engine.post(path, request) == (404, {"detail": "Not Found"})


async def one_that_pools_sleeps_too(engine: Reached) -> None:
    """Needs ``DEVELOPMENT``."""
    await engine.client.canary()
    for level in (1, 2):
        await engine.client.sleep(level)
        await engine.client.wake()
        await engine.client.canary()


async def one_that_pools_is_warmed_too(engine: Reached) -> None:
    await engine.client.warm_up()


POOLING_CLAIMS: tuple[Callable[[Reached], Any], ...] = (
    texts_become_vectors_of_length_one_in_their_order,
    base64_holds_the_same_numbers,
    usage_counts_the_tokens_of_all_texts,
    long_texts_are_refused_or_cut_as_asked,
    any_number_of_texts_is_taken_but_none,
    dimensions_are_refused,
    nothing_is_generated,
    one_that_pools_is_warmed_too,
)
"""Claims about an engine that serves an encoder."""


def kill(pid: int) -> None:
    """SIGKILL, as the kernel's out-of-memory killer sends it: to one process only."""
    os.kill(pid, signal.SIGKILL)
