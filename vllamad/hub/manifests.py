"""Manifests: one JSON file per name of a model (floor 2).

A file's name is the model's key (its display form in lower case) with "/" written as "+" and ":" as "=", which no part
of a name may contain; a very long key is cut and ends in "~" and a hash. So names that differ only in case meet in one
file, and no name can leave the folder.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, cast

from vllamad.domain.errors import VllamaError
from vllamad.domain.model import (
    NO_RECIPE,
    Adapter,
    Capability,
    Model,
    ModelDetails,
    ModelFile,
    ParameterValue,
    Recipe,
    Source,
    SourceKind,
)
from vllamad.domain.names import ModelRef
from vllamad.hub.selection import is_safe_path

FORMAT = 1
_LONGEST_NAME = 180  # file systems allow 255 bytes; leave room for endings and temporary prefixes
_HEX = re.compile(r"[0-9a-f]{64}")


class BadManifest(Exception):
    """A manifest that cannot be understood; its text says why."""


def file_name(key: str) -> str:
    """A name for ``key`` that is one safe path component; different keys have different names."""

    def escape(found: re.Match[str]) -> str:
        match found[0]:
            case "/":
                return "+"
            case ":":
                return "="
            case other:
                return "".join(f"%{byte:02X}" for byte in other.encode("utf-8", "surrogateescape"))

    name = re.sub(r"[^A-Za-z0-9_.-]|^\.", escape, key)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:120]}~{hashlib.sha256(name.encode()).hexdigest()[:40]}"


def digest_of(files: tuple[ModelFile, ...]) -> str:
    """The content address of a model's files: SHA-256 over its files' digests and paths, sorted by path."""
    lines = sorted(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_with(contents: str, recipe: Recipe, adapter: Adapter | None) -> str:
    """The digest of a model: that of its files, unless a recipe or an adapter makes another model of them."""
    if recipe == NO_RECIPE and adapter is None:
        return contents
    text = json.dumps(_recipe_document(recipe), ensure_ascii=False, sort_keys=True)
    if adapter is not None:
        text += adapter.digest
    return hashlib.sha256(f"{contents}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()


def write_manifest(model: Model) -> bytes:
    """The JSON text of a model's manifest; ``path`` is left out, so that the store may be moved."""
    details = model.details
    document = {
        "format": FORMAT,
        "name": str(model.ref),
        "digest": model.digest,
        "modified_time": model.modified_time,
        "source": {
            "kind": model.source.kind.value,
            "repository": model.source.repository,
            "revision": model.source.revision,
        },
        "files": _files_document(model.files),
        "adapter": {"files": _files_document(model.adapter.files), "rank": model.adapter.rank}
        if model.adapter
        else None,
        "details": {name: getattr(details, name) for name in ModelDetails.__dataclass_fields__},
        "capabilities": [capability.value for capability in model.capabilities],
        "tool_parser": model.tool_parser,
        "reasoning_parser": model.reasoning_parser,
        "template": model.template,
        "license": model.license,
        "insert_format": model.insert_format,
        "recipe": _recipe_document(model.recipe),
    }
    return json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")


def _files_document(files: tuple[ModelFile, ...]) -> list[dict[str, Any]]:
    return [{"path": file.path, "sha256": file.sha256, "size_bytes": file.size_bytes} for file in files]


def _read_files(document: list[dict[str, Any]]) -> tuple[ModelFile, ...]:
    files = tuple(ModelFile(str(each["path"]), str(each["sha256"]), int(each["size_bytes"])) for each in document)
    if not files or not all(is_safe_path(file.path) and _HEX.fullmatch(file.sha256) for file in files):
        raise BadManifest("its list of files is damaged")
    return files


def _read_adapter(document: dict[str, Any] | None, folders: Path) -> Adapter | None:
    if document is None:
        return None
    files = _read_files(document["files"])
    digest = digest_of(files)
    return Adapter(digest, files, os.fspath(folders / digest), int(document["rank"]))


def _recipe_document(recipe: Recipe) -> dict[str, Any]:
    return {
        "ancestors": list(recipe.ancestors),
        "parameters": dict(recipe.parameters),
        "system": recipe.system,
        "template": recipe.template,
        "messages": [list(message) for message in recipe.messages],
        "licenses": list(recipe.licenses),
        "quantize": recipe.quantize,
    }


def _read_recipe(document: dict[str, Any]) -> Recipe:
    parameters: dict[str, ParameterValue] = {
        name: tuple(map(str, cast("list[object]", value))) if isinstance(value, list) else value
        for name, value in document["parameters"].items()
    }
    return Recipe(
        ancestors=tuple(document["ancestors"]),
        parameters=parameters,
        system=document["system"],
        template=document["template"],
        messages=tuple((role, text) for role, text in document["messages"]),
        licenses=tuple(document["licenses"]),
        quantize=document["quantize"],
    )


def read_manifest(text: bytes, folders: Path) -> Model:
    """Parse what ``write_manifest`` wrote; ``folders`` holds a folder per digest. Raises BadManifest."""
    try:
        document = cast(dict[str, Any], json.loads(text))
        if document["format"] != FORMAT:
            raise BadManifest(f"format {document['format']}: written by another version")
        files = _read_files(document["files"])
        contents, recipe = digest_of(files), _read_recipe(document["recipe"])
        adapter = _read_adapter(document["adapter"], folders)
        if document["digest"] != digest_with(contents, recipe, adapter):
            raise BadManifest("its digest does not fit its files")
        details = dict(document["details"])
        details["families"] = tuple(details.get("families", ()))
        source = document["source"]
        return Model(
            ref=ModelRef.parse(document["name"]),
            digest=document["digest"],
            files=files,
            path=os.fspath(folders / contents),
            modified_time=float(document["modified_time"]),
            source=Source(SourceKind(source["kind"]), source["repository"], source["revision"]),
            details=ModelDetails(**details),
            capabilities=tuple(Capability(name) for name in document["capabilities"]),
            template=document["template"],
            license=document["license"],
            tool_parser=document["tool_parser"],
            reasoning_parser=document["reasoning_parser"],
            insert_format=document["insert_format"],
            recipe=recipe,
            adapter=adapter,
        )
    except (ValueError, KeyError, TypeError, AttributeError, VllamaError) as error:
        raise BadManifest(f"{type(error).__name__}: {error}") from error
