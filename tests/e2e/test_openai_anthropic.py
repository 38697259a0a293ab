"""OpenAI's and Anthropic's official clients on the real engine: sync, async and streaming, whole and in pieces.

The model that thinks and calls tools is the one of ``test_tools_and_thinking``; decoding is greedy, so that answers
are known. Embeddings are in ``test_embeddings``, beside an engine that embeds.
"""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.conftest import TALENT, Theatre
from tests.e2e.real_engine import engine_python, model_folder
from tests.fakes.daemon import running

pytestmark = pytest.mark.engine

CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
PARIS = "The capital of France is Paris."
NAME = "get_current_weather"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": NAME, "description": "The weather now", "parameters": PARAMETERS}}
SILENT: Any = {"reasoning_effort": "none"}
LIMIT = 80
GREEDY = {"temperature": 0}
"""Anthropic's client has no argument for it any more; the engine has the field."""


@pytest.fixture
def client(theatre: Theatre) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{theatre.url}/v1", api_key="unused", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture
def claude(theatre: Theatre) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=theatre.url, api_key="unused", max_retries=0, timeout=120) as made:
        yield made


def chat(**more: Any) -> dict[str, Any]:
    return {"model": TALENT, "messages": CAPITAL, "temperature": 0, "max_tokens": LIMIT, **more}


# --- OpenAI ----------------------------------------------------------------------------------------------------------


def test_chat_sync_async_and_streamed(theatre: Theatre, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**chat(**SILENT))
    assert (whole.model, whole.choices[0].message.content, whole.choices[0].finish_reason) == (TALENT, PARIS, "stop")
    assert whole.usage and whole.usage.completion_tokens == 8 and whole.usage.prompt_tokens > 20

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{theatre.url}/v1", api_key="x", max_retries=0) as other:
            answers = await asyncio.gather(*(other.chat.completions.create(**chat(**SILENT)) for _ in range(3)))
            stream = await other.chat.completions.create(**chat(**SILENT, stream=True))
            return answers, [part async for part in stream]

    answers, parts = asyncio.run(ask())
    assert [answer.choices[0].message.content for answer in answers] == [PARIS] * 3
    assert "".join(part.choices[0].delta.content or "" for part in parts) == PARIS
    usage = client.chat.completions.create(**chat(**SILENT, stream=True, stream_options={"include_usage": True}))
    last = list(usage)[-1]
    assert last.choices == [] and last.usage and last.usage.completion_tokens == 8


def test_the_name_is_the_one_that_was_asked_for(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    for name in (TALENT, TALENT.upper()):
        assert client.chat.completions.create(**chat(**SILENT, model=name)).model == name
        parts = list(client.chat.completions.create(**chat(**SILENT, model=name, stream=True)))
        assert {part.model for part in parts} == {name}
        response = client.responses.create(model=name, input="Hi", max_output_tokens=2)
        assert response.model == name
        with claude.messages.stream(model=name, max_tokens=3, messages=CAPITAL) as stream:
            assert stream.get_final_message().model == name
        assert claude.messages.create(model=name, max_tokens=3, messages=CAPITAL).model == name


def test_thinking_and_tools(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**chat(messages=WEATHER, tools=[TOOL]))
    message = whole.choices[0].message
    (call,) = message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == (NAME, {"city": "Paris"})
    assert whole.choices[0].finish_reason == "tool_calls"
    assert "Paris" in (message.model_extra or {})["reasoning"]
    result = {"role": "tool", "tool_call_id": call.id, "content": "11 degrees"}
    conversation = [*WEATHER, message.model_dump(exclude_none=True), result]
    last = client.chat.completions.create(**chat(messages=conversation, tools=[TOOL], **SILENT))
    assert last.choices[0].message.content == "It is 11 degrees in Paris."
    pieces: dict[str, str] = {"name": "", "arguments": ""}
    for part in client.chat.completions.create(**chat(messages=WEATHER, tools=[TOOL], stream=True)):
        for piece in part.choices[0].delta.tool_calls or []:
            assert piece.function
            pieces["name"] += piece.function.name or ""
            pieces["arguments"] += piece.function.arguments or ""
    assert (pieces["name"], json.loads(pieces["arguments"])) == (NAME, {"city": "Paris"})


def test_tools_that_are_not_to_be_called_are_not(client: openai.OpenAI) -> None:
    """``tool_choice`` reaches the engine; Ollama ignores it."""
    answer = client.chat.completions.create(**chat(**SILENT, messages=WEATHER, tools=[TOOL], tool_choice="none"))
    assert not answer.choices[0].message.tool_calls


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": NAME}}},
        {"parallel_tool_calls": False},
    ],
    ids=["required", "named", "single"],
)
def test_a_tool_that_is_demanded_is_called(client: openai.OpenAI, more: dict[str, Any]) -> None:
    answer = client.chat.completions.create(**chat(**SILENT, messages=WEATHER, tools=[TOOL], **more))
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and set(json.loads(call.function.arguments)) == {"city"}


def test_structured_outputs_are_parsed(client: openai.OpenAI) -> None:
    class City(BaseModel):
        city: str
        is_capital: bool

    parsed = client.chat.completions.parse(**chat(**SILENT), response_format=City)
    assert isinstance(parsed.choices[0].message.parsed, City)
    with client.chat.completions.stream(**chat(**SILENT), response_format=City) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, City)
    response = client.responses.parse(
        model=TALENT, input="What is the capital of France?", text_format=City, temperature=0, max_output_tokens=LIMIT,
        reasoning={"effort": "none"},
    )  # fmt: skip
    assert isinstance(response.output_parsed, City)


def test_logprobs_and_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**chat(**SILENT, logprobs=True, top_logprobs=2))
    entries = (answer.choices[0].logprobs and answer.choices[0].logprobs.content) or []
    assert len(entries) == 8 and all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    assert "".join(entry.token for entry in entries[:-1]) == PARIS
    several = client.chat.completions.create(**chat(**SILENT, n=2, temperature=1))
    assert len(several.choices) == 2
    short = client.chat.completions.create(
        model=TALENT, messages=CAPITAL, temperature=0, max_completion_tokens=3, reasoning_effort="none"
    )
    assert (short.choices[0].finish_reason, short.choices[0].message.content) == ("length", "The capital of")


def test_completions_take_lists_and_do_not_use_the_template(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=TALENT, prompt=["The capital of France is", "Two plus two is"], max_tokens=4, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "Paris" in answer.choices[0].text
    assert answer.usage and answer.usage.prompt_tokens < 20
    stream = client.completions.create(model=TALENT, prompt="The capital of France is", max_tokens=4, stream=True)
    assert "".join(part.choices[0].text for part in stream)


def test_responses_and_their_events(client: openai.OpenAI) -> None:
    question = "What is the capital of France?"
    whole = client.responses.create(model=TALENT, input=question, temperature=0, max_output_tokens=LIMIT)
    assert (whole.status, whole.output_text.strip()) == ("completed", PARIS)
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    with client.responses.stream(model=TALENT, input=question, temperature=0, max_output_tokens=LIMIT) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    steps = [kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1]]
    item = ["response.output_item.added", "response.content_part.added"]
    done = ["response.content_part.done", "response.output_item.done"]
    assert steps == [
        "response.created", "response.in_progress",
        *item, "response.reasoning_text.delta", "response.reasoning_text.done", *done,
        *item, "response.output_text.delta", "response.output_text.done", *done,
        "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    cut = client.responses.create(model=TALENT, input=question, temperature=0, max_output_tokens=3)
    assert cut.status == "incomplete"


def test_responses_are_stateless(client: openai.OpenAI) -> None:
    made = client.responses.create(model=TALENT, input="Hi", max_output_tokens=2, store=True)
    for ask in (client.responses.retrieve, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="not stored here"):
            ask(made.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.create(model=TALENT, input="Hi", previous_response_id=made.id)


# --- Anthropic -------------------------------------------------------------------------------------------------------


def test_messages_sync_async_and_their_events(theatre: Theatre, claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": TALENT, "messages": CAPITAL, "max_tokens": LIMIT, "extra_body": GREEDY}
    whole = claude.messages.create(**asked)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert (whole.content[1].text.strip(), whole.stop_reason) == (PARIS, "end_turn")  # type: ignore[union-attr]

    async def ask() -> list[Any]:
        async with anthropic.AsyncAnthropic(base_url=theatre.url, api_key="x", max_retries=0) as other:
            stream = await other.messages.create(**asked, stream=True)
            return [event async for event in stream]

    events = asyncio.run(ask())
    kinds = [event.type for event in events]
    steps = [kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1]]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert steps == ["message_start", *block, *block, "message_delta", "message_stop"]
    assert [event.index for event in events if event.type == "content_block_start"] == [0, 1]
    delta = next(event for event in events if event.type == "message_delta")
    assert (delta.delta.stop_reason, delta.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)
    counted = claude.messages.count_tokens(model=TALENT, messages=CAPITAL)
    usage = whole.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert counted.input_tokens == usage.input_tokens + cached


def test_messages_call_tools(claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": NAME, "description": "The weather now", "input_schema": PARAMETERS}
    asked: Any = {"model": TALENT, "messages": WEATHER, "max_tokens": LIMIT, "extra_body": GREEDY, "tools": [tool]}
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for answer in (claude.messages.create(**asked), streamed):
        (use,) = [block for block in answer.content if block.type == "tool_use"]
        assert (use.name, use.input, answer.stop_reason) == (NAME, {"city": "Paris"}, "tool_use")
    assert claude.messages.count_tokens(
        model=TALENT, messages=WEATHER, tools=[tool]
    ).input_tokens > claude.messages.count_tokens(model=TALENT, messages=WEATHER).input_tokens  # fmt: skip


def test_a_system_message_and_a_stop_sequence(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": TALENT, "messages": CAPITAL, "max_tokens": LIMIT, "extra_body": GREEDY}
    stopped = claude.messages.create(**asked, stop_sequences=["France is"], thinking={"type": "disabled"})
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "France is")
    plain = claude.messages.count_tokens(model=TALENT, messages=CAPITAL).input_tokens
    assert claude.messages.count_tokens(model=TALENT, messages=CAPITAL, system="Be brief.").input_tokens > plain


# --- every class of error --------------------------------------------------------------------------------------------


def test_errors_of_both_clients(theatre: Theatre, client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """400, 404 and 503 here, 429 and 529 by a full queue in the integration ring; nobody asks for keys yet (401)."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat(temperature=7))
    body: Any = caught.value.body
    assert (body["type"], body["code"], body["param"]) == ("BadRequestError", 400, "temperature"), "the engine's own"
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.chat.completions.create(**chat(messages=long))
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**chat(model="nope"))
    assert (missing.value.code, missing.value.type) == ("model_not_found", "not_found_error")
    with pytest.raises(openai.BadRequestError, match="does not support embeddings"):
        client.embeddings.create(model=TALENT, input="x")
    remote: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}]
    with pytest.raises(openai.BadRequestError, match="use base64 encoded data instead"):
        client.chat.completions.create(**chat(messages=remote))
    inline: Any = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}
    ]
    with pytest.raises(openai.BadRequestError, match="is not a multimodal model"):
        client.chat.completions.create(**chat(messages=inline))
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model=TALENT, messages=CAPITAL, max_tokens=0)
    with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
        claude.messages.create(model="nope", messages=CAPITAL, max_tokens=5)
    for path in ("/v1/rerank", "/v1/score"):
        answer = theatre.daemon.request("POST", path, {"model": TALENT, "query": "x", "documents": ["y"]})
        assert (answer.status, answer.json()["error"]["code"]) == (400, "unsupported")


def test_models_are_listed_without_their_paths(theatre: Theatre, client: openai.OpenAI) -> None:
    listed = {model.id: model.model_extra or {} for model in client.models.list()}
    assert listed[TALENT]["capabilities"] == ["completion", "tools", "thinking"]
    assert listed[TALENT]["context_length"] == 8192
    assert client.models.retrieve(TALENT).id == TALENT
    assert str(theatre.daemon.state) not in theatre.daemon.request("GET", "/v1/models").body.decode()


def test_tokens_there_and_back(theatre: Theatre) -> None:
    there = theatre.daemon.request("POST", "/tokenize", {"model": TALENT, "prompt": PARIS}).json()
    back = theatre.daemon.request("POST", "/detokenize", {"model": TALENT, "tokens": there["tokens"]}).json()
    assert (there["count"], back["prompt"]) == (len(there["tokens"]), PARIS)


def test_a_client_that_leaves_leaves_nothing_running(theatre: Theatre, client: openai.OpenAI) -> None:
    story: Any = [{"role": "user", "content": "Tell me a very long story about the sea."}]
    stream = client.chat.completions.create(
        model=TALENT, messages=story, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    for _, _ in zip(range(3), stream, strict=False):
        pass
    stream.close()
    theatre.wait_settled()


def test_a_derived_model_answers_under_its_own_name(theatre: Theatre, client: openai.OpenAI) -> None:
    file = theatre.daemon.root / "Modelfile"
    file.write_text(f"FROM {TALENT}\nPARAMETER num_predict 3\nPARAMETER temperature 0\n")
    theatre.daemon.ctl("create", "brief", "-f", str(file))
    try:
        answer = client.chat.completions.create(model="brief", messages=CAPITAL, reasoning_effort="none")
        assert (answer.model, answer.choices[0].message.content) == ("brief", "The capital of")
        assert len(theatre.daemon.workers()) == 1
    finally:
        theatre.daemon.request("DELETE", "/api/delete", {"model": "brief"})


def test_the_daemons_own_refusals_are_raised_as_their_classes() -> None:
    """While an engine loads: a wrong key, a full queue, and a daemon that leaves."""
    key = "sk-0123456789abcdef"
    environment = {"VLLAMA_AUTH_API_KEYS": key, "VLLAMA_SCHEDULER_MAX_QUEUE": "1"}
    with running(engine=engine_python(), environment=environment) as daemon, ThreadPoolExecutor(1) as threads:
        daemon.ctl("create", "m", "--from", str(model_folder()))
        base = f"{daemon.url}/v1"
        with (
            openai.OpenAI(base_url=base, api_key="sk-wrong", max_retries=0) as stranger,
            openai.OpenAI(base_url=base, api_key=key, max_retries=0) as client,
            anthropic.Anthropic(base_url=daemon.url, api_key="sk-wrong", max_retries=0) as strange_claude,
            anthropic.Anthropic(base_url=daemon.url, api_key=key, max_retries=0) as claude,
        ):
            with pytest.raises(openai.AuthenticationError):
                stranger.models.list()
            with pytest.raises(anthropic.AuthenticationError):
                strange_claude.models.list()
            waiting = threads.submit(client.chat.completions.create, model="m", messages=CAPITAL)
            daemon.wait_log("to=STARTING")
            with pytest.raises(openai.RateLimitError) as full:
                client.chat.completions.create(model="m", messages=CAPITAL)
            assert full.value.code == "queue_full"
            assert 2 <= int(full.value.response.headers["retry-after"]) <= 60, "about as long as the load takes"
            with pytest.raises(anthropic.APIStatusError) as overloaded:
                claude.messages.create(model="m", max_tokens=8, messages=CAPITAL)
            assert overloaded.value.status_code == 529
            assert daemon.stop() == 0
            gone = waiting.exception(timeout=30)
            assert isinstance(gone, openai.InternalServerError)
            assert (gone.status_code, gone.code) == (503, "draining")
