"""What an estimate of memory needs to know of a model (floor 1): its tensors by how the engine treats them, and its
layers by how they remember. Read from files by ``hub/shapes.py``; turned into bytes by ``domain/estimate.py``."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """How the engine spreads a tensor over devices, and whether it quantises it while it loads."""

    MATRIX = "matrix"
    """Of a layer: divided, quantised."""
    KEYS = "keys"
    """Projects to keys or values: divided until a device has one head, quantised."""
    VOCABULARY = "vocabulary"
    """Embedding or head: divided, never quantised at load; on CPU the engine keeps a second copy, packed for speed."""
    TIED = "tied"
    """A head that shares the embedding's tensor: nothing but, on CPU, a packed copy of its own."""
    WHOLE = "whole"
    """Norms, biases, routers, vision towers: every device has all of it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of one role, summed up. ``elements`` are cast to the type that the model runs in; ``kept_bytes`` stay
    as they are stored (packed integers, FP8, scales)."""

    role: Role
    elements: int = 0
    kept_bytes: int = 0


class Memory(StrEnum):
    """What a layer remembers of the tokens before."""

    FULL = "full"
    """Keys and values of every token."""
    SLIDING = "sliding"
    """Keys and values of the last ``window`` tokens."""
    LATENT = "latent"
    """One compressed vector for every token (multi-head latent attention); every device has all of it."""
    STATE = "state"
    """A state of fixed size for each sequence (Mamba, linear attention, short convolutions)."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers that remember alike.

    FULL and SLIDING: ``heads`` key-value heads with ``key_size`` and ``value_size`` elements each. LATENT: ``key_size``
    elements, and ``side_bytes`` for an index beside them. STATE: per sequence ``conv_size`` elements in the type that
    the model runs in and ``state_size`` elements of ``state_element_bytes`` each.
    """

    memory: Memory
    count: int
    heads: int = 0
    key_size: int = 0
    value_size: int = 0
    window: int = 0
    side_bytes: int = 0
    conv_size: int = 0
    state_size: int = 0
    state_element_bytes: int = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """What an estimate needs of a model's config.json and safetensors headers; 0 where they do not say.

    ``feed_forward_size`` is the widest layer of neurons that every token goes through; ``experts_per_token`` experts
    have ``expert_size`` each. ``heads`` are those of queries: the engine divides a model only by their divisors.
    ``edge_sum`` adds up rows and columns of all MATRIX and KEYS tensors: what a LoRA adapter of rank 1 has elements.
    ``notes`` tell people what was not known and how it was counted instead.
    """

    family: str = ""
    hidden_size: int = 0
    feed_forward_size: int = 0
    vocabulary_size: int = 0
    heads: int = 0
    context_length: int = 0
    layer_count: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    edge_sum: int = 0
    has_tower: bool = False
    weights: tuple[Weights, ...] = ()
    layers: tuple[Layers, ...] = ()
    notes: tuple[str, ...] = ()

    def splits_over(self, devices: int) -> bool:
        """True if the engine can divide it by this number of devices (vLLM: heads must be divisible)."""
        return devices == 1 or (self.heads > 0 and self.heads % devices == 0)
