"""The engine's frames as Ollama's lines."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.http_services import DONE, Answer, event
from vllama.reasons import Reason
from vllamad.dialects.ollama_stream import ChatStream, GenerateStream, Timing
from vllamad.dialects.openai import ContextExceeded, read_answer, read_delta, read_error
from vllamad.domain.errors import VllamaError

AT = "2026-01-31T10:11:12Z"
TIMING = Timing(total_ns=9_000_000, load_ns=1_000_000, prompt_ns=2_000_000, generation_ns=3_000_000)


def lines_of(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def choice(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "finish_reason": None, **fields}]})


def usage(prompt: int, completion: int, **more: Any) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}, **more})


@settings(max_examples=40)
@given(st.lists(st.text(min_size=1, max_size=5), max_size=6), st.lists(st.integers(0, 5000), max_size=8))
def test_text_arrives_whole_in_any_cut(texts: list[str], places: list[int]) -> None:
    stream = b"".join(
        Answer([{"content": text} for text in texts], completion_tokens=7).stream({"messages": [], "stream": True})
    )
    reply, output = ChatStream("m"), b""
    at = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    for start, end in itertools.pairwise(at):
        output += reply.feed(stream[start:end], AT)
    assert reply.is_over
    shown = lines_of(output)
    assert [line["message"]["content"] for line in shown] == texts
    assert all(line["done"] is False for line in shown)
    assert lines_of(reply.finish(AT, TIMING))[0]["eval_count"] == 7


def test_counts_and_times_are_the_engines() -> None:
    reply = ChatStream("m")
    reply.feed(choice(delta={"content": "a b c d"}) + choice(delta={}, finish_reason="length"), AT)
    metrics = {"time_to_first_token_ms": 12.5, "generation_time_ms": 30.25, "queue_time_ms": 99.0}
    reply.feed(usage(5, 4, metrics=metrics) + DONE, AT)
    (last,) = lines_of(reply.finish(AT, TIMING))
    assert list(last) == [
        "model", "created_at", "message", "done", "done_reason", "total_duration", "load_duration",
        "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
    ]  # fmt: skip
    assert last["done_reason"] == "length"
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["prompt_eval_count"], last["eval_count"]) == (5, 4)
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (12_500_000, 30_250_000)
    assert (last["total_duration"], last["load_duration"]) == (9_000_000, 1_000_000)


def test_without_metrics_the_daemons_clock_serves() -> None:
    reply = ChatStream("m")
    reply.feed(choice(delta={}, finish_reason="stop") + usage(5, 4) + DONE, AT)
    (last,) = lines_of(reply.finish(AT, TIMING))
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (2_000_000, 3_000_000)


def test_a_count_never_comes_with_a_duration_of_zero() -> None:
    reply = ChatStream("m")
    one_token = {"time_to_first_token_ms": 5.0, "generation_time_ms": 0.0}
    reply.feed(choice(delta={}, finish_reason="stop") + usage(5, 1, metrics=one_token) + DONE, AT)
    (last,) = lines_of(reply.finish(AT, Timing(5, 1)))
    assert last["eval_duration"] > 0


def test_thinking_then_text() -> None:
    reply = ChatStream("m")
    output = reply.feed(choice(delta={"reasoning": "hm"}) + choice(delta={"reasoning": "!", "content": "Hi"}), AT)
    assert [line["message"] for line in lines_of(output)] == [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "", "thinking": "!"},
        {"role": "assistant", "content": "Hi"},
    ]


def whole(**message: Any) -> bytes:
    choices = [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}]
    return json.dumps({"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 4}}).encode()


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["\n", " ", "a", " b", "c\n"]), max_size=6),
    st.lists(st.sampled_from(["\n", "\n\n", "x", " y", "z "]), max_size=6),
)
def test_blanks_around_thinking_are_its_marks(thoughts: list[str], texts: list[str]) -> None:
    """Streamed or whole, they go; those inside of the thinking, and at the end of the text, stay."""
    frames = [choice(delta={"reasoning": thought}) for thought in thoughts]
    reply = ChatStream("m")
    output = b"".join(reply.feed(frame, AT) for frame in frames + [choice(delta={"content": text}) for text in texts])
    spoken = [line["message"] for line in lines_of(output)]
    thinking, text = "".join(thoughts), "".join(texts)
    assert "".join(message.get("thinking", "") for message in spoken) == thinking.strip()
    assert "".join(message["content"] for message in spoken) == (text.lstrip() if thinking else text)
    assert all(message["content"] or message.get("thinking") for message in spoken)
    at_once = json.loads(ChatStream("m").answer(whole(content=text, reasoning=thinking or None), AT, TIMING))["message"]
    assert at_once.get("thinking", "") == thinking.strip()
    assert at_once["content"] == (text.lstrip() if thinking else text)


def test_logprobs_of_blanks_after_thinking_are_kept() -> None:
    reply = ChatStream("m")
    reply.feed(choice(delta={"reasoning": "hm"}), AT)
    frame = choice(delta={"content": "\n"}, logprobs={"content": [{"token": "\n", "logprob": -0.5}]})
    (line,) = lines_of(reply.feed(frame, AT))
    assert line["message"]["content"] == ""
    assert line["logprobs"] == [{"token": "\n", "logprob": -0.5}]


def test_ids_of_calls_look_like_ollamas_unless_they_are_the_models_own() -> None:
    calls = [
        {"id": "chatcmpl-tool-b0a23d57c2741581", "function": {"name": "f", "arguments": "{}"}},
        {"id": "functions.g:1", "function": {"name": "g", "arguments": "{}"}},
    ]
    answer = json.loads(ChatStream("m").answer(whole(content=None, tool_calls=calls), AT, TIMING))
    assert [call["id"] for call in answer["message"]["tool_calls"]] == ["call_b0a23d57c2741581", "functions.g:1"]
    reply = ChatStream("m")
    deltas = [{"tool_calls": [{"index": at, **call}]} for at, call in enumerate(calls)]
    output = b"".join(reply.feed(choice(delta=delta), AT) for delta in deltas)
    output += reply.feed(choice(delta={}, finish_reason="tool_calls"), AT)
    streamed = [call["id"] for line in lines_of(output) for call in line["message"]["tool_calls"]]
    assert streamed == ["call_b0a23d57c2741581", "functions.g:1"]


def test_tool_calls_leave_whole_and_with_an_object() -> None:
    def part(index: int, arguments: str, **more: Any) -> bytes:
        call = {"index": index, "function": {"arguments": arguments, **({"name": more["name"]} if more else {})}}
        return choice(delta={"tool_calls": [{**call, "id": more.get("id")}]})

    reply = ChatStream("m")
    assert reply.feed(part(0, "", id="a", name="f") + part(0, '{"x":') + part(0, "1}"), AT) == b""
    first = lines_of(reply.feed(part(1, "", id="b", name="g"), AT))
    assert [line["message"]["tool_calls"] for line in first] == [
        [{"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}}]
    ]
    last = lines_of(reply.feed(choice(delta={}, finish_reason="tool_calls") + usage(1, 1) + DONE, AT))
    assert last[0]["message"]["tool_calls"] == [{"id": "b", "function": {"index": 1, "name": "g", "arguments": {}}}]
    assert lines_of(reply.finish(AT, TIMING))[0]["done_reason"] == "stop"


def test_arguments_that_are_no_object_reach_the_client_as_text() -> None:
    reply = ChatStream("m")
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{oops"}}
    (line,) = lines_of(reply.feed(choice(delta={"tool_calls": [call]}, finish_reason="tool_calls"), AT))
    assert line["message"] == {"role": "assistant", "content": '{"name": "f", "arguments": {oops}'}


def test_logprobs_ride_on_their_line() -> None:
    entry = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}
    frame = choice(delta={"content": "Hi"}, logprobs={"content": [entry]})
    (without,) = lines_of(ChatStream("m").feed(frame, AT))
    assert without["logprobs"] == [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}]
    (with_top,) = lines_of(ChatStream("m", top_logprobs=1).feed(frame, AT))
    assert with_top["logprobs"][0]["top_logprobs"] == [{"token": "Hi", "logprob": -0.5}]
    raw = choice(text="Hi", logprobs={"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": [{"Ho": -1.0}]})
    (completion,) = lines_of(GenerateStream("m", top_logprobs=1).feed(raw, AT))
    assert completion["logprobs"][0]["top_logprobs"] == [{"token": "Ho", "logprob": -1.0, "bytes": [72, 111]}]


def test_context_is_prompt_and_answer_without_the_end_token() -> None:
    reply = GenerateStream("m", wants_context=True)
    first = event(
        {"prompt_token_ids": [1, 2], "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    )
    reply.feed(first + choice(delta={"content": "x"}, token_ids=[7, 8]), AT)
    reply.feed(choice(delta={}, finish_reason="stop", stop_reason=None, token_ids=[9, 0]) + usage(2, 4) + DONE, AT)
    assert lines_of(reply.finish(AT, TIMING))[0]["context"] == [1, 2, 7, 8, 9]


def test_context_keeps_every_token_of_a_cut_answer() -> None:
    reply = GenerateStream("m", wants_context=True)
    reply.feed(choice(text="x", prompt_token_ids=[1], token_ids=[7], finish_reason="length") + usage(1, 1) + DONE, AT)
    assert lines_of(reply.finish(AT, TIMING))[0]["context"] == [1, 7]


def test_an_error_in_the_stream_is_kept_and_nothing_follows() -> None:
    reply = ChatStream("m")
    failure = event({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}})
    output = reply.feed(choice(delta={"content": "a"}) + failure + choice(delta={"content": "b"}) + DONE, AT)
    assert [line["message"]["content"] for line in lines_of(output)] == ["a"]
    assert reply.error is not None
    assert reply.error.reason is Reason.ENGINE_DIED
    with pytest.raises(VllamaError, match="EngineCore died"):
        reply.finish(AT, TIMING)


@pytest.mark.parametrize(
    "tail",
    [b"", choice(delta={}, finish_reason="stop"), DONE, choice(delta={}, finish_reason="stop") + b"data: [DONE]\n"],
)
def test_a_stream_that_breaks_off_is_never_finished(tail: bytes) -> None:
    reply = ChatStream("m")
    reply.feed(choice(delta={"content": "a"}) + tail, AT)
    with pytest.raises(VllamaError) as caught:
        reply.finish(AT, TIMING)
    assert caught.value.reason is Reason.ENGINE_DIED


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_request_that_the_engine_gave_up_is_broken(reason: str) -> None:
    reply = ChatStream("m")
    reply.feed(choice(delta={}, finish_reason=reason) + usage(1, 1) + DONE, AT)
    with pytest.raises(VllamaError, match=reason):
        reply.finish(AT, TIMING)


@settings(max_examples=40)
@given(st.binary(max_size=80))
def test_any_payload_is_read_or_refused(payload: bytes) -> None:
    delta = read_delta(payload)
    assert delta.error is not None or not delta.text


def test_a_whole_answer_that_is_none() -> None:
    for body in (b"", b"[]", b"{}", b'{"choices":[]}'):
        assert read_answer(body).error is not None


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, b'{"error":{"message":"bad schema","code":400}}', Reason.INVALID_REQUEST),
        (404, b'{"detail":"Not Found"}', Reason.UNSUPPORTED),
        (503, b'{"error":{"message":"queue"}}', Reason.QUEUE_FULL),
        (500, b"oops", Reason.ENGINE_DIED),
        (401, b'{"error":"Unauthorized"}', Reason.ENGINE_DIED),
    ],
)
def test_statuses_of_the_engine(status: int, body: bytes, reason: Reason) -> None:
    assert read_error(status, body).reason is reason


def test_a_prompt_that_is_too_long_is_known_and_counted() -> None:
    text = "This model's maximum context length is 256 tokens. However, your prompt contains {} input tokens"
    for said, count in (("300", 300), ("at least 257", 0)):
        error = read_error(400, json.dumps({"error": {"message": text.format(said)}}).encode(), 256)
        assert isinstance(error, ContextExceeded)
        assert error.prompt_tokens == count
