"""Embeddings over real sockets: lists in portions, clients that leave, the whole daemon with an engine that pools."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.fakes.daemon import Daemon
from tests.fakes.http_services import FakeStream, World, base64_floats, died, make_world, model, refusal
from vllamad.dialects.ollama_embed import MAX_INPUTS
from vllamad.domain.model import Capability
from vllamad.http.embeddings import MAX_PORTIONS
from vllamad.http.server import HttpServer, make_app

SOON_S = 5.0
LIST = [str(number) for number in range(5 * MAX_INPUTS + 1)]


def embedder() -> World:
    """A world whose engine turns a number into an angle, and counts a token a text."""
    world = make_world(model("m", Capability.EMBEDDING))

    def script(path: str, body: dict[str, Any]) -> FakeStream:
        angles = [int(text) / 1000 for text in body["input"]]
        data = [
            {"index": at, "embedding": base64_floats([math.cos(angle), math.sin(angle)])}
            for at, angle in enumerate(angles)
        ]
        answer = {"data": data, "usage": {"prompt_tokens": len(data)}}
        return FakeStream(200, [json.dumps(answer).encode()])

    world.lease.script = script
    return world


@contextlib.asynccontextmanager
async def serving(world: World) -> AsyncGenerator[aiohttp.ClientSession, None]:
    server = HttpServer(make_app(world.services), "127.0.0.1", 0)
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


async def embed(session: aiohttp.ClientSession, **fields: Any) -> tuple[int, dict[str, Any]]:
    async with session.post("/api/embed", json={"model": "m", **fields}) as answer:
        return answer.status, await answer.json()


def test_a_long_list_goes_in_portions_and_comes_back_in_order() -> None:
    world = embedder()

    async def work() -> None:
        async with serving(world) as session:
            status, body = await embed(session, input=LIST)
            assert status == 200
            assert body["prompt_eval_count"] == len(LIST)
            angles = [math.atan2(sine, cosine) for cosine, sine in body["embeddings"]]
            assert angles == pytest.approx([number / 1000 for number in range(len(LIST))], abs=1e-6)

    run(work())
    assert sorted(len(asked["input"]) for _, asked, _ in world.lease.asked) == [1, *[MAX_INPUTS] * 5]
    assert len({headers["X-Request-Id"] for _, _, headers in world.lease.asked}) == 6, "the engine tells them apart"
    assert all(stream.is_closed for stream in world.lease.streams)


def test_few_portions_are_under_way_at_a_time_and_a_client_that_leaves_drops_them() -> None:
    world = embedder()
    hold, are_under_way = asyncio.Event(), asyncio.Event()

    def script(_path: str, _body: dict[str, Any]) -> FakeStream:
        if len(world.lease.asked) == MAX_PORTIONS:
            are_under_way.set()
        return FakeStream(200, [b"{}"], hold=hold)

    world.lease.script = script

    async def work() -> None:
        async with serving(world) as session:
            asking = asyncio.create_task(embed(session, input=LIST))
            await are_under_way.wait()
            assert (await embed(session, input=5))[0] == 400  # whatever else could be sent has been by now
            assert len(world.lease.asked) == MAX_PORTIONS
            asking.cancel()
            await world.gate.returned.wait()
            assert [stream.is_closed for stream in world.lease.streams] == [True] * MAX_PORTIONS

    run(work())


@pytest.mark.parametrize("inputs", [LIST[:3], LIST])
def test_an_engine_that_dies_is_one_error(inputs: list[str]) -> None:
    world = embedder()
    world.lease.script = lambda _path, _body: FakeStream(200, [b"{"], broken=died())

    async def work() -> None:
        async with serving(world) as session:
            status, body = await embed(session, input=inputs)
            assert (status, "stopped unexpectedly" in body["error"]) == (500, True)

    run(work())
    assert world.gate.active == 0


def test_a_portion_that_is_refused_ends_the_request() -> None:
    world = embedder()
    usual = world.lease.script

    def script(path: str, body: dict[str, Any]) -> FakeStream:
        is_last = LIST[-1] in body["input"]
        return refusal(400, "This model's maximum context length is 4 tokens.") if is_last else usual(path, body)

    world.lease.script = script

    async def work() -> None:
        async with serving(world) as session:
            refused = (400, {"error": "the input length exceeds the context length"})
            assert await embed(session, input=LIST, truncate=False) == refused

    run(work())


def test_the_loop_is_free_while_many_vectors_are_written() -> None:
    world = make_world(model("m", Capability.EMBEDDING))
    vector = base64_floats([1 / 64] * 4096)
    answer = json.dumps(
        {"data": [{"index": at, "embedding": vector} for at in range(128)], "usage": {"prompt_tokens": 1}}
    ).encode()
    world.lease.script = lambda _path, _body: FakeStream(200, [answer])

    async def work() -> float:
        worst = 0.0
        async with serving(world) as session:
            asking = asyncio.create_task(session.post("/api/embed", json={"model": "m", "input": LIST[:128]}))
            while not asking.done():
                before = time.perf_counter()
                await asyncio.sleep(0)
                worst = max(worst, time.perf_counter() - before)
            (await asking).close()
        return worst

    # Written on the loop it would be 0.1 s and more; the bound leaves room for a busy machine.
    assert run(work()) < 0.08


# --- the whole daemon ---


def test_the_daemon_embeds_with_an_engine_that_pools(new_house: Callable[..., Daemon]) -> None:
    house = new_house(models={"tiny": {}, "tiny-embed": {}})
    one = house.request("POST", "/api/embed", {"model": "tiny-embed", "input": "hello there"})
    assert one.status == 200, one
    assert one.json()["prompt_eval_count"] == 4
    both = house.request("POST", "/api/embed", {"model": "tiny-embed", "input": ["x", "hello there"]}).json()
    assert both["embeddings"][1] == one.json()["embeddings"][0]
    assert both["embeddings"][0] != both["embeddings"][1]
    legacy = house.request("POST", "/api/embeddings", {"model": "tiny-embed", "prompt": "hello there"})
    assert legacy.json() == {"embedding": one.json()["embeddings"][0]}
    long = {"model": "tiny-embed", "input": "word " * 3000}
    assert house.request("POST", "/api/embed", long).json()["prompt_eval_count"] == 2048
    assert house.request("POST", "/api/embed", long | {"options": {"num_ctx": 10}}).json()["prompt_eval_count"] == 10
    for more in ({}, {"options": {"num_ctx": 100}}):
        refused = house.request("POST", "/api/embed", long | {"truncate": False} | more)
        assert (refused.status, refused.json()["error"]) == (400, "the input length exceeds the context length")
    assert [worker["model"] for worker in house.workers()] == ["tiny-embed:latest"]


def test_empty_input_loads_and_keep_alive_zero_unloads(new_house: Callable[..., Daemon]) -> None:
    house = new_house(models={"tiny-embed": {}})
    loaded = house.request("POST", "/api/embed", {"model": "tiny-embed"})
    assert loaded.json() == {"model": "tiny-embed", "embeddings": []}
    assert house.workers()[0]["state"] == "READY"
    house.request("POST", "/api/embed", {"model": "tiny-embed", "input": "a", "keep_alive": 0})
    house.wait_no_processes()
    refused = house.request(
        "POST", "/api/chat", {"model": "tiny-embed", "messages": [{"role": "user", "content": "a"}]}
    )
    assert (refused.status, refused.json()["error"]) == (400, '"tiny-embed" does not support chat')


def test_a_client_that_hangs_up_cancels_the_engines_work(new_house: Callable[..., Daemon]) -> None:
    house = new_house(models={"slow-embed": {"token_delay_s": 60.0}})
    house.ctl("load", "slow-embed")
    waiting = house.open_waiting("/api/embed", {"model": "slow-embed", "input": "a"})
    deadline = time.monotonic() + SOON_S
    while not house.workers()[0]["leases"]:
        assert time.monotonic() < deadline
    waiting.hang_up()
    house.ctl("stop", "slow-embed")  # waits for leases: it could not end if the request went on
    assert house.workers() == []
