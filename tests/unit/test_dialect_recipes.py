"""What a Modelfile means: for the model that is made with it, and for the requests to that."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.http_services import model
from vllama.reasons import Reason
from vllamad.dialects.modelfile import parse
from vllamad.dialects.ollama import EngineRequest, build_chat, build_generate, check_generate
from vllamad.dialects.ollama_create import CreateLines, known_pieces, read_create, read_digest
from vllamad.dialects.ollama_models import modelfile_of, show
from vllamad.dialects.ollama_options import read_options
from vllamad.dialects.ollama_requests import read_chat, read_generate
from vllamad.dialects.recipes import capabilities_with, changes_of, options_with
from vllamad.domain.creation import Creation, FromModel, FromUploads, inherit
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import NO_RECIPE, Adapter, Capability, Model, Recipe
from vllamad.domain.operation import FileProgress, Operation, OperationKind, Progress

CHATML = "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}{{ end }}<|assistant|>"
BASE = model("base:1")
PIRATE = model(
    "pirate",
    recipe=Recipe(
        ancestors=("base:1",),
        parameters={"temperature": 0.2, "num_ctx": 512, "stop": ("Arr",)},
        system="You are a pirate.",
        messages=(("user", "Hi"), ("assistant", "Ahoy")),
    ),
)
TODAY = "2026-02-03"
DIGEST = "ab" * 32


def chat(which: Model, **request: Any) -> EngineRequest:
    asked = read_chat(json.dumps({"model": "m", **request}).encode())
    return build_chat(asked, which, read_options(options_with(which, asked.asked.options)), 4096, TODAY)


def generate(which: Model, **request: Any) -> EngineRequest:
    asked = read_generate(json.dumps({"model": "m", **request}).encode())
    check_generate(asked, which)
    return build_generate(asked, which, read_options(options_with(which, asked.asked.options)), 4096, TODAY)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


# --- requests ---


def test_a_chat_begins_with_the_models_system_message_and_messages() -> None:
    said = [(each["role"], each["content"]) for each in chat(PIRATE, messages=[user("Where to?")]).fields["messages"]]
    assert said == [
        ("system", "You are a pirate."),
        ("user", "Hi"),
        ("assistant", "Ahoy"),
        ("user", "Where to?"),
    ]


def test_a_request_that_brings_a_system_message_keeps_its_own() -> None:
    said = chat(PIRATE, messages=[{"role": "system", "content": "Be dull."}, user("x")]).fields["messages"]
    assert [each["content"] for each in said] == ["Hi", "Ahoy", "Be dull.", "x"]


def test_a_prompts_own_system_message_replaces_the_models() -> None:
    said = generate(PIRATE, prompt="x", system="Be dull.").fields["messages"]
    assert [each["content"] for each in said] == ["Be dull.", "Hi", "Ahoy", "x"]


def test_a_context_stands_for_what_was_said_before() -> None:
    said = generate(PIRATE, prompt="x", context=[1, 2]).fields["messages"]
    assert [each["content"] for each in said] == ["You are a pirate.", "x"]


def test_parameters_hold_unless_the_request_says_otherwise() -> None:
    fields = chat(PIRATE, messages=[user("x")], options={"temperature": 0.9, "seed": None}).fields
    assert (fields["temperature"], fields["stop"]) == (0.9, ["Arr"])
    assert chat(PIRATE, messages=[user("x")]).fields["temperature"] == 0.2


def test_stop_words_of_a_request_replace_the_models() -> None:
    assert chat(PIRATE, messages=[user("x")], options={"stop": ["."]}).fields["stop"] == ["."]


def test_a_raw_prompt_is_left_alone() -> None:
    assert generate(PIRATE, prompt="x", raw=True).fields["prompt"] == "x"


def test_a_template_makes_the_prompt_and_the_engine_completes_it() -> None:
    which = replace(PIRATE, recipe=replace(PIRATE.recipe, template=CHATML))
    request = chat(which, messages=[user("Where to?")])
    assert request.path == "/v1/completions"
    assert request.fields["prompt"] == (
        "<|system|>You are a pirate.<|user|>Hi<|assistant|>Ahoy<|user|>Where to?<|assistant|>"
    )
    assert "messages" not in request.fields


def test_a_conversation_under_a_template_can_be_shortened() -> None:
    request = chat(replace(BASE, recipe=Recipe(template=CHATML)), messages=[user("one"), user("two")])
    request.say(request.conversation[1:])
    assert request.fields["prompt"] == "<|user|>two<|assistant|>"
    assert json.loads(request.tokenize_body) == {"prompt": "<|user|>two<|assistant|>"}


def test_a_template_of_the_request_wins() -> None:
    which = replace(BASE, recipe=Recipe(template=CHATML))
    assert generate(which, prompt="x", template="Q: {{ .Prompt }} A:").fields["prompt"] == "Q: x A:"


def test_a_template_that_shows_the_date_gets_it() -> None:
    assert generate(BASE, prompt="x", template="{{ currentDate }} {{ .Prompt }}").fields["prompt"] == "2026-02-03 x"


def test_a_broken_template_is_refused_in_the_known_words() -> None:
    with pytest.raises(VllamaError, match="template: :1: unclosed action"):
        generate(BASE, prompt="x", template="{{ .Prompt")


def test_a_template_and_images_do_not_go_together() -> None:
    which = model("v", Capability.COMPLETION, Capability.VISION)
    with pytest.raises(VllamaError) as caught:
        generate(which, prompt="x", template="{{ .Prompt }}", images=["iVBORw0KGgo="])
    assert caught.value.reason is Reason.UNSUPPORTED


def test_a_suffix_is_written_as_the_model_was_trained() -> None:
    which = model("coder", Capability.COMPLETION, Capability.INSERT, insert_format="<P>{prompt}<S>{suffix}<M>")
    request = generate(which, prompt="a {suffix} b", suffix="{prompt}", system="ignored")
    assert (request.path, request.fields["prompt"]) == ("/v1/completions", "<P>a {suffix} b<S>{prompt}<M>")
    assert "suffix" not in request.fields


def test_a_template_can_write_a_suffix_too() -> None:
    form = "{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ else }}{{ .Prompt }}{{ end }}"
    recipe = Recipe(template=form)
    which = replace(BASE, recipe=recipe, capabilities=capabilities_with(recipe, BASE.capabilities))
    assert which.capabilities == (Capability.COMPLETION, Capability.INSERT)
    assert generate(which, prompt="a", suffix="b").fields["prompt"] == "<P>a<S>b<M>"
    assert generate(which, prompt="a").fields["prompt"] == "a"


def test_what_needs_the_engines_parsers_is_not_claimed_under_a_template() -> None:
    every = (Capability.COMPLETION, Capability.TOOLS, Capability.VISION, Capability.THINKING)
    assert capabilities_with(Recipe(template=CHATML), every) == (Capability.COMPLETION,)
    assert capabilities_with(Recipe(system="x"), every) == every


# --- making ---


def test_a_child_inherits_what_it_does_not_change() -> None:
    child = inherit(PIRATE, Recipe(parameters={"seed": 1}, licenses=("MIT",)))
    assert child.parameters == {"temperature": 0.2, "num_ctx": 512, "stop": ("Arr",), "seed": 1}
    assert (child.system, child.messages) == ("You are a pirate.", PIRATE.recipe.messages)
    assert child.licenses == ("MIT",)
    assert child.ancestors == ("base:1", "pirate:latest")


def test_a_copy_is_no_child() -> None:
    assert inherit(PIRATE, NO_RECIPE) is PIRATE.recipe


def test_the_shown_modelfile_makes_the_same_model_again() -> None:
    recipe = replace(PIRATE.recipe, template=CHATML, licenses=("MIT\nand more",))
    text = modelfile_of(replace(PIRATE, recipe=recipe), "base:1")
    again = parse(text)
    assert again.sources == ("base:1",)
    assert inherit(BASE, changes_of(again)) == recipe


def test_show_tells_the_recipe() -> None:
    shown = show(replace(PIRATE, license="Apache", recipe=replace(PIRATE.recipe, licenses=("MIT",))), "base:1")
    assert shown["license"] == "Apache\nMIT"
    assert shown["details"]["parent_model"] == "base:1"
    assert shown["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
    assert 'stop                           "Arr"' in shown["parameters"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM a\nDRAFT ./x", "DRAFT is not supported"),
        ("FROM a\nTEMPLATE {{ .Nope", "template error: template: :1: unclosed action"),
    ],
)
def test_what_a_modelfile_cannot_have_here_is_refused(text: str, message: str) -> None:
    with pytest.raises(VllamaError) as caught:
        changes_of(parse(text))
    assert caught.value.message == message


def creation(**fields: Any) -> Creation:
    return read_create(json.dumps({"model": "x", **fields}).encode()).creation()


def test_a_request_to_create_is_read_whole() -> None:
    asked = creation(
        **{"from": "base:1"},
        system="s",
        template="{{ .Prompt }}",
        parameters={"temperature": 1, "stop": ["a"]},
        license=["MIT", "BSD"],
        messages=[{"role": "User", "content": "q"}],
        quantize="FP8",
    )
    assert asked == Creation(
        FromModel("base:1"),
        Recipe(
            parameters={"temperature": 1.0, "stop": ("a",)},
            system="s",
            template="{{ .Prompt }}",
            messages=(("user", "q"),),
            licenses=("MIT", "BSD"),
            quantize="fp8",
        ),
    )


def test_an_adapters_files_lose_their_folder() -> None:
    files = {"lora/adapter_config.json": f"sha256:{DIGEST}"}
    assert creation(**{"from": "a"}, adapters=files).adapter == FromUploads({"adapter_config.json": DIGEST})


def test_an_adapter_is_asked_for_by_name() -> None:
    adapter = Adapter("cd" * 32, (), "/nowhere", 8)
    fields = chat(replace(PIRATE, adapter=adapter), messages=[user("x")]).fields
    assert fields["model"] == "adapter-cdcdcdcdcdcdcdcd"
    assert "model" not in chat(PIRATE, messages=[user("x")]).fields


def test_files_are_paths_and_digests() -> None:
    assert creation(files={"a/b.gguf": f"sha256:{DIGEST.upper()}"}).origin == FromUploads({"a/b.gguf": DIGEST})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"files": {"../x": f"sha256:{DIGEST}"}}, "file path must be relative"),
        ({"files": {"/x": f"sha256:{DIGEST}"}}, "file path must be relative"),
        ({"files": {"x": "sha256:12"}}, "invalid digest format"),
        ({"files": {"x": 5}}, "json: cannot unmarshal number into Go struct field CreateRequest.files of type string"),
        ({"draft_quantize": "q8_0"}, "--draft-quantize requires a DRAFT model"),
        ({}, "neither 'from' or 'files' was specified"),
        ({"from": "a", "adapters": {"x.gguf": f"sha256:{DIGEST}"}}, "adapters in GGUF are not supported"),
        (
            {"from": "a", "adapters": {"x/a": f"sha256:{DIGEST}", "y/a": f"sha256:{DIGEST}"}},
            "only one adapter is currently supported",
        ),
        ({"from": "::"}, "invalid model name"),
        ({"from": "a", "messages": [{"role": "tool"}]}, 'message role must be one of "system", "user", or "assistant"'),
        ({"from": "a", "parameters": {"tempreature": 1}}, "unknown parameter 'tempreature'"),
        ({"from": "a", "parameters": {"num_ctx": "x"}}, 'option "num_ctx" must be of type integer'),
    ],
)
def test_bad_requests_to_create_name_the_fault(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(VllamaError) as caught:
        creation(**fields)
    assert caught.value.message == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["model", "from", "files", "adapters", "template", "system", "license", "parameters", "messages", "quantize"]
    ),
    JSON,
)


@given(FIELDS)
def test_no_request_to_create_is_a_crash(fields: dict[str, Any]) -> None:
    try:
        read_create(json.dumps({"model": "x", **fields}).encode()).creation()
    except VllamaError as error:
        assert error.message


@given(st.text())
def test_digests_are_read_or_refused(text: str) -> None:
    try:
        assert len(read_digest(text)) == 64
    except VllamaError as error:
        assert error.message == "invalid digest format"


# --- the lines of a creation ---


def operation(progress: Progress) -> Operation:
    return Operation(1, OperationKind.CREATE, "x", progress, 0.0)


def test_lines_tell_what_is_new_and_what_was_here() -> None:
    lines = CreateLines(Creation(FromModel("base:1")), known_pieces([BASE]))
    child = replace(BASE, recipe=Recipe(system="s"))
    told = [line["status"].split(" sha256:")[0] for line in lines.finish(child)]
    assert told == ["using existing layer", "creating new layer", "writing manifest", "success"]


def test_lines_of_a_gguf_are_whole_though_snapshots_were_missed() -> None:
    lines = CreateLines(Creation(FromUploads({"m.GGUF": DIGEST})), known_pieces([]))
    told = lines.feed(operation(Progress("converting"))) + lines.feed(operation(Progress("writing")))
    told += lines.finish(BASE)
    assert [line["status"].split(" sha256:")[0] for line in told] == [
        "parsing GGUF",
        "converting model",
        "verifying conversion",
        "creating new layer",
        "writing manifest",
        "success",
    ]


def test_a_base_that_is_pulled_shows_the_lines_of_a_pull() -> None:
    lines = CreateLines(Creation(FromModel("far")), known_pieces([]))
    first = lines.feed(operation(Progress("resolving")))
    files = (FileProgress("model.safetensors", 5, 10, DIGEST),)
    told = first + lines.feed(operation(Progress("downloading", files=files)))
    assert [line["status"] for line in told] == ["pulling manifest", f"pulling {DIGEST[:12]}"]
