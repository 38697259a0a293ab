"""Names of models: what is accepted, what it means, and that the display form says the same again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.names import ModelRef

_PART = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "ref", "shown"),
    [
        ("qwen3", ModelRef("qwen3"), "qwen3:latest"),
        ("qwen3:0.6b", ModelRef("qwen3", "0.6b"), "qwen3:0.6b"),
        ("  qwen3 ", ModelRef("qwen3"), "qwen3:latest"),
        ("Qwen/Qwen3-0.6B", ModelRef("Qwen3-0.6B", namespace="Qwen"), "Qwen/Qwen3-0.6B:latest"),
        ("a/b:main", ModelRef("b", "main", "a"), "a/b:main"),
        ("hf.co/a/b:Q4_K_M", ModelRef("b", "Q4_K_M", "a", "hf.co"), "hf.co/a/b:Q4_K_M"),
        ("127.0.0.1:5000/a/b", ModelRef("b", "latest", "a", "127.0.0.1:5000"), "127.0.0.1:5000/a/b:latest"),
    ],
)
def test_parse_and_show(text: str, ref: ModelRef, shown: str) -> None:
    assert ModelRef.parse(text) == ref
    assert str(ref) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        ":tag",
        "x:",
        "/x",
        "x/",
        "a//b",
        "a/b/c/d",
        "..",
        "../x",
        "a/../b",
        ".x",
        "-x",
        "x:y:z",
        "x\n",
        "é",
    ],
)
def test_bad_names_are_refused_with_the_known_text(text: str) -> None:
    if text == "x\n":  # blanks around a name are trimmed, a line's end too
        assert ModelRef.parse(text) == ModelRef("x")
        return
    with pytest.raises(VllamaError) as caught:
        ModelRef.parse(text)
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert caught.value.message == "invalid model name"


@given(_PART, _PART, st.one_of(st.just(""), _PART), st.sampled_from(["", "hf.co", "h.example:99"]))
def test_display_form_parses_back(model: str, tag: str, namespace: str, host: str) -> None:
    ref = ModelRef(model, tag, namespace, host if namespace else "")
    assert ModelRef.parse(str(ref)) == ref


def test_names_compare_without_case_and_keep_their_spelling() -> None:
    one, other = ModelRef.parse("Org/Repo:Main"), ModelRef.parse("org/repo:main")
    assert one.key == other.key
    assert str(one) == "Org/Repo:Main"


@pytest.mark.parametrize(
    ("text", "is_repository"),
    [("qwen3", False), ("a/b", True), ("hf.co/a/b", True), ("HuggingFace.co/a/b", True), ("h.example/a/b", False)],
)
def test_which_names_can_only_be_repositories(text: str, is_repository: bool) -> None:
    assert ModelRef.parse(text).is_repository is is_repository


@given(_PART, _PART, _PART)
def test_slug_is_one_safe_short_path_part(model: str, tag: str, namespace: str) -> None:
    slug = ModelRef(model, tag, namespace).slug
    assert slug
    assert len(slug) <= 40
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    assert not slug.startswith(".")
