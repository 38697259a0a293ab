"""The shape of a model (floor 2): what its config.json and safetensors headers say about the memory that it needs.

The headers are the truth about weights: bytes, and how wide keys and values really are. config.json says how layers
remember, in the words of a few dozen families (``hub/families.py``). A family that is not known is counted as if every
layer kept every token, and the shape says so.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from vllamad.domain.shape import Layers, Memory, Role, Shape, Weights
from vllamad.hub.families import DEFAULTS, ENCODERS, HYBRIDS, KNOWN, LATENT, NO_TIES, PATTERNS, PLAIN, TIED
from vllamad.hub.selection import SAFETENSORS
from vllamad.hub.tensors import Tensor, read_tensors

Config = Mapping[str, Any]

_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")

_KINDS: Mapping[str, Memory | None] = {
    "full_attention": Memory.FULL, "attention": Memory.FULL, "chunked_attention": Memory.FULL, "hybrid": Memory.FULL,
    "*": Memory.FULL, "sliding_attention": Memory.SLIDING, "linear_attention": Memory.STATE, "mamba": Memory.STATE,
    "mamba2": Memory.STATE, "conv": Memory.STATE, "M": Memory.STATE, "mlp": None, "moe": None, "-": None, "E": None,
}  # fmt: skip
"""What entries of ``layer_types`` and its relatives mean; None remembers nothing."""

PAD_VOCABULARY_TO = 64
"""vLLM pads vocabularies to multiples of this (``VocabParallelEmbedding``)."""

PAD_MXFP4_TO = 256
"""Kernels for MXFP4 experts want both sides to be multiples of 128 or 256: gpt-oss has 2880."""

_CASTABLE: Mapping[str, int] = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
_FLOAT_NAMES: Mapping[str, str] = {
    "float32": "F32",
    "float": "F32",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
}

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")
_UNUSED = re.compile(r"(^|\.)mtp\.|rotary_emb\.inv_freq$|\.position_ids$")
"""Not loaded without speculation, or computed anew."""
_TOWER = re.compile(r"vision|visual|audio|image|vit\b|(^|\.)mm_|multi_?modal|embed_patch|resampler|vpm\.|apm\.")
_VOCABULARY = re.compile(
    r"(^|\.)(embed_tokens|embed_tokens_per_layer|word_embeddings|wte|tok_embeddings|embeddings|lm_head|embed_out|output)"
    r"\.weight$"
)
_PER_LAYER = re.compile(r"embed_tokens_per_layer")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_KEYS = re.compile(r"\.(k_proj|v_proj|key|value)\.(weight|bias)$")
_WHOLE = re.compile(
    r"\.(gate|router|shared_expert_gate|[qk]v?_a_proj(_with_mqa)?)\.(\w+\.)?weight$"
    r"|position|wpe\.|token_type|per_layer_"
)
_KEY_ROWS = re.compile(r"\.(?:self_attn|attention|attn|self_attention|mixer|attention\.self)\.(k|v)_proj\.weight$")

_BLOCKS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_HEADS_KV = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "n_kv_heads", "multi_query_group_num")
_FEED_FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim", "ffn_hidden_size")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_EXPERT = ("moe_intermediate_size", "expert_ffn_hidden_size")
_EXPERTS_AT_ONCE = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")
_TOWERS = ("vision_config", "audio_config", "vision_tower", "mm_vision_tower", "visual", "vision_encoder")


def read_shape(folder: Path) -> Shape:
    """Read the shape of the model in a folder. Raises UNSUPPORTED if its weights are cut off, OSError if a file cannot
    be read. A config.json that is missing or broken leaves what the headers say."""
    config = _json(folder / "config.json") or _json(folder / "params.json")
    tensors = tuple(read_tensors(sorted(folder.glob(f"*{SAFETENSORS}"))))
    shape = shape_of(config, tensors)
    if tensors:
        return shape
    size = sum(file.stat().st_size for pattern in ("*.bin", "*.pth", "*.pt") for file in folder.glob(pattern))
    note = "its weights are no safetensors: they are counted by the size of their files"
    return replace(shape, weights=(Weights(Role.WHOLE, kept_bytes=size),), notes=(*shape.notes, note))


def shape_of(config: Config, tensors: Sequence[Tensor]) -> Shape:
    """The same from a parsed config.json and the tensors of its headers."""
    text = _text_part(config)
    family = str(text.get("model_type") or config.get("model_type") or "")
    text = {**DEFAULTS.get(family, {}), **{name: value for name, value in text.items() if value is not None}}
    facts = _Facts(family, text, config, tensors)
    feed_forward = _number(text, _FEED_FORWARD)
    at_once = _number(text, _EXPERTS_AT_ONCE)
    layers, notes = _layers(facts)
    return Shape(
        family=family,
        hidden_size=facts.hidden,
        feed_forward_size=feed_forward,
        vocabulary_size=_number(text, ("vocab_size",)) or _number(config, ("vocab_size",)),
        heads=facts.heads,
        context_length=_number(text, _CONTEXT),
        layer_count=facts.count,
        experts_per_token=at_once,
        expert_size=(_number(text, _EXPERT) or feed_forward) if at_once else 0,
        edge_sum=_edges(facts),
        has_tower=any(config.get(part) for part in _TOWERS),
        weights=_weights(facts),
        layers=layers,
        notes=tuple(notes),
    )


class _Facts:
    """What several parts of a shape ask for."""

    def __init__(self, family: str, text: Config, config: Config, tensors: Sequence[Tensor]) -> None:
        self.family = family
        self.text = text
        self.count = _number(text, _BLOCKS) or _layers_seen(tensors)
        self.tensors = [each for each in tensors if not self._is_unused(each.name)]
        self.hidden = _number(text, _HIDDEN) or _embedding_width(self.tensors)
        self.heads = _number(text, _HEADS)
        self.dtype = _FLOAT_NAMES.get(_dtype_name(config, text), "") or _commonest(self.tensors)
        tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
        self.is_tied = bool(tied) if tied is not None else family in TIED
        self.is_mxfp4 = "mxfp4" in json.dumps(config.get("quantization_config") or {}).lower()

    @property
    def head_size(self) -> int:
        size = _number(self.text, ("head_dim", "attention_head_dim", "hidden_size_per_head", "kv_channels"))
        return size or (self.hidden // self.heads if self.heads else self.hidden)

    @property
    def heads_kv(self) -> int:
        return _number(self.text, _HEADS_KV) or self.heads or 1

    def _is_unused(self, name: str) -> bool:
        if _UNUSED.search(name):
            return True
        found = _LAYER.search(name)
        # Layers beyond the last predict further tokens; towers count theirs on their own.
        return bool(found and self.count and int(found[1]) >= self.count and not _TOWER.search(name))


# --- weights ---------------------------------------------------------------------------------------------------------


def _weights(facts: _Facts) -> tuple[Weights, ...]:
    elements, kept = Counter[Role](), Counter[Role]()
    has_embedding = any(_VOCABULARY.search(each.name) and not _HEAD.search(each.name) for each in facts.tensors)
    for tensor in facts.tensors:
        if facts.is_tied and has_embedding and _HEAD.search(tensor.name):
            continue
        role = _role(tensor)
        if tensor.dtype not in _CASTABLE or tensor.is_side:
            kept[role] += _padded_mxfp4(tensor, facts)
        elif tensor.dtype == "F32" != facts.dtype and role is Role.WHOLE and not _TOWER.search(tensor.name):
            kept[role] += tensor.size_bytes  # biases of routers and decays of states stay precise
        elif role is Role.VOCABULARY:
            rows, width = tensor.shape[0], tensor.elements // max(1, tensor.shape[0])
            padded = -(-rows // PAD_VOCABULARY_TO) * PAD_VOCABULARY_TO * width
            elements[role] += padded
            if facts.is_tied and facts.family not in NO_TIES and not _PER_LAYER.search(tensor.name):
                elements[Role.TIED] += padded
        else:
            elements[role] += tensor.elements
    return tuple(Weights(role, elements[role], kept[role]) for role in Role if elements[role] or kept[role])


def _role(tensor: Tensor) -> Role:
    name = tensor.name
    if len(tensor.shape) < 2 or _TOWER.search(name) or _WHOLE.search(name):
        return Role.WHOLE
    if _VOCABULARY.search(name):
        return Role.VOCABULARY
    return Role.KEYS if _KEYS.search(name) else Role.MATRIX


def _padded_mxfp4(tensor: Tensor, facts: _Facts) -> int:
    if not facts.is_mxfp4 or "experts" not in tensor.name or len(tensor.shape) < 3:
        return tensor.size_bytes
    size = tensor.size_bytes
    for side in (facts.hidden, _number(facts.text, _FEED_FORWARD)):
        if side:
            size = size * (-(-side // PAD_MXFP4_TO) * PAD_MXFP4_TO) // side
    return size


def _edges(facts: _Facts) -> int:
    matrices = (each for each in facts.tensors if not each.is_side and _role(each) in {Role.MATRIX, Role.KEYS})
    return sum(
        (each.shape[-1] + each.shape[-2]) * (each.elements // (each.shape[-1] * each.shape[-2])) for each in matrices
    )


# --- layers ----------------------------------------------------------------------------------------------------------


def _layers(facts: _Facts) -> tuple[tuple[Layers, ...], list[str]]:
    family, text = facts.family, facts.text
    if family in ENCODERS or text.get("use_bidirectional_attention"):
        return (), []
    notes: list[str] = []
    if family not in KNOWN:
        who = f"{family!r} is no family that is known here" if family else "its files do not say of which family it is"
        notes.append(f"{who}: counted as if every layer kept every token")
    if not facts.count or not facts.hidden:
        notes.append("its files do not say how many layers it has or how wide they are: its cache is not counted")
        return (), notes
    found = Counter[Layers]()
    widths = _widths(facts)
    for index, kind in enumerate(_kinds(facts, notes)):
        for layers in _layer(facts, index, kind, widths):
            found[layers] += 1
    return tuple(replace(layers, count=count) for layers, count in found.items()), notes


def _kinds(facts: _Facts, notes: list[str]) -> Sequence[Memory | None]:
    """What each layer remembers, in their order."""
    family, text, count = facts.family, facts.text, facts.count
    kinds: list[Memory | None]
    if family not in KNOWN:
        return [Memory.FULL] * count
    named = _named_kinds(family, text, count)
    if named:
        strange = sorted({kind for kind in named if kind not in _KINDS})
        if strange:
            notes.append(f"layers of kind {', '.join(strange)} are counted as if they kept every token")
        kinds = [_KINDS.get(kind, Memory.FULL) for kind in named][:count]
    elif family in HYBRIDS:
        notes.append("its files do not list its layers: counted as if every layer kept every token")
        kinds = [Memory.FULL] * count
    else:
        slides = 0 < _number(text, ("sliding_window",)) < _number(text, _CONTEXT) and family in PLAIN
        kinds = [Memory.SLIDING if slides else Memory.FULL] * count
    if not _number(text, ("sliding_window",)) or text.get("use_sliding_window") is False:
        kinds = [Memory.FULL if kind is Memory.SLIDING else kind for kind in kinds]
    # The last layers of some look at what earlier ones remember.
    return kinds[: count - _number(text, ("num_kv_shared_layers",))]


def _named_kinds(family: str, text: Config, count: int) -> Sequence[str]:
    for name in ("layer_types", "layers_block_type", "hybrid_override_pattern"):
        found = text.get(name)
        if found:
            return [str(kind) for kind in cast(Sequence[object], found)]
    interval = _number(text, ("full_attention_interval",))
    if interval:
        return ["linear_attention" if (index + 1) % interval else "full_attention" for index in range(count)]
    if family == "falcon_h1":
        return ["hybrid"] * count
    if family in PATTERNS:
        pattern = _number(text, ("sliding_window_pattern", "_sliding_window_pattern")) or PATTERNS[family]
        return ["sliding_attention" if (index + 1) % pattern else "full_attention" for index in range(count)]
    return []


def _layer(facts: _Facts, index: int, kind: Memory | None, widths: Mapping[int, "_Width"]) -> Iterable[Layers]:
    text = facts.text
    if kind is Memory.STATE:
        yield _state(facts)
        return
    if kind is None:
        return
    rank = _number(text, ("kv_lora_rank",))
    if rank and facts.family in LATENT:
        key = rank + _number(text, ("qk_rope_head_dim",))
        # Sparse attention finds its tokens by an index beside them: FP8 with a scale of 32 bits (``index_head_dim``).
        side = _number(text, ("index_head_dim",))
        yield Layers(Memory.LATENT, 1, key_size=key, side_bytes=side + 4 if side else 0)
        return
    heads, size = facts.heads_kv, facts.head_size
    if rank:
        heads, size = facts.heads, _number(text, ("qk_nope_head_dim",)) + _number(text, ("qk_rope_head_dim",))
    elif kind is Memory.FULL and facts.family == "gemma4_text":
        heads = _number(text, ("num_global_key_value_heads",)) or heads
        size = _number(text, ("global_head_dim",)) or size
    width = _Width(heads, size, size)
    if index in widths and not rank:
        width = widths[index].fitted(heads, size)
    window = _window(facts) if kind is Memory.SLIDING else 0
    yield Layers(kind, 1, width.heads, width.key_size, width.value_size, window)
    if facts.family == "falcon_h1":
        yield _state(facts)


def _window(facts: _Facts) -> int:
    # Cohere's layers see one token more (vLLM's ``commandr.py``).
    return _number(facts.text, ("sliding_window",)) + (1 if facts.family == "cohere2" else 0)


def _state(facts: _Facts) -> Layers:
    """The state of one layer, in the words of the four kinds of them that vLLM has for our families
    (``MambaStateShapeCalculator``)."""
    text = facts.text
    if _number(text, ("conv_L_cache",)):
        width = _number(text, ("conv_dim",)) or facts.hidden
        return Layers(Memory.STATE, 1, conv_size=width * (_number(text, ("conv_L_cache",)) - 1))
    if _number(text, ("linear_num_value_heads",)):
        keys = _number(text, ("linear_num_key_heads",)) * _number(text, ("linear_key_head_dim",))
        values = _number(text, ("linear_num_value_heads",)) * _number(text, ("linear_value_head_dim",))
        conv = (2 * keys + values) * (_number(text, ("linear_conv_kernel_dim",)) - 1)
        return Layers(Memory.STATE, 1, conv_size=conv, state_size=values * _number(text, ("linear_key_head_dim",)))
    inner = _number(text, ("mamba_d_ssm",))
    heads, size = _number(text, ("mamba_n_heads", "mamba_num_heads")), _number(text, ("mamba_d_head", "mamba_head_dim"))
    inner = inner or heads * size or facts.hidden * (_number(text, ("mamba_expand", "expand")) or 2)
    depth = _number(text, ("mamba_d_state", "ssm_state_size", "state_size")) or 256
    groups = _number(text, ("mamba_n_groups", "n_groups")) or 1
    kernel = _number(text, ("mamba_d_conv", "conv_kernel")) or 4
    return Layers(Memory.STATE, 1, conv_size=(inner + 2 * groups * depth) * (kernel - 1), state_size=inner * depth)


@dataclass(frozen=True, slots=True)
class _Width:
    """Heads of a layer, and how many elements their keys and values have. Read from headers it is one wide head."""

    heads: int
    key_size: int
    value_size: int

    def fitted(self, heads: int, size: int) -> "_Width":
        """The same width in heads as the config has them; else in heads of the config's size; else in one."""
        for ways in (heads, self.key_size // max(1, size)):
            if ways and self.key_size % ways == 0 == self.value_size % ways:
                return _Width(ways, self.key_size // ways, self.value_size // ways)
        return self


def _widths(facts: _Facts) -> dict[int, _Width]:
    """How wide keys and values are by the rows of their projections, where those are not packed."""
    rows: dict[int, dict[str, int]] = {}
    for tensor in facts.tensors:
        found, layer = _KEY_ROWS.search(tensor.name), _LAYER.search(tensor.name)
        is_plain = len(tensor.shape) == 2 and (tensor.dtype in _CASTABLE or tensor.dtype.startswith("F8"))
        if found and layer and is_plain and not _TOWER.search(tensor.name):
            rows.setdefault(int(layer[1]), {})[found[1]] = tensor.shape[0]
    return {index: _Width(1, found["k"], found.get("v", found["k"])) for index, found in rows.items() if "k" in found}


# --- reading ---------------------------------------------------------------------------------------------------------


def _layers_seen(tensors: Iterable[Tensor]) -> int:
    found = (_LAYER.search(each.name) for each in tensors if not _TOWER.search(each.name))
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _embedding_width(tensors: Iterable[Tensor]) -> int:
    return max(
        (each.shape[-1] for each in tensors if _VOCABULARY.search(each.name) and len(each.shape) == 2), default=0
    )


def _commonest(tensors: Iterable[Tensor]) -> str:
    counts = Counter[str]()
    for each in tensors:
        if each.dtype in _CASTABLE:
            counts[each.dtype] += each.elements
    return max(counts, key=lambda name: counts[name], default="")


def _dtype_name(config: Config, text: Config) -> str:
    found = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype") or ""
    return str(found)


def _text_part(config: Config) -> Config:
    for part in _TEXT_PARTS:
        inner = config.get(part)
        if isinstance(inner, dict) and inner:
            return _text_part(cast(Config, inner))
    return config


def _json(path: Path) -> Config:
    try:
        found: object = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return cast(Config, found) if isinstance(found, dict) else {}


def _number(config: Config, names: Sequence[str]) -> int:
    """The first of ``names`` that is a positive integer, or a list of such (the largest then); else 0."""
    for name in names:
        value = config.get(name)
        if isinstance(value, list):
            value = max((item for item in cast(list[object], value) if isinstance(item, int)), default=0)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
