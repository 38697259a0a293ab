"""What is known about a model, and what configuration adds."""

from dataclasses import replace

from tests.fakes.http_services import model
from vllamad.domain.model import Capability, Recipe, with_parsers

PLAIN = model("m")


def test_a_parser_that_was_chosen_by_hand_makes_a_capability() -> None:
    able = with_parsers(PLAIN, "hermes", "qwen3")
    assert able.capabilities == (Capability.COMPLETION, Capability.TOOLS, Capability.THINKING)
    assert (able.tool_parser, able.reasoning_parser) == ("hermes", "qwen3")


def test_a_parser_that_was_found_gives_way_to_one_that_was_chosen() -> None:
    found = replace(PLAIN, tool_parser="hermes", capabilities=(Capability.COMPLETION, Capability.TOOLS))
    chosen = with_parsers(found, "llama3_json", "")
    assert chosen.tool_parser == "llama3_json"
    assert chosen.capabilities == found.capabilities


def test_without_a_choice_the_model_is_as_it_was_stored() -> None:
    assert with_parsers(PLAIN, "", "") is PLAIN


def test_parsers_are_no_capability_where_the_engine_parses_nothing() -> None:
    templated = replace(PLAIN, recipe=Recipe(template="{{ .Prompt }}"))
    assert with_parsers(templated, "hermes", "qwen3").capabilities == (Capability.COMPLETION,)
    embedding = model("e", Capability.EMBEDDING)
    assert with_parsers(embedding, "hermes", "").capabilities == (Capability.EMBEDDING,)
