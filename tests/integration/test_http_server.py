"""The HTTP server over real sockets: hanging up, broken engines, limits, ports."""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from tests.fakes.http_services import Answer, FakeStream, World, died, event, make_world, model, refusal
from vllama.reasons import Reason
from vllamad.dialects.passing import WIRES
from vllamad.domain.errors import VllamaError
from vllamad.domain.operation import FileProgress, Progress
from vllamad.host.logs import fields_of
from vllamad.http.audio import AUDIO
from vllamad.http.outlet import Outlet
from vllamad.http.port_owner import port_owner
from vllamad.http.realtime import REALTIME
from vllamad.http.server import HttpServer, make_app
from vllamad.http.services import Policy

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
SOON_S = 5.0

Session = aiohttp.ClientSession


@contextlib.asynccontextmanager
async def serving(world: World, policy: Policy | None = None) -> AsyncGenerator[Session, None]:
    server = HttpServer(make_app(world.services, policy), "127.0.0.1", 0)
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://{server.addresses[0]}") as session:
            yield session
    finally:
        await server.close()


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(SOON_S):
            return await work

    return asyncio.run(bounded())


def first_tokens(count: int = 1) -> list[bytes]:
    return [event({"choices": [{"index": 0, "delta": {"content": f"t{at}"}}]}) for at in range(count)]


def requests(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """The fields of the lines about requests."""
    return [fields_of(record) for record in caplog.records if record.getMessage() == "http.request"]


# --- the list ---


def test_the_list_is_never_an_old_one() -> None:
    world = make_world(model("one"), model("two"))
    models = world.catalog.models

    async def listed(session: Session) -> dict[str, str]:
        async with session.get("/api/tags") as answer:
            return {each["name"]: each["digest"] for each in (await answer.json())["models"]}

    async def work() -> None:
        async with serving(world) as session:
            first = await listed(session)
            assert set(first) == {"one:latest", "two:latest"} and await listed(session) == first
            key, replaced = next((key, each) for key, each in models.items() if each.name == "one:latest")
            models[key] = replace(replaced, digest="0" * 64)
            assert await listed(session) == first | {"one:latest": "0" * 64}
            del models[key]
            assert set(await listed(session)) == {"two:latest"}
            models.clear()
            assert await listed(session) == {}

    run(work())


# --- a client that leaves ---


def test_hanging_up_in_mid_stream_drops_the_engines_answer_and_the_lease() -> None:
    world = make_world(model("m"))
    world.lease.script = lambda _path, _body: FakeStream(200, first_tokens(), hold=asyncio.Event())

    async def work() -> None:
        async with serving(world) as session:
            answer = await session.post("/api/chat", json=CHAT)
            assert json.loads(await answer.content.readline())["message"]["content"] == "t0"
            assert world.gate.active == 1
            answer.close()
            await world.gate.returned.wait()
            assert world.gate.active == 0
            assert world.lease.streams[0].is_closed

    run(work())


def test_hanging_up_while_a_whole_answer_is_made() -> None:
    world = make_world(model("m"))
    world.lease.script = lambda _path, _body: FakeStream(200, [], hold=asyncio.Event())

    async def work() -> None:
        async with serving(world) as session:
            request = asyncio.ensure_future(session.post("/api/chat", json={**CHAT, "stream": False}))
            await world.gate.entered.wait()
            request.cancel()
            await world.gate.returned.wait()
            assert world.lease.streams[0].is_closed

    run(work())


def test_hanging_up_in_the_middle_of_a_write_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The transport may be closing before anybody was told that the client has left."""
    world = make_world(model("m"))
    world.lease.script = lambda _path, _body: FakeStream(200, first_tokens(2), hold=asyncio.Event())

    async def fail(*_args: object) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    async def work() -> None:
        async with serving(world) as session:
            monkeypatch.setattr(Outlet, "flush", fail)
            with pytest.raises(aiohttp.ClientError):
                async with session.post("/api/chat", json=CHAT) as answer:
                    await answer.read()
            await world.gate.returned.wait()
            assert world.lease.streams[0].is_closed

    with caplog.at_level(logging.INFO):
        run(work())
    assert requests(caplog)[0]["status"] == 499
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_hanging_up_in_the_queue_leaves_it(caplog: pytest.LogCaptureFixture) -> None:
    world = make_world(model("m"))
    world.gate.blocked = asyncio.Event()

    async def work() -> None:
        async with serving(world) as session:
            request = asyncio.ensure_future(session.post("/api/chat", json=CHAT))
            await world.gate.entered.wait()
            assert world.gate.waiting == 1
            request.cancel()
            await world.gate.left.wait()
        assert world.gate.waiting == 0

    with caplog.at_level(logging.INFO, "vllamad.http"):
        run(work())
    assert requests(caplog)[0]["status"] == 499


def test_the_last_follower_of_a_pull_that_leaves_ends_it() -> None:
    world = make_world()
    world.operations.hold = asyncio.Event()
    world.operations.progress = [Progress("downloading", files=(FileProgress("f", 1, 9, "sha256:" + "ab" * 32),))]

    async def work() -> None:
        async with serving(world) as session:
            answer = await session.post("/api/pull", json={"model": "org/repo"})
            assert b"pulling manifest" in await answer.content.readline()
            assert b"completed" in await answer.content.readline()
            answer.close()
            await world.operations.ended.wait()
        assert world.operations.cancelled == [("operations/1", True)]

    run(work())


# --- an engine that fails ---


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda: FakeStream(200, first_tokens(2), broken=died()), id="the worker dies"),
        pytest.param(lambda: FakeStream(200, first_tokens(2)), id="the stream ends without its end"),
        pytest.param(
            lambda: FakeStream(200, [*first_tokens(2), event({"error": {"message": "boom", "code": 500}})]),
            id="an error in the stream",
        ),
    ],
)
def test_a_break_in_mid_stream_is_told_and_never_ends_as_if_whole(broken: Callable[[], FakeStream]) -> None:
    world = make_world(model("m"))
    world.lease.script = lambda _path, _body: broken()

    async def work() -> None:
        async with serving(world) as session, session.post("/api/chat", json=CHAT) as answer:
            lines = [json.loads(line) for line in (await answer.read()).splitlines()]
            assert answer.status == 200
            assert [line["message"]["content"] for line in lines[:-1]] == ["t0", "t1"]
            assert list(lines[-1]) == ["error"]
            assert not any(line.get("done") for line in lines)

    run(work())


@pytest.mark.parametrize("stream", [True, False])
def test_a_break_before_the_first_byte_has_an_honest_status(stream: bool) -> None:
    world = make_world(model("m"))
    world.lease.script = lambda _path, _body: FakeStream(200, [], broken=died())

    async def work() -> None:
        async with serving(world) as session, session.post("/api/chat", json={**CHAT, "stream": stream}) as answer:
            assert answer.status == 500
            assert "stopped unexpectedly" in (await answer.json())["error"]

    run(work())


def test_what_the_engine_refuses_is_the_callers_to_mend() -> None:
    world = make_world(model("m"))
    world.lease.script = lambda _path, _body: refusal(400, "min_tokens must be small")

    async def work() -> None:
        async with serving(world) as session, session.post("/api/chat", json=CHAT) as answer:
            assert (answer.status, await answer.json()) == (400, {"error": "min_tokens must be small"})

    run(work())


def test_a_load_that_fails_answers_with_its_reason() -> None:
    world = make_world(model("m"))
    world.gate.refusal = VllamaError(Reason.ENGINE_START_FAILED, "cannot load m: torch.OutOfMemoryError")

    async def work() -> None:
        async with serving(world) as session, session.post("/api/generate", json={"model": "m"}) as answer:
            assert (answer.status, await answer.json()) == (500, {"error": "cannot load m: torch.OutOfMemoryError"})

    run(work())


def test_draining_says_when_to_come_back() -> None:
    world = make_world(model("m"))
    world.gate.refusal = VllamaError(Reason.DRAINING, "cannot serve m: the daemon is stopping")

    async def work() -> None:
        async with serving(world) as session, session.post("/api/chat", json=CHAT) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "5"

    run(work())


def test_a_bug_shows_its_id_and_logs_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    world = make_world(model("m"))

    def fall(_path: str, _body: dict[str, Any]) -> FakeStream:
        raise ZeroDivisionError("secret detail")

    world.lease.script = fall

    async def work() -> None:
        headers = {"X-Request-Id": "my-id:1"}
        async with serving(world) as session, session.post("/api/chat", json=CHAT, headers=headers) as answer:
            assert answer.status == 500
            assert (await answer.json())["error"] == "internal error; request my-id:1"
            assert answer.headers["X-Request-Id"] == "my-id:1"

    run(work())
    assert "secret detail" in caplog.text
    assert "id=my-id:1" in caplog.text


# --- contexts ---


def test_the_oldest_messages_go_until_the_rest_fits() -> None:
    world = make_world(model("m"), context_length=40)
    messages = [{"role": "system", "content": "S"}]
    messages += [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d e f"}] * 3
    messages += [{"role": "user", "content": "last one"}]

    async def work() -> None:
        async with serving(world) as session:
            async with session.post("/api/chat", json={"model": "m", "messages": messages}) as answer:
                assert answer.status == 200
                assert (await answer.read()).endswith(b"}\n")
            sent = world.lease.asked[-1][1]["messages"]
            assert sent[0]["content"] == "S"
            assert sent[1:] == messages[-3:], "7 + 9 + 9 + 8 tokens fit into 40, one message more does not"
            refused = {"model": "m", "messages": messages, "truncate": False}
            async with session.post("/api/chat", json=refused) as answer:
                assert answer.status == 400
                assert "exceeds the available context size (40 tokens)" in (await answer.json())["error"]

    run(work())


def test_a_long_prompt_loses_its_beginning() -> None:
    world = make_world(model("m"), context_length=40)
    body = {"model": "m", "prompt": "word " * 100, "stream": False, "options": {"num_predict": 5}}

    async def work() -> None:
        async with serving(world) as session:
            async with session.post("/api/generate", json=body) as answer:
                assert answer.status == 200
            sent = world.lease.asked[-1][1]
            assert (sent["truncate_prompt_tokens"], sent["truncation_side"]) == (35, "left")

    run(work())


def test_num_ctx_below_the_loaded_context_bounds_without_shift() -> None:
    world = make_world(model("m"))
    body = {"model": "m", "prompt": "one two", "shift": False, "stream": False, "options": {"num_ctx": 64}}

    async def work() -> None:
        async with serving(world) as session:
            async with session.post("/api/generate", json=body) as answer:
                assert answer.status == 200
            assert world.lease.asked[-1][1]["max_tokens"] == 64 - 8
            async with session.post("/api/generate", json={**body, "shift": True}) as answer:
                assert answer.status == 200
            assert "max_tokens" not in world.lease.asked[-1][1]

    run(work())


# --- bodies, hosts, ids, logs ---


def test_a_body_over_the_limit_is_refused_with_the_limit() -> None:
    world = make_world(model("m"))

    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(4):
            yield b"x" * 600

    async def work() -> None:
        async with serving(world, Policy(max_body_bytes=1000)) as session:
            for data in (b"x" * 1001, chunks()):
                async with session.post("/api/chat", data=data) as answer:
                    assert answer.status == 413
                    assert "1000 bytes" in (await answer.json())["error"]
            async with session.post("/api/chat", json=CHAT) as answer:
                assert answer.status == 200

    run(work())


def test_a_large_body_is_parsed_in_a_thread_and_answered() -> None:
    world = make_world(model("m"), context_length=10**6)
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 3_000_000}], "stream": False}

    async def work() -> None:
        async with serving(world) as session, session.post("/api/chat", json=body) as answer:
            assert answer.status == 200
            assert (await answer.json())["message"]["content"] == "Hello there"

    run(work())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:11434", 200), ("127.0.0.1", 200), ("[::1]:99", 200), ("box.local", 200), ("192.168.1.5:80", 200),
        ("evil.example", 403), ("8.8.8.8", 403), ("localhost.evil.example:1", 403),
    ],
)  # fmt: skip
def test_hosts(host: str, status: int) -> None:
    async def work() -> None:
        async with (
            serving(make_world()) as session,
            session.get("/api/version", headers={"Host": host}) as answer,
        ):
            assert answer.status == status
        async with (
            serving(make_world(), Policy(check_host=False)) as session,
            session.get("/api/version", headers={"Host": host}) as answer,
        ):
            assert answer.status == 200

    run(work())


def test_configured_origins_come_in_front() -> None:
    async def work() -> None:
        policy = Policy(origins=("https://*.example.com", "chrome-extension://abc"))
        async with serving(make_world(), policy) as session:
            for origin, status in (
                ("https://a.example.com", 200),
                ("chrome-extension://abc", 200),
                ("https://example.com.evil", 403),
                ("http://localhost:9", 200),
            ):
                async with session.get("/api/version", headers={"Origin": origin}) as answer:
                    assert answer.status == status, origin
        async with (
            serving(make_world(), Policy(origins=("*",))) as session,
            session.get("/api/version", headers={"Origin": "https://anyone.example"}) as answer,
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == "*"

    run(work())


def test_ids_and_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with serving(make_world(model("m"))) as session:
            async with session.post("/api/chat", json=CHAT, headers={"X-Request-Id": "good.id"}) as answer:
                assert answer.headers["X-Request-Id"] == "good.id"
                await answer.read()
            async with session.get("/api/version", headers={"X-Request-Id": "bad id\t"}) as answer:
                assert len(answer.headers["X-Request-Id"]) == 32

    with caplog.at_level(logging.DEBUG, "vllamad.http"):
        run(work())
    assert [one.levelname for one in caplog.records if one.getMessage() == "http.request"] == ["INFO", "DEBUG"]
    said = requests(caplog)[0]
    assert said["first_token_ms"] > 0 and said["total_ms"] > 0
    told = {name: said[name] for name in ("id", "model", "status", "prompt_tokens", "tokens", "waited_ms")}
    expected = {"id": "good.id", "model": "m:latest", "status": 200, "prompt_tokens": 5, "tokens": 3, "waited_ms": 1.5}
    assert told == expected
    assert "Hi" not in str(said)
    assert "Hello" not in str(said)


def test_options_without_effect_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with serving(make_world(model("m"))) as session:
            for _ in range(3):
                async with session.post("/api/chat", json={**CHAT, "options": {"mirostat": 1}}) as answer:
                    assert answer.status == 200
                    await answer.read()

    with caplog.at_level(logging.INFO, "vllamad.http"):
        run(work())
    assert caplog.text.count("http.option_without_effect") == 1


def test_health_and_what_is_not_supported() -> None:
    world = make_world()

    async def work() -> None:
        async with serving(world) as session:
            async with session.get("/health") as answer:
                assert (answer.status, await answer.json()) == (200, {"status": "ok"})
            world.health["status"] = "the engine is missing"
            async with session.get("/health") as answer:
                assert answer.status == 503
            async with session.post("/api/push", data=b"{}") as answer:
                assert answer.status == 400
                assert "not supported" in (await answer.json())["error"]
            for path in ("/api/me", "/api/signout"):
                async with session.post(path) as answer:
                    assert (answer.status, "error" in await answer.json()) == (401, True)

    run(work())


def test_unload_works_without_a_worker_and_not_without_a_model() -> None:
    world = make_world(model("m"))

    async def work() -> None:
        async with serving(world) as session:
            async with session.post("/api/generate", json={"model": "m", "keep_alive": 0}) as answer:
                assert (await answer.json())["done_reason"] == "unload"
            async with session.post("/api/generate", json={"model": "x", "keep_alive": 0}) as answer:
                assert answer.status == 404
        assert world.gate.unloaded == ["m:latest"]
        assert world.gate.keep_alives == []

    run(work())


# --- what engines have and nobody gets ---

STEERING = (
    "/sleep", "/wake_up", "/is_sleeping", "/release_kv_cache_memory", "/collective_rpc", "/reset_prefix_cache",
    "/reset_mm_cache", "/reset_encoder_cache", "/server_info", "/pause", "/resume", "/is_paused", "/abort_requests",
    "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/start_weight_update",
    "/start_draft_weight_update", "/update_weights", "/finish_weight_update", "/update_weight_version",
    "/weight_info", "/weight_checker", "/get_world_size", "/start_profile", "/stop_profile", "/scale_elastic_ep",
    "/is_scaling_elastic_ep", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/invocations", "/metrics",
)  # fmt: skip
"""Routes by which vLLM 0.32 is steered or looked into. An engine that can sleep has all of them, without any key."""


def test_no_route_that_steers_an_engine_is_there_for_clients() -> None:
    world = make_world(model("m"))

    async def work() -> None:
        async with serving(world) as session:
            for path in STEERING:
                for tried in (path, f"{path}?level=1", f"{path}/", f"/v1{path}", f"/api{path}"):
                    for method in ("GET", "POST"):
                        async with session.request(method, tried, json={"model": "m"}) as answer:
                            assert answer.status == 404, (method, tried)
        assert world.lease.asked == []

    run(work())


def test_clients_reach_no_other_path_of_an_engine_than_these() -> None:
    """A route that is added here has to be looked at: engines that can sleep have routes that nobody may reach."""
    assert {wire.path for wire in WIRES.values()} | set(AUDIO) | {REALTIME} == {
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
        "/v1/embeddings", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score", "/classify", "/pooling",
        "/tokenize", "/detokenize", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/realtime",
    }  # fmt: skip


# --- the listener ---


def test_the_first_line_is_not_held_back() -> None:
    world = make_world(model("m"))
    held = asyncio.Event()
    world.lease.script = lambda _path, _body: FakeStream(200, first_tokens(), hold=held)

    async def work() -> None:
        async with serving(world) as session, session.post("/api/chat", json=CHAT) as answer:
            assert b"t0" in await answer.content.readline()
            assert not held.is_set(), "the line came while the engine was still at work"
            held.set()
            assert b"error" in await answer.content.readline()

    run(work())


def test_a_taken_port_says_by_whom() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = HttpServer(make_app(make_world().services), "127.0.0.1", port)
        with pytest.raises(VllamaError) as caught:
            run(server.start())
    assert caught.value.reason is Reason.ALREADY_RUNNING
    assert f"pid {os.getpid()}" in caught.value.message
    assert "--port" in (caught.value.hint or "")
    assert port_owner(port) == "", "nobody listens there any more"


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_an_address_that_is_not_ours_is_a_wrong_setting(host: str) -> None:
    with pytest.raises(VllamaError) as caught:
        run(HttpServer(make_app(make_world().services), host, 0).start())
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_sockets_that_were_bound_before_are_served() -> None:
    async def work() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(make_app(make_world().services), sockets=[listener])
        await server.start()
        try:
            async with aiohttp.ClientSession(f"http://{server.addresses[0]}") as session, session.get("/") as answer:
                assert await answer.text() == "Ollama is running"
        finally:
            await server.close()

    run(work())


def test_closing_ends_streams_that_are_open() -> None:
    world = make_world(model("m"), answer=Answer([{"content": "x"}]))
    world.lease.script = lambda _path, _body: FakeStream(200, first_tokens(), hold=asyncio.Event())

    async def work() -> None:
        server = HttpServer(make_app(world.services), "127.0.0.1", 0)
        await server.start()
        async with aiohttp.ClientSession(f"http://{server.addresses[0]}") as session:
            answer = await session.post("/api/chat", json=CHAT)
            await answer.content.readline()
            await server.close()
            await world.gate.returned.wait()
            with pytest.raises(aiohttp.ClientError):
                await answer.content.readline()
            answer.close()

    run(work())


KEY, OTHER_KEY = "sk-0123456789abcdef", "sk-fedcba9876543210"


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({}, False),
        ({"Authorization": f"Bearer {KEY}"}, True),
        ({"Authorization": f"bearer  {OTHER_KEY}"}, True),
        ({"x-api-key": KEY}, True),
        ({"x-api-key": KEY[:-1]}, False),
        ({"Authorization": f"Basic {KEY}"}, False),
        ({"Authorization": "Bearer \udce9"}, False),
    ],
)
def test_a_key_is_asked_for_where_keys_are_configured(headers: dict[str, str], is_let_in: bool) -> None:
    async def work() -> None:
        async with serving(make_world(model("m")), Policy(api_keys=(KEY, OTHER_KEY))) as session:
            async with session.get("/api/tags", headers=headers) as answer:
                assert answer.status == (200 if is_let_in else 401)
                if not is_let_in:
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                    assert "key" in (await answer.json())["error"]
            async with session.post("/v1/chat/completions", data=b"{}", headers=headers) as answer:
                error = (await answer.json())["error"]
                assert error["code"] == ("invalid_request" if is_let_in else "unauthenticated")
            async with session.get("/no/such/route", headers=headers) as answer:
                assert answer.status == (404 if is_let_in else 401)

    run(work())


def test_what_is_looked_at_before_a_key_is_known_stays_open() -> None:
    async def work() -> None:
        async with serving(make_world(), Policy(api_keys=(KEY,))) as session:
            for path in ("/", "/api/version", "/health"):
                async with session.get(path) as answer:
                    assert answer.status == 200, path
            origin = {"Origin": "http://localhost", "Access-Control-Request-Method": "POST"}
            async with session.options("/api/chat", headers=origin) as answer:
                assert answer.status == 204  # a browser's preflight carries no key

    run(work())
