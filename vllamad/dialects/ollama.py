"""``/api/chat`` and ``/api/generate``: Ollama's requests as the engine's (floor 1).

Reading a request (``ollama_requests``), checking it against a model, and building the engine's body are three steps:
Ollama's order of refusals runs through all of them, and a load lies in between.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from vllama.reasons import Reason
from vllamad.dialects import ollama_errors
from vllamad.dialects.go_values import as_dict
from vllamad.dialects.ollama_errors import Refusal
from vllamad.dialects.ollama_options import Options
from vllamad.dialects.ollama_requests import Asked, ChatAsked, GenerateAsked, with_images
from vllamad.dialects.peek import bad_request
from vllamad.dialects.recipes import conversation, parsed
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability, Model

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"

_PLACES = re.compile(r"\{(prompt|suffix)\}")


LINES_PATH = "/vllama/lines"
"""Of our plugin in the engine: a stream of chat whose text comes as lines, see ``ollama_stream.py``."""

Messages = list[dict[str, Any]]

_TEMPLATED = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
"""What of a chat's fields the chat template sees."""

_PLAIN = frozenset(
    {
        "stream", "stream_options", "messages", "add_generation_prompt", "continue_final_message", "return_token_ids",
        "model", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "seed", "max_tokens", "stop",
    }
)  # fmt: skip


@dataclass(slots=True)
class EngineRequest:
    """What to send: ``fields`` become the body. ``context_prefix`` are token ids that go in front of the prompt once it
    is tokenised (generate's ``context``). ``conversation`` is what the prompt says, for whoever must shorten it;
    ``write`` turns it into text where the engine is not to apply the model's own chat template."""

    path: str
    fields: dict[str, Any]
    context_prefix: list[int] = field(default_factory=list[int])
    conversation: Messages = field(default_factory=Messages)
    write: Callable[[Messages], str] | None = None

    def say(self, messages: Messages) -> None:
        """Make the prompt of these messages."""
        self.conversation = messages
        if self.write is None:
            self.fields |= {"messages": messages, **_continuation(messages)}
        else:
            self.fields["prompt"] = self.write(messages)

    @property
    def body(self) -> bytes:
        """The bytes for the engine."""
        return orjson.dumps(self.fields)

    @property
    def tokenize_body(self) -> bytes:
        """The body that makes the engine's ``/tokenize`` count (and give) this request's prompt."""
        kept = _TEMPLATED if "messages" in self.fields else ("prompt",)
        return orjson.dumps({name: self.fields[name] for name in kept if name in self.fields})

    @property
    def is_plain(self) -> bool:
        """A streamed chat of nothing but text, out and in: its lines may be written by the engine. Every field is one
        that is known to change nothing in their form."""
        return (
            self.path == CHAT_PATH
            and bool(self.fields["stream"])
            and not self.context_prefix
            and self.fields.keys() <= _PLAIN
            and all(isinstance(message.get("content"), str) for message in self.conversation)
        )

    def ask_for_lines(self, line: Sequence[str]) -> None:
        """Have the engine write lines: what stands before the time, before the text, and after it."""
        self.path = LINES_PATH
        self.fields["vllama_line"] = list(line)

    @property
    def text_bytes(self) -> int:
        """An upper bound of the prompt's tokens, template aside: every token is at least one byte."""
        return len(orjson.dumps([self.fields.get("messages"), self.fields.get("prompt"), self.fields.get("tools")]))


def check_chat(chat: ChatAsked, model: Model) -> None:
    """Refuse what the model cannot do, in Ollama's order. Raises UNSUPPORTED."""
    _check_thinking(chat.asked, model)
    if Capability.COMPLETION not in model.capabilities:
        raise ollama_errors.unsupported(chat.asked.model, "chat")
    if chat.tools and Capability.TOOLS not in model.capabilities:
        raise ollama_errors.lacks(model.name, "tools", "choose a model with the tools capability")
    if chat.has_images and Capability.VISION not in model.capabilities:
        raise ollama_errors.no_images()


def check_generate(generate: GenerateAsked, model: Model) -> None:
    """Refuse what the model or the engine cannot do, in Ollama's order. Raises INVALID_REQUEST, UNSUPPORTED."""
    if generate.raw and (generate.template or generate.system or generate.context):
        raise bad_request("raw mode does not support template, system, or context")
    _check_thinking(generate.asked, model)
    if Capability.COMPLETION not in model.capabilities:
        raise ollama_errors.unsupported(generate.asked.model, "generate")
    if generate.suffix and Capability.INSERT not in model.capabilities:
        raise ollama_errors.lacks(model.name, "insert", "send the fill-in-the-middle prompt with raw: true")
    if generate.images and Capability.VISION not in model.capabilities:
        raise ollama_errors.no_images()
    if generate.images and generate.template:
        raise VllamaError(
            Reason.UNSUPPORTED,
            "images and template do not go together: a prompt that a template made reaches the engine as text",
            "leave template out: the model's own one places images",
        )


def check_format(asked: Asked) -> None:
    """Refuse a ``format`` that is neither "json" nor a schema; Ollama does so with status 500."""
    value = asked.format
    if value in (None, "", "json") or as_dict(value) is not None:
        return
    shown = orjson.dumps(orjson.dumps(value).decode()).decode()
    raise Refusal(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def _check_thinking(asked: Asked, model: Model) -> None:
    if asked.think and Capability.THINKING not in model.capabilities:
        raise ollama_errors.unsupported(asked.model, "thinking")


def build_chat(chat: ChatAsked, model: Model, options: Options, context_length: int, today: str) -> EngineRequest:
    """The engine's request for a chat. ``today`` is a date (ISO 8601) for templates that show one."""
    fields = _common(chat.asked, model, options, context_length)
    messages = conversation(model, chat.messages)
    if model.recipe.template:
        request = EngineRequest(COMPLETIONS_PATH, _as_completion(fields, chat.asked, context_length))
        request.write = _writer(model.recipe.template, chat.asked, today, tools=chat.tools)
        request.say(messages)
        return request
    fields |= {"messages": messages, **_continuation(messages)}
    if chat.tools:
        fields["tools"] = chat.tools
    if chat.asked.logprobs:
        fields |= {"logprobs": True, "top_logprobs": chat.asked.top_logprobs}
    return EngineRequest(CHAT_PATH, fields, conversation=messages)


def _continuation(messages: Messages) -> Mapping[str, bool]:
    """A conversation that ends with words of the assistant is gone on with, not answered."""
    last = messages[-1]
    if last["role"] != "assistant" or not last.get("content") or last.get("tool_calls"):
        return {}
    return {"add_generation_prompt": False, "continue_final_message": True}


def _writer(template: str, asked: Asked, today: str, tools: Sequence[Any] = ()) -> Callable[[Messages], str]:
    known = parsed(template)

    def write(messages: Messages) -> str:
        from vllamad.dialects.go_templates.prompt import render_prompt  # as late as in ``parsed``

        return render_prompt(known, messages, tools=tools, think=asked.think, today=today)

    return write


def build_generate(
    generate: GenerateAsked, model: Model, options: Options, context_length: int, today: str
) -> EngineRequest:
    """The engine's request for a generate: a chat of one turn, or a bare completion for ``raw``, ``suffix`` and prompts
    that a Go template makes.

    ``context`` needs the prompt's own token ids first, see ``EngineRequest.context_prefix`` and ``continue_context``.
    """
    fields = _common(generate.asked, model, options, context_length)
    if generate.raw:
        fields["prompt"] = generate.prompt
        return EngineRequest(COMPLETIONS_PATH, _as_completion(fields, generate.asked, context_length))
    template = generate.template or model.recipe.template
    if generate.suffix:
        fields |= {"prompt": _insertion(generate, model, template, today), "return_token_ids": True}
        return EngineRequest(COMPLETIONS_PATH, _as_completion(fields, generate.asked, context_length))
    messages = _turn(generate, model)
    fields["return_token_ids"] = True
    if template:
        completion = _as_completion(fields, generate.asked, context_length)
        request = EngineRequest(COMPLETIONS_PATH, completion, generate.context)
        request.write = _writer(template, generate.asked, today)
        request.say(messages)
        return request
    fields["messages"] = messages
    if generate.asked.logprobs:
        fields |= {"logprobs": True, "top_logprobs": generate.asked.top_logprobs}
    return EngineRequest(CHAT_PATH, fields, generate.context, messages)


def _insertion(generate: GenerateAsked, model: Model, template: str, today: str) -> str:
    """The prompt for what stands between a text and its suffix: no system message or conversation belongs there."""
    texts = {"prompt": generate.prompt, "suffix": generate.suffix}
    if template:
        from vllamad.dialects.go_templates.prompt import render_prompt  # as late as in ``parsed``

        return render_prompt(parsed(template), (), prompt=generate.prompt, suffix=generate.suffix, today=today)
    return _PLACES.sub(lambda place: texts[place[1]], model.insert_format)


def _turn(generate: GenerateAsked, model: Model) -> Messages:
    """The prompt as a conversation: the model's own messages belong to its beginning, which ``context`` stands for."""
    content = with_images(generate.prompt, generate.images) if generate.images else generate.prompt
    turn: Messages = [{"role": "user", "content": content}]
    if generate.context:
        system = generate.system or model.recipe.system
        return [{"role": "system", "content": system}, *turn] if system else turn
    if generate.system:
        turn.insert(0, {"role": "system", "content": generate.system})
        # The request's system message replaces the model's, and still stands before the model's own messages.
        own = [{"role": role, "content": text} for role, text in model.recipe.messages]
        return [turn[0], *own, *turn[1:]]
    return conversation(model, turn)


def continue_context(
    request: EngineRequest, prompt_ids: Sequence[int], asked: Asked, context_length: int
) -> EngineRequest:
    """Turn a chat of one turn into a completion over token ids: the given context, then the prompt's own."""
    fields = {name: value for name, value in request.fields.items() if name not in _CHAT_ONLY}
    fields["prompt"] = [*request.context_prefix, *prompt_ids]
    return EngineRequest(COMPLETIONS_PATH, _as_completion(fields, asked, context_length))


_CHAT_ONLY = frozenset({*_TEMPLATED, "reasoning_effort", "logprobs", "top_logprobs"})


def _as_completion(fields: dict[str, Any], asked: Asked, context_length: int) -> dict[str, Any]:
    for name in ("chat_template_kwargs", "reasoning_effort"):
        fields.pop(name, None)
    # Completions end after 16 tokens unless told otherwise; the engine lowers this to what is left of the context.
    fields.setdefault("max_tokens", context_length)
    if asked.logprobs:
        fields["logprobs"] = asked.top_logprobs
    return fields


def _common(asked: Asked, model: Model, options: Options, context_length: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"stream": asked.stream}
    if asked.stream:
        fields["stream_options"] = {"include_usage": True}
    fields |= options.sampling(context_length)
    fields |= response_format(asked.format)
    if Capability.THINKING in model.capabilities:
        fields |= thinking_fields(asked.think, model)
    if model.adapter is not None:
        fields["model"] = model.adapter.name
    return fields


def response_format(value: object) -> Mapping[str, Any]:
    """The engine's field for a ``format`` that passed ``check_format``."""
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    schema = as_dict(value)
    if schema is None:
        return {}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": schema}}}


def thinking_fields(think: bool | str | None, model: Model) -> Mapping[str, Any]:
    """How the engine is told to think, for a model that can. Absent means on. Templates know the switch under one of
    two names and ignore the other."""
    is_on = think is not False
    fields: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": is_on, "thinking": is_on}}
    if isinstance(think, str):
        has_no_max = model.reasoning_parser == "openai_gptoss"
        fields["reasoning_effort"] = "high" if think == "max" and has_no_max else think
    return fields
