"""``/api/chat`` and ``/api/generate``: Ollama's requests as the engine's (floor 1).

Reading a request (``ollama_requests``), checking it against a model, and building the engine's body are three steps:
Ollama's order of refusals runs through all of them, and a load lies in between.
"""

from collections.abc import Mapping, Sequence
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
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability, Model

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"


@dataclass(slots=True)
class EngineRequest:
    """What to send: ``fields`` become the body. ``context_prefix`` are token ids that go in front of the prompt once it
    is tokenised (generate's ``context``)."""

    path: str
    fields: dict[str, Any]
    context_prefix: list[int] = field(default_factory=list[int])

    @property
    def body(self) -> bytes:
        """The bytes for the engine."""
        return orjson.dumps(self.fields)

    @property
    def tokenize_body(self) -> bytes:
        """The body that makes the engine's ``/tokenize`` count (and give) this request's prompt."""
        kept = ("messages", "tools", "chat_template_kwargs") if "messages" in self.fields else ("prompt",)
        return orjson.dumps({name: self.fields[name] for name in kept if name in self.fields})

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
    if generate.template:
        raise VllamaError(
            Reason.UNSUPPORTED,
            "template is not supported: the engine applies the model's own chat template; send a finished prompt with"
            ' "raw": true instead',
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


def build_chat(chat: ChatAsked, model: Model, options: Options, context_length: int) -> EngineRequest:
    """The engine's request for a chat."""
    fields = _common(chat.asked, model, options, context_length)
    fields["messages"] = chat.messages
    if chat.tools:
        fields["tools"] = chat.tools
    if chat.asked.logprobs:
        fields |= {"logprobs": True, "top_logprobs": chat.asked.top_logprobs}
    return EngineRequest(CHAT_PATH, fields)


def build_generate(generate: GenerateAsked, model: Model, options: Options, context_length: int) -> EngineRequest:
    """The engine's request for a generate: a chat of one turn, or a bare completion for ``raw`` and ``suffix``.

    ``context`` needs the prompt's own token ids first, see ``EngineRequest.context_prefix`` and ``continue_context``.
    """
    fields = _common(generate.asked, model, options, context_length)
    if generate.raw or generate.suffix:
        fields["prompt"] = generate.prompt
        if generate.suffix:
            fields["suffix"] = generate.suffix
        if not generate.raw:
            fields["return_token_ids"] = True
        return EngineRequest(COMPLETIONS_PATH, _as_completion(fields, generate.asked, context_length))
    messages: list[dict[str, Any]] = []
    if generate.system:
        messages.append({"role": "system", "content": generate.system})
    content = with_images(generate.prompt, generate.images) if generate.images else generate.prompt
    messages.append({"role": "user", "content": content})
    fields["messages"] = messages
    fields["return_token_ids"] = True
    if generate.asked.logprobs:
        fields |= {"logprobs": True, "top_logprobs": generate.asked.top_logprobs}
    return EngineRequest(CHAT_PATH, fields, generate.context)


def continue_context(
    request: EngineRequest, prompt_ids: Sequence[int], asked: Asked, context_length: int
) -> EngineRequest:
    """Turn a chat of one turn into a completion over token ids: the given context, then the prompt's own."""
    fields = {name: value for name, value in request.fields.items() if name not in _CHAT_ONLY}
    fields["prompt"] = [*request.context_prefix, *prompt_ids]
    return EngineRequest(COMPLETIONS_PATH, _as_completion(fields, asked, context_length))


_CHAT_ONLY = frozenset({"messages", "tools", "chat_template_kwargs", "reasoning_effort", "logprobs", "top_logprobs"})


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
