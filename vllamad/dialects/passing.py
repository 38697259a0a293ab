"""Requests that go to the engine as they came (floor 1): what has to be known of one, and what little is changed.

The engine speaks these wires itself. A body is parsed once, for the model's name, ``keep_alive`` and addresses of
media; its bytes go on untouched unless something of ours stood in it, or the model has an adapter, parameters or a
system message of its own. Such a body is written anew, with every field that it had.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import orjson

from vllama.reasons import Reason
from vllamad.dialects import media, ollama_errors
from vllamad.dialects.go_values import as_dict, as_list, parse_keep_alive
from vllamad.dialects.ollama_options import Options, read_options
from vllamad.dialects.peek import bad_request, read_value
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability, Model, Recipe

Fields = dict[str, Any]


class Face(Enum):
    """Whose words an answer of our own has."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(slots=True)
class Asked:
    """A request, as far as it was read. ``body`` is what came, and goes on unless
    ``is_changed``."""

    model: str
    fields: Fields
    body: bytes
    keep_alive_s: float | None = None
    addresses: list[media.Address] = field(default_factory=list[media.Address])
    is_changed: bool = False


@dataclass(frozen=True, slots=True)
class Wire:
    """One route of the engine. ``verb`` is what a model that lacks ``needs`` does not support; ``apply`` puts a
    model's own recipe into the fields of a request."""

    path: str
    face: Face = Face.OPENAI
    needs: Capability | None = None
    verb: str = ""
    apply: Callable[[Fields, Recipe, Mapping[str, Any]], None] | None = None


def read_asked(body: bytes) -> Asked:
    """Read a body as far as it concerns us. Raises INVALID_REQUEST."""
    fields = as_dict(read_value(body))
    if fields is None:
        raise bad_request("the request body must be a JSON object")
    model = fields.get("model")
    if model is None or model == "":
        raise VllamaError(Reason.INVALID_REQUEST, "model is required", field="model")
    if not isinstance(model, str):
        raise VllamaError(Reason.INVALID_REQUEST, "model must be a string", field="model")
    asked = Asked(model, fields, body, addresses=media.addresses(fields))
    if "keep_alive" in fields:
        asked.keep_alive_s = parse_keep_alive(fields.pop("keep_alive"))
        asked.is_changed = True
    return asked


def check(asked: Asked, model: Model, wire: Wire) -> None:
    """Refuse what the model cannot do before anything is loaded for it. Raises UNSUPPORTED."""
    if wire.needs is not None and wire.needs not in model.capabilities:
        raise ollama_errors.unsupported(asked.model, wire.verb)
    if asked.fields.get("tools") and wire.verb == "chat" and Capability.TOOLS not in model.capabilities:
        choice = asked.fields.get("tool_choice")
        kind = (as_dict(choice) or {}).get("type", choice)
        if kind in (None, "auto"):
            raise ollama_errors.lacks(model.name, "tools", "choose a model with the tools capability")
    is_conversation = wire.verb == "chat" or "messages" in asked.fields
    if model.recipe.template and wire.apply is not None and is_conversation:
        raise VllamaError(
            Reason.UNSUPPORTED,
            f"{model.name} has a TEMPLATE of its own, which is applied on /api/chat and /api/generate only: use those,"
            " send a finished prompt to /v1/completions, or make the model without TEMPLATE",
            model=model.name,
        )


def body_for(asked: Asked, model: Model, wire: Wire, context_length: int) -> bytes:
    """The bytes for the engine. Of the model's own recipe only what the request is silent about is added. Raises
    INVALID_REQUEST."""
    recipe = model.recipe
    if wire.apply is not None and (recipe.parameters or recipe.system or recipe.messages):
        wire.apply(asked.fields, recipe, parameters_of(recipe, context_length))
        asked.is_changed = True
    if model.adapter is not None:
        asked.fields["model"] = model.adapter.name
        asked.is_changed = True
    if not asked.is_changed:
        return asked.body
    try:
        return orjson.dumps(asked.fields)
    except orjson.JSONEncodeError as error:  # it is read to four times the depth that it is written to
        raise bad_request("the request body is nested too deeply") from error


_FIELD_OF = {"repeat_penalty": "repetition_penalty", "num_predict": "max_tokens"}
_SAMPLING = frozenset(name for name in Options.__dataclass_fields__ if name not in {"num_ctx", "without_effect"})


def parameters_of(recipe: Recipe, context_length: int) -> dict[str, Any]:
    """What a Modelfile's parameters are in the engine's words; Ollama's defaults for the others are not ours to set on
    these routes."""
    own = {name: list(value) if isinstance(value, tuple) else value for name, value in recipe.parameters.items()}
    sampling = read_options(own).sampling(context_length)
    wanted = {_FIELD_OF.get(name, name) for name in own if name in _SAMPLING}
    return {name: value for name, value in sampling.items() if name in wanted}


# --- recipes at work -------------------------------------------------------------------------------------------------


def apply_to_chat(fields: Fields, recipe: Recipe, parameters: Mapping[str, Any]) -> None:
    """``/v1/chat/completions``."""
    _set_missing(fields, parameters, {"max_tokens": "max_completion_tokens"})
    messages = as_list(fields.get("messages"))
    if messages is None:
        return  # the engine says what is wrong with it
    fields["messages"] = [*_opening(recipe, _has_system(messages)), *messages]


def apply_to_prompt(fields: Fields, recipe: Recipe, parameters: Mapping[str, Any]) -> None:
    """``/v1/completions``: the prompt is the caller's, to the letter."""
    _set_missing(fields, parameters)


def apply_to_tokens(fields: Fields, recipe: Recipe, parameters: Mapping[str, Any]) -> None:
    """``/tokenize``: what the same conversation would come to."""
    if "messages" in fields:
        apply_to_chat(fields, recipe, {})


def apply_to_responses(fields: Fields, recipe: Recipe, parameters: Mapping[str, Any]) -> None:
    """``/v1/responses``."""
    named = {"max_output_tokens" if name == "max_tokens" else name: value for name, value in parameters.items()}
    _set_missing(fields, named)
    if recipe.system and not fields.get("instructions"):
        fields["instructions"] = recipe.system
    if recipe.messages:
        said = fields.get("input")
        items = [{"role": "user", "content": said}] if isinstance(said, str) else as_list(said)
        if items is not None:
            fields["input"] = [*_opening(recipe, has_system=True), *items]


def apply_to_messages(fields: Fields, recipe: Recipe, parameters: Mapping[str, Any]) -> None:
    """``/v1/messages`` and its ``count_tokens``. ``max_tokens`` is always the request's own there."""
    known = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "stop": "stop_sequences"}
    _set_missing(fields, {known[name]: value for name, value in parameters.items() if name in known})
    if recipe.system and not fields.get("system"):
        fields["system"] = recipe.system
    messages = as_list(fields.get("messages"))
    if messages is not None:
        fields["messages"] = [*_opening(recipe, has_system=True), *messages]


def _set_missing(fields: Fields, parameters: Mapping[str, Any], others: Mapping[str, str] | None = None) -> None:
    for name, value in parameters.items():
        names = (name, (others or {}).get(name, name))
        if all(fields.get(each) is None for each in names):
            fields[name] = value


def _opening(recipe: Recipe, has_system: bool) -> list[Fields]:
    """What stands in front of a request's own messages."""
    messages = [{"role": role, "content": text} for role, text in recipe.messages]
    if recipe.system and not has_system:
        messages.insert(0, {"role": "system", "content": recipe.system})
    return messages


def _has_system(messages: list[Any]) -> bool:
    first = as_dict(messages[0]) if messages else None
    return first is not None and first.get("role") in ("system", "developer")


# --- the table -------------------------------------------------------------------------------------------------------

_CHAT = Capability.COMPLETION
_EMBED = Capability.EMBEDDING

WIRES: dict[str, Wire] = {
    "/v1/chat/completions": Wire("/v1/chat/completions", Face.OPENAI, _CHAT, "chat", apply_to_chat),
    "/v1/completions": Wire("/v1/completions", Face.OPENAI, _CHAT, "generate", apply_to_prompt),
    "/v1/responses": Wire("/v1/responses", Face.OPENAI, _CHAT, "chat", apply_to_responses),
    "/v1/messages": Wire("/v1/messages", Face.ANTHROPIC, _CHAT, "chat", apply_to_messages),
    "/v1/messages/count_tokens": Wire(
        "/v1/messages/count_tokens", Face.ANTHROPIC, _CHAT, "chat", apply_to_messages
    ),
    "/v1/embeddings": Wire("/v1/embeddings", Face.OPENAI, _EMBED, "embeddings"),
    "/tokenize": Wire("/tokenize", apply=apply_to_tokens),
    **{
        path: Wire(path)
        for path in (
            "/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score", "/classify", "/pooling", "/detokenize",
        )
    },
}  # fmt: skip
"""Routes whose body is one JSON object with the model's name in it. What a model must be good for is only asked where
there is a capability for it; about the rest the engine knows best."""
