"""Recordings of a real Ollama server, replayed against our face: status, headers, keys and their order, types, lines,
texts of errors and of answers. What is different on purpose is listed in docs/reference/ollama-differences.md."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from tests.fakes.http_services import Answer, World, make_world, model, refusal, worker
from vllama.reasons import Reason
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import Capability
from vllamad.domain.operation import FileProgress, Progress
from vllamad.http.server import make_app

FOLDER = Path(__file__).parent / "transcripts"
PAGE = Path(__file__).parents[2] / "docs/reference/ollama-differences.md"
CASES: dict[str, dict[str, Any]] = {
    case["name"]: case for file in sorted(FOLDER.glob("*.json")) for case in json.loads(file.read_text())
}

_COMPLETION = Capability.COMPLETION
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
    line.split("`")[1] for line in PAGE.read_text().partition("## Options")[0].splitlines() if line.startswith("| `")
]
"""The recordings that the page lists; they must differ, and all others must not."""

# Values that differ from run to run or with the settings; their type is compared.
VARYING = {
    "created_at", "modified_at", "expires_at", "total_duration", "load_duration", "prompt_eval_duration",
    "eval_duration", "version", "size", "digest", "source", "total", "completed", "modelfile", "template",
    "context_length", "quantization_level", "format", "general.parameter_count", "id",
}  # fmt: skip
COUNT = re.compile(r'(?<=request \()\d+|(?<="n_prompt_tokens":)\d+')
"""How long a prompt is that is too long: the longest texts of the recordings are shortened here."""
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
        if len(wanted) != len(got):
            return [f"{where}: {len(wanted)} items became {len(got)}"]
        return [
            line for at, (a, b) in enumerate(zip(wanted, got, strict=True)) for line in compare(a, b, f"{where}[{at}]")
        ]
    if isinstance(wanted, str) and isinstance(got, str):
        wanted = wanted.replace("<REGISTRY-HOST>/library/", "")
        wanted, got = (COUNT.sub("N", text) for text in (wanted, got))
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
    body = json.dumps(request["json"]) if "json" in request else request.get("text")
    server = TestServer(make_app(world_of(case).services), handler_cancellation=True)
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
    for name in COMPARED_HEADERS:
        got = answer.headers.getall(name, [])
        shown: Any = got[0] if len(got) == 1 else (got or None)
        differences += compare(wanted["headers"].get(name), shown, name)
    assert answer.headers.get("X-Request-Id"), "every answer has an id"
    if "lines" in wanted:
        if not text.endswith("\n"):
            differences.append("the last line has no end")
        differences += compare(wanted["lines"], [json.loads(line) for line in text.splitlines()], "lines")
    elif "json" in wanted:
        differences += compare(wanted["json"], json.loads(text), "body") if text else ["no body"]
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
