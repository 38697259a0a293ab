"""Names that users type to repositories on the hub (floor 2, pure but for reading ``library.toml`` once).

A name is one of: a short name of the library table (``qwen3:0.6b``), or a repository (``org/repo``, ``hf.co/org/repo``)
whose tag is a branch, a tag or a commit. A tag that names a GGUF quantisation means the repository itself: the engine
loads the weights that such files were made from.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from vllama.reasons import Reason
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.names import DEFAULT_TAG, HUB_HOSTS, ModelRef
from vllamad.domain.ports import HubSource

NOT_THERE = "pull model manifest: file does not exist"
"""The text for a model that does not exist; Ollama's clients compare it."""

CLOUD_REFUSED = "ollama cloud is disabled: remote model is unavailable"

_QUANTIZATION = re.compile(
    r"(ud-)?i?q\d(_(k|[01]|xxs|xs|s|m|nl))*(_(s|m|l|xl))?|tq\d_\d|f16|fp16|bf16|f32|fp8|mxfp4|nvfp4", re.IGNORECASE
)
_TUNED = ("-instruct", "-chat", "-it")
_BASE = ("-base", "-text", "-code")
_PICTURES = frozenset({"x/z-image-turbo", "x/flux2-klein"})


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    repository: str
    capabilities: tuple[str, ...]
    tool_parser: str
    reasoning_parser: str
    is_gated: bool
    base: tuple[str, str] | None
    refusal: str


@dataclass(frozen=True, slots=True)
class Family:
    """The rows of one short name, by tag; ``latest`` is the tag that the name alone means."""

    latest: str
    rows: dict[str, Row]


@dataclass(frozen=True, slots=True)
class Library:
    """The whole table, names and tags in lower case; ``repositories`` finds a row by its repository."""

    families: dict[str, Family]
    repositories: dict[str, Row]
    tool_parsers: frozenset[str]
    reasoning_parsers: frozenset[str]


def resolve(ref: ModelRef) -> HubSource:
    """The repository that a name means.

    Raises MODEL_NOT_FOUND (with Ollama's text; the hint has near names) for an unknown short name or tag,
    PERMISSION_DENIED for cloud names, UNSUPPORTED for what the engine cannot run and for other registries.
    """
    name, tag = ref.model.lower(), ref.tag.lower()
    if tag == "cloud" or tag.endswith("-cloud"):
        raise VllamaError(
            Reason.PERMISSION_DENIED,
            CLOUD_REFUSED,
            "models run on this machine only; pull the name without cloud",
            model=str(ref),
        )
    if f"{ref.namespace}/{name}".lower() in _PICTURES:
        raise VllamaError(Reason.UNSUPPORTED, "image generation models are not currently supported", model=str(ref))
    if ref.namespace.lower() == "library" and not ref.host:
        return _resolve_short(str(ref), name, tag)
    if ref.is_repository:
        return _resolve_repository(ref)
    if ref.host:
        raise VllamaError(
            Reason.UNSUPPORTED,
            f"cannot pull {ref}: models come from the hub, and {ref.host} is another registry",
            f"name the model's repository: org/repo (hosts that are understood: {', '.join(sorted(HUB_HOSTS))})",
            model=str(ref),
        )
    return _resolve_short(str(ref), name, tag)


@cache
def load_library() -> Library:
    """Read the table; the first caller pays some milliseconds."""
    document = tomllib.loads((Path(__file__).parent / "library.toml").read_text(encoding="utf-8"))
    families: dict[str, Family] = {}
    repositories: dict[str, Row] = {}
    for name, entry in cast(dict[str, dict[str, Any]], document["family"]).items():
        rows = _rows(entry)
        families[name.lower()] = Family(entry.get("latest") or next(iter(rows)), rows)
        for row in rows.values():
            repositories.setdefault(row.repository.lower(), row)
    parsers = document["parsers"]
    return Library(families, repositories, frozenset(parsers["tool"]), frozenset(parsers["reasoning"]))


def _rows(entry: dict[str, Any]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    aliases: dict[str, str] = {}
    for tag, value in entry["tags"].items():
        own: dict[str, Any] = {"repository": value} if isinstance(value, str) else value
        if "same" in own:
            aliases[tag.lower()] = own["same"].lower()
            continue
        settings: dict[str, Any] = {**entry, **own}
        can = tuple(settings.get("can", ()))
        base = settings.get("base")
        rows[tag.lower()] = Row(
            repository=settings["repository"],
            capabilities=can if "embedding" in can else ("completion", *can),
            tool_parser=settings.get("tool", ""),
            reasoning_parser=settings.get("reasoning", ""),
            is_gated=settings.get("gated", False),
            base=(base[0], base[1]) if base else None,
            refusal=settings.get("refuse", ""),
        )
    return rows | {alias: rows[tag] for alias, tag in aliases.items()}


def _resolve_short(typed: str, name: str, tag: str) -> HubSource:
    library = load_library()
    family = library.families.get(name)
    if family is None:
        near = difflib.get_close_matches(name, library.families, n=3)
        like = f"did you mean {' or '.join(near)}? " if near else ""
        raise ModelNotFound(typed, NOT_THERE, f"{like}{name} is no name of the library; a repository is named org/repo")
    row, is_base = _find_row(family, tag)
    if row is None:
        known = ", ".join(sorted(family.rows, key=lambda known: (len(known), known))[:12])
        raise ModelNotFound(typed, NOT_THERE, f"{name} has no tag {tag!r} here; it has {known}")
    if row.refusal:
        raise VllamaError(Reason.UNSUPPORTED, f"cannot pull {typed}: {row.refusal}", model=typed)
    return _base_of(row) if is_base else _source(row, row.repository)


def _find_row(family: Family, tag: str) -> tuple[Row | None, bool]:
    """The row of a tag, and whether the base model of that row is meant."""
    for candidate in _shortened(tag):
        if candidate in family.rows:
            return family.rows[candidate], False
        if candidate == DEFAULT_TAG:
            return family.rows[family.latest], False
        size, dash, ending = candidate.rpartition("-")
        if f"{dash}{ending}" in _BASE:
            row = family.rows.get(size)
            return (row, True) if row and row.base else (None, False)
    return None, False


def _shortened(tag: str) -> list[str]:
    """A tag as it is, and with the suffixes stripped that choose among files of the same repository."""
    found = [tag]
    head, dash, ending = tag.rpartition("-")
    if dash and _QUANTIZATION.fullmatch(ending):
        tag = head
        found.append(tag)
    elif _QUANTIZATION.fullmatch(tag):
        return [*found, DEFAULT_TAG]
    for suffix in _TUNED:
        if tag.endswith(suffix):
            found.append(tag.removesuffix(suffix))
        elif tag == suffix[1:]:
            found.append(DEFAULT_TAG)
    return found


def _source(row: Row, repository: str) -> HubSource:
    return HubSource(
        repository=repository,
        is_gated=row.is_gated,
        tool_parser=row.tool_parser,
        reasoning_parser=row.reasoning_parser,
        capabilities=row.capabilities,
    )


def _base_of(row: Row) -> HubSource:
    """The model before instruction tuning: it completes text and knows no tools."""
    assert row.base is not None
    old, new = row.base
    repository = row.repository.replace(old, new, 1) if old else row.repository + new
    kept = tuple(c for c in row.capabilities if c in {"completion", "insert", "vision"})
    return HubSource(repository=repository, is_gated=row.is_gated, capabilities=kept)


def _resolve_repository(ref: ModelRef) -> HubSource:
    repository = f"{ref.namespace}/{ref.model}"
    is_whole = ref.tag.lower() == DEFAULT_TAG or _QUANTIZATION.fullmatch(ref.tag) is not None
    revision = "" if is_whole else ref.tag
    row = load_library().repositories.get(repository.lower())
    if row is None:
        return HubSource(repository, revision)
    if row.refusal:
        raise VllamaError(Reason.UNSUPPORTED, f"cannot pull {ref}: {row.refusal}", model=str(ref))
    source = _source(row, repository)
    return HubSource(
        repository, revision, source.is_gated, source.tool_parser, source.reasoning_parser, source.capabilities
    )
