"""The official ``ollama`` Python client, driven at our face."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import ollama
import pytest
from aiohttp.test_utils import TestServer

from tests.fakes.http_services import Answer, World, embeds, make_world, model, worker
from vllamad.domain.errors import ModelNotFound
from vllamad.domain.model import Capability
from vllamad.domain.operation import FileProgress, Progress
from vllamad.http.server import make_app

HI = [{"role": "user", "content": "Hi"}]


def talk(world: World, conversation: Callable[[ollama.AsyncClient], Awaitable[Any]]) -> Any:
    """Run a conversation of the client with a server in front of ``world``."""

    async def run() -> Any:
        server = TestServer(make_app(world.services), handler_cancellation=True)
        await server.start_server()
        client = ollama.AsyncClient(host=f"http://{server.host}:{server.port}")
        try:
            return await conversation(client)
        finally:
            await client.close()
            await server.close()

    return asyncio.run(run())


def test_chat_whole_and_streamed() -> None:
    async def conversation(client: ollama.AsyncClient) -> None:
        whole = await client.chat("m", HI, options={"temperature": 0})
        assert whole.message.content == "Hello there"
        assert (whole.done_reason, whole.prompt_eval_count, whole.eval_count) == ("stop", 5, 3)
        assert whole.eval_duration == 220_250_000
        parts = [part async for part in await client.chat("m", HI, stream=True)]
        assert [part.message.content for part in parts] == ["Hello", " there", ""]
        assert [part.done for part in parts] == [False, False, True]
        assert parts[-1].prompt_eval_duration == 25_500_000

    talk(make_world(model("m")), conversation)


def test_generate_whole_streamed_and_continued() -> None:
    world = make_world(model("m"))

    async def conversation(client: ollama.AsyncClient) -> None:
        whole = await client.generate("m", "Hi", system="Be brief.", keep_alive="10m")
        assert whole.response == "Hello there"
        assert whole.context == [1, 2, 3, 10, 11]
        parts = [part async for part in await client.generate("m", "Hi", stream=True)]
        assert "".join(part.response for part in parts) == "Hello there"
        assert parts[-1].context == [1, 2, 3, 10, 11]
        again = await client.generate("m", "More", context=whole.context)
        assert again.response == "Hello there"

    talk(world, conversation)
    assert world.gate.keep_alives[0] == ("m:latest", 600.0)
    path, asked, headers = world.lease.asked[-1]
    assert (path, asked["prompt"]) == ("/v1/completions", [1, 2, 3, 10, 11, *[1] * 7])
    assert headers["X-Request-Id"]


def test_thinking_and_tools() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    answer = Answer([{"reasoning": "hm"}, {"tool_calls": [call]}], finish_reason="tool_calls")
    which = model("m", Capability.COMPLETION, Capability.THINKING, Capability.TOOLS)

    def weather(city: str) -> str:
        """Tell the weather.

        Args:
          city: where
        """
        return city

    async def conversation(client: ollama.AsyncClient) -> None:
        whole = await client.chat("m", HI, tools=[weather], think=True)
        assert whole.message.thinking == "hm"
        assert whole.message.tool_calls is not None
        assert whole.message.tool_calls[0].function.arguments == {"city": "Paris"}
        parts = [part async for part in await client.chat("m", HI, tools=[weather], stream=True)]
        assert [bool(part.message.tool_calls) for part in parts] == [False, True, False]

    talk(make_world(which, answer=answer), conversation)


def test_embed_and_embeddings() -> None:
    world = make_world(model("m", Capability.EMBEDDING))
    world.lease.script = embeds([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0]], prompt_tokens=7)

    async def conversation(client: ollama.AsyncClient) -> None:
        both = await client.embed("m", ["a", "b"], keep_alive="10m")
        assert both.embeddings == [[0.6, 0.8, 0], [0, 1, 0]]
        assert (both.model, both.prompt_eval_count, both.load_duration) == ("m", 7, 1_500_000)
        assert (both.total_duration or 0) > 0
        cut = await client.embed("m", "a", dimensions=1, options={"num_ctx": 64})
        assert cut.embeddings == [[1]]
        assert (await client.embed("m", "")).embeddings == []
        assert (await client.embeddings("m", "a")).embedding == [0.6, 0.8, 0]
        assert (await client.embeddings("m")).embedding == []

    talk(world, conversation)
    assert world.gate.keep_alives[0] == ("m:latest", 600.0)
    path, asked, headers = world.lease.asked[1]
    assert (path, asked["truncate_prompt_tokens"]) == ("/v1/embeddings", 64)
    assert headers["X-Request-Id"]


def test_several_workers_of_a_model_are_one_entry_that_holds_what_they_hold() -> None:
    world = make_world(model("m:1"))
    world.workers.all = [worker("m:1"), worker("m:1", expire_time=2_000_000_100.0)]

    async def conversation(client: ollama.AsyncClient) -> None:
        (running,) = (await client.ps()).models
        assert running.size == 2 * world.workers.all[0].memory_bytes
        assert running.expires_at is not None
        assert running.expires_at.timestamp() == 2_000_000_100.0

    talk(world, conversation)


def test_list_show_ps_copy_and_delete() -> None:
    world = make_world(model("m:1"), model("n:2", modified_time=1_795_400_000.0))
    world.workers.all = [worker("m:1"), worker("n:2", expire_time=None, idle_s=float("inf"))]

    async def conversation(client: ollama.AsyncClient) -> None:
        listed = await client.list()
        assert [each.model for each in listed.models] == ["n:2", "m:1"]
        assert listed.models[0].details is not None
        assert listed.models[0].details.parameter_size == "134.52M"
        shown = await client.show("m:1")
        assert shown.modelinfo is not None
        assert shown.modelinfo["general.architecture"] == "llama"
        assert shown.modelinfo["llama.context_length"] == 8192
        assert shown.capabilities == ["completion"]
        running = await client.ps()
        assert [each.model for each in running.models] == ["n:2", "m:1"]
        assert running.models[0].expires_at is not None
        assert running.models[0].expires_at.year > 2300
        assert (await client.copy("m:1", "k")).status == "success"
        assert (await client.show("k")).capabilities == ["completion"]
        assert (await client.delete("k")).status == "success"
        with pytest.raises(ollama.ResponseError) as caught:
            await client.delete("k")
        assert (caught.value.status_code, caught.value.error) == (404, "model 'k' not found")

    talk(world, conversation)


def test_pull_streamed_whole_and_unknown() -> None:
    world = make_world()
    digest = "sha256:" + "ab" * 32
    world.operations.error = None
    world.operations.progress = [
        Progress("downloading", files=(FileProgress("model.safetensors", done, 900, digest),)) for done in (0, 400, 900)
    ]

    async def conversation(client: ollama.AsyncClient) -> None:
        parts = [part async for part in await client.pull("org/repo", stream=True)]
        assert [part.status for part in parts] == [
            "pulling manifest", *["pulling abababababab"] * 3, "verifying sha256 digest", "writing manifest", "success",
        ]  # fmt: skip
        assert [part.completed for part in parts[1:4]] == [None, 400, 900]
        assert parts[1].digest == digest
        assert (await client.pull("org/repo")).status == "success"
        world.operations.error = ModelNotFound("org/repo")
        with pytest.raises(ollama.ResponseError) as caught:
            await client.pull("org/repo")
        assert (caught.value.status_code, caught.value.error) == (500, "pull model manifest: file does not exist")
        with pytest.raises(ollama.ResponseError, match="file does not exist"):
            _ = [part async for part in await client.pull("org/repo", stream=True)]

    talk(world, conversation)


def test_errors_have_their_status() -> None:
    async def conversation(client: ollama.AsyncClient) -> None:
        for name, status, text in (("nope", 404, "model 'nope' not found"), ("a b", 400, "invalid model name")):
            with pytest.raises(ollama.ResponseError) as caught:
                await client.chat(name, HI)
            assert (caught.value.status_code, caught.value.error) == (status, text)
        for name, status, text in (
            ("m", 501, '"m" does not support embeddings'),
            ("nope", 404, 'model "nope" not found, try pulling it first'),
        ):
            with pytest.raises(ollama.ResponseError) as caught:
                await client.embed(name, "x")
            assert (caught.value.status_code, caught.value.error) == (status, text)

    talk(make_world(model("m")), conversation)
