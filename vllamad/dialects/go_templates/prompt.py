"""A conversation as the prompt that an Ollama chat template makes of it (floor 1).

The messages come in the engine's form and are given to the template under Ollama's names. An old template, one without
``.Messages``, is run once per turn instead. The prompt ends where the model is to go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from vllamad.dialects.go_templates.template import Template
from vllamad.dialects.go_templates.values import Bounds, JsonList, JsonMap, Struct, TemplateError, TypeNames
from vllamad.dialects.go_values import as_dict, as_list

_BLANK_LINE = "\n\n"
_PARAMETERS = {
    "type": "Type",
    "$defs": "Defs",
    "items": "Items",
    "required": "Required",
    "properties": "Properties",
}
_PROPERTY = {
    "anyOf": "AnyOf",
    "type": "Type",
    "items": "Items",
    "description": "Description",
    "enum": "Enum",
    "properties": "Properties",
    "required": "Required",
}
"""JSON names to fields, in the order in which Ollama writes them."""


@dataclass(slots=True)
class _Turn:
    role: str
    content: str
    thinking: str = ""
    calls: list[Struct] = field(default_factory=list[Struct])
    tool_name: str = ""
    call_id: str = ""

    def as_struct(self) -> Struct:
        fields = {
            "Role": self.role,
            "Content": self.content,
            "Thinking": self.thinking,
            "Images": [],
            "ToolCalls": self.calls,
            "ToolName": self.tool_name,
            "ToolCallID": self.call_id,
        }
        optional = {
            "thinking": self.thinking,
            "tool_calls": self.calls,
            "tool_name": self.tool_name,
            "tool_call_id": self.call_id,
        }
        json = {"role": self.role, "content": self.content} | {name: item for name, item in optional.items() if item}
        return Struct("api.Message", fields, json)


def render_prompt(
    template: Template,
    messages: Sequence[Mapping[str, Any]],
    *,
    today: str,
    tools: Sequence[Any] = (),
    suffix: str = "",
    prompt: str = "",
    system: str = "",
    think: bool | str | None = None,
) -> str:
    """Return the prompt. Raises TemplateError.

    ``system`` and ``prompt`` are a first and a last message. With ``suffix`` the template gets it and ``prompt`` and
    nothing else. ``think`` None: nobody said. ``today`` is an ISO date.
    """
    root: dict[str, Any] = {
        "System": "",
        "Prompt": "",
        "Response": "",
        "Suffix": "",
        "Messages": [],
        "Tools": JsonList(),
        "Think": bool(think),
        "ThinkLevel": think if isinstance(think, str) else "medium" if think else "",
        "IsThinkSet": think is not None,
    }
    if suffix:
        return template.render(root | {"Prompt": prompt, "Suffix": suffix}, today=today)
    try:
        turns = _read_turns(messages)
        if system:
            turns.insert(0, _Turn("system", system))
        if prompt:
            turns.append(_Turn("user", prompt))
        joined_system = _BLANK_LINE.join(turn.content for turn in turns if turn.role == "system")
        turns = _merge(turns)
        if not template.uses("Messages"):
            return _turn_by_turn(template, turns, root, today)
        root["System"] = joined_system
        root["Messages"] = [turn.as_struct() for turn in turns]
        root["Tools"] = JsonList(_tool(as_dict(tool) or {}) for tool in tools)
    except RecursionError as error:
        raise TemplateError("template: the data is nested too deep") from error
    return template.render(root, today=today)


def _turn_by_turn(template: Template, turns: list[_Turn], root: dict[str, Any], today: str) -> str:
    if not template.uses("Response"):
        template = template.followed_by("Response")
    bounds = Bounds()
    pieces: list[str] = []
    turn = {"System": "", "Prompt": "", "Response": ""}
    # What a message ends: a system message comes before its turn's prompt, a prompt before its response.
    ends = {"system": ("Prompt", "Response"), "user": ("Response",), "assistant": ()}
    names = {"system": "System", "user": "Prompt", "assistant": "Response"}
    for message in turns:
        if message.role not in names:
            continue
        if any(turn[name] for name in ends[message.role]):
            pieces.append(template.render(root | turn, today=today, bounds=bounds))
            turn = dict.fromkeys(turn, "")
        turn[names[message.role]] = message.content
    pieces.append(template.cut_after("Response").render(root | turn, today=today, bounds=bounds))
    return "".join(pieces)


def _merge(turns: list[_Turn]) -> list[_Turn]:
    """Join neighbours of one role, tool results apart."""
    merged: list[_Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last is None or last.role != turn.role or turn.role == "tool":
            merged.append(turn)
            continue
        last.content += _BLANK_LINE + turn.content
        last.thinking = _BLANK_LINE.join(text for text in (last.thinking, turn.thinking) if text)
        last.calls += turn.calls
    return merged


def _read_turns(messages: Sequence[Mapping[str, Any]]) -> list[_Turn]:
    turns: list[_Turn] = []
    names: dict[str, str] = {}
    for message in messages:
        calls: list[Struct] = []
        for index, item in enumerate(as_list(message.get("tool_calls")) or []):
            call = as_dict(item) or {}
            calls.append(_call(call, index))
            names[_text(call.get("id"))] = calls[-1].fields["Function"].fields["Name"]
        call_id = _text(message.get("tool_call_id"))
        turns.append(
            _Turn(
                role=_text(message.get("role")),
                content=_content(message.get("content")),
                thinking=_text(message.get("reasoning")),
                calls=calls,
                tool_name=_text(message.get("name")) or (names.get(call_id, "") if call_id else ""),
                call_id=call_id,
            )
        )
    return turns


def _content(value: object) -> str:
    parts = [as_dict(part) or {} for part in as_list(value) or []]
    if not parts:
        return _text(value)
    return _BLANK_LINE.join(_text(part.get("text")) for part in parts if part.get("type") == "text")


def _call(call: dict[str, Any], index: int) -> Struct:
    function = as_dict(call.get("function")) or {}
    name = _text(function.get("name"))
    arguments = _arguments(function.get("arguments"))
    inner = Struct(
        "api.ToolCallFunction",
        {"Index": index, "Name": name, "Arguments": arguments},
        {"index": index, "name": name, "arguments": arguments},
    )
    identity = _text(call.get("id"))
    json = {"id": identity, "function": inner} if identity else {"function": inner}
    return Struct("api.ToolCall", {"ID": identity, "Function": inner}, json)


def _arguments(value: object) -> JsonMap:
    if isinstance(value, str):
        try:
            value = orjson.loads(value) if value else {}
        except orjson.JSONDecodeError as error:
            raise TemplateError("invalid tool call arguments") from error
    arguments = as_dict(value)
    if arguments is None and value is not None:
        raise TemplateError("invalid tool call arguments")
    return JsonMap(arguments or {})


def _tool(tool: dict[str, Any]) -> Struct:
    function = as_dict(tool.get("function")) or {}
    name, description = _text(function.get("name")), _text(function.get("description"))
    parameters = _schema("api.ToolFunctionParameters", _PARAMETERS, as_dict(function.get("parameters")) or {})
    json: dict[str, Any] = {"name": name, "description": description, "parameters": parameters}
    if not description:
        del json["description"]
    inner = Struct(
        "api.ToolFunction",
        {"Name": name, "Description": description, "Parameters": parameters},
        json,
        is_text_json=True,
    )
    kind = _text(tool.get("type")) or "function"
    fields = {"Type": kind, "Items": tool.get("items"), "Function": inner}
    return Struct("api.Tool", fields, {"type": kind, "function": inner}, is_text_json=True)


def _schema(kind: str, names: dict[str, str], schema: dict[str, Any]) -> Struct:
    """A JSON schema. Keywords that Ollama has no field for are in its JSON all the same, last."""
    is_whole = names is _PARAMETERS
    json: dict[str, Any] = {}
    for name in names:
        value = schema.get(name)
        if name == "properties" and (value or is_whole):
            properties = as_dict(value) or {}
            json[name] = JsonMap({key: _property(item) for key, item in properties.items()})
        elif name == "anyOf" and value:
            json[name] = [_property(item) for item in as_list(value) or []]
        elif name == "type" and is_whole:
            json[name] = _text(value) or "object"
        elif name == "type" and value:
            json[name] = TypeNames(_text(item) for item in as_list(value) or [value])
        elif value:
            json[name] = value
    fields = {field_name: json.get(name, _ABSENT.get(name)) for name, field_name in names.items()}
    json |= {name: schema[name] for name in sorted(schema) if name not in names}
    return Struct(kind, fields, json, is_text_json=is_whole)


def _property(value: object) -> Struct:
    return _schema("api.ToolProperty", _PROPERTY, as_dict(value) or {})


_ABSENT: dict[str, Any] = {
    "anyOf": [],
    "type": TypeNames(),
    "description": "",
    "enum": [],
    "required": [],
    "properties": JsonMap(),
}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
