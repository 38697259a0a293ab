"""Recordings of a real Ollama server, replayed against our face: status, headers, keys and their order, types, lines,
texts of errors and of answers. What is different on purpose is listed in docs/reference/ollama-differences.md."""

import asyncio
import hashlib
import json
import math
import re
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from tests.fakes.http_services import Answer, FakeStream, World, embeds, event, make_world, model, refusal, worker
from tests.fakes.shelf import real_catalog
from vllama.reasons import Reason
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import Capability, Recipe
from vllamad.domain.names import ModelRef
from vllamad.domain.operation import FileProgress, Progress
from vllamad.http.server import make_app
from vllamad.http.services import Services

FOLDER = Path(__file__).parent / "transcripts"
PAGE = Path(__file__).parents[2] / "docs/reference/ollama-differences.md"
CASES: dict[str, dict[str, Any]] = {
    case["name"]: case for file in sorted(FOLDER.glob("*.json")) for case in json.loads(file.read_text())
}

_COMPLETION = Capability.COMPLETION
RECIPE = Recipe(
    parameters={"stop": ("<|im_start|>", "<|im_end|>")},
    template="{{ range .Messages }}{{ .Content }}{{ end }}",
    system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)
"""What a Modelfile had said of the recorded models, for the routes that show it."""
MODELS = (
    model("smollm2:135m-bf16"),
    model("smollm2:135m"),
    model("smollm2:plain"),
    model("smollm2:tools", _COMPLETION, Capability.TOOLS),
    model("smollm2:jinja", _COMPLETION, Capability.TOOLS),
    model("smollm2:fim", _COMPLETION, Capability.INSERT),
    model("smollm2:think", _COMPLETION, Capability.THINKING),
    model("smollm2:embed", Capability.EMBEDDING),
)

_OWN_PROMPT_TOKENS = 10
"""Any number will do: where the prompt's own tokens end in a recorded context."""

DIFFERENT = [
    name
    for line in PAGE.read_text().partition("## Options")[0].splitlines()
    if line.startswith("| `")
    for name in re.findall(r"`([^`]+)`", line.split("|")[1])
]
"""The recordings that the page lists; they must differ, and all others must not."""

# Values that differ from run to run or with the settings; their type is compared.
VARYING = {
    "created_at", "modified_at", "expires_at", "total_duration", "load_duration", "prompt_eval_duration",
    "eval_duration", "version", "size", "digest", "source", "total", "completed", "modelfile", "template",
    "context_length", "quantization_level", "format", "general.parameter_count", "id", "request_id", "created",
}  # fmt: skip
COUNT = re.compile(r'(?<=request \()\d+|(?<="n_prompt_tokens":)\d+')
"""How long a prompt is that is too long: the longest texts of the recordings are shortened here."""
DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
"""In the lines of a creation; what is hashed is each server's own affair."""
ELIDED = re.compile(r"\.\.\. (\d+) more elided by the recorder")
"""What stands at the end of a vector instead of most of its numbers."""
FLOAT32 = 1e-6
"""Relative: the recorded numbers were computed in float32, some of them twice."""
COMPARED_HEADERS = (
    "content-type", "allow", "location", "vary", "access-control-allow-origin", "access-control-allow-methods",
    "access-control-allow-headers", "access-control-max-age",
)  # fmt: skip


def compare(wanted: Any, got: Any, where: str = "") -> list[str]:
    """Say where two JSON values differ in anything that is not bound to vary."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        if list(wanted) != list(got):
            return [f"{where}: keys {list(wanted)} became {list(got)}"]
        return [
            line
            for key, value in wanted.items()
            for line in (
                _compare_type(value, got[key], f"{where}.{key}")
                if key in VARYING
                else compare(value, got[key], f"{where}.{key}")
            )
        ]
    if isinstance(wanted, list) and isinstance(got, list):
        if wanted and isinstance(wanted[-1], str) and (elided := ELIDED.fullmatch(wanted[-1])):
            wanted = wanted[:-1]
            if len(got) == len(wanted) + int(elided[1]):
                got = got[: len(wanted)]
        if len(wanted) != len(got):
            return [f"{where}: {len(wanted)} items became {len(got)}"]
        return [
            line for at, (a, b) in enumerate(zip(wanted, got, strict=True)) for line in compare(a, b, f"{where}[{at}]")
        ]
    if isinstance(wanted, str) and isinstance(got, str):
        wanted = wanted.replace("<REGISTRY-HOST>/library/", "")
        wanted, got = (DIGEST.sub("sha256:X", COUNT.sub("N", text)) for text in (wanted, got))
    if isinstance(wanted, float) and isinstance(got, float) and math.isclose(wanted, got, rel_tol=FLOAT32):
        return []
    return [] if wanted == got else [f"{where}: {wanted!r} became {got!r}"]


def _compare_type(wanted: Any, got: Any, where: str) -> list[str]:
    return [] if type(wanted) is type(got) else [f"{where}: {type(wanted).__name__} became {type(got).__name__}"]


# --- the engine that would have given the recorded answer ---


def engine_answer(case: dict[str, Any]) -> Answer:
    """Turn a recorded answer back into what the engine said."""
    objects = case["response"].get("lines") or [case["response"].get("json")]
    pieces: list[dict[str, Any]] = []
    for each in objects:
        message = each.get("message") or {"content": each.get("response"), "thinking": each.get("thinking")}
        logprobs = {"logprobs": {"content": each["logprobs"]}} if each.get("logprobs") else {}
        if message.get("thinking"):
            pieces.append({"reasoning": message["thinking"], **logprobs})
        if message.get("content"):
            pieces.append({"content": message["content"], **logprobs})
        for number, call in enumerate(message.get("tool_calls", ())):
            function = call["function"]
            arguments = json.dumps(function["arguments"])
            pieces.append(
                {
                    "tool_calls": [
                        {
                            "index": number,
                            "id": call["id"],
                            "type": "function",
                            "function": {"name": function["name"], "arguments": arguments},
                        }
                    ]
                }
            )
    last = objects[-1]
    context = last.get("context", [])
    given = len(case["request"].get("json", {}).get("context", ()))
    own = given + _OWN_PROMPT_TOKENS if given else 2
    return Answer(
        pieces,
        finish_reason=last.get("done_reason", "stop"),
        prompt_tokens=last.get("prompt_eval_count", 0),
        completion_tokens=last.get("eval_count", 0),
        prompt_ids=context[:own],
        ids=context[own:],
        tokens=context[given:own] if given else (),
        rendered=last.get("_debug_info", {}).get("rendered_template", ""),
    )


BLOB = hashlib.sha256(b"hello blob").hexdigest()
GGUF = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Two files that the recorded server had been sent."""

EMBEDDING_LENGTH = 576
"""Of the recorded model."""


def engine_vectors(answer: dict[str, Any]) -> list[list[float]]:
    """Turn recorded vectors back into the engine's: what the recorder left out makes up what is missing to length 1.
    Whole ones were cut by the server, so that theirs is all of the length; before that they were shorter."""
    vectors: list[list[float]] = []
    for recorded in answer.get("embeddings") or [answer["embedding"]]:
        is_cut = not isinstance(recorded[-1], str)
        known = [value / 2 for value in recorded] if is_cut else recorded[:-1]
        left = EMBEDDING_LENGTH - len(known)
        vectors.append([*known, *[math.sqrt((1 - sum(value * value for value in known)) / left)] * left])
    return vectors


def engine_of_v1(path: str, body: dict[str, Any]) -> FakeStream:
    """What vLLM says to the recorded requests on its own routes; the texts are of no meaning."""
    message = {"role": "assistant", "content": "Hello", "refusal": None, "tool_calls": [], "reasoning": None}
    usage = {"prompt_tokens": 33, "total_tokens": 39, "completion_tokens": 6, "prompt_tokens_details": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    content = (body.get("messages") or [{}])[0].get("content")
    if content == 5 or body.get("reasoning_effort") == "banana":
        return refusal(400, "[{'type': 'string_type', 'loc': ('body', ...)}]", "Bad Request")
    if path == "/v1/messages" and "max_tokens" not in body:
        return refusal(400, "[{'type': 'missing', 'loc': ('body', 'max_tokens')}]", "Bad Request")
    if path == "/v1/embeddings":
        data = [{"index": 0, "object": "embedding", "embedding": [0.5] * 8}]
        answer: dict[str, Any] = {"id": "embd-1", "object": "list", "created": 1, "model": "m", "data": data}
    elif path == "/v1/messages":
        parts = [{"type": "text", "text": "Hello"}]
        answer = {"id": "msg-1", "type": "message", "role": "assistant", "content": parts, "model": "m"}
    elif body.get("stream"):
        frames = [{"index": 0, "delta": delta, "finish_reason": None} for delta in ({"content": ""}, {"content": "H"})]
        return FakeStream(200, [event(head | {"choices": [frame]}) for frame in frames])
    else:
        answer = head | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return FakeStream(200, [json.dumps(answer | {"usage": usage}).encode()])


def world_of(case: dict[str, Any]) -> World:
    """Services in the state that the recording found."""
    name, response = case["name"], case["response"]
    is_answer = case["request"]["path"] in {"/api/chat", "/api/generate"} and response["status"] == 200
    world = make_world(*MODELS, answer=engine_answer(case) if is_answer else None, context_length=8192)
    world.lease.context_length = 8192
    world.catalog.models.update({each.ref.key: each for each in (model("rec:copy"), model("rec:derived"))})
    if name == "delete-again":
        del world.catalog.models["rec:copy"]
    if name == "tags-after-create":
        world.catalog.models = {each.ref.key: each for each in (model("rec:copy"), model("rec:q8"))}
    if name.startswith("ps-"):
        forever = {"expire_time": float("inf")} if name == "ps-loaded-forever" else {}
        names = [each["name"] for each in response["json"]["models"]]
        world.workers.all = [worker(each, **forever) for each in names]
    if name == "generate-format-bad-schema-stream":
        world.lease.script = lambda _path, _body: refusal(400, "Unsupported JSON schema: bogus is no type")
    if case["request"]["path"] in {"/api/embed", "/api/embeddings"}:
        is_vectors = bool(response["json"].get("embeddings") or response["json"].get("embedding"))
        vectors = engine_vectors(response["json"]) if is_vectors else []
        world.lease.script = embeds(vectors, response["json"].get("prompt_eval_count", 1))
    if case["request"]["path"].startswith("/v1/"):
        world.lease.script = engine_of_v1
    if case["request"]["path"] in {"/api/show", "/api/create"}:
        _give_recipes(name, world)
    if name in {"blob-head-present", "blob-head-new", "blob-post-again", "create-files-not-gguf"}:
        world.uploads.files |= {BLOB: b"hello blob", GGUF: b"GGUF"}
    if name == "create-from-gguf-stream":
        world.uploads.files[GGUF] = b"GGUF"
    if name == "create-again-same":
        base = world.catalog.resolve("smollm2:135m-bf16")
        again = replace(base, ref=ModelRef.parse("rec:derived"), recipe=replace(base.recipe, system="Be brief."))
        world.catalog.models[again.ref.key] = again
    if name == "create-quantize-already":
        base = world.catalog.resolve("smollm2:135m")
        details = replace(base.details, quantization_level="Q4_1")
        world.catalog.models[base.ref.key] = replace(base, details=details)
    if name.startswith("queue-full"):
        world.gate.refusal = VllamaError(Reason.QUEUE_FULL, "the queue is full")
    if name in {"pull-stream", "pull-again-nonstream"}:
        world.operations.error = None
        world.operations.progress = pull_progress(response.get("lines", []))
    if name == "pull-refused":
        world.operations.error = VllamaError(Reason.HUB_UNREACHABLE, "cannot reach the hub: connection refused")
    if name.startswith("pull-unknown"):
        world.operations.error = ModelNotFound("absent")
    return world


def _give_recipes(name: str, world: World) -> None:
    created = Recipe(
        parameters={"stop": ("a", "b"), "temperature": 0.1},
        template="{{ .Prompt }}",
        messages=(("user", "q"), ("assistant", "a")),
        licenses=("MIT-like text",),
    )
    if name == "show-created":
        world.catalog.models["rec:gguf"] = model("rec:gguf", recipe=created)
    for key, each in world.catalog.models.items():
        if not key.startswith("rec:") and not key.endswith(":jinja"):
            has_system = key.endswith((":135m-bf16", ":135m", ":tools"))
            world.catalog.models[key] = replace(each, recipe=RECIPE if has_system else replace(RECIPE, system=""))


def pull_progress(lines: list[dict[str, Any]]) -> list[Progress]:
    """The snapshots behind recorded status lines."""
    files: dict[str, FileProgress] = {}
    snapshots: list[Progress] = []
    for line in lines:
        if "digest" in line:
            digest = line["digest"]
            files[digest] = FileProgress(digest, line.get("completed", 0), line["total"], digest)
            snapshots.append(Progress("downloading", files=tuple(files.values())))
    return [*snapshots, Progress("verifying", files=tuple(files.values())), Progress("writing manifest")]


# --- the replay ---


async def replay(case: dict[str, Any]) -> list[str]:
    """Send a recorded request; return where the answer differs from the recorded one."""
    request, wanted = case["request"], case["response"]
    world = world_of(case)
    is_making = request["path"] == "/api/create"
    async with AsyncExitStack() as making:
        services = world.services
        if is_making:
            models = list(world.catalog.models.values())
            services = world.services_with(*await making.enter_async_context(real_catalog(models, world.uploads)))
        return await _replay(request, wanted, services)


async def _replay(request: dict[str, Any], wanted: dict[str, Any], services: Services) -> list[str]:
    body = json.dumps(request["json"]) if "json" in request else request.get("text")
    server = TestServer(make_app(services), handler_cancellation=True)
    await server.start_server()
    try:
        # Like the recorder: no default headers, redirects left alone, the path as it is.
        target = f"http://{server.host}:{server.port}{request['path']}"
        async with (
            aiohttp.ClientSession(skip_auto_headers={"Content-Type", "Accept-Encoding"}) as session,
            session.request(
                request["method"],
                aiohttp.client.URL(target, encoded=True),
                data=body,
                headers=request.get("headers", {}),
                allow_redirects=False,
            ) as answer,
        ):
            text = (await answer.read()).decode()
    finally:
        await server.close()
    differences = compare(wanted["status"], answer.status, "status")
    is_v1 = request["path"].startswith("/v1/")
    for name in COMPARED_HEADERS:
        got = answer.headers.getall(name, [])
        shown: Any = got[0] if len(got) == 1 else (got or None)
        if is_v1 and name == "content-type":
            wanted["headers"][name] = wanted["headers"][name].removesuffix("; charset=utf-8")
            shown = shown.removesuffix("; charset=utf-8")
        differences += compare(wanted["headers"].get(name), shown, name)
    assert answer.headers.get("X-Request-Id"), "every answer has an id"
    if "lines" in wanted:
        if not text.endswith("\n"):
            differences.append("the last line has no end")
        differences += compare(wanted["lines"], [json.loads(line) for line in text.splitlines()], "lines")
    elif "events" in wanted:
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        got_events = [json.loads(line) if line.startswith("{") else line for line in events]
        differences += compare(wanted["events"], got_events, "events")
    elif "json" in wanted:
        answered: Any = json.loads(text) if text else None
        if is_v1:
            for error in (wanted["json"].get("error"), (answered or {}).get("error")):
                for ours in ("code", "param"):
                    (error or {}).pop(ours, None)
        differences += compare(wanted["json"], answered, "body") if text else ["no body"]
    else:
        differences += compare(wanted.get("text", ""), text, "body")
    return differences


@pytest.mark.parametrize("name", [name for name in CASES if name not in DIFFERENT])
def test_recording(name: str) -> None:
    assert asyncio.run(replay(CASES[name])) == []


@pytest.mark.parametrize("name", sorted(DIFFERENT))
def test_difference_is_still_one(name: str) -> None:
    assert name in CASES, "the page names a recording that is not there"
    assert asyncio.run(replay(CASES[name])), f"{name} passes now: take it off the page"


def test_how_many_recordings_pass(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nollama recordings: {len(CASES) - len(DIFFERENT)} of {len(CASES)} pass, {len(DIFFERENT)} are listed")
    assert len(CASES) > 150
    assert len(DIFFERENT) < len(CASES) / 3
