"""Every option is mapped within the engine's ranges, or accepted and named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllamad.dialects.ollama_errors import status_of
from vllamad.dialects.ollama_options import OPTIONS, read_options
from vllamad.domain.errors import VllamaError

PAGE = Path(__file__).parents[2] / "docs/reference/ollama-differences.md"
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63)
VALUES = {
    "integer": NUMBERS,
    "float32": NUMBERS,
    "boolean": st.booleans(),
    "array": st.lists(st.text(max_size=3), max_size=4),
}


def test_ollamas_defaults_are_sent() -> None:
    assert read_options({}).sampling(4096) == {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


@settings(max_examples=40)
@given(st.fixed_dictionaries({}, optional={name: VALUES[row.kind] for name, row in OPTIONS.items()}))
def test_whatever_is_asked_the_engine_accepts_it(options: dict[str, Any]) -> None:
    read = read_options(options)
    fields = read.sampling(4096)
    assert 0 <= fields["temperature"] <= 2
    assert fields["top_k"] >= 0
    assert 0 < fields["top_p"] <= 1
    assert 0 <= fields["min_p"] <= 1
    assert fields["repetition_penalty"] > 0
    assert -2 <= fields["presence_penalty"] <= 2
    assert -2 <= fields["frequency_penalty"] <= 2
    assert 1 <= fields.get("max_tokens", 1) <= 4096
    assert 0 <= fields.get("seed", 0) < 2**63
    assert all(fields.get("stop", ["x"]))
    named = {name for name, _ in read.without_effect}
    assert named >= {name for name in options if OPTIONS[name].no_effect}


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"temperature": 3}, "temperature", 2.0),
        ({"top_p": 0}, "top_p", 1e-6),
        ({"top_p": 7}, "top_p", 1.0),
        ({"top_k": -1}, "top_k", 0),
        ({"seed": 0}, "seed", 0),
        ({"seed": -1}, "seed", None),
        ({"num_predict": 3.7}, "max_tokens", 3),
        ({"num_predict": 0}, "max_tokens", None),
        ({"num_predict": -1}, "max_tokens", None),
        ({"num_predict": -2}, "max_tokens", None),
        ({"num_predict": 10**9}, "max_tokens", 4096),
        ({"repeat_penalty": 1.3}, "repetition_penalty", 1.3),
        ({"repeat_penalty": 1.3, "repeat_last_n": 0}, "repetition_penalty", 1.0),
        ({"repeat_penalty": 0}, "repetition_penalty", 1.0),
        ({"stop": ["", "a", ""]}, "stop", ["a"]),
        ({"stop": [""]}, "stop", None),
        ({"temperature": None}, "temperature", 0.8),
    ],
)
def test_mapping(options: dict[str, Any], field: str, value: object) -> None:
    assert read_options(options).sampling(4096).get(field) == value


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_ctx": "8k"}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": True}, 'option "num_ctx" must be of type integer'),
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"numa": 1}, 'option "numa" must be of type boolean'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
        ({"stop": [1]}, 'option "stop" must be of an array of strings'),
        ({"mirostat": "on"}, 'option "mirostat" must be of type integer'),
    ],
)
def test_wrong_types_are_refused_with_ollamas_text_and_status(options: dict[str, Any], text: str) -> None:
    with pytest.raises(VllamaError) as caught:
        read_options(options)
    assert caught.value.message == text
    assert status_of(caught.value) == 500


def test_what_has_no_effect_is_named() -> None:
    read = read_options({"mirostat": 2, "bogus": 1, "repeat_last_n": 128, "temperature": 0})
    assert [name for name, _ in read.without_effect] == ["mirostat", "bogus", "repeat_last_n"]


def test_the_page_tells_of_every_option() -> None:
    page = PAGE.read_text()
    assert [name for name in OPTIONS if f"`{name}`" not in page] == []
