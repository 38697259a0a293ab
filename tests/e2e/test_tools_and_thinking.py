"""Tools and thinking, end to end: nobody names a parser, and the official client gets calls and thoughts.

The model is SmolLM2 with another chat template, from whose marks vllama chooses the engine's parsers. Decoding is
greedy and free: what the parsers read is what the model wrote.
"""

import asyncio
import re
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.e2e.conftest import TALENT, Theatre

pytestmark = pytest.mark.engine

GREEDY = {"temperature": 0, "num_predict": 80}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
NAME = "get_current_weather"
PARIS = "The capital of France is Paris."


def get_current_weather(city: str) -> str:
    """Get the current weather for a city.

    Args:
      city: The name of the city
    """
    return f"11 degrees in {city}"


@pytest.fixture
def client(theatre: Theatre) -> ollama.Client:
    return ollama.Client(host=theatre.url)


def check_call(calls: Any) -> None:
    (call,) = calls
    assert (call.function.name, call.function.arguments) == (NAME, {"city": "Paris"})


def test_parsers_are_chosen_by_the_models_own_template(theatre: Theatre, client: ollama.Client) -> None:
    shown = client.show(TALENT)
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.template and "<tool_call>" in shown.template
    # A forked server writes its command line itself, in one piece.
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in theatre.daemon.processes()]
    (server,) = [line.split() for line in lines if b"--tool-call-parser" in line]
    assert server[server.index(b"--tool-call-parser") + 1] == b"hermes"
    assert server[server.index(b"--reasoning-parser") + 1] == b"qwen3"


@pytest.mark.parametrize("think", [False, True])
def test_a_call_is_made_and_its_result_leads_to_the_answer(client: ollama.Client, think: bool) -> None:
    answer = client.chat(TALENT, WEATHER, tools=[get_current_weather], think=think, options=GREEDY)
    check_call(answer.message.tool_calls)
    assert (answer.message.content, answer.done_reason) == ("", "stop")
    assert ("Paris" in (answer.message.thinking or "")) is think
    assert answer.eval_count and answer.prompt_eval_count
    result = {"role": "tool", "tool_name": NAME, "content": "11 degrees"}
    last = client.chat(
        TALENT, [*WEATHER, answer.message, result], tools=[get_current_weather], think=think, options=GREEDY
    )
    assert last.message.tool_calls is None
    assert last.message.content == "It is 11 degrees in Paris."
    assert bool(last.message.thinking) is think


def test_a_streamed_call_comes_whole_behind_the_thoughts(client: ollama.Client) -> None:
    parts = list(client.chat(TALENT, WEATHER, tools=[get_current_weather], think=True, options=GREEDY, stream=True))
    calling = [part for part in parts if part.message.tool_calls]
    assert len(calling) == 1
    check_call(calling[0].message.tool_calls)
    assert not any(part.message.content for part in parts)
    assert "Paris" in "".join(part.message.thinking or "" for part in parts)
    assert parts.index(calling[0]) == len(parts) - 2
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].done_reason == "stop"
    assert parts[-1].eval_count


def test_a_call_on_the_wire(theatre: Theatre) -> None:
    """What the client's types do not show: the id and the index."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": NAME, "description": "The weather now", "parameters": parameters}}
    body = {"model": TALENT, "messages": WEATHER, "tools": [tool], "think": False, "options": GREEDY}
    whole = theatre.daemon.request("POST", "/api/chat", body | {"stream": False}).json()
    lines = theatre.daemon.request("POST", "/api/chat", body).lines()
    for message in (whole["message"], lines[0]["message"]):
        (call,) = message["tool_calls"]
        assert re.fullmatch(r"call_[0-9a-z]{8,}", call["id"])
        assert call["function"] == {"index": 0, "name": NAME, "arguments": {"city": "Paris"}}
        assert (message["role"], message["content"]) == ("assistant", "")
    assert len(lines) == 2


def test_a_call_that_is_cut_off_is_no_call(client: ollama.Client) -> None:
    short = {**GREEDY, "num_predict": 22}
    whole = client.chat(TALENT, WEATHER, tools=[get_current_weather], think=False, options=short)
    parts = list(client.chat(TALENT, WEATHER, tools=[get_current_weather], think=False, options=short, stream=True))
    for part in [whole, *parts]:
        assert part.message.tool_calls is None
    assert whole.done_reason == parts[-1].done_reason == "length"
    assert NAME in (whole.message.content or "")
    assert NAME in "".join(part.message.content or "" for part in parts)


def test_thoughts_are_apart_from_the_answer(theatre: Theatre, client: ollama.Client) -> None:
    whole = client.chat(TALENT, CAPITAL, think=True, options=GREEDY)
    assert whole.message.content == PARIS
    assert whole.message.thinking == "The user asks about France. Its capital is Paris."
    parts = list(client.chat(TALENT, CAPITAL, think=True, options=GREEDY, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking
    assert "".join(part.message.content or "" for part in parts) == PARIS
    kinds = [(bool(part.message.thinking), bool(part.message.content)) for part in parts]
    thoughts = kinds.count((True, False))
    assert kinds == [(True, False)] * thoughts + [(False, True)] * (len(kinds) - thoughts - 1) + [(False, False)]
    assert thoughts > 5, "thoughts come one by one"

    async def ask() -> Any:
        return await ollama.AsyncClient(host=theatre.url).chat(TALENT, CAPITAL, options=GREEDY)

    unset = asyncio.run(ask())
    assert unset.message.thinking == whole.message.thinking, "a model that can think does, unless told otherwise"


def test_without_thinking_there_are_no_thoughts(client: ollama.Client) -> None:
    whole = client.chat(TALENT, CAPITAL, think=False, options=GREEDY)
    assert (whole.message.content, whole.message.thinking) == (PARIS, None)
    parts = list(client.chat(TALENT, CAPITAL, think=False, options=GREEDY, stream=True))
    assert not any(part.message.thinking for part in parts)
    assert "".join(part.message.content or "" for part in parts) == PARIS


def test_generate_thinks_too(client: ollama.Client) -> None:
    question = CAPITAL[0]["content"]
    whole = client.generate(TALENT, question, think=True, options=GREEDY)
    assert (whole.response, whole.thinking) == (PARIS, "The user asks about France. Its capital is Paris.")
    parts = list(client.generate(TALENT, question, think=True, options=GREEDY, stream=True))
    assert "".join(part.thinking or "" for part in parts) == whole.thinking
    assert "".join(part.response for part in parts) == PARIS
    assert client.generate(TALENT, question, think=False, options=GREEDY).thinking is None


def test_a_schema_binds_an_answer_that_was_not_thought_about(client: ollama.Client) -> None:
    schema = {
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
        "additionalProperties": False,
    }  # fmt: skip
    answer = client.chat(TALENT, CAPITAL, think=False, format=schema, options=GREEDY)
    assert (answer.message.content or "").replace(" ", "") == '{"city":"Paris"}'


def test_a_plain_model_refuses_both_in_ollamas_words(theatre: Theatre, client: ollama.Client) -> None:
    theatre.daemon.ctl("create", "plain", "--from", str(theatre.folder))
    assert client.show("plain").capabilities == ["completion"]
    for more, text in (
        ({"tools": [get_current_weather]}, "does not support tools"),
        ({"think": True}, '"plain" does not support thinking'),
        ({"think": "high"}, '"plain" does not support thinking'),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat("plain", CAPITAL, **more)  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert caught.value.status_code == 400
        assert text in caught.value.error
    with pytest.raises(ollama.ResponseError, match='"plain" does not support thinking'):
        client.generate("plain", "Hi", think=True)
    assert len(theatre.daemon.workers()) == 1, "refused before anything was loaded"
    client.delete("plain")
