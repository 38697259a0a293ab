"""Every method of the official Python client that speaks to a server of one's own, sync and async.

The main job's tests have more of ``chat``, those of embeddings have ``embed``; here is what needs no engine of its own.
Left out are the web methods, which ask a cloud, and ``systemone``, which is not under ``/api``.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.e2e.conftest import ADAPTED, TALENT, Theatre
from tests.fakes.hub import tiny_model

pytestmark = pytest.mark.engine

GREEDY = {"temperature": 0, "num_predict": 12}
QUESTION = "What is the capital of France?"
PARIS = "The capital of France is Paris."
REPO = "org/tiny"


class Both:
    """The sync client under the async one's interface, and the async one: a conversation is written once."""

    def __init__(self, url: str, *, is_async: bool) -> None:
        self.is_async = is_async
        self.client: Any = ollama.AsyncClient(host=url) if is_async else ollama.Client(host=url)

    async def ask(self, method: str, *words: object, **more: object) -> Any:
        """The answer; of a stream, its parts."""
        answer = getattr(self.client, method)(*words, **more)
        if not self.is_async:
            return list(answer) if more.get("stream") else answer
        answer = await answer
        return [part async for part in answer] if more.get("stream") else answer

    async def refusal(self, method: str, *words: object, **more: object) -> tuple[int, str]:
        """Status and text of the error that must come."""
        with pytest.raises(ollama.ResponseError) as caught:
            await self.ask(method, *words, **more)
        return caught.value.status_code, caught.value.error

    async def close(self) -> None:
        closing = self.client.close()
        if self.is_async:
            await closing


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def runner(theatre: Theatre, request: pytest.FixtureRequest) -> Iterator[tuple[asyncio.Runner, Both]]:
    with asyncio.Runner() as loop:
        both = Both(theatre.url, is_async=request.param)
        yield loop, both
        loop.run(both.close())


Talking = tuple[asyncio.Runner, Both]


def test_generate_and_chat(runner: Talking) -> None:
    loop, both = runner

    async def talk() -> None:
        whole = await both.ask("generate", TALENT, QUESTION, think=False, options=GREEDY)
        assert (whole.response, whole.done_reason) == (PARIS, "stop")
        parts = await both.ask("generate", TALENT, QUESTION, think=False, options=GREEDY, stream=True)
        assert "".join(part.response for part in parts) == PARIS
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert parts[-1].context == whole.context
        assert parts[-1].eval_count == whole.eval_count
        message = [{"role": "user", "content": QUESTION}]
        parts = await both.ask("chat", TALENT, message, think=False, options=GREEDY, stream=True)
        assert "".join(part.message.content for part in parts) == PARIS
        raw = await both.ask("generate", TALENT, "1, 2, 3,", raw=True, options={"temperature": 0, "num_predict": 4})
        assert raw.response.startswith(" 4")

    loop.run(talk())


def test_create_from_a_model_list_show_ps_copy_delete(runner: Talking, theatre: Theatre) -> None:
    loop, both = runner

    async def talk() -> None:
        system, parameters = "You are a lighthouse.", {"num_predict": 3, "temperature": 0}
        asked = {"from_": TALENT, "system": system, "parameters": parameters, "license": "Apache-2.0"}
        parts = await both.ask("create", "lamp", **asked, stream=True)
        assert [part.status for part in parts][-2:] == ["writing manifest", "success"]
        assert (await both.ask("create", "lamp:whole", **asked)).status == "success"
        listed = {model.model: model for model in (await both.ask("list")).models}
        assert {TALENT, "lamp:latest", "lamp:whole"} <= set(listed)
        assert listed["lamp:latest"].size > 2e8
        assert listed["lamp:latest"].details.parameter_size == "134.52M"
        shown = await both.ask("show", "lamp")
        assert "Apache-2.0" in shown.license
        assert f"SYSTEM {system}" in shown.modelfile or f'"""{system}"""' in shown.modelfile
        assert shown.capabilities == ["completion", "tools", "thinking"]
        assert shown.details.parent_model == TALENT
        assert (await both.ask("generate", "lamp", QUESTION, think=False)).eval_count == 3
        (running,) = (await both.ask("ps")).models
        assert running.size > 1e8
        assert running.context_length == theatre.daemon.workers()[0]["context_length"]
        assert (await both.ask("copy", "lamp", "lantern")).status == "success"
        assert (await both.ask("show", "lantern")).modelfile.count(system) == 1
        for name in ("lamp", "lamp:whole", "lantern"):
            assert (await both.ask("delete", name)).status == "success"
        assert await both.refusal("delete", "lantern") == (404, "model 'lantern' not found")
        assert {model.model for model in (await both.ask("list")).models} == {TALENT, ADAPTED}
        assert len(theatre.daemon.workers()) == 1

    loop.run(talk())


def test_create_from_files_that_were_sent(runner: Talking, tmp_path: Path) -> None:
    loop, both = runner

    async def talk() -> None:
        digests: dict[str, str] = {}
        for name, data in tiny_model(salt=str(both.is_async)).items():
            (tmp_path / name).write_bytes(data)
            digests[name] = await both.ask("create_blob", tmp_path / name)
            assert digests[name] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        parts = await both.ask("create", "sent", files=digests, stream=True)
        assert parts[-1].status == "success"
        assert (await both.ask("show", "sent")).details.family == "llama"
        assert (await both.ask("delete", "sent")).status == "success"
        status, text = await both.refusal("create", "sent", files={"model.safetensors": "sha256:" + "0" * 64})
        assert status == 400 and "0" * 64 in text

    loop.run(talk())


def test_pull(runner: Talking, theatre: Theatre) -> None:
    loop, both = runner
    theatre.hub.add_repo(REPO, tiny_model(salt=f"pull {both.is_async}"))

    async def talk() -> None:
        parts = await both.ask("pull", REPO, stream=True)
        assert (parts[0].status, parts[-1].status) == ("pulling manifest", "success")
        assert all((part.completed or 0) <= part.total for part in parts if part.total)
        assert (await both.ask("pull", REPO)).status == "success"
        assert f"{REPO}:latest" in {model.model for model in (await both.ask("list")).models}
        assert (await both.ask("delete", REPO)).status == "success"
        assert await both.refusal("pull", "org/nothing") == (500, "pull model manifest: file does not exist")

    loop.run(talk())


def test_what_is_refused(runner: Talking) -> None:
    loop, both = runner

    async def talk() -> None:
        status, text = await both.refusal("push", TALENT)
        assert status == 400 and text.startswith("push is not supported")
        status, text = await both.refusal("push", TALENT, stream=True)
        assert status == 400 and text.startswith("push is not supported")
        assert await both.refusal("embed", TALENT, QUESTION) == (501, f'"{TALENT}" does not support embeddings')
        assert await both.refusal("embeddings", TALENT, QUESTION) == (500, f'"{TALENT}" does not support embeddings')
        assert await both.refusal("show", "nothing") == (404, "model 'nothing:latest' not found")
        assert await both.refusal("copy", "nothing", "something") == (404, 'model "nothing" not found')
        assert await both.refusal("generate", "nothing", "Hi") == (404, "model 'nothing' not found")
        assert (await both.refusal("create", "x", from_="nothing/here"))[0] in (404, 500)

    loop.run(talk())
