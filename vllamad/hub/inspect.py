"""What a folder of model files is and can do (floor 2): read from its own files, once, when it is stored.

A capability is claimed only if it works as the model will be run: tools need a parser and a template that shows tools
to the model, thinking needs a parser, and so on. Columns of the library table (``HubSource``) come before rules.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from vllamad.domain.model import Capability, Model, ModelDetails
from vllamad.domain.ports import HubSource
from vllamad.hub.inserting import insert_format
from vllamad.hub.parsers import guess_parsers
from vllamad.hub.selection import SAFETENSORS
from vllamad.hub.tensors import read_weights

_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
_VISION_PARTS = ("vision_config", "vision_tower", "mm_vision_tower", "visual", "vision_encoder")
_ENCODERS = frozenset(
    {"bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "new", "nomic_bert", "roberta", "xlm-roberta"}
)
_MAX_LICENSE = 200_000

_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_EMBEDDING = ("hidden_size", "n_embd", "d_model", "dim")
_BLOCKS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_FEED_FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_HEADS_KV = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "n_kv_heads")


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that a model's files tell about it."""

    details: ModelDetails
    capabilities: tuple[Capability, ...]
    template: str
    license: str
    tool_parser: str
    reasoning_parser: str
    insert_format: str

    def apply(self, model: Model) -> Model:
        """The same model with what was found."""
        return replace(
            model,
            details=self.details,
            capabilities=self.capabilities,
            template=self.template,
            license=self.license,
            tool_parser=self.tool_parser,
            reasoning_parser=self.reasoning_parser,
            insert_format=self.insert_format,
        )


def inspect_model(folder: Path, *, name: str = "", hints: HubSource | None = None) -> Inspection:
    """Look at a model's folder. ``name`` (repository or model) tells embedding models on a decoder architecture.

    Raises UNSUPPORTED if its weights are no safetensors or cut off, OSError if a file cannot be read. A file with
    broken JSON counts as missing: the engine will say more about it than we can.
    """
    config = _json(folder / "config.json") or _json(folder / "params.json")
    text = _text_part(config)
    template = _template(folder)
    family = _string(config.get("model_type")) or _string(text.get("model_type"))
    is_embedding = _is_embedding(folder, config, family, name)
    tool_parser, reasoning_parser = _parsers(folder, family, template, hints)
    if is_embedding:
        tool_parser = reasoning_parser = ""
    form = "" if is_embedding else insert_format(folder)
    if hints and hints.capabilities and Capability.INSERT not in hints.capabilities:
        form = ""  # its tokenizer has the marks, but the model was not trained for them
    return Inspection(
        details=_details(folder, config, text, family),
        capabilities=_capabilities(config, family, is_embedding, tool_parser, reasoning_parser, form, hints),
        template=template,
        license=_license(folder),
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
        insert_format=form,
    )


def _details(folder: Path, config: dict[str, Any], text: dict[str, Any], family: str) -> ModelDetails:
    method, bits = _quantization(config)
    weights = read_weights(sorted(folder.glob(f"*{SAFETENSORS}")), packed_bits=bits)
    declared = _string(config.get("dtype") or config.get("torch_dtype") or text.get("torch_dtype"))
    precision = weights.precision or {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(declared, "")
    context = _number(_json(folder / "sentence_bert_config.json"), ("max_seq_length",)) or _number(text, _CONTEXT)
    heads = _number(text, _HEADS)
    return ModelDetails(
        format="safetensors" if weights.parameters else "pytorch",
        family=family,
        families=(family,) if family else (),
        parameter_count=weights.parameters,
        quantization_level=method or precision,
        context_length=context,
        embedding_length=_number(text, _EMBEDDING),
        block_count=_number(text, _BLOCKS),
        feed_forward_length=_number(text, _FEED_FORWARD),
        head_count=heads,
        head_count_kv=_number(text, _HEADS_KV) or heads,
        vocab_size=_number(text, ("vocab_size",)) or _number(config, ("vocab_size",)),
    )


def _quantization(config: dict[str, Any]) -> tuple[str, int]:
    """The name of a quantisation and the bits of a packed weight (0: not packed)."""
    found = _dict(config.get("quantization_config")) or _dict(_text_part(config).get("quantization_config"))
    found = found or _dict(config.get("compression_config"))
    method = _string(found.get("quant_method")).lower()
    bits = _number(found, ("bits", "w_bit"))
    match method:
        case "":
            return "", 0
        case "awq" | "gptq":
            return method.upper(), bits or 4
        case "mxfp4":
            return "MXFP4", 4
        case "bitsandbytes" if found.get("load_in_4bit"):
            return "NF4", 4
        case "compressed-tensors":
            return _compressed(found)
        case "modelopt" | "modelopt_fp4":
            level = _string(found.get("quant_algo")).upper() or "MODELOPT"
            return level, 4 if "FP4" in level else 0
        case _:
            return method.upper(), 0


def _compressed(found: dict[str, Any]) -> tuple[str, int]:
    for group in _dict(found.get("config_groups")).values():
        weights = _dict(_dict(group).get("weights"))
        bits, kind = _number(weights, ("num_bits",)), _string(weights.get("type"))
        if bits == 8 and kind == "float":
            return "FP8", 0
        if bits:
            return f"{'NVFP' if kind == 'float' else 'INT'}{bits}", bits if bits < 8 else 0
    return "COMPRESSED", 0


def _is_embedding(folder: Path, config: dict[str, Any], family: str, name: str) -> bool:
    architectures = " ".join(_strings(config.get("architectures")))
    if "SequenceClassification" in architectures:
        return False
    if (folder / "modules.json").is_file() or family in _ENCODERS:
        return True
    return re.search(r"embed(ding)?s?\b|embedding", name, re.IGNORECASE) is not None


def _parsers(folder: Path, family: str, template: str, hints: HubSource | None) -> tuple[str, str]:
    if hints and (hints.tool_parser or hints.reasoning_parser or hints.capabilities):
        tool, reasoning = hints.tool_parser, hints.reasoning_parser
    else:
        tool, reasoning = guess_parsers(family, template)
    # Mistral's tokenizer renders tools by itself; everywhere else a template that never looks at them hides them from
    # the model, and a parser alone would only make the API accept what it then ignores.
    shows_tools = re.search(r"\btools\b", template) is not None or (folder / "tekken.json").is_file()
    return (tool if shows_tools else ""), reasoning


def _capabilities(
    config: dict[str, Any],
    family: str,
    is_embedding: bool,
    tool_parser: str,
    reasoning_parser: str,
    form: str,
    hints: HubSource | None,
) -> tuple[Capability, ...]:
    if is_embedding:
        return (Capability.EMBEDDING,)
    architectures = " ".join(_strings(config.get("architectures")))
    if family == "whisper" or "SequenceClassification" in architectures:
        return ()
    known = hints.capabilities if hints else ()
    claims = {
        Capability.COMPLETION: True,
        Capability.TOOLS: bool(tool_parser),
        Capability.INSERT: bool(form),
        Capability.VISION: any(config.get(part) for part in _VISION_PARTS) or Capability.VISION in known,
        Capability.THINKING: bool(reasoning_parser),
    }
    return tuple(capability for capability, is_true in claims.items() if is_true)


def _template(folder: Path) -> str:
    """The chat template, where transformers looks for it: its own file before the tokenizer's configuration."""
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8", errors="replace")
    found = _json(folder / "tokenizer_config.json").get("chat_template")
    if not found:
        found = _json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {_string(item.get("name")): item.get("template") for item in map(_dict, cast(list[object], found))}
        found = named.get("tool_use") or named.get("default")
    return _string(found)


def _license(folder: Path) -> str:
    found = [path for path in sorted(folder.iterdir()) if re.match(r"(licen[sc]e|copying)\b", path.name, re.IGNORECASE)]
    texts = [path.read_text(encoding="utf-8", errors="replace")[:_MAX_LICENSE] for path in found if path.is_file()]
    return "\n".join(texts)


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    for part in _TEXT_PARTS:
        inner = _dict(config.get(part))
        if inner:
            return _text_part(inner)
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        return _dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def _dict(value: object) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _strings(value: object) -> list[str]:
    return [item for item in cast(list[object], value) if isinstance(item, str)] if isinstance(value, list) else []


def _number(config: dict[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
