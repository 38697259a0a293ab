"""The official JavaScript client drives the daemon: each test plays one scene of ``javascript/client.mjs``."""

import json
import subprocess
from typing import Any

import pytest

from tests.e2e.conftest import TALENT, Theatre
from tests.e2e.real_engine import JAVASCRIPT_S, javascript_command, play_javascript

pytestmark = pytest.mark.engine

PARIS = "The capital of France is Paris."


def play(theatre: Theatre, scene: str) -> Any:
    return play_javascript(theatre.daemon, TALENT, scene)


def test_chat_and_generate_whole_and_streamed(theatre: Theatre) -> None:
    seen = play(theatre, "speaking")
    assert seen["chat"]["message"] == {"role": "assistant", "content": PARIS}
    assert seen["generate"]["response"] == PARIS
    for answer in (seen["chat"], seen["generate"], seen["chatParts"][-1], seen["generateParts"][-1]):
        assert (answer["model"], answer["done"], answer["done_reason"]) == (TALENT, True, "stop")
        assert answer["eval_count"] > 5 and answer["eval_duration"] > 0 and answer["prompt_eval_count"] > 5
    assert "".join(part["message"]["content"] for part in seen["chatParts"]) == PARIS
    assert "".join(part["response"] for part in seen["generateParts"]) == PARIS
    assert len(seen["chatParts"]) > 3, "tokens arrive one by one"
    assert seen["generate"]["context"] == seen["generateParts"][-1]["context"]


def test_models_are_created_listed_shown_copied_run_and_deleted(theatre: Theatre) -> None:
    seen = play(theatre, "models")
    assert [part["status"] for part in seen["created"]][-2:] == ["writing manifest", "success"]
    assert seen["createdWhole"] == {"status": "success"}
    names = {model["name"] for model in seen["list"]["models"]}
    assert names >= {TALENT, "from-javascript:latest", "from-javascript:whole", "from-javascript:copy"}
    assert seen["show"]["system"] == "You are a lighthouse."
    assert "num_predict" in seen["show"]["parameters"]
    assert seen["show"]["capabilities"] == ["completion", "tools", "thinking"]
    assert seen["show"]["details"]["parent_model"] == TALENT
    assert seen["show"]["model_info"]["llama.context_length"] == 8192
    chat = seen["chat"]
    assert (chat["model"], chat["eval_count"], chat["done_reason"]) == ("from-javascript", 3, "length")
    (running,) = seen["ps"]["models"]
    assert running["size"] > 1e8 and running["size_vram"] == 0 and running["details"]["family"] == "llama"
    assert seen["deleted"] == {"status": "success"}
    assert not any("javascript" in name for name in seen["left"])
    assert seen["version"]["version"].count(".") == 2
    assert len(theatre.daemon.workers()) == 1, "what was made of the same files needs no engine of its own"


def test_refusals_reach_it_with_status_and_words(theatre: Theatre) -> None:
    seen = play(theatre, "refusals")
    assert {refusal["name"] for refusal in seen.values()} == {"ResponseError"}
    for name, status, words in (
        ("unknown", 404, "model 'nope' not found"),
        ("unknownStream", 404, "model 'nope' not found"),
        ("show", 404, "model 'nope:latest' not found"),
        ("remove", 404, "model 'nope' not found"),
        ("embed", 501, f'"{TALENT}" does not support embeddings'),
        ("push", 400, "push is not supported"),
        ("images", 400, "does not support multimodal requests"),
    ):
        assert seen[name]["status"] == status, (name, seen[name])
        assert words in seen[name]["error"], (name, seen[name])


@pytest.mark.parametrize(("scene", "streams"), [("abortOne", 1), ("abortAll", 3)])
def test_an_abort_ends_the_engines_work(theatre: Theatre, scene: str, streams: int) -> None:
    """The client's process lives on meanwhile: nothing but the abort closes its connections."""
    before = theatre.finished()
    with subprocess.Popen(
        javascript_command(theatre.daemon, TALENT, scene),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout and client.stdin and client.stderr
        try:
            line = client.stdout.readline()
            assert line, client.stderr.read()
            seen = json.loads(line)
            assert seen["seen"] == 2 * streams
            assert [end["name"] for end in seen["ends"]] == ["AbortError"] * streams
            asked = theatre.wait_settled()
            assert theatre.finished() - before == asked, "an answer was finished that nobody wanted"
            assert client.poll() is None
            client.stdin.close()
            assert client.wait(JAVASCRIPT_S) == 0
        finally:
            client.kill()
