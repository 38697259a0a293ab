"""Which files of a repository or folder the engine needs (floor 2, pure): each weight once, in the best format.

Asking again with the chosen files gives the same choice, so a folder that was chosen before can be chosen again.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

_TOP_LEVEL = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "config_sentence_transformers.json",
        "generation_config.json",
        "merges.txt",
        "modules.json",
        "params.json",
        "preprocessor_config.json",
        "processor_config.json",
        "sentence_bert_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
_LICENSE = re.compile(r"(license|licence|notice|copying)(\.(txt|md|rst))?", re.IGNORECASE)
_CODE = re.compile(r"[^/]+\.py")
_QUANTIZATION = re.compile(r"(quantize_config|quant_config|hf_quant_config|recipe)\.(json|yaml)")
# Folders that a pipeline of sentence-transformers names in modules.json, and additional chat templates.
_SUBFOLDER = re.compile(r"(\d+_[A-Za-z]+|additional_chat_templates)/[^/]+")
_SAFE_PATH = re.compile(r"[^\x00-\x1f\\]+")

SAFETENSORS = ".safetensors"


def is_safe_path(path: str) -> bool:
    """True if a path from outside stays inside the folder that it is put in."""
    parts = PurePosixPath(path).parts
    return bool(parts) and _SAFE_PATH.fullmatch(path) is not None and parts[0] != "/" and ".." not in parts


def choose_files(paths: Iterable[str], what: str) -> list[str]:
    """Return the paths that the engine needs, sorted; ``what`` names the place in the error.

    Raises UNSUPPORTED, saying what is there instead, if nothing in it can be loaded.
    """
    every = sorted(path for path in set(paths) if is_safe_path(path))
    weights = _choose_weights(every)
    if not weights:
        raise _nothing_loadable(every, what)
    if "config.json" not in every and "params.json" not in every:
        raise VllamaError(
            Reason.UNSUPPORTED,
            f"cannot use {what}: it has weights but no config.json",
            "name a repository or folder with a whole model, not an adapter or a part of one",
        )
    return sorted({*weights, *(path for path in every if _is_companion(path, every))})


def _is_companion(path: str, every: list[str]) -> bool:
    if "/" in path:
        if _SUBFOLDER.fullmatch(path) is None or path.endswith((".pt", ".onnx", ".msgpack", ".h5")):
            return False
        return not path.endswith(".bin") or f"{path.rpartition('/')[0]}/model.safetensors" not in every
    return (
        path in _TOP_LEVEL
        or _LICENSE.fullmatch(path) is not None
        or _CODE.fullmatch(path) is not None
        or _QUANTIZATION.fullmatch(path) is not None
    )


def _choose_weights(paths: list[str]) -> list[str]:
    top = [path for path in paths if "/" not in path]
    tensors = [path for path in top if path.endswith(SAFETENSORS) and not path.startswith("adapter_")]
    ours = [path for path in tensors if not path.startswith("consolidated")]
    if ours:
        return _without_duplicates(ours, top)
    if tensors:  # Mistral's own format, if there is nothing else
        return [*tensors, *(path for path in top if re.fullmatch(r"consolidated.*\.index\.json", path))]
    pickles = [path for path in top if re.fullmatch(r"pytorch_model.*\.bin", path)]
    return [*pickles, *(path for path in top if path == "pytorch_model.bin.index.json")]


def _without_duplicates(tensors: list[str], top: list[str]) -> list[str]:
    """Keep one precision: ``model.fp16.safetensors`` beside ``model.safetensors`` is the same model again; and one
    packing: a whole ``model.safetensors`` beside ``model-00001-of-00002.safetensors`` is, too."""
    shards = [path for path in tensors if re.fullmatch(r"model-\d+-of-\d+\.safetensors", path)]
    index = "model.safetensors.index.json"
    if shards and index in top:
        return [*shards, index]
    if "model.safetensors" in tensors:
        return [path for path in tensors if not re.fullmatch(r"model[.-].+\.safetensors", path)]
    return [*tensors, *(path for path in top if path.endswith(".safetensors.index.json"))]


def _nothing_loadable(paths: list[str], what: str) -> VllamaError:
    if any(path.lower().endswith(".gguf") for path in paths):
        return VllamaError(
            Reason.UNSUPPORTED,
            f"cannot use {what}: it has only GGUF files, and the engine loads safetensors",
            "pull the original repository (its name is usually on the model card), or download one GGUF file and "
            "convert it: vllamactl create NAME --from FILE.gguf",
        )
    if any(path.startswith("adapter_") for path in paths):
        why = "it is an adapter without its base model"
    elif any("/" in path and path.endswith(SAFETENSORS) for path in paths):
        why = "its weights lie in subfolders, as an image generator's do"
    else:
        why = "it has no safetensors or PyTorch weights"
    return VllamaError(
        Reason.UNSUPPORTED, f"cannot use {what}: {why}", "name a repository or folder with a language model"
    )
