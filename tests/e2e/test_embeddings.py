"""Embeddings, end to end: the official client, a real encoder, true counts, and the claims about an engine that pools.

One daemon and one start of the engine for all; the last test unloads it. The daemon is told a context length for all
models that is longer than this one takes.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import ollama
import openai
import pytest

from tests.contract import engine_claims as claims
from tests.e2e.real_engine import START_DEADLINE_S, embedding_model, engine_python, play_javascript
from tests.fakes.daemon import Daemon, running
from vllamad.engine.client import UdsEngineClient

pytestmark = pytest.mark.engine

MODEL = "all-minilm"
LIMIT = 256
"""Its tokens: fewer than the 512 of config.json, by sentence_bert_config.json."""
SKY = "Why is the sky blue?"


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    with running(engine=engine_python(), environment={"OLLAMA_CONTEXT_LENGTH": "4096"}) as daemon:
        daemon.ctl("create", MODEL, "--from", str(embedding_model()))
        loaded = daemon.request("POST", "/api/embed", {"model": MODEL}, timeout=START_DEADLINE_S)
        assert (loaded.status, loaded.json()) == (200, {"model": MODEL, "embeddings": []}), daemon.log_text()[-3000:]
        yield daemon


@pytest.fixture
def client(house: Daemon) -> ollama.Client:
    return ollama.Client(host=house.url)


def with_engine(house: Daemon, work: Callable[[claims.Reached], Awaitable[Any]]) -> Any:
    """Ask the worker itself, past the daemon."""
    (path,) = (house.runtime / "workers").glob("*/s")

    async def scene() -> Any:
        engine = claims.Reached(UdsEngineClient(path))
        try:
            return await work(engine)
        finally:
            await engine.client.close()

    return asyncio.run(scene())


def tokens(house: Daemon, text: str) -> int:
    async def ask(engine: claims.Reached) -> int:
        return (await engine.post("/tokenize", {"prompt": text}))[1]["count"]

    return with_engine(house, ask)


def likeness(one: Any, other: Any) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_the_javascript_client_gets_the_same_vectors(house: Daemon, client: ollama.Client) -> None:
    seen = play_javascript(house, MODEL, "embedding")
    cat, kitten = seen["embed"]["embeddings"]
    assert likeness(cat, kitten) > 0.5
    assert likeness(cat, seen["one"]["embeddings"][0]) > 0.99999
    assert likeness(cat, client.embed(MODEL, "A cat sits on the mat.").embeddings[0]) > 0.99999


def test_vectors_have_length_one_and_know_what_is_alike(house: Daemon, client: ollama.Client) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell sharply today."]
    answer = client.embed(MODEL, texts)
    assert [len(vector) for vector in answer.embeddings] == [384] * 3
    assert all(abs(math.hypot(*vector) - 1) < 2e-6 for vector in answer.embeddings)
    cat, kitten, market = answer.embeddings
    assert likeness(cat, kitten) > 0.5 > 0.2 > likeness(cat, market)
    assert answer.model == MODEL
    assert answer.prompt_eval_count == sum(tokens(house, text) for text in texts)
    assert (answer.total_duration or 0) > (answer.load_duration or 0) > 0


def test_sync_async_and_the_old_route_give_the_same_vector(house: Daemon, client: ollama.Client) -> None:
    first = client.embed(MODEL, SKY)
    assert first.prompt_eval_count == tokens(house, SKY) == 8

    async def ask() -> tuple[Any, Any]:
        other = ollama.AsyncClient(host=house.url)
        return await other.embed(MODEL, SKY), await other.embeddings(MODEL, SKY)

    again, legacy = asyncio.run(ask())
    assert math.dist(first.embeddings[0], again.embeddings[0]) < 1e-5
    assert math.dist(first.embeddings[0], legacy.embedding) < 1e-5
    raw = house.request("POST", "/api/embeddings", {"model": MODEL, "prompt": SKY})
    assert list(raw.json()) == ["embedding"]
    assert all(len(number) < 18 for number in raw.body.split(b",")[1:]), "digits that float32 has not"


def test_dimensions_cut_and_the_rest_has_length_one_again(client: ollama.Client) -> None:
    full = client.embed(MODEL, SKY).embeddings[0]
    cut = client.embed(MODEL, SKY, dimensions=64).embeddings[0]
    length = math.hypot(*full[:64])
    assert math.dist(cut, [number / length for number in full[:64]]) < 1e-5
    assert abs(math.hypot(*cut) - 1) < 1e-6
    for ignored in (0, -1, 384, 5000):
        assert len(client.embed(MODEL, SKY, dimensions=ignored).embeddings[0]) == 384


def test_a_long_list_keeps_its_order(client: ollama.Client) -> None:
    texts = [f"Number {number}." for number in range(300)]
    answer = client.embed(MODEL, texts)
    assert len(answer.embeddings) == 300
    for at in (0, 127, 128, 255, 256, 299):
        assert math.dist(answer.embeddings[at], client.embed(MODEL, texts[at]).embeddings[0]) < 1e-3


@pytest.mark.parametrize("words", [LIMIT - 1, 600, 60_000])
def test_a_long_text_is_cut_unless_that_is_forbidden(client: ollama.Client, words: int) -> None:
    text = "word " * words
    answer = client.embed(MODEL, text)
    assert answer.prompt_eval_count == LIMIT
    fitting = client.embed(MODEL, "word " * (LIMIT - 2), truncate=False)  # a token at either end
    assert fitting.prompt_eval_count == LIMIT
    assert math.dist(answer.embeddings[0], fitting.embeddings[0]) < 1e-3
    for ask, status in (
        (lambda: client.embed(MODEL, ["short", text], truncate=False), 400),
        (lambda: client.embeddings(MODEL, text), 500),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert (caught.value.status_code, caught.value.error) == (
            status, "the input length exceeds the context length",
        )  # fmt: skip


def test_a_smaller_context_of_the_request_counts(client: ollama.Client) -> None:
    text = "word " * 50
    assert client.embed(MODEL, text, options={"num_ctx": 20}).prompt_eval_count == 20
    assert client.embed(MODEL, text, options={"num_ctx": 100}, truncate=False).prompt_eval_count == 52
    with pytest.raises(ollama.ResponseError, match="exceeds the context length"):
        client.embed(MODEL, ["a", text], options={"num_ctx": 20}, truncate=False)


def test_an_empty_text_in_a_list_is_a_text(client: ollama.Client) -> None:
    answer = client.embed(MODEL, ["a", ""])
    assert [len(vector) for vector in answer.embeddings] == [384, 384]
    assert client.embed(MODEL, []).embeddings == []


def test_it_says_what_it_can_do(house: Daemon, client: ollama.Client) -> None:
    shown = client.show(MODEL)
    assert shown.capabilities == ["embedding"]
    assert shown.modelinfo and shown.modelinfo["bert.embedding_length"] == 384
    assert house.workers()[0]["context_length"] == LIMIT
    with pytest.raises(ollama.ResponseError, match="does not support chat"):
        client.chat(MODEL, [{"role": "user", "content": SKY}])


def test_the_engine_keeps_every_claim_about_one_that_pools(house: Daemon) -> None:
    async def scene(engine: claims.Reached) -> None:
        for claim in claims.POOLING_CLAIMS:
            try:
                await claim(engine)
            except Exception as error:
                error.add_note(f"claim: {claim.__name__}")
                raise

    with_engine(house, scene)


def test_a_client_that_hangs_up_cancels_the_engines_work(house: Daemon, client: ollama.Client) -> None:
    waiting = house.open_waiting("/api/embed", {"model": MODEL, "input": ["word " * 200] * 4000})
    with_engine(house, lambda engine: _until(engine, lambda queue: queue > 0))
    before = time.monotonic()
    assert client.embed(MODEL, SKY).embeddings
    print(f"beside a list of 4000 a newcomer waited {time.monotonic() - before:.1f} s")
    waiting.hang_up()
    left = time.monotonic()
    with_engine(house, lambda engine: _until(engine, lambda queue: queue == 0))
    print(f"its work was dropped {time.monotonic() - left:.1f} s after the client had left")
    assert house.workers()[0]["leases"] == 0


async def _until(engine: claims.Reached, is_reached: Callable[[float], bool]) -> None:
    """By the length of its queue: what an encoder runs is done within a step and never seen."""
    async with asyncio.timeout(20):  # the whole list would take minutes
        while True:
            stream = await engine.client.open("GET", "/metrics")
            text = (await stream.read()).decode()
            line = next(line for line in text.splitlines() if line.startswith("vllm:num_requests_waiting{"))
            if is_reached(float(line.rpartition(" ")[2])):
                return
            await asyncio.sleep(0.05)


def test_openais_client_and_the_engines_scores(house: Daemon, client: ollama.Client) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell sharply today."]
    mine = client.embed(MODEL, texts).embeddings
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="unused", max_retries=0, timeout=60) as other:
        found = other.embeddings.create(model="ALL-MINILM", input=texts)  # as base64, which is the client's default
        assert found.model == "ALL-MINILM" and found.usage.prompt_tokens == sum(tokens(house, text) for text in texts)
        plain = other.embeddings.create(model=MODEL, input=texts, encoding_format="float")
        for one, two, three in zip(found.data, plain.data, mine, strict=True):
            assert math.dist(one.embedding, two.embedding) < 1e-5 > math.dist(one.embedding, three)
        with pytest.raises(openai.BadRequestError, match="does not support chat"):
            other.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": SKY}])
    asked = {"model": MODEL, "documents": texts[1:]}
    for path in ("/v1/rerank", "/rerank"):
        ranked = house.request("POST", path, asked | {"query": texts[0]}).json()
        assert [result["index"] for result in ranked["results"]] == [0, 1]
        assert ranked["model"] == MODEL
    for path in ("/v1/score", "/score"):
        scored = house.request("POST", path, asked | {"queries": texts[0]}).json()
        assert scored["data"][0]["score"] > 0.5 > 0.2 > scored["data"][1]["score"]


def test_keep_alive_zero_unloads_after_the_answer(house: Daemon, client: ollama.Client) -> None:
    assert client.embed(MODEL, SKY, keep_alive=0).embeddings
    house.wait_no_processes(30.0)
    assert client.ps().models == []
