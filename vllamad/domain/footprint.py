"""How much memory a model needs (floor 1): always *per device*, for one number of devices. Estimated before the first
load (``domain/estimate.py``), measured after each."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What of the engine's settings changes the memory. ``device`` is "cuda" or "cpu"; ``dtype`` and ``kv_dtype`` are
    the engine's names, "auto" for its own choice; ``quantize`` is what it does to 16-bit weights while loading.
    ``adapters`` LoRA adapters of at most ``adapter_rank`` fit into one batch. ``has_bfloat16`` is for CPUs: whether
    they compute in 16 bits by themselves."""

    device: str = "cuda"
    dtype: str = "auto"
    kv_dtype: str = "auto"
    quantize: str = ""
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    is_eager: bool = False
    adapters: int = 0
    adapter_rank: int = 0
    has_bfloat16: bool = True
    is_forked: bool = False
    """From a zygote, with which it shares pages: they count by halves and thirds for each."""

    @property
    def packs(self) -> bool:
        """True if the engine packs matrices for speed: on CPU, in types that it computes in (seen with vLLM 0.32 on
        AVX2: float32 is packed, bfloat16 is not)."""
        return self.device == "cpu" and (self.element_bytes == 4 or self.has_bfloat16)

    @property
    def element_bytes(self) -> int:
        """Of the type that weights are cast to. "auto" is 16 bits: vLLM takes bfloat16 or float16 then, also for
        models that are stored in float32 (``_resolve_auto_dtype``)."""
        return 4 if self.dtype in {"float32", "float"} else 2

    @property
    def kv_element_bytes(self) -> int:
        """Of a key or value in the cache."""
        if self.kv_dtype in {"auto", ""}:
            return self.element_bytes
        return 1 if self.kv_dtype.startswith("fp8") else 2


class Origin(StrEnum):
    """Where a footprint's numbers come from."""

    ESTIMATED = "estimated"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Window:
    """Layers with a sliding window: ``token_bytes`` for each token of a sequence up to ``tokens``, nothing beyond."""

    tokens: int
    token_bytes: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a model needs on each of ``devices``; ``host_bytes`` in the machine's memory beside that, in all.

    The cache of a sequence is ``kv_bytes_per_token`` for every token, more for the first ones (``windows``), and
    ``sequence_bytes`` whatever its length. Tokens come in blocks of ``block_tokens``; one block, of ``empty_bytes``,
    is never filled.
    """

    devices: int
    weights_bytes: int
    kv_bytes_per_token: int
    activation_bytes: int
    overhead_bytes: int
    host_bytes: int = 0
    windows: tuple[Window, ...] = ()
    sequence_bytes: int = 0
    block_tokens: int = 1
    empty_bytes: int = 0
    load_s: float = 0.0
    """What the load took at which it was measured; 0 if it was not seen."""
    origin: Origin = Origin.ESTIMATED
    notes: tuple[str, ...] = ()

    @property
    def base_bytes(self) -> int:
        """What it needs before the first token of cache."""
        return self.weights_bytes + self.activation_bytes + self.overhead_bytes

    @property
    def fixed_bytes(self) -> int:
        """With ``kv_bytes_per_token`` a straight line that is never below ``needed_bytes`` of one sequence: for those
        who reckon with two numbers."""
        block = (self.block_tokens - 1) * self.kv_bytes_per_token
        windows = sum(window.tokens * window.token_bytes for window in self.windows)
        return self.base_bytes + self.empty_bytes + self.sequence_bytes + windows + block

    @property
    def has_cache(self) -> bool:
        """False for encoders, which forget everything between requests."""
        return self.cache_bytes(1) > 0

    def cache_bytes(self, tokens: int, sequences: int = 1) -> int:
        """What ``sequences`` of ``tokens`` each take in the cache; 0 for no tokens."""
        if tokens <= 0 or sequences <= 0:
            return 0
        whole = round_up(tokens, self.block_tokens)
        windows = sum(min(whole, window.tokens) * window.token_bytes for window in self.windows)
        return self.empty_bytes + sequences * (whole * self.kv_bytes_per_token + windows + self.sequence_bytes)

    def needed_bytes(self, tokens: int, sequences: int = 1) -> int:
        """What each device must give for ``sequences`` of ``tokens`` each."""
        return self.base_bytes + self.cache_bytes(tokens, sequences)

    def tokens_in(self, available_bytes: int) -> int | None:
        """The longest sequence that ``available_bytes`` of each device hold beside the model, a multiple of
        ``block_tokens``; 0 if not one block fits, None if length does not matter (no cache, or states only)."""
        if self.needed_bytes(1) > available_bytes:
            return 0
        if self.kv_bytes_per_token == 0 and self.cache_bytes(_LONG) <= available_bytes - self.base_bytes:
            return None
        low, high = 1, _LONG // self.block_tokens
        while low < high:
            middle = (low + high + 1) // 2
            if self.needed_bytes(middle * self.block_tokens) <= available_bytes:
                low = middle
            else:
                high = middle - 1
        return low * self.block_tokens


_LONG = 1 << 40
"""Tokens; more than any device holds."""


def with_measured(
    footprint: Footprint,
    *,
    weights_bytes: int = 0,
    cache_bytes: int = 0,
    cache_tokens: int = 0,
    held_bytes: int = 0,
    host_bytes: int = 0,
    has_run_batch: bool = False,
    load_s: float = 0.0,
) -> Footprint:
    """An estimate with what was seen after a load in its place; 0 for what was not seen.

    ``weights_bytes`` is what the engine says that its model took on one device; ``cache_tokens`` fit into
    ``cache_bytes`` of one device; ``held_bytes`` is what a device had in use for it, that cache included (vLLM fills
    it with zeros while it starts, on CPU too). What is held beyond weights and cache is overhead, and the estimate of
    what a batch needs for a moment stays beside it. ``has_run_batch``: the engine tried its largest batch while it
    started (vLLM does on GPUs), and may still hold what that took, so it is not counted twice; where that leaves less
    overhead than was estimated, the estimate stands.
    """
    weights = weights_bytes or footprint.weights_bytes
    has_line = not footprint.windows and not footprint.sequence_bytes
    token_bytes = footprint.kv_bytes_per_token
    if cache_tokens and cache_bytes and has_line:
        token_bytes = cache_bytes // cache_tokens
    overhead = footprint.overhead_bytes
    if held_bytes:
        rest = max(0, held_bytes - weights - cache_bytes)
        overhead = max(rest - footprint.activation_bytes, min(overhead, rest)) if has_run_batch else rest
    return replace(
        footprint,
        weights_bytes=weights,
        kv_bytes_per_token=token_bytes,
        overhead_bytes=overhead,
        host_bytes=host_bytes or footprint.host_bytes,
        load_s=load_s or footprint.load_s,
        origin=Origin.MEASURED,
        notes=(),
    )


LIBRARIES_BYTES = 208 << 20
"""Files that every engine on CPU maps, the same ones. Measured with vLLM 0.32 as a worker's part of their pages: 193 to
199 MiB when it is alone, 100 beside another, less beside two."""


def when_alone(held_bytes: int, engines: int) -> int:
    """What one of so many engines on CPU, that was seen to hold so much, holds when the others have left: pages that
    they share are counted in equal parts."""
    return held_bytes + LIBRARIES_BYTES * (engines - 1) // engines if held_bytes and engines > 1 else held_bytes


def footprint_key(contents: str, engine_version: str, settings: EngineSettings, devices: int, device_kind: str) -> str:
    """What a measurement is found again by: 32 hex digits. ``contents`` is the digest of the model's files,
    ``device_kind`` the hardware (a GPU's name, "cpu")."""
    parts = {"settings": asdict(settings), "devices": devices, "kind": device_kind}
    text = f"{contents}\n{engine_version}\n{json.dumps(parts, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def share(count: int, ways: int) -> int:
    """One of ``ways`` parts, rounded up."""
    return -(-count // ways)


def round_up(count: int, step: int) -> int:
    """To the next multiple of ``step``."""
    return share(count, step) * step
