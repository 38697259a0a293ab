"""Ollama's ``options`` as the engine's sampling fields (floor 1).

Every option has a row in ``OPTIONS``. One that maps is clamped to what the engine accepts, and Ollama's own default is
sent where the request is silent, because the engine's defaults differ. One without an effect is accepted and named in
``Options.without_effect``, so that the daemon can say so once.
"""

from dataclasses import dataclass
from typing import Any

from vllama.reasons import Reason
from vllamad.dialects.go_values import as_list
from vllamad.dialects.ollama_errors import Refusal

_INT64_MAX = 2**63 - 1
_TINY_TOP_P = 1e-6
"""The engine refuses 0, Ollama takes it for "the likeliest token only"; so does this."""

INTEGER, NUMBER, FLAG, TEXTS = "integer", "float32", "boolean", "array"

_LOAD_TIME = "decided when the model is loaded"
_NO_SAMPLER = "the engine has no such sampler"
_OLD = "ignored by Ollama too"


@dataclass(frozen=True, slots=True)
class Option:
    """Its type, and why it has no effect ("" if it has one)."""

    kind: str
    no_effect: str = ""


OPTIONS: dict[str, Option] = {
    "num_ctx": Option(INTEGER),
    "num_predict": Option(INTEGER),
    "seed": Option(INTEGER),
    "top_k": Option(INTEGER),
    "top_p": Option(NUMBER),
    "min_p": Option(NUMBER),
    "temperature": Option(NUMBER),
    "repeat_penalty": Option(NUMBER),
    "repeat_last_n": Option(INTEGER),
    "presence_penalty": Option(NUMBER),
    "frequency_penalty": Option(NUMBER),
    "stop": Option(TEXTS),
    "typical_p": Option(NUMBER, _NO_SAMPLER),
    "num_keep": Option(INTEGER, "the engine does not shift its context"),
    "num_batch": Option(INTEGER, _LOAD_TIME),
    "num_gpu": Option(INTEGER, _LOAD_TIME),
    "main_gpu": Option(INTEGER, _LOAD_TIME),
    "use_mmap": Option(FLAG, _LOAD_TIME),
    "num_thread": Option(INTEGER, _LOAD_TIME),
    "draft_num_predict": Option(INTEGER, _LOAD_TIME),
    "numa": Option(FLAG, _OLD),
    "low_vram": Option(FLAG, _OLD),
    "f16_kv": Option(FLAG, _OLD),
    "logits_all": Option(FLAG, _OLD),
    "vocab_only": Option(FLAG, _OLD),
    "use_mlock": Option(FLAG, _OLD),
    "embedding_only": Option(FLAG, _OLD),
    "tfs_z": Option(NUMBER, _NO_SAMPLER),
    "mirostat": Option(INTEGER, _NO_SAMPLER),
    "mirostat_tau": Option(NUMBER, _NO_SAMPLER),
    "mirostat_eta": Option(NUMBER, _NO_SAMPLER),
    "penalize_newline": Option(FLAG, _OLD),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks for, Ollama's defaults filled in. ``num_predict`` 0 or less: until the model stops.
    ``num_ctx`` 0: whatever the model was loaded with. ``seed`` below 0: none."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1
    num_predict: int = -1
    num_ctx: int = 0
    stop: tuple[str, ...] = ()
    without_effect: tuple[tuple[str, str], ...] = ()
    """(option, why), also for names that nobody knows."""

    def sampling(self, context_length: int) -> dict[str, Any]:
        """The engine's fields, all within its ranges; ``max_tokens`` only if the request bounds it."""
        fields: dict[str, Any] = {
            "temperature": min(max(self.temperature, 0.0), 2.0),
            "top_k": max(self.top_k, 0),
            "top_p": min(self.top_p, 1.0) if self.top_p > 0 else _TINY_TOP_P,
            "min_p": min(max(self.min_p, 0.0), 1.0),
            "repetition_penalty": self.repeat_penalty if self.repeat_penalty > 0 and self.repeat_last_n else 1.0,
            "presence_penalty": min(max(self.presence_penalty, -2.0), 2.0),
            "frequency_penalty": min(max(self.frequency_penalty, -2.0), 2.0),
        }
        if self.seed >= 0:
            fields["seed"] = min(self.seed, _INT64_MAX)
        if self.num_predict > 0:
            fields["max_tokens"] = min(self.num_predict, context_length)
        if self.stop:
            fields["stop"] = list(self.stop)
        return fields


def read_options(options: dict[str, Any]) -> Options:
    """Read a request's options. A wrong type is refused with Ollama's text and its status 500."""
    known: dict[str, Any] = {}
    without_effect: list[tuple[str, str]] = []
    for name, value in options.items():
        if value is None:
            continue
        row = OPTIONS.get(name)
        if row is None:
            without_effect.append((name, "no such option"))
            continue
        read = _read(name, value, row.kind)
        if row.no_effect:
            without_effect.append((name, row.no_effect))
        else:
            known[name] = read
    if known.get("repeat_last_n", 64) not in {0, 64}:
        without_effect.append(("repeat_last_n", "the engine penalises over the whole text; only 0 (off) has an effect"))
    return Options(**known, without_effect=tuple(without_effect))


def _read(name: str, value: object, kind: str) -> object:
    if kind == FLAG:
        if isinstance(value, bool):
            return value
    elif kind == TEXTS:
        texts = as_list(value)
        if texts is not None:
            if not all(isinstance(text, str) for text in texts):
                raise _wrong(name, "of an array of strings")
            return tuple(text for text in texts if text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return int(value) if kind == INTEGER else float(value)
    raise _wrong(name, f"of type {kind}")


def _wrong(name: str, what: str) -> Refusal:
    return Refusal(500, f'option "{name}" must be {what}', Reason.INVALID_REQUEST)
