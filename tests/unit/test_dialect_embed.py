"""Embedding requests read, the engine's vectors written."""

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.http_services import base64_floats, model
from vllama.reasons import Reason
from vllamad.dialects import ollama_embed
from vllamad.dialects.ollama_embed import (
    EmbedAsked,
    Vectors,
    build_embed,
    check_embed,
    embed_answer,
    embeddings_answer,
    input_limit,
    may_exceed,
    read_embed,
    read_embeddings,
    read_vectors,
    split,
    told,
)
from vllamad.dialects.ollama_errors import Refusal, status_of
from vllamad.dialects.openai import read_error
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["model", "input", "prompt", "truncate", "dimensions", "options", "keep_alive", "Input", "x"])


def ask(**fields: Any) -> EmbedAsked:
    return read_embed(json.dumps({"model": "m", **fields}).encode())


def answered(*vectors: list[float], prompt_tokens: Any = 3) -> bytes:
    data = [{"index": at, "embedding": base64_floats(vector)} for at, vector in enumerate(vectors)]
    return json.dumps({"data": data, "usage": {"prompt_tokens": prompt_tokens}}).encode()


def numbers(part: Vectors) -> list[list[float]]:
    return json.loads(b"[" + part.text + b"]")


def message(error: pytest.ExceptionInfo[VllamaError]) -> str:
    return error.value.message


# --- the request -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "inputs"),
    [("a", ["a"]), ("", []), (None, []), ([], []), (["a", ""], ["a", ""]), ([""], [""])],
)
def test_inputs(value: object, inputs: list[str]) -> None:
    assert ask(input=value).inputs == inputs


@pytest.mark.parametrize("value", [5, True, {}, [1], ["a", None], [["a"]], 1.5])
def test_other_inputs_are_refused_even_without_a_model(value: object) -> None:
    with pytest.raises(VllamaError, match=r"^invalid input type$") as caught:
        read_embed(json.dumps({"input": value}).encode())
    assert caught.value.reason is Reason.INVALID_REQUEST


def test_the_routes_miss_a_model_in_their_own_words() -> None:
    with pytest.raises(VllamaError) as caught:
        read_embed(b"{}")
    assert (message(caught), status_of(caught.value)) == ("model '' not found", 404)
    with pytest.raises(VllamaError) as caught:
        read_embeddings(b"{}")
    assert (message(caught), status_of(caught.value)) == ("model is required", 400)
    missing = ollama_embed.not_found(ask(model="x:1"))
    assert (missing.message, status_of(missing)) == ('model "x:1" not found, try pulling it first', 404)


def test_the_rest_of_a_request() -> None:
    plain = ask()
    assert (plain.truncate, plain.dimensions, plain.options, plain.keep_alive_s) == (True, 0, {}, None)
    full = ask(truncate=False, dimensions=64, options={"num_ctx": 9}, keep_alive="2m")
    assert (full.truncate, full.dimensions, full.options, full.keep_alive_s) == (False, 64, {"num_ctx": 9}, 120.0)
    legacy = read_embeddings(b'{"model": "m", "prompt": "a", "truncate": true, "dimensions": 2, "input": 5}')
    assert (legacy.inputs, legacy.truncate, legacy.dimensions) == (["a"], False, 0)
    assert read_embeddings(b'{"model": "m"}').inputs == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            b'{"input": 5, "truncate": "no"}',
            "cannot unmarshal string into Go struct field EmbedRequest.truncate of type bool",
        ),
        (b'{"dimensions": 1.5}', "cannot unmarshal number 1.5 into Go struct field EmbedRequest.dimensions"),
        (b'{"keep_alive": ""}', 'time: invalid duration ""'),
    ],
)
def test_wrong_types(body: bytes, text: str) -> None:
    with pytest.raises(VllamaError) as caught:
        read_embed(body)
    assert text in message(caught)


def test_models_that_generate_are_refused_with_each_routes_status() -> None:
    check_embed(ask(), model("m", Capability.EMBEDDING))
    legacy = read_embeddings(b'{"model": "m:x", "prompt": "a"}')
    for asked, status in ((ask(model="m:x"), 501), (legacy, 500)):
        with pytest.raises(Refusal) as caught:
            check_embed(asked, model("m:x"))
        assert (caught.value.message, caught.value.status) == ('"m:x" does not support embeddings', status)
        assert caught.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(("num_ctx", "limit"), [(0, 256), (-1, 256), (100, 100), (256, 256), (4096, 256), (1, 4)])
def test_a_smaller_context_of_the_request_counts(num_ctx: int, limit: int) -> None:
    assert input_limit(num_ctx, 256) == limit


def test_what_the_engine_is_asked() -> None:
    plain = {"input": ["a"], "encoding_format": "base64"}
    assert json.loads(build_embed(["a"], 256, 256, truncate=True)) == plain | {"truncate_prompt_tokens": -1}
    assert json.loads(build_embed(["a"], 100, 256, truncate=True)) == plain | {"truncate_prompt_tokens": 100}
    assert json.loads(build_embed(["a"], 100, 256, truncate=False)) == plain


@given(st.lists(st.sampled_from(["", "a", "b" * 300, "c" * 20_000, "d" * 40_000]), max_size=300))
def test_portions_are_the_list(inputs: list[str]) -> None:
    portions = split(inputs)
    assert [text for portion in portions for text in portion] == inputs
    assert all(0 < len(portion) <= ollama_embed.MAX_INPUTS for portion in portions)
    assert all(len(portion) == 1 or sum(map(len, portion)) <= ollama_embed.MAX_CHARACTERS for portion in portions)


def test_short_texts_need_no_counting() -> None:
    assert not may_exceed("a" * 92, 100)
    assert may_exceed("a" * 93, 100)
    assert may_exceed("ä" * 60, 100)


# --- the answer ------------------------------------------------------------------------------------------------------


def test_vectors_come_in_the_order_of_the_inputs() -> None:
    data = [{"index": at, "embedding": base64_floats([1.0, 0.0] if at else [0.0, 1.0])} for at in (1, 0)]
    body = json.dumps({"data": data, "usage": {"prompt_tokens": 7}}).encode()
    part = read_vectors(body, 2, 0)
    assert (numbers(part), part.prompt_tokens) == ([[0, 1], [1, 0]], 7)


def test_nine_digits_tell_any_two_float32_apart() -> None:
    (first,) = struct.unpack("f", struct.pack("f", 0.1))
    second = math.sqrt(1 - first * first)
    part = read_vectors(answered([first, second]), 1, 0)
    assert part.text == b"[0.100000001,0.994987428]"
    assert struct.pack("2f", *numbers(part)[0]) == struct.pack("2f", first, second)


def test_what_is_not_of_length_one_is_made_so() -> None:
    assert numbers(read_vectors(answered([3.0, 4.0]), 1, 0)) == [[0.6, 0.8]]
    assert numbers(read_vectors(answered([0.0, 0.0]), 1, 0)) == [[0, 0]]


@pytest.mark.parametrize(("dimensions", "size"), [(0, 4), (-3, 4), (2, 2), (3, 3), (4, 4), (5, 4), (2**70, 4)])
def test_dimensions(dimensions: int, size: int) -> None:
    (vector,) = numbers(read_vectors(answered([0.5, 0.5, 0.5, 0.5]), 1, dimensions))
    assert len(vector) == size
    assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_also_behind_the_cut(bad: float) -> None:
    with pytest.raises(VllamaError, match=r"^embedding contains NaN or Inf values$") as caught:
        read_vectors(answered([1.0, 0.0, bad]), 1, 2)
    assert status_of(caught.value) == 400


@settings(max_examples=200)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.integers())
def test_cut_vectors_have_length_one(vector: list[float], dimensions: int) -> None:
    (cut,) = numbers(read_vectors(answered(vector), 1, dimensions))
    kept = vector[: len(cut)]
    assert len(cut) == (dimensions if 0 < dimensions < len(vector) else len(vector))
    if any(kept):
        assert math.isclose(math.hypot(*cut), 1, abs_tol=2e-6)
        assert all(math.copysign(1, a) == math.copysign(1, b) for a, b in zip(kept, cut, strict=True) if b)
    else:
        assert not any(cut)


@given(ANY_JSON | st.fixed_dictionaries({"data": ANY_JSON, "usage": ANY_JSON}), st.integers(0, 2))
def test_whatever_the_engine_says_is_read_or_a_failure(value: object, count: int) -> None:
    try:
        read_vectors(json.dumps(value).encode(), count, 1)
    except VllamaError as error:
        assert error.reason is Reason.ENGINE_DIED


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"[]", b"{}", answered([1.0]), answered([1.0], [1.0], [1.0]),
        answered([1.0], [1.0], prompt_tokens="x"),
        b'{"data": [{"index": 0, "embedding": "AAA="}, {"index": 1, "embedding": "AAAA"}]}',
    ],
)  # fmt: skip
def test_an_answer_without_the_vectors_is_the_engines_failure(body: bytes) -> None:
    with pytest.raises(VllamaError) as caught:
        read_vectors(body, 2, 0)
    assert caught.value.reason is Reason.ENGINE_DIED


def test_answers_have_ollamas_fields_in_its_order() -> None:
    asked = ask(model="m<x>")
    parts = [Vectors(b"[1],[0]", 4), Vectors(b"[0.5]", 3)]
    text = embed_answer(asked, parts, 9, 2)
    assert text.startswith(b'{"model":"m\\u003cx\\u003e","embeddings":[[1],[0],[0.5]],"total_duration":9')
    assert json.loads(text) == {
        "model": "m<x>", "embeddings": [[1], [0], [0.5]], "total_duration": 9, "load_duration": 2,
        "prompt_eval_count": 7,
    }  # fmt: skip
    assert embed_answer(asked, [], 9, 2) == b'{"model":"m\\u003cx\\u003e","embeddings":[]}'
    assert embeddings_answer([Vectors(b"[1,0]", 4)]) == b'{"embedding":[1,0]}'
    assert embeddings_answer([]) == b'{"embedding":[]}'


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said", "text", "embed", "embeddings"),
    [
        (400, "This model's maximum context length is 256 tokens.", ollama_embed.TOO_LONG, 400, 500),
        (400, "The decoder prompt cannot be empty", ollama_embed.NOT_SHORTER, 400, 500),
        (400, "something else", "something else", 400, 500),
        (500, "oh", "the engine failed while answering: oh", 500, 500),
    ],
)
def test_what_the_engine_refuses(status: int, said: str, text: str, embed: int, embeddings: int) -> None:
    error = read_error(status, json.dumps({"error": {"message": said}}).encode())
    for asked, expected in ((ask(), embed), (read_embeddings(b'{"model": "m"}'), embeddings)):
        found = told(error, asked)
        assert (found.message, status_of(found)) == (text, expected)


# --- any request -----------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.dictionaries(NAMES, ANY_JSON, max_size=6) | ANY_JSON)
def test_any_json_is_read_or_refused(value: object) -> None:
    for read in (read_embed, read_embeddings):
        try:
            asked = read(json.dumps(value).encode())
        except VllamaError:
            continue
        assert all(isinstance(text, str) for text in asked.inputs)
        for portion in split(asked.inputs):
            assert json.loads(build_embed(portion, 4, 8, truncate=asked.truncate))["input"] == portion


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (read_embed, read_embeddings):
        try:
            read(body)
        except VllamaError as error:
            assert error.message
