"""Plain streams as lines, written where the tokens come from. Runs inside the engine's API server, never inside the
daemon; see ``engine/fast_path.py`` for the daemon's side.

The route here takes the request of ``/v1/chat/completions`` and leaves everything to vLLM: its checks, the template,
sampling, refusals. Only the text in the middle of a stream is not made into objects, JSON and events, but put into a
line whose fixed parts came with the request. Then comes ``MARK``, and behind it what vLLM's own writer makes of the
end, as if all tokens had come at once: the last text, every token id, why it ended, counts and times, or the error.

Nothing here knows what the lines mean. Written for vLLM 0.32; whatever looks different there is an objection, and the
daemon asks vLLM's own route.
"""

import copy
import hashlib
import importlib
import importlib.metadata
import inspect
import os
import re
import time
from collections.abc import AsyncIterator
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

VERSION = 1
ROUTE = "/vllama/lines"
MARK = b"\x1e"
"""Stands in no line: JSON escapes control characters."""

GROUPS = ("vllm.general_plugins", "vllm.io_processor_plugins", "vllm.platform_plugins", "vllm.stat_logger_plugins")
"""Whose plugins vLLM loads unless a list of names says otherwise."""

WRITER = ("request", "result_generator")
"""How the arguments of vLLM's own writer begin."""

DECIDING = (
    "parse_delta", "_extract_tool_calls_streaming", "_in_reasoning_phase", "_in_tool_call_phase", "finalize_generation",
    "_flush_engine_parsers",
)  # fmt: skip
"""The methods of vLLM's parser through which every piece of text goes."""

_ESCAPED = re.compile("[<>&\u2028\u2029]")
_NS_PER_S = 1_000_000_000


def admit() -> None:
    """vLLM loads plugins with routes only if ``VLLM_PLUGINS`` names them, and then no plugin that it does not name. So
    name all that it would have loaded as well. The daemon does that itself where the variable is set."""
    if "VLLM_PLUGINS" not in os.environ:
        names = [each.name for group in GROUPS for each in importlib.metadata.entry_points(group=group)]
        os.environ["VLLM_PLUGINS"] = ",".join([*names, Lines.name])


class Lines:
    """An endpoint plugin of vLLM."""

    name = "vllama_lines"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._serving: Any = None
        self._has_route = False
        self._objection = "vLLM has not got ready yet"
        self._digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    def attach_router(self, app: Any) -> None:
        """Add the two routes. Whatever vLLM is like, it is not kept from starting."""
        app.add_api_route(ROUTE, self.tell, methods=["GET"], response_model=None)
        try:
            self._attach_writer(app)
        except Exception as error:  # noqa: BLE001  another version of vLLM: its own route is there
            self._refuse(error)

    def _attach_writer(self, app: Any) -> None:
        fastapi: Any = importlib.import_module("fastapi")
        responses: Any = importlib.import_module("fastapi.responses")
        protocol: Any = importlib.import_module("vllm.entrypoints.openai.chat_completion.protocol")
        utils: Any = importlib.import_module("vllm.entrypoints.serve.utils.api_utils")

        # The fixed parts of a line beside vLLM's own fields: before the time, before the text, after it.
        asked = importlib.import_module("pydantic").create_model(
            "Asked", __base__=protocol.ChatCompletionRequest, vllama_line=(list[str], ...)
        )

        async def write(request: Any, raw_request: Any) -> Any:
            answer = await self._serving.create_chat_completion(request, raw_request)
            if isinstance(answer, AsyncIterator):
                return responses.StreamingResponse(answer, media_type="application/octet-stream")
            status = answer.error.code if hasattr(answer, "error") else 200
            return responses.JSONResponse(content=answer.model_dump(), status_code=status)

        write.__annotations__ = {"request": asked, "raw_request": fastapi.Request}
        app.add_api_route(
            ROUTE,
            utils.with_cancellation(utils.load_aware_call(write)),
            methods=["POST"],
            dependencies=[fastapi.Depends(utils.validate_json_request)],
            response_model=None,
        )
        self._has_route = True

    async def tell(self) -> dict[str, Any]:
        """What the daemon decides by."""
        return {"version": VERSION, "digest": self._digest, "objection": self._objection}

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Take a copy of vLLM's own chat with another writer."""
        if not self._has_route:
            return
        stock = getattr(state, "openai_serving_chat", None)
        try:
            self._objection = objection(stock, args)
            if not self._objection:
                self._serving = copy.copy(stock)
                self._serving.__class__ = with_lines(type(stock))
        except Exception as error:  # noqa: BLE001  the same
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        self._objection = f"vLLM is not as the plugin knows it: {error!r}"


def objection(stock: Any, args: Any) -> str:
    """Why lines cannot be written in the place of what this server writes; "" if they can."""
    writer = getattr(stock, "chat_completion_stream_generator", None)
    if writer is None or not hasattr(stock, "parser_cls"):
        return "it has no chat, or one of another kind"
    if tuple(inspect.signature(writer).parameters)[: len(WRITER)] != WRITER:
        return "its chat is written otherwise than in the versions that are known"
    if stock.parser_cls is not None and not leaves_text_alone(stock.parser_cls):
        return "a parser for thinking reads its answers, or one of an unknown kind"
    if getattr(args, "sse_keep_alive_interval", 0):
        return "it sends comments while it is silent"
    return "its answers are logged" if getattr(args, "enable_log_outputs", False) else ""


def leaves_text_alone(parser: Any) -> bool:
    """True for a parser of tool calls alone that is vLLM's own in all that decides on text: where no tools were offered
    (the daemon asks for lines only then) it passes every piece on as it is."""
    stock: Any = importlib.import_module("vllm.parser.abstract_parser").DelegatingParser
    tools = getattr(parser, "tool_parser_cls", None)
    return (
        tools is not None
        and not getattr(tools, "engine_based_streaming", True)
        and getattr(parser, "reasoning_parser_cls", True) is None
        and all(getattr(parser, name, None) is getattr(stock, name) for name in DECIDING)
    )


def with_lines(stock: Any) -> Any:
    """vLLM's class for chats with a writer of lines."""
    stamp = Stamp()

    class Chat(stock):
        async def chat_completion_stream_generator(
            self, request: Any, result_generator: Any, *args: Any, **named: Any
        ) -> AsyncIterator[bytes | str]:
            before_time, before_text, after = request.vllama_line
            token_ids: list[int] = []
            last: Any = None
            failure: Exception | None = None
            try:
                async for result in result_generator:
                    (output,) = result.outputs
                    token_ids += output.token_ids
                    if output.finish_reason is not None:
                        last = result
                    elif output.text:
                        yield f"{before_time}{stamp(time.time_ns())}{before_text}{quoted(output.text)}{after}".encode()
            except Exception as error:  # noqa: BLE001  vLLM's own writer makes an event of it
                failure = error

            async def rest() -> AsyncIterator[Any]:
                if failure is not None:
                    raise failure
                if last is not None:
                    last.outputs[0].token_ids = token_ids
                    yield last

            yield MARK
            async for event in stock.chat_completion_stream_generator(self, request, rest(), *args, **named):
                yield event

    return Chat


def quoted(text: str) -> str:
    """A string as JSON, with what Go escapes escaped: the same as ``dialects/go_values.py`` makes of it."""
    text = encode_basestring(text)
    if "<" in text or ">" in text or "&" in text or "\u2028" in text or "\u2029" in text:
        return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text


class Stamp:
    """Instants (wall time in ns) as RFC 3339 in UTC: the same as ``dialects/go_values.py`` makes of them."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, time_ns: int) -> str:
        second, fraction = divmod(time_ns, _NS_PER_S)
        if second != self._second:
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._text}.{fraction:09d}".rstrip("0") + "Z" if fraction else self._text + "Z"
