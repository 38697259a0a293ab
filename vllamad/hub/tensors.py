"""What safetensors headers say about weights (floor 2): how many parameters, in which type. Reads headers only."""

import json
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

_LONGEST_HEADER = 100_000_000  # the format's own limit
# Beside packed weights: scales, zero points and layouts, which no one counts as parameters.
_SIDE = re.compile(
    r"(_scales?|_scale_inv|scale_2|qzeros|g_idx|weight_shape|weight_zero_point|absmax|quant_map|quant_state\..*"
    r"|\.scales|\.biases_packed|zero_point|input_scale)$"
)
_BITS_PER_CELL = {"U8": 8, "I8": 8, "I32": 32, "U32": 32, "I64": 64}
_PRECISIONS = {"BF16": "BF16", "F16": "F16", "F32": "F32", "F8_E4M3": "FP8", "F8_E5M2": "FP8"}


@dataclass(slots=True)
class Weights:
    """``parameters`` counts what was trained; ``types`` counts it per safetensors dtype."""

    parameters: int = 0
    types: Counter[str] = field(default_factory=Counter[str])

    @property
    def precision(self) -> str:
        """The type of most parameters as people write it (BF16, F16, F32, FP8); "" if it is packed or unknown."""
        plain = [(count, name) for name, count in self.types.items() if name in _PRECISIONS]
        return _PRECISIONS[max(plain)[1]] if plain else ""


def read_weights(files: list[Path], packed_bits: int = 0) -> Weights:
    """Sum up safetensors files; ``packed_bits`` is the width of a weight where several share one integer.

    Raises UNSUPPORTED, naming the file, if one is no safetensors file or is cut off.
    """
    weights = Weights()
    for path in files:
        for name, tensor in _header(path).items():
            if name == "__metadata__" or _SIDE.search(name):
                continue
            count, kind = math.prod(tensor["shape"]), str(tensor["dtype"])
            if packed_bits and kind in _BITS_PER_CELL:
                count = count * _BITS_PER_CELL[kind] // packed_bits
            weights.parameters += count
            weights.types[kind] += count
    return weights


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise _damaged(path, "it is not a safetensors file")
            header = cast(dict[str, Any], json.loads(file.read(length)))
        end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, "it is not a safetensors file") from error
    size = path.stat().st_size
    if size < 8 + length + end:
        raise _damaged(path, f"it is cut off ({size} bytes of {8 + length + end})")
    return header


def _damaged(path: Path, why: str) -> VllamaError:
    return VllamaError(
        Reason.UNSUPPORTED, f"cannot use {path.name}: {why}", "get the file again from where it came", file=path.name
    )
