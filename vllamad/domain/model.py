"""What is known about a model on disk (floor 1)."""

from dataclasses import dataclass, field
from enum import StrEnum

from vllamad.domain.names import ModelRef


class Capability(StrEnum):
    """What a model can do as it is configured, in the words of Ollama's ``capabilities`` lists."""

    COMPLETION = "completion"
    TOOLS = "tools"
    INSERT = "insert"
    VISION = "vision"
    EMBEDDING = "embedding"
    THINKING = "thinking"


class SourceKind(StrEnum):
    """How a model came here."""

    HUB = "hub"
    GGUF = "gguf"
    FOLDER = "folder"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's files come from; ``repository`` and ``revision`` (a commit) only for the hub."""

    kind: SourceKind
    repository: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: its path inside the model's folder, 64 hex digits of SHA-256, and its size."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """Numbers from config.json and the safetensors headers; 0 or "" where the files do not say."""

    format: str = "safetensors"
    family: str = ""
    families: tuple[str, ...] = ()
    parameter_count: int = 0
    quantization_level: str = ""
    context_length: int = 0
    embedding_length: int = 0
    block_count: int = 0
    feed_forward_length: int = 0
    head_count: int = 0
    head_count_kv: int = 0
    vocab_size: int = 0

    @property
    def parameter_size(self) -> str:
        """The count as Ollama writes it: ``134.52M``, ``1.2B``; "" if unknown."""
        return human_count(self.parameter_count)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is on disk, complete and verified.

    ``digest`` is 64 hex digits over the sorted list of (path, sha256): same digest, same content. ``path`` is the
    folder that the engine loads. ``modified_time`` is wall time in seconds.
    """

    ref: ModelRef
    digest: str
    files: tuple[ModelFile, ...]
    path: str
    modified_time: float
    source: Source
    details: ModelDetails = field(default_factory=ModelDetails)
    capabilities: tuple[Capability, ...] = (Capability.COMPLETION,)
    template: str = ""
    license: str = ""
    tool_parser: str = ""
    reasoning_parser: str = ""

    @property
    def name(self) -> str:
        """The display form under which it is listed, shown and removed."""
        return str(self.ref)

    @property
    def size_bytes(self) -> int:
        """The sum of its files, shared or not."""
        return sum(file.size_bytes for file in self.files)


def human_count(count: int) -> str:
    """Write a number of parameters as Ollama does (its ``HumanNumber``): 2 decimals below a billion, 1 above."""
    if count <= 0:
        return ""
    if count >= 1_000_000_000:
        return f"{count / 1e9:.1f}B"
    if count >= 1_000_000:
        return f"{count / 1e6:.2f}M"
    if count >= 1_000:
        return f"{count / 1e3:.2f}K"
    return str(count)
