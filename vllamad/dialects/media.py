"""Where a request's body names media by address (floor 1): images, audio and video that somebody would have to fetch.

The engine fetches whatever address it is given, so none may reach it: this looks at every place from which the engine
(vLLM 0.32) reads one, and at more rather than at fewer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllama.reasons import Reason
from vllamad.dialects.go_values import as_dict, as_list
from vllamad.domain.errors import VllamaError

_SCHEMAS = frozenset(
    {"tools", "functions", "response_format", "structured_outputs", "text", "output_config", "metadata",
     "chat_template_kwargs", "kv_transfer_params", "ec_transfer_params", "vllm_xargs"}
)  # fmt: skip
"""Fields that describe something: a property of a tool may well be called image_url."""

_ARGUMENTS = frozenset({"input", "arguments"})
_CALLS = ("tool_use", "server_tool_use", "function_call", "custom_tool_call")
"""What a model said to a tool is text to the engine."""

IMAGE_KEYS = frozenset({"image_url", "source"})
_URL_KEYS = IMAGE_KEYS | {"video_url", "audio_url", "file_url"}

ONLY_DATA = "image URLs are not currently supported, please use base64 encoded data instead"
"""Ollama's words."""


@dataclass(frozen=True, slots=True)
class Address:
    """One address: ``holder[key]`` is where it stands. ``field`` is what the part calls it."""

    holder: dict[str, Any]
    key: str
    field: str

    @property
    def url(self) -> str:
        return self.holder[self.key]

    @property
    def is_image(self) -> bool:
        return self.field in IMAGE_KEYS


def addresses(fields: dict[str, Any]) -> list[Address]:
    """Every address in a body that is no ``data:`` URL."""
    stack: list[Any] = [value for name, value in fields.items() if name not in _SCHEMAS]
    found: list[Address] = []
    while stack:
        value = stack.pop()
        if (part := as_dict(value)) is not None:
            is_call = part.get("type") in _CALLS
            for key, inner in part.items():
                if key in _URL_KEYS:
                    found += _addresses_at(part, key)
                if not (is_call and key in _ARGUMENTS) and isinstance(inner, dict | list):
                    stack.append(inner)
        elif (items := as_list(value)) is not None:
            stack += [item for item in items if isinstance(item, dict | list)]
    return found


def refuse_address(address: Address) -> VllamaError:
    """Why an address does not go on."""
    if not address.is_image:
        return VllamaError(
            Reason.UNSUPPORTED,
            f"{address.field} has to be a data: URL: nothing but images is fetched from elsewhere",
            "send the file itself, base64 encoded",
            field=address.field,
        )
    return VllamaError(
        Reason.UNSUPPORTED, ONLY_DATA, "or let the daemon fetch them: server.remote_images", field=address.field
    )


def _addresses_at(part: dict[str, Any], key: str) -> Iterator[Address]:
    value = part[key]
    holder, at = (part, key) if isinstance(value, str) else (as_dict(value) or {}, "url")
    url = holder.get(at)
    if isinstance(url, str) and url[:5].lower() != "data:":
        yield Address(holder, at, key)
