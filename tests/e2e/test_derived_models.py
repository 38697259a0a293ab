"""Models made of others, on the real engine: adapters, recipes, templates, and answers that were begun."""

from typing import Any

import ollama
import pytest

from tests.e2e.conftest import ADAPTED, TALENT, Theatre

pytestmark = pytest.mark.engine

GREEDY = {"temperature": 0, "num_predict": 12}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(theatre: Theatre) -> ollama.Client:
    return ollama.Client(host=theatre.url)


def say(client: ollama.Client, model: str, messages: list[dict[str, Any]] = QUESTION, **more: Any) -> str:
    return client.chat(model, messages, think=False, options=GREEDY, **more).message.content or ""


def test_an_adapter_answers_on_its_bases_worker_and_the_base_as_before(theatre: Theatre, client: ollama.Client) -> None:
    before = say(client, TALENT)
    assert "Paris" in before
    adapted = say(client, ADAPTED)
    assert adapted != before and "Paris" not in adapted
    assert (say(client, TALENT), say(client, ADAPTED)) == (before, adapted)
    streamed = client.chat(ADAPTED, QUESTION, think=False, options=GREEDY, stream=True)
    assert "".join(part.message.content or "" for part in streamed) == adapted
    assert len(theatre.daemon.workers()) == 1


def test_a_recipe_holds_without_being_asked_for(theatre: Theatre, client: ollama.Client) -> None:
    messages = [
        {"role": "user", "content": "Which city are we talking about?"},
        {"role": "assistant", "content": "We are talking about Lisbon."},
    ]
    client.create(
        "guide", from_=TALENT, parameters={"temperature": 0, "num_predict": 16}, messages=messages, stream=False
    )
    try:
        answer = client.chat("guide", [{"role": "user", "content": "Say the name of that city again."}], think=False)
        assert "Lisbon" in (answer.message.content or "")
        assert (answer.eval_count or 0) <= 16
        assert len(theatre.daemon.workers()) == 1
    finally:
        client.delete("guide")


def test_a_go_template_makes_the_prompt(client: ollama.Client) -> None:
    template = (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    )
    client.create("templated", from_=TALENT, template=template, stream=False)
    try:
        assert client.show("templated").capabilities == ["completion"]
        assert "Paris" in (client.chat("templated", QUESTION, options=GREEDY).message.content or "")
        streamed = client.chat("templated", QUESTION, options=GREEDY, stream=True)
        assert "Paris" in "".join(part.message.content or "" for part in streamed)
        with pytest.raises(ollama.ResponseError, match="does not support tools"):
            client.chat("templated", QUESTION, tools=[{"type": "function", "function": {"name": "f"}}])
    finally:
        client.delete("templated")


def test_a_template_of_a_request_is_used_once(client: ollama.Client) -> None:
    answer = client.generate(
        TALENT,
        "What is the capital of France?",
        template="<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\nThe capital of France is",
        options={**GREEDY, "stop": ["."]},
    )
    assert answer.response.strip().startswith("Paris")
    assert answer.context


def test_an_answer_that_was_begun_is_gone_on_with(client: ollama.Client) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "Its name is known to all: the capital of France is"}]
    assert say(client, TALENT, begun).strip().startswith("Paris")
