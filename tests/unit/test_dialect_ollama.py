"""Requests of Ollama's clients as the engine's, and what is refused."""

import base64
import json
import math
from typing import Any

import pytest

from tests.fakes.http_services import model
from vllamad.dialects.ollama import (
    build_chat,
    build_generate,
    check_chat,
    check_format,
    check_generate,
    continue_context,
)
from vllamad.dialects.ollama_errors import status_of
from vllamad.dialects.ollama_options import read_options
from vllamad.dialects.ollama_requests import read_chat, read_generate
from vllamad.dialects.recipes import options_with
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability, Model

PLAIN = model("m:1")
THINKING = model("t:1", Capability.COMPLETION, Capability.THINKING)
VISION = model("v:1", Capability.COMPLETION, Capability.VISION)
TOOLS = model("f:1", Capability.COMPLETION, Capability.TOOLS)
TODAY = "2026-02-03"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()


def chat_request(which: Model = PLAIN, **request: Any):
    chat = read_chat(json.dumps({"model": "m", **request}).encode())
    check_chat(chat, which)
    return build_chat(chat, which, read_options(options_with(which, chat.asked.options)), 4096, TODAY)


def chat_fields(which: Model = PLAIN, **request: Any) -> dict[str, Any]:
    return chat_request(which, **request).fields


def generate_request(which: Model = PLAIN, **request: Any):
    generate = read_generate(json.dumps({"model": "m", "prompt": "Hi", **request}).encode())
    check_generate(generate, which)
    return build_generate(generate, which, read_options(options_with(which, generate.asked.options)), 4096, TODAY)


def refused(call: Any, *args: Any, **request: Any) -> VllamaError:
    with pytest.raises(VllamaError) as caught:
        call(*args, **request)
    return caught.value


def test_a_streamed_chat_asks_for_usage() -> None:
    fields = chat_fields(messages=[{"role": "USER", "content": "Hi"}])
    assert fields["messages"] == [{"role": "user", "content": "Hi"}]
    assert fields["stream"] is True
    assert fields["stream_options"] == {"include_usage": True}
    assert "max_tokens" not in fields
    assert "tools" not in fields
    assert "chat_template_kwargs" not in fields


def test_a_whole_answer_is_asked_for_whole() -> None:
    fields = chat_fields(messages=[{"role": "user", "content": "Hi"}], stream=False)
    assert fields["stream"] is False
    assert "stream_options" not in fields


@pytest.mark.parametrize(
    ("think", "is_on", "effort"),
    [(None, True, None), (True, True, None), (False, False, None), ("low", True, "low"), ("max", True, "max")],
)
def test_thinking_is_switched_where_the_model_can(think: object, is_on: bool, effort: str | None) -> None:
    fields = chat_fields(THINKING, messages=[{"role": "user", "content": "Hi"}], think=think)
    assert fields["chat_template_kwargs"] == {"enable_thinking": is_on, "thinking": is_on}
    assert fields.get("reasoning_effort") == effort


def test_max_is_high_for_a_model_that_knows_no_max() -> None:
    which = model("gpt-oss:20b", Capability.COMPLETION, Capability.THINKING, reasoning_parser="openai_gptoss")
    assert chat_fields(which, messages=[{"role": "user", "content": "x"}], think="max")["reasoning_effort"] == "high"


def test_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert generate_request(format="json").fields["response_format"] == {"type": "json_object"}
    made = generate_request(format=schema).fields["response_format"]
    assert made["type"] == "json_schema"
    assert made["json_schema"]["schema"] == schema
    assert "response_format" not in generate_request(format="").fields
    assert "response_format" not in generate_request(format=None).fields


@pytest.mark.parametrize("value", ["xml", 5, True, [1]])
def test_other_formats_are_refused_with_status_500(value: object) -> None:
    generate = read_generate(json.dumps({"model": "m", "prompt": "x", "format": value}).encode())
    error = refused(check_format, generate.asked)
    assert status_of(error) == 500
    assert error.message.startswith('invalid format: "')


def test_raw_goes_to_completions_as_it_is() -> None:
    request = generate_request(raw=True, options={"num_predict": -1}, logprobs=True, top_logprobs=2)
    assert request.path == "/v1/completions"
    assert request.fields["prompt"] == "Hi"
    assert request.fields["max_tokens"] == 4096, "the engine's own default would be 16"
    assert request.fields["logprobs"] == 2
    assert "messages" not in request.fields
    assert "return_token_ids" not in request.fields


def test_generate_is_a_chat_of_one_turn() -> None:
    request = generate_request(system="Be brief.")
    assert request.path == "/v1/chat/completions"
    assert request.fields["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert request.fields["return_token_ids"] is True


def test_context_goes_in_front_of_the_prompts_tokens() -> None:
    generate = read_generate(b'{"model":"m","prompt":"Hi","context":[1,2,3],"format":"json"}')
    request = build_generate(generate, THINKING, read_options({}), 4096, TODAY)
    assert json.loads(request.tokenize_body)["messages"] == [{"role": "user", "content": "Hi"}]
    continued = continue_context(request, [7, 8], generate.asked, 4096)
    assert continued.path == "/v1/completions"
    assert continued.fields["prompt"] == [1, 2, 3, 7, 8]
    assert continued.fields["return_token_ids"] is True
    assert continued.fields["response_format"] == {"type": "json_object"}
    assert not {"messages", "chat_template_kwargs"} & continued.fields.keys()


def test_images_become_data_urls() -> None:
    fields = chat_fields(VISION, messages=[{"role": "user", "content": "What?", "images": [PNG]}])
    assert fields["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "text", "text": "What?"},
    ]
    fields = generate_request(VISION, images=[base64.b64encode(b"\xff\xd8\xff\xe0jpeg").decode()]).fields
    assert fields["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_tool_calls_and_results_are_tied_together() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    fields = chat_fields(
        TOOLS,
        messages=[
            {"role": "user", "content": "?"},
            {"role": "assistant", "tool_calls": [call, {"id": "mine", **call}], "thinking": "hm"},
            {"role": "tool", "tool_name": "weather", "content": "11"},
            {"role": "tool", "tool_name": "weather", "content": "12"},
            {"role": "tool", "tool_call_id": "other", "content": "13"},
        ],
        tools=[{"type": "function", "function": {"name": "weather"}}],
    )
    _, assistant, first, second, third = fields["messages"]
    assert assistant["reasoning"] == "hm"
    assert assistant["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Paris"}'}
    assert assistant["tool_calls"][0]["type"] == "function"
    assert first["tool_call_id"] == assistant["tool_calls"][0]["id"]
    assert second["tool_call_id"] == "mine"
    assert third["tool_call_id"] == "other"


def test_keep_alive_is_read_with_the_body() -> None:
    assert read_chat(b'{"model":"m","keep_alive":-1}').asked.keep_alive_s == math.inf
    assert read_chat(b'{"model":"m","keep_alive":"10m"}').asked.keep_alive_s == 600.0
    assert read_chat(b'{"model":"m"}').asked.keep_alive_s is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"stream":"yes"}', "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool"),
        (b'{"messages":{}}', "json: cannot unmarshal object into Go struct field ChatRequest.messages of type"),
        (b'{"messages":["x"]}', "json: cannot unmarshal string into Go struct field ChatRequest.messages of type"),
        (b'{"messages":[{"content":5}]}', "json: cannot unmarshal number into Go struct field Alias.content of type"),
        (b'{"options":[]}', "json: cannot unmarshal array into Go struct field ChatRequest.options of type map"),
        (b'{"tools":[1]}', "json: cannot unmarshal number into Go struct field ChatRequest.tools of type api.Tool"),
        (b'{"messages":[{"images":["###"]}]}', "json: cannot unmarshal string into ChatRequest.messages.0.images.0"),
        (b'{"messages":[{"images":[1]}]}', "json: cannot unmarshal number into Go struct field Alias.images of type"),
        (b'{"messages":[{"tool_calls":[{"function":{"arguments":[1]}}]}]}', "json: cannot unmarshal array into Go"),
        (b'{"top_logprobs":-1}', "top_logprobs must be between 0 and 20"),
    ],
)
def test_wrong_types_in_a_chat(body: bytes, text: str) -> None:
    assert refused(read_chat, body).message.startswith(text)


def test_what_a_model_cannot_do_is_refused_with_the_known_words() -> None:
    hi = [{"role": "user", "content": "x"}]
    tool = [{"type": "function", "function": {"name": "f"}}]
    embedding = model("e:1", Capability.EMBEDDING)
    assert refused(chat_fields, messages=hi, think=True).message == '"m" does not support thinking'
    assert refused(chat_fields, messages=hi, tools=tool).message == "m:1 does not support tools"
    assert refused(chat_fields, embedding, messages=hi).message == '"m" does not support chat'
    assert refused(generate_request, embedding).message == '"m" does not support generate'
    assert refused(generate_request, suffix="x").message == "m:1 does not support insert"
    assert "Multimodal data provided" in refused(generate_request, images=[PNG]).message
    assert refused(generate_request, raw=True, system="x").message.startswith("raw mode does not support")


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    question = {"role": "user", "content": "Say hello."}
    fields = chat_fields(messages=[question, {"role": "assistant", "content": "Hello, my dear"}])
    assert (fields["add_generation_prompt"], fields["continue_final_message"]) == (False, True)
    for last in (
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        question,
    ):
        assert "continue_final_message" not in chat_fields(messages=[question, last])


@pytest.mark.parametrize(
    ("which", "more"),
    [
        (PLAIN, {}),
        (PLAIN, {"options": {"stop": ["x"], "seed": 1, "num_predict": 5, "top_k": 3}}),
        (TOOLS, {}),
    ],
)
def test_a_chat_of_nothing_but_text_is_plain(which: Model, more: dict[str, Any]) -> None:
    request = chat_request(which, messages=[{"role": "user", "content": "Hi"}], **more)
    assert request.is_plain
    request.ask_for_lines(["a", "b", "c"])
    assert json.loads(request.body)["vllama_line"] == ["a", "b", "c"]
    assert b"vllama_line" not in request.tokenize_body
    assert not request.is_plain, "it is asked for once"


@pytest.mark.parametrize(
    ("which", "more"),
    [
        (PLAIN, {"stream": False}),
        (PLAIN, {"format": "json"}),
        (PLAIN, {"logprobs": True}),
        (THINKING, {}),
        (THINKING, {"think": False}),
        (TOOLS, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}),
        (VISION, {"messages": [{"role": "user", "content": "Hi", "images": [PNG]}]}),
    ],
)
def test_a_chat_with_anything_else_is_not_plain(which: Model, more: dict[str, Any]) -> None:
    assert not chat_request(which, **{"messages": [{"role": "user", "content": "Hi"}], **more}).is_plain


def test_a_generate_is_plain_unless_it_is_a_completion_or_goes_on() -> None:
    assert generate_request().is_plain
    for more in ({"raw": True}, {"template": "{{ .Prompt }}"}, {"context": [1, 2]}, {"stream": False}):
        assert not generate_request(**more).is_plain, more
