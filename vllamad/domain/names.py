"""Names of models (floor 1).

Grammar, as Ollama's clients know it, with the hub's repositories fitted in::

    ref        = [ host "/" ] [ namespace "/" ] model [ ":" tag ]
    host       = 1 to 350 of [A-Za-z0-9_.:-], first one of [A-Za-z0-9_]
    namespace  = 1 to 80 of [A-Za-z0-9_-] and inner dots, first one of [A-Za-z0-9_]
    model, tag = 1 to 96 of [A-Za-z0-9_.-], first one of [A-Za-z0-9_]

The tag is what follows the last ":" behind the last "/". ``qwen3:0.6b`` is a library name, ``org/repo:revision`` and
``hf.co/org/repo:revision`` are repositories on the hub. A missing tag means ``latest``. Names compare without regard
to case; the spelling that was typed is kept. (Dots in namespaces and 96 characters are wider than Ollama's rule: the
hub has such names.)
"""

import re
from dataclasses import dataclass

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

DEFAULT_TAG = "latest"
HUB_HOSTS = frozenset({"hf.co", "huggingface.co"})

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A parsed name. ``str()`` is its display form (tag always shown) and parses back to an equal reference."""

    model: str
    tag: str = DEFAULT_TAG
    namespace: str = ""
    host: str = ""

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """Parse a name as typed; raises INVALID_REQUEST with the text ``invalid model name`` that clients know."""
        rest = text.strip()
        head, _, last = rest.rpartition("/")
        model, colon, tag = last.rpartition(":")
        if not colon:
            model, tag = last, DEFAULT_TAG
        host, slash, namespace = head.rpartition("/")
        if not slash:
            host, namespace = "", head
        ref = cls(model, tag, namespace, host)
        if "/" in rest and not head:
            raise _invalid(text)
        checks = (
            _PART.fullmatch(model),
            _PART.fullmatch(tag),
            not head or _NAMESPACE.fullmatch(namespace),
            not slash or (_HOST.fullmatch(host) and "/" not in host),
        )
        if not all(checks):
            raise _invalid(text)
        return ref

    def __str__(self) -> str:
        return "/".join(part for part in (self.host, self.namespace, self.model) if part) + f":{self.tag}"

    @property
    def key(self) -> str:
        """What names are compared by: the display form in lower case."""
        return str(self).lower()

    @property
    def is_repository(self) -> bool:
        """True if it can only mean a repository on the hub (``org/repo`` or ``hf.co/org/repo``), not a library name."""
        return bool(self.namespace) and (not self.host or self.host.lower() in HUB_HOSTS)

    @property
    def slug(self) -> str:
        """A short name that is safe in paths, socket names and worker names: ``qwen3-0.6b``."""
        parts = [self.model] if self.tag == DEFAULT_TAG else [self.model, self.tag]
        return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-.").lower()[:40] or "model"


def _invalid(text: str) -> VllamaError:
    return VllamaError(
        Reason.INVALID_REQUEST,
        "invalid model name",
        "names look like family:tag, org/repo or hf.co/org/repo:revision",
        name=text[:200],
    )
