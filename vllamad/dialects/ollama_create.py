"""``/api/create`` and ``/api/blobs`` (floor 1): what is to be made of what, and the status lines of making it."""

import re
from collections.abc import Container, Iterable
from pathlib import PurePosixPath
from typing import Any

from vllama.reasons import Reason
from vllamad.dialects.go_values import as_dict, as_list
from vllamad.dialects.modelfile import ROLES, read_parameters
from vllamad.dialects.ollama_models import PullLines
from vllamad.dialects.peek import Fields, bad_request, fold, read_object
from vllamad.dialects.recipes import checked
from vllamad.domain.creation import Creation, FromModel, FromUploads, Origin, piece_digests
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model, Recipe
from vllamad.domain.names import ModelRef
from vllamad.domain.operation import Operation

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_NOT_GGUF = "supplied file was not in GGUF format"
_CONVERTING = frozenset({"reading", "converting", "writing", "converting model", "copying"})


def read_digest(text: str) -> str:
    """The 64 hex digits of a digest as clients write it. Raises INVALID_REQUEST."""
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise bad_request("invalid digest format")
    return found[1].lower()


class CreateAsked:
    """A request to ``/api/create``. Ollama checks it in two steps and answers their refusals in two content types: what
    stands alone when it is read, what belongs together in ``creation``."""

    def __init__(self, fields: Fields) -> None:
        self.name = fields.text("model") or fields.text("name")
        self.stream = fields.flag("stream", default=True)
        self._fields = fields
        self._files = _read_files(fields, "files")
        self._draft = _read_files(fields, "draft_files")
        if fields.text("draft_quantize") and not self._draft:
            raise bad_request("--draft-quantize requires a DRAFT model")
        self._adapters = _read_files(fields, "adapters")
        ModelRef.parse(self.name)

    def creation(self) -> Creation:
        """What is to be made. Raises INVALID_REQUEST, UNSUPPORTED."""
        fields, base = self._fields, self._fields.text("from")
        if self._draft:
            raise _unsupported("draft models are", "give the engine its flags in a [[model]] row of the configuration")
        if fields.text("remote_host"):
            raise _unsupported("remote models are", "name a model that is here, or one of the hub")
        if not base and self._files is None:
            raise bad_request("neither 'from' or 'files' was specified")
        if base:
            ModelRef.parse(base)
        origin: Origin = FromModel(base) if base else FromUploads(self._files or {})
        return Creation(origin, _read_changes(fields), _read_adapter(self._adapters))


def read_create(body: bytes) -> CreateAsked:
    """Read a body of ``/api/create``. Raises INVALID_REQUEST in Ollama's order and words."""
    return CreateAsked(Fields(read_object(body, "CreateRequest"), "CreateRequest"))


def _read_changes(fields: Fields) -> Recipe:
    return checked(
        Recipe(
            parameters=read_parameters(fields.mapping("parameters", "map[string]interface {}")),
            system=fields.text("system"),
            template=fields.text("template"),
            messages=tuple(_read_message(item, fields) for item in fields.items("messages", "[]api.Message")),
            licenses=_read_licenses(fields.raw("license")),
            quantize=(fields.text("quantize") or fields.text("quantization")).lower(),
        )
    )


def _read_adapter(files: dict[str, str] | None) -> FromUploads | None:
    """One adapter's files: paths as they are, but for a folder in front of all of them."""
    if not files:
        return None
    if any(path.lower().endswith(".gguf") for path in files):
        raise _unsupported("adapters in GGUF are", "send adapter_config.json and adapter_model.safetensors")
    if len({PurePosixPath(path).parent for path in files}) > 1:
        raise bad_request("only one adapter is currently supported")
    return FromUploads({PurePosixPath(path).name: digest for path, digest in files.items()})


def _read_message(item: object, fields: Fields) -> tuple[str, str]:
    raw = as_dict(item)
    if raw is None:
        raise fields.wrong("messages", item, "api.Message")
    message = Fields(fold(raw), "Message")
    role = message.text("role").lower()
    if role not in ROLES:
        raise bad_request('message role must be one of "system", "user", or "assistant"')
    return role, message.text("content")


def _read_licenses(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else as_list(value) or []
    return tuple(text for text in texts if isinstance(text, str) and text)


def _read_files(fields: Fields, name: str) -> dict[str, str] | None:
    """Paths inside the model to digests; None if the field is absent."""
    if fields.raw(name) is None:
        return None
    found: dict[str, str] = {}
    for path, digest in fields.mapping(name, "map[string]string").items():
        if not isinstance(digest, str):
            raise fields.wrong(name, digest, "string")
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\0" in path:
            raise bad_request("file path must be relative")
        found[PurePosixPath(path).as_posix()] = read_digest(digest)
    return found


def _unsupported(what: str, hint: str) -> VllamaError:
    return VllamaError(Reason.UNSUPPORTED, f"{what} not supported", hint)


class CreateLines:
    """The status lines of one creation, out of the snapshots that come, of which some may be missed. ``known`` are the
    digests of the pieces that were here before."""

    def __init__(self, creation: Creation, known: Container[str]) -> None:
        origin = creation.origin
        self._is_gguf = isinstance(origin, FromUploads) and any(path.lower().endswith(".gguf") for path in origin.files)
        self._known = known
        self._pull = PullLines()
        self._told: list[str] = []

    def feed(self, operation: Operation) -> list[dict[str, Any]]:
        """The lines that a snapshot adds before the creation is done."""
        progress = operation.progress
        if progress.files or progress.phase == "resolving":
            return self._pulling(operation)
        lines = self._tell("parsing GGUF") if self._is_gguf else []
        if progress.phase in _CONVERTING:
            lines += self._tell("converting model")
        return lines

    def finish(self, model: Model) -> list[dict[str, Any]]:
        """The lines of a creation that went well."""
        lines = self._tell("verifying conversion") if self._is_gguf else []
        for digest in piece_digests(model):
            status = "using existing layer" if digest in self._known else "creating new layer"
            lines.append({"status": f"{status} sha256:{digest}"})
        return [*lines, {"status": "writing manifest"}, {"status": "success"}]

    def _pulling(self, operation: Operation) -> list[dict[str, Any]]:
        first = [] if self._told else [self._pull.first()]
        self._told.append("pulling manifest")
        return first + self._pull.feed(operation)

    def _tell(self, status: str) -> list[dict[str, Any]]:
        if status in self._told:
            return []
        self._told.append(status)
        return [{"status": status}]


def create_failure(error: VllamaError) -> VllamaError:
    """The failure in Ollama's words where clients know them."""
    if error.message.endswith(_NOT_GGUF):
        return VllamaError(error.reason, _NOT_GGUF, error.hint, **error.facts)
    return error


def known_pieces(models: Iterable[Model]) -> set[str]:
    """The digests of everything that models are put together from."""
    return {digest for model in models for digest in piece_digests(model)}
