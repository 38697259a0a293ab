"""What a new model is made of (floor 1): where its files come from, and what a Modelfile says beside them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllamad.domain.model import NO_RECIPE, Model, Recipe


@dataclass(frozen=True, slots=True)
class FromModel:
    """The files of a model that is here, or can be pulled, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class FromFolder:
    """A folder of safetensors; it is copied and left as it is."""

    folder: Path


@dataclass(frozen=True, slots=True)
class FromGguf:
    """A GGUF file; it is converted and left as it is."""

    file: Path


@dataclass(frozen=True, slots=True)
class FromUploads:
    """Files that were sent before: paths inside the model to SHA-256 (64 hex digits)."""

    files: Mapping[str, str]


Origin = FromModel | FromFolder | FromGguf | FromUploads


@dataclass(frozen=True, slots=True)
class Creation:
    """A model to be made. What ``changes`` leaves empty is inherited from the model it is made from, if it is made from
    one; so is its adapter, unless there is another one (a folder, or files that were sent before)."""

    origin: Origin
    changes: Recipe = NO_RECIPE
    adapter: Path | FromUploads | None = None


def inherit(base: Model, changes: Recipe, *, has_adapter: bool = False) -> Recipe:
    """The recipe of a model made from ``base``, maybe with an adapter of its own.

    Parameters are merged by name, licences added, all else replaced where ``changes`` says something. A copy that
    changes nothing still is a model of its own name, not a child.
    """
    own = base.recipe
    if changes == NO_RECIPE and not has_adapter:
        return own
    return replace(
        changes,
        ancestors=base.lineage,
        parameters={**own.parameters, **changes.parameters},
        system=changes.system or own.system,
        template=changes.template or own.template,
        messages=changes.messages or own.messages,
        licenses=tuple(dict.fromkeys((*own.licenses, *changes.licenses))),
        quantize=changes.quantize or own.quantize,
    )


def piece_digests(model: Model) -> list[str]:
    """A digest (64 hex digits) of each piece that a model is put together from: its files, template, system message,
    parameters, messages, licences, adapter. Equal pieces of two models have the same; it tells people what was new."""
    recipe = model.recipe
    adapter = model.adapter.digest if model.adapter else ""
    texts: list[object] = [
        recipe.template,
        recipe.system,
        sorted(recipe.parameters.items()),
        recipe.messages,
        model.licenses,
        adapter,
    ]
    files = sorted((file.path, file.sha256) for file in model.files)
    found = [("files", files), *((f"piece {at}", text) for at, text in enumerate(texts) if text)]
    return [hashlib.sha256(repr(piece).encode("utf-8", "surrogatepass")).hexdigest() for piece in found]
