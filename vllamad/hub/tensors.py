"""What safetensors headers say about weights (floor 2): names, shapes and bytes, how many parameters, in which type.
Reads headers only."""

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
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


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: ``dtype`` in the words of safetensors (BF16, U8, F8_E4M3), ``size_bytes`` as stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it has; where several weights share one integer, how many integers."""
        return math.prod(self.shape)

    @property
    def is_side(self) -> bool:
        """True for scales, zero points and layouts beside packed weights, which no one counts as parameters."""
        return _SIDE.search(self.name) is not None


def read_tensors(files: Iterable[Path]) -> Iterator[Tensor]:
    """Every tensor of safetensors files, in the order of their headers.

    Raises UNSUPPORTED, naming the file, if one is no safetensors file or is cut off.
    """
    for path in files:
        for name, found in _header(path).items():
            if name != "__metadata__":
                start, end = found["data_offsets"]
                yield Tensor(name, str(found["dtype"]), tuple(found["shape"]), end - start)


def read_weights(files: list[Path], packed_bits: int = 0) -> Weights:
    """Sum up safetensors files; ``packed_bits`` is the width of a weight where several share one integer.

    Raises UNSUPPORTED, naming the file, if one is no safetensors file or is cut off.
    """
    weights = Weights()
    for tensor in read_tensors(files):
        if tensor.is_side:
            continue
        count = tensor.elements
        if packed_bits and tensor.dtype in _BITS_PER_CELL:
            count = count * _BITS_PER_CELL[tensor.dtype] // packed_bits
        weights.parameters += count
        weights.types[tensor.dtype] += count
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
