"""The fast path's two ends: the plugin that runs inside the engine, and what the daemon makes of its streams."""

import asyncio
import importlib.util
import itertools
import json
import sys
from collections.abc import AsyncIterator
from importlib.metadata import distributions
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.http_services import DONE, event
from vllamad.dialects import ollama, ollama_stream
from vllamad.dialects.go_values import Stamp, dumps
from vllamad.dialects.ollama_stream import ChatStream, GenerateStream, Timing
from vllamad.engine import fast_path

TIMING = Timing(total_ns=9_000_000, load_ns=1_000_000)
MARK = ollama_stream.LINES_END


def load_plugin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllama_lines", fast_path.PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plugin: Any = load_plugin()


# --- both ends say the same ------------------------------------------------------------------------------------------


def test_both_ends_name_route_mark_and_version_alike() -> None:
    assert plugin.ROUTE == fast_path.ROUTE == ollama.LINES_PATH
    assert plugin.MARK == ollama_stream.LINES_END
    assert plugin.VERSION == fast_path.VERSION


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('<>&\u2028\u2029\\"\x1e\x7f\n')))
def test_the_plugin_quotes_as_the_daemon_does(text: str) -> None:
    assert plugin.quoted(text).encode() == dumps(text)
    assert MARK not in dumps(text)


@settings(deadline=None)
@given(st.integers(0, 4_000_000_000_000_000_000) | st.integers(0, 4_000_000_000).map(lambda s: s * 10**9))
def test_the_plugin_writes_instants_as_the_daemon_does(time_ns: int) -> None:
    assert plugin.Stamp()(time_ns) == Stamp()(time_ns)


def test_a_folder_on_pythonpath_is_all_that_vllm_needs_to_find_it() -> None:
    (found,) = distributions(path=[str(fast_path.FOLDER)])
    entries = {(each.group, each.name): each.value for each in found.entry_points}
    assert entries == {
        ("vllm.general_plugins", fast_path.PLUGINS[0]): "vllama_lines:admit",
        ("vllm.endpoint_plugins", fast_path.PLUGINS[1]): "vllama_lines:Lines",
    }
    assert plugin.Lines.name == fast_path.PLUGINS[1]


def test_naming_the_plugin_keeps_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    found = {"vllm.general_plugins": ["one"], "vllm.platform_plugins": ["two"]}
    monkeypatch.setattr(
        plugin.importlib.metadata,
        "entry_points",
        lambda group: [SimpleNamespace(name=name) for name in found.get(group, [])],
    )
    plugin.admit()
    assert plugin.os.environ["VLLM_PLUGINS"] == "one,two,vllama_lines"
    monkeypatch.setenv("VLLM_PLUGINS", "mine,vllama_lines")
    plugin.admit()
    assert plugin.os.environ["VLLM_PLUGINS"] == "mine,vllama_lines"


# --- the handshake ---------------------------------------------------------------------------------------------------


def told(**changes: object) -> bytes:
    answer = {"version": plugin.VERSION, "digest": plugin.Lines()._digest, "objection": ""}
    return json.dumps(answer | changes).encode()


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, told(), ""),
        (200, told(objection="its answers are logged"), "its answers are logged"),
        (200, told(digest="0"), "the engine has loaded another version of the plugin"),
        (200, told(version=2), "the engine has loaded another version of the plugin"),
        (404, b'{"detail":"Not Found"}', "the engine has not loaded the plugin"),
        (200, b"[]", "the plugin's answer cannot be read"),
        (200, b"<html>", "the plugin's answer cannot be read"),
    ],
)
def test_whatever_does_not_match_is_an_objection(status: int, body: bytes, why: str) -> None:
    assert fast_path.objection(status, body) == why


class Stock:
    """vLLM's chat, as far as the plugin looks at it. Its writer tells what it was given."""

    parser_cls: object = None

    async def chat_completion_stream_generator(
        self, request: Any, result_generator: Any, request_id: str
    ) -> AsyncIterator[str]:
        try:
            async for result in result_generator:
                (output,) = result.outputs
                yield f"data: {json.dumps([output.text, output.token_ids, output.finish_reason])}\n\n"
        except ValueError as error:
            yield f"data: {error}\n\n"
        yield f"data: {request_id}\n\n"


class OtherStock(Stock):
    async def chat_completion_stream_generator(self, stream: Any) -> AsyncIterator[str]:  # type: ignore[override]
        yield str(stream)


@pytest.mark.parametrize(
    ("stock", "args", "why"),
    [
        (Stock(), {}, ""),
        (None, {}, "it has no chat"),
        (object(), {}, "it has no chat"),
        (OtherStock(), {}, "written otherwise"),
        (Stock(), {"sse_keep_alive_interval": 15}, "comments"),
        (Stock(), {"enable_log_outputs": True}, "logged"),
    ],
)
def test_the_plugin_keeps_off_what_it_does_not_know(stock: object, args: dict[str, object], why: str) -> None:
    found = plugin.objection(stock, SimpleNamespace(**args))
    assert (why in found) if why else found == ""


class App:
    """Keeps routes."""

    def __init__(self) -> None:
        self.routes: list[tuple[str, tuple[str, ...]]] = []

    def add_api_route(self, path: str, _endpoint: object, *, methods: list[str], **_options: object) -> None:
        self.routes.append((path, tuple(methods)))


def test_a_vllm_with_other_modules_starts_all_the_same() -> None:
    app, lines = App(), plugin.Lines()
    lines.attach_router(app)  # there is no vLLM here at all
    asyncio.run(lines.init_state(None, SimpleNamespace(openai_serving_chat=Stock()), SimpleNamespace()))
    assert app.routes == [(plugin.ROUTE, ("GET",))]
    assert "vLLM is not as the plugin knows it" in asyncio.run(lines.tell())["objection"]


class Parser:
    """vLLM's own, as far as the plugin looks at it."""

    tool_parser_cls: object = SimpleNamespace(engine_based_streaming=False)
    reasoning_parser_cls: object = None

    def decide(self) -> None: ...


for _name in plugin.DECIDING:
    setattr(Parser, _name, Parser.decide)


@pytest.mark.parametrize(
    ("changes", "is_fast"),
    [
        ({}, True),
        ({"reasoning_parser_cls": object}, False),
        ({"tool_parser_cls": None}, False),
        ({"tool_parser_cls": SimpleNamespace(engine_based_streaming=True)}, False),
        *(({name: lambda _self: None}, False) for name in plugin.DECIDING),
    ],
)
def test_a_parser_is_let_be_if_it_lets_text_be(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], is_fast: bool
) -> None:
    known = ModuleType("vllm.parser.abstract_parser")
    known.DelegatingParser = Parser  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.parser.abstract_parser", known)
    for parent in ("vllm", "vllm.parser"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    stock = type("Parsing", (Stock,), {"parser_cls": type("Its", (Parser,), changes)})()
    assert (plugin.objection(stock, SimpleNamespace()) == "") is is_fast


# --- the plugin's writer ---------------------------------------------------------------------------------------------


def result(text: str, ids: list[int], reason: str | None = None) -> Any:
    return SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=ids, finish_reason=reason)])


async def written(results: list[Any], failure: Exception | None = None) -> list[Any]:
    async def results_of() -> AsyncIterator[Any]:
        for each in results:
            yield each
        if failure is not None:
            raise failure

    chat = plugin.with_lines(Stock)()
    request = SimpleNamespace(vllama_line=["<", "|", ">\n"])
    return [piece async for piece in chat.chat_completion_stream_generator(request, results_of(), "the end")]


def texts(pieces: list[Any]) -> list[bytes]:
    return [piece.partition(b"|")[2] for piece in pieces]


def test_text_becomes_lines_and_the_end_is_vllms_own() -> None:
    *lines, mark, last, end = asyncio.run(
        written([result("a", [1]), result("", [2]), result('b"', [3, 4]), result("c", [5], "stop")])
    )
    assert texts(lines) == [b'"a">\n', b'"b\\"">\n']
    assert mark == MARK
    assert last == 'data: ["c", [1, 2, 3, 4, 5], "stop"]\n\n', "as if all tokens had come at once"
    assert end == "data: the end\n\n"


@pytest.mark.parametrize("before", [[], [result("a", [1])]])
def test_a_failure_is_told_by_vllms_own_writer(before: list[Any]) -> None:
    *lines, mark, error, end = asyncio.run(written(before, ValueError("the core is dead")))
    assert len(lines) == len(before)
    assert (mark, error, end) == (MARK, "data: the core is dead\n\n", "data: the end\n\n")


def test_whoever_leaves_ends_the_generation() -> None:
    async def scene() -> bool:
        was_cancelled = False

        async def endless() -> AsyncIterator[Any]:
            nonlocal was_cancelled
            yield result("a", [1])
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                was_cancelled = True
                raise

        chat = plugin.with_lines(Stock)()
        stream = chat.chat_completion_stream_generator(SimpleNamespace(vllama_line=["", "", ""]), endless(), "")
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return was_cancelled

    assert asyncio.run(scene())


# --- the daemon's end ------------------------------------------------------------------------------------------------


def choice(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "finish_reason": None, **fields}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([ChatStream, GenerateStream]),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), max_size=6),
    st.lists(st.integers(0, 5000), max_size=8),
)
def test_a_client_sees_the_same_lines_in_any_cut(
    kind: type[ChatStream | GenerateStream], texts: list[str], places: list[int]
) -> None:
    ids = list(range(len(texts)))
    usual, fast = kind("m<1>", wants_context=True), kind("m<1>", wants_context=True)
    before_time, before_text, after = fast.expect_lines()
    first = event({"choices": [{"index": 0, "delta": {"role": "assistant"}}], "prompt_token_ids": [7, 8]})
    frames = [choice(delta={"content": text}, token_ids=[at]) for at, text in enumerate(texts)]
    end = choice(delta={"content": "!"}, finish_reason="length", token_ids=[99])
    expected = usual.feed(b"".join((first, *frames, end, USAGE, DONE)), "now") + usual.finish("now", TIMING)

    lines = "".join(f"{before_time}now{before_text}{plugin.quoted(text)}{after}" for text in texts).encode()
    end = choice(delta={"content": "!"}, finish_reason="length", token_ids=[*ids, 99])
    stream = b"".join((lines, MARK, first, end, USAGE, DONE))
    at = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    output = b""
    for start, stop in itertools.pairwise(at):
        piece = stream[start:stop]
        output += piece if fast.passes(piece) else fast.feed(piece, "now")
    assert fast.is_over
    assert output + fast.finish("now", TIMING) == expected


def test_a_stream_of_lines_that_breaks_off_is_never_finished() -> None:
    reply = ChatStream("m")
    reply.expect_lines()
    assert reply.passes(b'{"line":1}\n')
    with pytest.raises(Exception, match="broke off"):
        reply.finish("now", TIMING)
