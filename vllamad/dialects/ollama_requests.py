"""Reading the bodies of ``/api/chat`` and ``/api/generate`` (floor 1): Ollama's fields and refusals in, the engine's
messages out. What the model can do is not asked here."""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from vllamad.dialects.go_values import as_dict, dumps, parse_keep_alive
from vllamad.dialects.peek import Fields, bad_request, fold, read_object

_LEVELS = frozenset({"low", "medium", "high", "max"})
_MAX_TOP_LOGPROBS = 20
_BASE64_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"RIFF", "webp"), (b"GIF8", "gif"))


@dataclass(frozen=True, slots=True)
class Asked:
    """What chat and generate have in common. ``think`` None: the model's default. ``keep_alive_s`` None: the server's,
    ``math.inf``: for ever, 0: unload after this request."""

    model: str
    stream: bool
    options: dict[str, Any]
    keep_alive_s: float | None
    think: bool | str | None
    format: Any
    logprobs: bool
    top_logprobs: int
    truncate: bool
    shift: bool
    render_only: bool


@dataclass(frozen=True, slots=True)
class ChatAsked:
    """A request to ``/api/chat``; messages and tools are in the engine's form already."""

    asked: Asked
    messages: list[dict[str, Any]]
    tools: list[Any]
    has_images: bool

    @property
    def is_empty(self) -> bool:
        """It only loads or unloads."""
        return not self.messages


@dataclass(frozen=True, slots=True)
class GenerateAsked:
    """A request to ``/api/generate``; ``images`` are data URLs."""

    asked: Asked
    prompt: str
    suffix: str
    system: str
    template: str
    context: list[int]
    raw: bool
    images: list[str]

    @property
    def is_empty(self) -> bool:
        """It only loads or unloads."""
        return not self.prompt


def read_chat(body: bytes) -> ChatAsked:
    """Read a body of ``/api/chat``. Raises INVALID_REQUEST in Ollama's words."""
    fields = Fields(read_object(body, "ChatRequest"), "ChatRequest")
    messages = [_read_message(item, number) for number, item in enumerate(fields.items("messages", "[]api.Message"))]
    has_images = any(isinstance(message.get("content"), list) for message in messages)
    tools = fields.items("tools", "api.Tools")
    for tool in tools:
        if as_dict(tool) is None:
            raise fields.wrong("tools", tool, "api.Tool")
    _name_results(messages)
    return ChatAsked(_read_asked(fields), messages, tools, has_images)


def read_generate(body: bytes) -> GenerateAsked:
    """Read a body of ``/api/generate``. Raises INVALID_REQUEST in Ollama's words."""
    fields = Fields(read_object(body, "GenerateRequest"), "GenerateRequest")
    return GenerateAsked(
        _read_asked(fields),
        prompt=fields.text("prompt"),
        suffix=fields.text("suffix"),
        system=fields.text("system"),
        template=fields.text("template"),
        context=fields.integers("context"),
        raw=fields.flag("raw", default=False),
        images=_read_images(fields, "GenerateRequest.images"),
    )


def _read_asked(fields: Fields) -> Asked:
    asked = Asked(
        model=fields.text("model"),
        stream=fields.flag("stream", default=True),
        options=fields.mapping("options", "map[string]interface {}"),
        keep_alive_s=parse_keep_alive(fields.raw("keep_alive")),
        think=_read_think(fields.raw("think")),
        format=fields.raw("format"),
        logprobs=fields.flag("logprobs", default=False),
        top_logprobs=fields.integer("top_logprobs"),
        truncate=fields.flag("truncate", default=True),
        shift=fields.flag("shift", default=True),
        render_only=fields.flag("_debug_render_only", default=False),
    )
    if not 0 <= asked.top_logprobs <= _MAX_TOP_LOGPROBS:
        raise bad_request("top_logprobs must be between 0 and 20")
    return asked


def _read_think(value: object) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise bad_request('think must be a boolean or string ("high", "medium", "low", "max", true, or false)')
    if value not in _LEVELS:
        raise bad_request(
            f'invalid think value: {dumps(value).decode()} (must be "high", "medium", "low", "max", true, or false)'
        )
    return value


def _read_message(item: object, number: int) -> dict[str, Any]:
    raw = as_dict(item)
    if raw is None:
        raise Fields({}, "ChatRequest").wrong("messages", item, "api.Message")
    fields = Fields(fold(raw), "Alias")
    content = fields.text("content")
    message: dict[str, Any] = {"role": fields.text("role").lower(), "content": content}
    if images := _read_images(fields, f"ChatRequest.messages.{number}.images"):
        message["content"] = with_images(content, images)
    if thinking := fields.text("thinking"):
        message["reasoning"] = thinking
    if calls := fields.items("tool_calls", "[]api.ToolCall"):
        message["tool_calls"] = [_read_call(call, number, index) for index, call in enumerate(calls)]
    if name := fields.text("tool_name"):
        message["name"] = name
    if identity := fields.text("tool_call_id"):
        message["tool_call_id"] = identity
    return message


def _read_call(item: object, message: int, index: int) -> dict[str, Any]:
    call = Fields(fold(as_dict(item) or {}), "ToolCall")
    function = Fields(fold(call.mapping("function", "api.ToolCallFunction")), "ToolCallFunction")
    arguments = function.raw("arguments")
    if isinstance(arguments, str):
        # The text of Ollama's own parser, which takes the string for an object that never ends.
        raise bad_request("Value looks like object, but can't find closing '}' symbol")
    if arguments is not None and as_dict(arguments) is None:
        raise function.wrong("arguments", arguments, "api.ToolCallFunctionArguments")
    return {
        "id": call.text("id") or f"call_{message}_{index}",
        "type": "function",
        "function": {"name": function.text("name"), "arguments": orjson.dumps(arguments or {}).decode()},
    }


def _name_results(messages: list[dict[str, Any]]) -> None:
    """Tie tool results to calls: Ollama's clients name the function, the engine's templates may want the call's id."""
    calls: list[dict[str, Any]] = []
    for message in messages:
        calls += message.get("tool_calls", ())
        if message["role"] != "tool" or message.get("tool_call_id"):
            continue
        name = message.get("name", "")
        found = next((call for call in calls if not name or call["function"]["name"] == name), None)
        if found is not None:
            calls.remove(found)
        message["tool_call_id"] = found["id"] if found is not None else f"call_{name or 'unknown'}"


def _read_images(fields: Fields, where: str) -> list[str]:
    urls: list[str] = []
    for index, image in enumerate(fields.items("images", "[]api.ImageData")):
        if not isinstance(image, str):
            raise fields.wrong("images", image, "api.ImageData")
        text = image.encode()
        try:
            head = binascii.a2b_base64(text, strict_mode=True)[:4]
        except binascii.Error as error:
            raise bad_request(
                f"json: cannot unmarshal string into {where}.{index} of type api.ImageData:"
                f" illegal base64 data at input byte {_first_bad(text)}"
            ) from error
        kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), "png")
        urls.append(f"data:image/{kind};base64,{image}")
    return urls


def _first_bad(text: bytes) -> int:
    """Where the base64 text goes wrong: its first foreign byte, or its end."""
    return next((at for at, byte in enumerate(text) if byte not in _BASE64_ALPHABET and byte != ord("=")), len(text))


def with_images(text: str, urls: Sequence[str]) -> list[dict[str, Any]]:
    """The engine's content parts: images (data URLs) first, then the text."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*images, {"type": "text", "text": text}] if text else [*images]
