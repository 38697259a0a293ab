"""What is read of a request that passes, and what little is changed in it."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.http_services import model
from vllama.reasons import Reason
from vllamad.dialects import anthropic, openai
from vllamad.dialects.passing import WIRES, body_for, check, read_asked
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Adapter, Capability, Model, Recipe

CONTEXT = 2048
HI = [{"role": "user", "content": "Hi"}]
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def sent(path: str, fields: dict[str, Any], which: Model | None = None) -> dict[str, Any]:
    """What the engine gets."""
    asked = read_asked(json.dumps({"model": "m", **fields}).encode())
    return json.loads(body_for(asked, which or model("m"), WIRES[path], CONTEXT))


@given(st.dictionaries(st.text(max_size=10), json_values, max_size=5))
def test_bytes_pass_untouched(fields: dict[str, Any]) -> None:
    fields.pop("keep_alive", None)
    body = json.dumps(fields | {"model": "m"}, indent=1).encode()
    asked = read_asked(body)
    assert body_for(asked, model("m"), WIRES[CHAT], CONTEXT) is body


@given(st.dictionaries(st.text(max_size=10), json_values, max_size=5))
def test_without_keep_alive_every_other_field_is_still_there(fields: dict[str, Any]) -> None:
    whole = fields | {"model": "m", "keep_alive": "5m"}
    asked = read_asked(json.dumps(whole).encode())
    assert asked.keep_alive_s == 300
    del whole["keep_alive"]
    assert json.loads(body_for(asked, model("m"), WIRES[CHAT], CONTEXT)) == whole


@pytest.mark.parametrize(("value", "seconds"), [(0, 0), ("0", 0), (-1, math.inf), ("1h", 3600), (None, None), (7, 7)])
def test_keep_alive_is_read_as_ollama_reads_it(value: object, seconds: float | None) -> None:
    assert read_asked(json.dumps({"model": "m", "keep_alive": value}).encode()).keep_alive_s == seconds


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "missing request body"),
        (b"{", "unexpected EOF"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{}", "model is required"),
        (b'{"model":""}', "model is required"),
        (b'{"model":5}', "model must be a string"),
        (b'{"model":"m","keep_alive":true}', "Unsupported type"),
        (b'{"model":"m","keep_alive":"soon"}', "invalid duration"),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes, told: str) -> None:
    with pytest.raises(VllamaError, match=told) as caught:
        read_asked(body)
    assert caught.value.reason is Reason.INVALID_REQUEST


def test_what_only_python_takes_for_json_is_the_engines_to_judge() -> None:
    body = b'{"model":"m","temperature":1,"messages":[{"content":"\\ud800"}]}'
    assert body_for(read_asked(body), model("m"), WIRES[CHAT], CONTEXT) is body


def test_a_body_that_is_nested_too_deeply_to_be_written_anew_is_refused() -> None:
    deep = b"[" * 600 + b"]" * 600
    plain = b'{"model":"m","x":' + deep + b"}"
    assert body_for(read_asked(plain), model("m"), WIRES[CHAT], CONTEXT) is plain
    asked = read_asked(b'{"model":"m","keep_alive":1,"x":' + deep + b"}")
    with pytest.raises(VllamaError, match="nested too deeply"):
        body_for(asked, model("m"), WIRES[CHAT], CONTEXT)


# --- models with a recipe --------------------------------------------------------------------------------------------

RECIPE = Recipe(
    parameters={"temperature": 0.1, "num_predict": 7, "stop": ("a", "b"), "num_ctx": 512, "repeat_penalty": 1.2},
    system="Be brief.",
    messages=(("user", "q"), ("assistant", "a")),
)
MADE = model("m", recipe=RECIPE)


def test_a_recipe_is_applied_to_chats() -> None:
    got = sent(CHAT, {"messages": HI, "unknown": {"x": 1}}, MADE)
    assert got.pop("messages") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        *HI,
    ]
    assert got == {
        "model": "m", "unknown": {"x": 1}, "temperature": 0.1, "max_tokens": 7, "stop": ["a", "b"],
        "repetition_penalty": 1.2,
    }  # fmt: skip


def test_a_request_wins_over_the_recipe() -> None:
    own = {"temperature": 1, "max_completion_tokens": 3, "stop": "x", "repetition_penalty": 1}
    system = [{"role": "developer", "content": "Shout."}, *HI]
    got = sent(CHAT, {"messages": system, **own}, MADE)
    assert {name: got.get(name) for name in own} == own
    assert "max_tokens" not in got
    assert [message["role"] for message in got["messages"]] == ["user", "assistant", "developer", "user"]
    assert sent(CHAT, {"messages": HI, "temperature": None}, MADE)["temperature"] == 0.1


def test_a_prompt_stays_as_it_is_but_for_parameters() -> None:
    got = sent("/v1/completions", {"prompt": "x"}, MADE)
    assert (got["prompt"], got["temperature"], got["max_tokens"]) == ("x", 0.1, 7)


def test_a_recipe_is_applied_to_messages() -> None:
    got = sent(MESSAGES, {"messages": HI, "max_tokens": 9}, MADE)
    assert (got["system"], got["stop_sequences"], got["temperature"]) == ("Be brief.", ["a", "b"], 0.1)
    assert got["max_tokens"] == 9 and "stop" not in got and "repetition_penalty" not in got
    assert len(got["messages"]) == 3
    assert sent(MESSAGES, {"messages": HI, "system": "Shout."}, MADE)["system"] == "Shout."
    assert sent(f"{MESSAGES}/count_tokens", {"messages": HI}, MADE)["system"] == "Be brief."


def test_a_recipe_is_applied_to_responses() -> None:
    got = sent(RESPONSES, {"input": "Hi"}, MADE)
    assert (got["instructions"], got["max_output_tokens"]) == ("Be brief.", 7)
    assert got["input"] == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, *HI]
    got = sent(RESPONSES, {"input": HI, "instructions": "Shout.", "max_output_tokens": 3}, MADE)
    assert (got["instructions"], got["max_output_tokens"], len(got["input"])) == ("Shout.", 3, 3)


def test_tokens_are_counted_of_what_would_be_asked() -> None:
    assert len(sent("/tokenize", {"messages": HI}, MADE)["messages"]) == 4
    assert sent("/tokenize", {"prompt": "x"}, MADE) == {"model": "m", "prompt": "x"}


def test_nonsense_is_left_for_the_engine_to_refuse() -> None:
    for path in (CHAT, MESSAGES, RESPONSES):
        for odd in (5, "x", {"role": "user"}):
            got = sent(path, {"messages": odd, "input": 5}, MADE)
            assert (got["messages"], got["input"]) == (odd, 5)


def test_an_adapter_goes_by_its_own_name() -> None:
    adapter = Adapter("ab" * 32, (), "/a", 8)
    assert sent(CHAT, {"messages": HI}, model("m", adapter=adapter))["model"] == adapter.name


# --- what a model cannot do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields", "which", "told"),
    [
        (CHAT, {}, model("m", Capability.EMBEDDING), '"m" does not support chat'),
        (MESSAGES, {}, model("m", Capability.EMBEDDING), '"m" does not support chat'),
        (RESPONSES, {}, model("m", Capability.EMBEDDING), '"m" does not support chat'),
        ("/v1/completions", {}, model("m", Capability.EMBEDDING), '"m" does not support generate'),
        ("/v1/embeddings", {}, model("m"), '"m" does not support embeddings'),
        (CHAT, {"tools": [{}]}, model("m"), "m:latest does not support tools"),
        (MESSAGES, {"tools": [{}], "tool_choice": {"type": "auto"}}, model("m"), "m:latest does not support tools"),
        (CHAT, {"messages": HI}, model("m", recipe=Recipe(template="{{ .Prompt }}")), "has a TEMPLATE of its own"),
        (MESSAGES, {}, model("m", recipe=Recipe(template="{{ .Prompt }}")), "has a TEMPLATE of its own"),
        ("/tokenize", {"messages": HI}, model("m", recipe=Recipe(template="x")), "has a TEMPLATE of its own"),
    ],
)
def test_refused_before_anything_is_loaded(path: str, fields: dict[str, Any], which: Model, told: str) -> None:
    with pytest.raises(VllamaError, match=told) as caught:
        check(read_asked(json.dumps({"model": "m", **fields}).encode()), which, WIRES[path])
    assert caught.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("path", "fields", "which"),
    [
        (CHAT, {"tools": [{}], "tool_choice": "none"}, model("m")),
        (CHAT, {"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}}, model("m")),
        (CHAT, {"tools": [{}]}, model("m", Capability.COMPLETION, Capability.TOOLS)),
        ("/v1/completions", {"prompt": "x"}, model("m", recipe=Recipe(template="{{ .Prompt }}"))),
        ("/tokenize", {"prompt": "x"}, model("m", recipe=Recipe(template="x"))),
        ("/v1/rerank", {}, model("m", Capability.EMBEDDING)),
        ("/v1/score", {}, model("m")),
    ],
)
def test_not_refused_here(path: str, fields: dict[str, Any], which: Model) -> None:
    check(read_asked(json.dumps({"model": "m", **fields}).encode()), which, WIRES[path])


# --- what we say ourselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [reason for reason in Reason if VllamaError(reason, "x").row.http])
def test_both_envelopes_hold_the_reason(reason: Reason) -> None:
    error = VllamaError(reason, "why", field="model")
    assert openai.error_body(error) == {
        "error": {"message": "why", "type": error.row.openai_type, "param": "model", "code": reason.value.lower()}
    }
    body = anthropic.error_body(error, "id-1")
    assert body["error"] == {"type": error.row.anthropic_type, "message": "why", "code": reason.value.lower()}
    assert (body["type"], body["request_id"]) == ("error", "id-1")


def test_a_broken_response_goes_on_counting() -> None:
    error = VllamaError(Reason.ENGINE_DIED, "why")
    event = openai.response_error_event(error, b'data: {"sequence_number":6}\n\ndata: {"sequence_number":7}\n\n')
    name, data = event.decode().rstrip("\n").split("\n")
    assert name == "event: error"
    told = json.loads(data.removeprefix("data: "))
    assert (told["type"], told["sequence_number"], told["code"], told["message"]) == ("error", 8, "engine_died", "why")
    assert b'"sequence_number":0' in openai.response_error_event(error, b"")


def test_a_model_card_tells_what_it_can_do_and_not_where_it_lies() -> None:
    card = openai.model_card("x", model("org/repo:q4", Capability.EMBEDDING))
    assert card == {
        "id": "x", "object": "model", "created": 1_795_343_634, "owned_by": "org", "context_length": 8192,
        "capabilities": ["embedding"],
    }  # fmt: skip
    listed = openai.model_list([model("m")])
    assert [each["id"] for each in listed["data"]] == ["m:latest"]
    assert listed["data"][0]["owned_by"] == "library"
    assert "/models" not in json.dumps(listed)
    assert anthropic.model_list([]) == {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert anthropic.model_card("x", model("m"))["created_at"] == "2026-11-22T10:33:54Z"
