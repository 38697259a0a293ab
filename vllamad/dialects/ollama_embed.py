"""``/api/embed`` and ``/api/embeddings``: Ollama's requests as the engine's, its vectors as Ollama's (floor 1).

The engine is asked for base64: of 98 000 numbers that is a quarter of the bytes of its decimals, read in 1.5 instead of
3.4 ms, and a NaN gets through to where it can be refused. What costs is writing: some 0.2 µs a number for the nine
digits that tell any two float32 apart (all seventeen would be quicker, and half as many bytes again for every client).
"""

import binascii
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from vllama.reasons import Reason
from vllamad.dialects.go_values import as_dict, as_list, dumps, parse_keep_alive
from vllamad.dialects.ollama_errors import Refusal
from vllamad.dialects.openai import ContextExceeded
from vllamad.dialects.peek import Fields, bad_request, read_object
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import Capability, Model

EMBEDDINGS_PATH = "/v1/embeddings"

MAX_INPUTS = 128
MAX_CHARACTERS = 32 * 1024
"""How much goes into one request to the engine. It takes any number of texts, but works through all of them before
anyone else's: beside 1024 short ones a newcomer waited 4.7 s, beside two requests of 128 at a time 1.0 s, and the list
took as long. What counts is tokens: of texts with 200 each, 128 were 10 s of work for two cores."""

TOO_LONG = "the input length exceeds the context length"
NOT_SHORTER = "input exceeds maximum context length and cannot be truncated further"
NOT_FINITE = "embedding contains NaN or Inf values"

_LEAST_CONTEXT = 4
_SPECIAL_TOKENS = 8
"""No tokenizer puts more around a text than this."""

_UNIT_TOLERANCE = 1e-6
"""What float32 leaves of a length of 1; anything further off was not normalised."""

_ENGINE_EMPTY = "prompt cannot be empty"


@dataclass(frozen=True, slots=True)
class EmbedAsked:
    """A request to either route. ``inputs`` empty: only load. ``failure_status``: 0, or the status of whatever fails
    while embedding. ``keep_alive_s`` as for chat."""

    model: str
    inputs: list[str]
    truncate: bool
    dimensions: int
    options: dict[str, Any]
    keep_alive_s: float | None
    lacking_status: int
    """How the route says that a model does not embed."""
    failure_status: int = 0


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of one answer as JSON arrays with commas between, and what the engine counted."""

    text: bytes
    prompt_tokens: int


# --- the request -----------------------------------------------------------------------------------------------------


def read_embed(body: bytes) -> EmbedAsked:
    """Read a body of ``/api/embed``. Raises INVALID_REQUEST in Ollama's words, and only after that looks if a model is
    named: MODEL_NOT_FOUND."""
    fields = Fields(read_object(body, "EmbedRequest"), "EmbedRequest")
    asked = EmbedAsked(
        model=fields.text("model"),
        truncate=fields.flag("truncate", default=True),
        dimensions=fields.integer("dimensions"),
        options=fields.mapping("options", "map[string]interface {}"),
        keep_alive_s=parse_keep_alive(fields.raw("keep_alive")),
        lacking_status=501,
        inputs=_read_inputs(fields.raw("input")),  # last: for Ollama's decoder it may be anything
    )
    if not asked.model:
        raise ModelNotFound("")
    return asked


def read_embeddings(body: bytes) -> EmbedAsked:
    """Read a body of ``/api/embeddings``, which knows one text and never truncates. Raises INVALID_REQUEST."""
    fields = Fields(read_object(body, "EmbeddingRequest"), "EmbeddingRequest")
    prompt = fields.text("prompt")
    asked = EmbedAsked(
        model=fields.text("model"),
        inputs=[prompt] if prompt else [],
        truncate=False,
        dimensions=0,
        options=fields.mapping("options", "map[string]interface {}"),
        keep_alive_s=parse_keep_alive(fields.raw("keep_alive")),
        lacking_status=500,
        failure_status=500,
    )
    if not asked.model:
        raise bad_request("model is required")
    return asked


def _read_inputs(value: object) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    items = as_list(value)
    if items is None or not all(isinstance(item, str) for item in items):
        raise bad_request("invalid input type")
    return items


def not_found(asked: EmbedAsked) -> ModelNotFound:
    """These two routes word it in their own way."""
    return ModelNotFound(asked.model, f'model "{asked.model}" not found, try pulling it first')


def check_embed(asked: EmbedAsked, model: Model) -> None:
    """Refuse a model that is served for generating; Ollama's text for it names a flag of another engine."""
    if Capability.EMBEDDING not in model.capabilities:
        raise Refusal(
            asked.lacking_status,
            f'"{asked.model}" does not support embeddings',
            Reason.UNSUPPORTED,
            "choose a model with the embedding capability: vllamactl list",
        )


def input_limit(num_ctx: int, context_length: int) -> int:
    """Tokens that an input may have: a ``num_ctx`` below what the model was loaded with counts, a larger one does
    not."""
    return min(max(num_ctx, _LEAST_CONTEXT), context_length) if num_ctx > 0 else context_length


def split(inputs: Sequence[str]) -> list[list[str]]:
    """The inputs in portions that the engine is asked for one by one; in order, none of them empty."""
    portions: list[list[str]] = []
    room = 0
    for text in inputs:
        if not portions or len(portions[-1]) == MAX_INPUTS or len(text) > room:
            portions.append([])
            room = MAX_CHARACTERS
        portions[-1].append(text)
        room -= len(text)
    return portions


def build_embed(inputs: Sequence[str], limit: int, context_length: int, *, truncate: bool) -> bytes:
    """The engine's body for one portion. Without ``truncate`` it is the engine that refuses what is longer than the
    context; see ``may_exceed`` for a ``limit`` below that."""
    fields: dict[str, Any] = {"input": inputs, "encoding_format": "base64"}
    if truncate:
        # -1 is the context length as the engine itself knows it.
        fields["truncate_prompt_tokens"] = limit if limit < context_length else -1
    return orjson.dumps(fields)


def may_exceed(text: str, limit: int) -> bool:
    """Whether a text could have more tokens than that; a token is at least one byte."""
    return len(text.encode()) + _SPECIAL_TOKENS > limit


# --- the answer ------------------------------------------------------------------------------------------------------


def read_vectors(body: bytes, count: int, dimensions: int) -> Vectors:
    """Read the engine's answer to ``count`` inputs: the vectors in the order of the inputs, cut to ``dimensions`` if
    that is above 0 and below their size, and of length 1 (or 0). Raises INVALID_REQUEST for one that is not finite,
    ENGINE_DIED for an answer that is not one."""
    try:
        answer = as_dict(orjson.loads(body)) or {}
        items = {item["index"]: binascii.a2b_base64(item["embedding"]) for item in answer["data"]}
        vectors = [_finish(items[at], dimensions) for at in range(count)]
        prompt_tokens = answer["usage"]["prompt_tokens"]
        if not isinstance(prompt_tokens, int) or len(items) != count:
            raise ValueError
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise VllamaError(
            Reason.ENGINE_DIED,
            "the engine failed while answering: its answer does not hold the embeddings that it was asked for",
            "see its last lines: vllamactl logs MODEL",
        ) from error
    return Vectors(b",".join(vectors), prompt_tokens)


def _finish(raw: bytes, dimensions: int) -> bytes:
    """One vector of float32, in this machine's byte order, as JSON."""
    size = len(raw) // 4
    # The engine runs on this machine and sends its own byte order.
    vector: Sequence[float] = struct.unpack(f"={size}f", raw)
    if not math.isfinite(sum(vector)):
        raise bad_request(NOT_FINITE)
    if 0 < dimensions < size:
        vector = vector[:dimensions]
    length = math.hypot(*vector)
    if length and abs(length - 1) > _UNIT_TOLERANCE:
        vector = tuple(value / length for value in vector)
    return (_array_format(len(vector)) % vector).encode()


@lru_cache(maxsize=32)
def _array_format(size: int) -> str:
    """One call that writes the whole vector takes two thirds of the time of one call a number."""
    return "[" + ",".join(["%.9g"] * size) + "]"


def embed_answer(asked: EmbedAsked, parts: Sequence[Vectors], total_ns: int, load_ns: int) -> bytes:
    """The answer of ``/api/embed``; with no parts, that of a request that only loads."""
    head = dumps({"model": asked.model})[:-1] + b',"embeddings":['
    if not parts:
        return head + b"]}"
    tail = {
        "total_duration": total_ns,
        "load_duration": load_ns,
        "prompt_eval_count": sum(part.prompt_tokens for part in parts),
    }
    return b"".join([head, b",".join(part.text for part in parts), b"],", dumps(tail)[1:]])


def embeddings_answer(parts: Sequence[Vectors]) -> bytes:
    """The answer of ``/api/embeddings``, the vector alone; with no parts, that of a request that only loads."""
    return b'{"embedding":' + (parts[0].text if parts else b"[]") + b"}"


# --- failures --------------------------------------------------------------------------------------------------------


def too_long() -> VllamaError:
    """An input that may not be truncated."""
    return VllamaError(
        Reason.INVALID_REQUEST, TOO_LONG, "shorten the input, or leave truncate out: its end is ignored then"
    )


def told(error: VllamaError, asked: EmbedAsked) -> VllamaError:
    """What the engine refused, in Ollama's words and with the route's status; other failures as they are."""
    if error.reason is Reason.INVALID_REQUEST and not isinstance(error, Refusal):
        if isinstance(error, ContextExceeded):
            error = too_long()
        elif _ENGINE_EMPTY in error.message:
            # Ollama says so of the empty text too, if the tokenizer puts nothing around it.
            error = bad_request(NOT_SHORTER)
        if asked.failure_status:
            return Refusal(asked.failure_status, error.message, error.reason, error.hint or "")
    return error
