"""What is known about a model on disk (floor 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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


ParameterValue = bool | int | float | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a Modelfile says beside its weights. All but ``quantize`` is used when requests are built, so models that
    differ in nothing else can share a worker.

    ``ancestors`` are the names that it was made from, the first one first; ``template`` is a Go template that stands
    in for the model's own chat template; ``messages`` are (role, text) pairs that every conversation begins with;
    ``licenses`` come behind the licence of the files; ``quantize`` is what the engine does to the weights while it
    loads them.
    """

    ancestors: tuple[str, ...] = ()
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict[str, ParameterValue])
    system: str = ""
    template: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    licenses: tuple[str, ...] = ()
    quantize: str = ""


NO_RECIPE = Recipe()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that is on disk: ``digest`` is 64 hex digits over its files, ``path`` its folder, ``rank`` what
    the engine must make room for."""

    digest: str
    files: tuple[ModelFile, ...]
    path: str
    rank: int

    @property
    def name(self) -> str:
        """What the engine knows it by."""
        return f"adapter-{self.digest[:16]}"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is on disk, complete and verified.

    ``digest`` is 64 hex digits over the sorted list of (path, sha256), and over recipe and adapter if there are any:
    same digest, same model. ``path`` is the folder that the engine loads. ``modified_time`` is wall time in seconds.
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
    recipe: Recipe = NO_RECIPE
    adapter: Adapter | None = None
    """What changes its files' answers; the engine serves it beside the files alone."""
    insert_format: str = ""
    """How its prompt is written for filling in the middle, with ``{prompt}`` and ``{suffix}``; "" if it cannot."""

    @property
    def name(self) -> str:
        """The display form under which it is listed, shown and removed."""
        return str(self.ref)

    @property
    def lineage(self) -> tuple[str, ...]:
        """Every name whose settings hold for it, its own last."""
        return (*self.recipe.ancestors, self.name)

    @property
    def parent(self) -> str:
        """The name that it was made from, "" if it was not."""
        return self.recipe.ancestors[-1] if self.recipe.ancestors else ""

    @property
    def licenses(self) -> tuple[str, ...]:
        """The licence of its files and what its recipe adds."""
        return (self.license, *self.recipe.licenses) if self.license else self.recipe.licenses

    @property
    def size_bytes(self) -> int:
        """The sum of its files, shared or not."""
        return sum(file.size_bytes for file in self.all_files)

    @property
    def all_files(self) -> tuple[ModelFile, ...]:
        """Its files and those of its adapter."""
        return self.files + self.adapter.files if self.adapter else self.files


def with_parsers(model: Model, tool_parser: str, reasoning_parser: str) -> Model:
    """The model as it is configured: parsers that were chosen for it by hand ("" for none) win over those that were
    found, and what they parse is a capability then. Under a template of its recipe the engine parses nothing."""
    if not (tool_parser or reasoning_parser):
        return model
    gained = {Capability.TOOLS: tool_parser, Capability.THINKING: reasoning_parser}
    is_plain = Capability.COMPLETION not in model.capabilities or model.recipe.template
    more = () if is_plain else (each for each, parser in gained.items() if parser and each not in model.capabilities)
    return replace(
        model,
        tool_parser=tool_parser or model.tool_parser,
        reasoning_parser=reasoning_parser or model.reasoning_parser,
        capabilities=(*model.capabilities, *more),
    )


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
