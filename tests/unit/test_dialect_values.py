"""Durations, keep_alive, instants and JSON text, as Ollama's server has them; and its decoder's words."""

import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllamad.dialects.go_values import Stamp, dumps, local_instant, parse_duration, parse_keep_alive
from vllamad.dialects.peek import Fields, read_object
from vllamad.domain.errors import VllamaError

NS = {"h": 3_600_000_000_000, "m": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), (0, 0.0), (300, 300.0), (0.5, 0.5), (-1, math.inf), (-0.5, math.inf), ("5m", 300.0),
        ("1h30m", 5400.0), ("1.5h", 5400.0), ("300ms", 0.3), ("0", 0.0), ("0s", 0.0), ("-1m", math.inf), ("+2s", 2.0),
        ("24h", 86400.0), (".5s", 0.5), (1e12, math.inf),
    ],
)  # fmt: skip
def test_keep_alive(value: object, seconds: float | None) -> None:
    assert parse_keep_alive(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("300", 'time: missing unit in duration "300"'),
        ("abc", 'time: invalid duration "abc"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        (".", 'time: invalid duration "."'),
        ("5y", 'time: unknown unit "y" in duration "5y"'),
        ("5m3", 'time: missing unit in duration "5m3"'),
        (True, "Unsupported type: 'bool'"),
        ([1], "Unsupported type: '[]interface {}'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
    ],
)
def test_keep_alive_refused(value: object, text: str) -> None:
    with pytest.raises(VllamaError) as caught:
        parse_keep_alive(value)
    assert caught.value.message == text


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(sorted(NS))), min_size=1, max_size=5), st.booleans())
def test_durations_add_up(parts: list[tuple[int, str]], is_negative: bool) -> None:
    text = ("-" if is_negative else "") + "".join(f"{number}{unit}" for number, unit in parts)
    total = sum(number * NS[unit] for number, unit in parts) / 1e9
    assert parse_duration(text) == pytest.approx(-total if is_negative else total)


@settings(max_examples=40)
@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_refusal(text: str) -> None:
    try:
        assert math.isfinite(parse_duration(text))
    except VllamaError as error:
        assert error.message.startswith("time: ")


def test_stamps_are_trimmed_as_go_does() -> None:
    stamp = Stamp()
    assert stamp(1_769_854_272_123_456_789) == "2026-01-31T10:11:12.123456789Z"
    assert stamp(1_769_854_272_120_000_000) == "2026-01-31T10:11:12.12Z"
    assert stamp(1_769_854_273_000_000_000) == "2026-01-31T10:11:13Z"


@settings(max_examples=40)
@given(st.integers(0, 4_000_000_000))
def test_local_instants_mean_the_same_moment(second: int) -> None:
    shown = local_instant(second + 0.25)
    assert datetime.fromisoformat(shown).astimezone(UTC) == datetime.fromtimestamp(second + 0.25, UTC)


@settings(max_examples=40)
@given(st.recursive(st.text() | st.integers(-(2**53), 2**53) | st.booleans() | st.none(), st.lists, max_leaves=8))
def test_json_text_survives_its_escapes(value: object) -> None:
    try:
        text = dumps(value)
    except TypeError:  # lone surrogates cannot be written
        return
    assert json.loads(text) == value
    assert not any(each in text for each in (b"<", b">", b"&", "\u2028".encode(), "\u2029".encode()))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b" \n\t", "missing request body"),
        (b'{"model":', "unexpected EOF"),
        (b'{"model":"x",', "unexpected EOF"),
        (b'{"model"', "unexpected EOF"),
        (b'{"model":"x', "unexpected EOF"),
        (b'{"model":tr', "unexpected EOF"),
        (b'{"a":"\\u00', "unexpected EOF"),
        (b"hello", "invalid character 'h' looking for beginning of value"),
        (b"{a:1}", "invalid character 'a' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b"[]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        (b'"x"', "json: cannot unmarshal string into Go value of type api.ChatRequest"),
    ],
)
def test_bodies_that_are_no_request(body: bytes, text: str) -> None:
    with pytest.raises(VllamaError) as caught:
        read_object(body, "ChatRequest")
    assert caught.value.message == text


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"null", {}),
        (b'{"a":1} {"b":2}', {"a": 1}),
        (b'{"a":1}garbage', {"a": 1}),
        (b'{"Model":"x","STREAM":false}', {"model": "x", "stream": False}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'{"a":"\xff"}', {"a": "\N{REPLACEMENT CHARACTER}"}),
        (b'{"a":"\\ud800"}', {"a": "?"}),
    ],
)
def test_bodies_that_are_read_anyway(body: bytes, value: object) -> None:
    assert read_object(body, "X") == value


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_a_refusal(body: bytes) -> None:
    try:
        assert isinstance(read_object(body, "X"), dict)
    except VllamaError as error:
        assert error.message


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(VllamaError, match="invalid JSON"):
        read_object(b'{"a":' + b"[" * 200_000, "X")


@pytest.mark.parametrize(
    ("value", "shown"), [(5, "number"), ("x", "string"), ([], "array"), ({}, "object"), (1.5, "number 1.5")]
)
def test_wrong_types_are_told_as_go_does(value: object, shown: str) -> None:
    with pytest.raises(VllamaError) as caught:
        Fields({"stream": value}, "GenerateRequest").flag("stream", default=True)
    assert caught.value.message == (
        f"json: cannot unmarshal {shown} into Go struct field GenerateRequest.stream of type bool"
    )
