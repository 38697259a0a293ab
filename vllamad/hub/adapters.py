"""LoRA adapters as PEFT writes them (floor 2): which files there are, and whether the engine can serve them."""

import json
from pathlib import Path
from typing import Any, cast

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)

MAX_RANK = 512
"""The largest that vLLM 0.32 takes."""


def read_rank(folder: Path, name: str = "") -> int:
    """The rank of the adapter in a folder. Raises INVALID_REQUEST or UNSUPPORTED if the engine could not serve it;
    ``name`` is how people know the folder."""
    shown = name or str(folder)
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise VllamaError(
            Reason.INVALID_REQUEST,
            f"{shown} is no LoRA adapter: it has no {missing[0]}",
            f"name a folder with {CONFIG} and {WEIGHTS}, as PEFT saves them; adapters in GGUF are not supported",
        )
    try:
        config = cast(dict[str, Any], json.loads((folder / CONFIG).read_bytes()))
        kind, rank = config.get("peft_type"), config.get("r")
    except (ValueError, AttributeError) as error:
        raise VllamaError(Reason.INVALID_REQUEST, f"{shown}: {CONFIG} cannot be read: {error}") from error
    if kind != "LORA" or not isinstance(rank, int) or rank < 1:
        raise VllamaError(
            Reason.UNSUPPORTED, f"{shown}: adapters of type {kind!r} are not supported", "the engine serves LoRA only"
        )
    if rank > MAX_RANK:
        raise VllamaError(
            Reason.UNSUPPORTED, f"{shown}: its rank {rank} is above {MAX_RANK}", "merge it into its base model instead"
        )
    return rank
