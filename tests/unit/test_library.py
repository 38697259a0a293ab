"""The library table: every row is sound, and names resolve as Ollama's users expect."""

import re

import pytest

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability
from vllamad.domain.names import ModelRef
from vllamad.domain.ports import HubSource
from vllamad.hub.library import CLOUD_REFUSED, NOT_THERE, load_library, resolve
from vllamad.hub.parsers import guess_parsers

LIBRARY = load_library()
ROWS = [(f"{name}:{tag}", row) for name, family in LIBRARY.families.items() for tag, row in family.rows.items()]


def _resolve(text: str) -> HubSource:
    return resolve(ModelRef.parse(text))


def _refused(text: str) -> VllamaError:
    with pytest.raises(VllamaError) as caught:
        _resolve(text)
    return caught.value


def test_every_parser_is_one_that_the_engine_registers() -> None:
    unknown = [
        (name, row.tool_parser, row.reasoning_parser)
        for name, row in ROWS
        if (row.tool_parser and row.tool_parser not in LIBRARY.tool_parsers)
        or (row.reasoning_parser and row.reasoning_parser not in LIBRARY.reasoning_parsers)
    ]
    assert unknown == []
    assert len(LIBRARY.tool_parsers) == 54
    assert len(LIBRARY.reasoning_parsers) == 38


def test_every_row_is_well_formed() -> None:
    known = {capability.value for capability in Capability}
    for name, row in ROWS:
        ModelRef.parse(name)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", row.repository) or row.refusal, name
        assert set(row.capabilities) <= known, name
        assert ("embedding" in row.capabilities) != ("completion" in row.capabilities), name
        assert ("thinking" in row.capabilities) == bool(row.reasoning_parser), name
        if "tools" in row.capabilities:
            assert row.tool_parser, name


def test_every_name_alone_means_one_of_its_tags() -> None:
    for name, family in LIBRARY.families.items():
        assert family.latest in family.rows, name
        if not family.rows[family.latest].refusal:
            assert _resolve(name) == _resolve(f"{name}:latest") == _resolve(f"{name}:{family.latest}"), name


def test_every_row_resolves_to_its_repository_in_any_case() -> None:
    for name, row in ROWS:
        if row.refusal:
            assert _refused(name).reason is Reason.UNSUPPORTED
            assert row.refusal in _refused(name).message
            continue
        for typed in (name, name.upper(), f"library/{name}"):
            found = _resolve(typed)
            assert (found.repository, found.tool_parser) == (row.repository, row.tool_parser), typed
            assert found.is_gated == row.is_gated


@pytest.mark.parametrize(
    ("typed", "repository"),
    [
        ("qwen3", "Qwen/Qwen3-8B"),
        ("qwen3:fp16", "Qwen/Qwen3-8B"),
        ("qwen3:0.6b-q4_K_M", "Qwen/Qwen3-0.6B"),
        ("qwen3:0.6b-fp16", "Qwen/Qwen3-0.6B"),
        ("qwen3:4b-instruct", "Qwen/Qwen3-4B-Instruct-2507"),
        ("qwen3:4b-instruct-2507-q8_0", "Qwen/Qwen3-4B-Instruct-2507"),
        ("qwen3:4b-thinking-2507-q4_K_M", "Qwen/Qwen3-4B-Thinking-2507"),
        ("llama3.2:1b-instruct-q4_K_M", "meta-llama/Llama-3.2-1B-Instruct"),
        ("llama3.2:1b-text-fp16", "meta-llama/Llama-3.2-1B"),
        ("llama2:7b-chat-q4_0", "meta-llama/Llama-2-7b-chat-hf"),
        ("gemma3:4b-it-q4_K_M", "google/gemma-3-4b-it"),
        ("qwen2.5-coder:7b-base", "Qwen/Qwen2.5-Coder-7B"),
        ("codellama:7b-code", "codellama/CodeLlama-7b-hf"),
        ("granite4:350m-h", "ibm-granite/granite-4.0-h-350m"),
        ("all-minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("glm-4.7-flash", "zai-org/GLM-4.7-Flash"),
        ("smollm2:135m-instruct-fp16", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
)
def test_tags_lose_the_suffixes_that_choose_among_files(typed: str, repository: str) -> None:
    assert _resolve(typed).repository == repository


def test_a_base_model_has_no_parsers() -> None:
    base = _resolve("qwen2.5-coder:7b-base")
    assert (base.tool_parser, base.reasoning_parser, base.capabilities) == ("", "", ("completion", "insert"))


@pytest.mark.parametrize(
    ("typed", "repository", "revision"),
    [
        ("org/repo", "org/repo", ""),
        ("org/repo:main", "org/repo", "main"),
        ("hf.co/org/repo", "org/repo", ""),
        ("hf.co/org/repo:Q4_K_M", "org/repo", ""),
        ("hf.co/org/repo:IQ3_XXS", "org/repo", ""),
        ("hf.co/org/repo:UD-Q4_K_XL", "org/repo", ""),
        ("huggingface.co/Org/Repo:v1.0", "Org/Repo", "v1.0"),
    ],
)
def test_repositories(typed: str, repository: str, revision: str) -> None:
    assert _resolve(typed) == HubSource(repository, revision)


def test_a_repository_of_the_table_has_its_columns_under_its_full_name_too() -> None:
    found = _resolve("qwen/qwen3-0.6b")
    assert found.repository == "qwen/qwen3-0.6b"
    assert (found.tool_parser, found.reasoning_parser) == ("hermes", "qwen3")


@pytest.mark.parametrize("typed", ["gpt-oss:120b-cloud", "qwen3:cloud", "QWEN3:480b-CLOUD", "org/repo:cloud"])
def test_cloud_names_are_refused_with_the_known_text(typed: str) -> None:
    error = _refused(typed)
    assert (error.reason, error.message, error.row.ollama) == (Reason.PERMISSION_DENIED, CLOUD_REFUSED, 403)


@pytest.mark.parametrize("typed", ["nosuchmodel", "qwen3:7b", "qwen3:8b-nosuch", "gemma4:e4b-base"])
def test_unknown_names_get_the_text_that_clients_compare(typed: str) -> None:
    error = _refused(typed)
    assert (error.reason, error.message) == (Reason.MODEL_NOT_FOUND, NOT_THERE)
    assert error.hint


def test_a_near_name_is_hinted_at() -> None:
    assert "did you mean qwen3" in (_refused("qwen-3").hint or "")
    assert "0.6b" in (_refused("qwen3:7b").hint or "")


@pytest.mark.parametrize("typed", ["x/z-image-turbo", "h.example/a/b", "llama3.2-vision", "bakllava", "moondream"])
def test_what_the_engine_cannot_run_is_said_so(typed: str) -> None:
    assert _refused(typed).reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("family", "template", "parsers"),
    [
        ("qwen2", "{% if tools %}<tool_call>", ("hermes", "")),
        ("qwen3", "{% if tools %}<tool_call>{% if enable_thinking %}", ("hermes", "qwen3")),
        ("qwen3_moe", "{% if tools %}<function=", ("qwen3_coder", "")),
        ("qwen3_5", "{% if tools %}<function=<think>", ("qwen3_coder", "qwen3")),
        ("nemotron_h", "{% if tools %}<function={% if enable_thinking %}", ("qwen3_coder", "nemotron_v3")),
        ("llama", "{% if tools %}<|python_tag|>", ("llama3_json", "")),
        ("llama", "{{ messages }}", ("", "")),
        ("llama4", "{% if tools %}", ("llama4_pythonic", "")),
        ("mistral", "{% if tools %}[TOOL_CALLS]", ("mistral", "")),
        ("mistral3", "{% if tools %}[TOOL_CALLS][THINK]", ("mistral", "mistral")),
        ("gpt_oss", "{% if tools %}", ("openai", "openai_gptoss")),
        ("gemma4", "{% if tools %}", ("gemma4", "gemma4")),
        ("gemma3", "{{ messages }}", ("", "")),
        ("deepseek_v3", "{% if tools %}<think>", ("deepseek_v3", "deepseek_r1")),
        ("qwen2", "<think>", ("", "deepseek_r1")),
        ("glm4_moe", "{% if tools %}enable_thinking", ("glm45", "glm45")),
        ("glm4_moe_lite", "{% if tools %}enable_thinking", ("glm47", "glm47")),
        ("granite", "{% if tools %}{% if thinking %}", ("granite", "granite")),
        ("granitemoehybrid", "{% if tools %}", ("granite4", "")),
        ("phi3", "{% if tools %}<|tool|>", ("phi4_mini_json", "")),
        ("lfm2", "{% if tools %}", ("lfm2", "")),
        ("gpt_oss", "", ("", "")),
        ("", "", ("", "")),
    ],
)
def test_parsers_of_models_outside_the_table(family: str, template: str, parsers: tuple[str, str]) -> None:
    assert guess_parsers(family, template) == parsers
    assert parsers[0] in LIBRARY.tool_parsers | {""}
    assert parsers[1] in LIBRARY.reasoning_parsers | {""}
