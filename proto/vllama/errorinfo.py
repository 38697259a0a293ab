"""A failure as gRPC's trailing metadata (floor 0): packed by the daemon, unpacked by the client.

The bytes are a google.rpc.Status with an ErrorInfo and, for the hint, a Help detail: see ``control/v1/status.proto``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from vllama.control.v1 import status_pb2
from vllama.reasons import DOMAIN

METADATA_KEY = "grpc-status-details-bin"

_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_HELP = "type.googleapis.com/google.rpc.Help"

MESSAGE_MAX = 1024
FACTS_MAX = 3072
"""Bytes. gRPC refuses trailing metadata over 8 KiB by default, and the caller then sees only that; the message
travels twice, once percent-encoded by gRPC itself."""


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What a caller learns of a failure. ``reason`` is a name of the table, or one that a newer daemon added to it."""

    reason: str
    message: str
    hint: str = ""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    code: int = 0


def encode(reason: str, message: str, hint: str | None, facts: Mapping[str, object], grpc_code: int) -> bytes:
    """Pack a failure; ``grpc_code`` is the status' number. What is too long for metadata loses its beginning (facts:
    the end of a log tells more) or its end (message, hint)."""
    info = status_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=_fitting(facts))
    status = status_pb2.Status(code=grpc_code, message=_cut(message))
    status.details.add(type_url=_ERROR_INFO, value=info.SerializeToString())
    if hint:
        links = [status_pb2.Help.Link(description=_cut(hint))]
        status.details.add(type_url=_HELP, value=status_pb2.Help(links=links).SerializeToString())
    return status.SerializeToString()


def decode(packed: bytes) -> ErrorInfo | None:
    """Unpack a failure; None if the bytes are none of ours (another server, a proxy, a damaged trailer)."""
    try:
        status = status_pb2.Status.FromString(packed)
        details = {detail.type_url: detail.value for detail in status.details}
        info = status_pb2.ErrorInfo.FromString(details.get(_ERROR_INFO, b""))
        help_ = status_pb2.Help.FromString(details.get(_HELP, b""))
    except DecodeError:
        return None
    if info.domain != DOMAIN or not info.reason:
        return None
    hint = help_.links[0].description if help_.links else ""
    return ErrorInfo(info.reason, status.message, hint, dict(info.metadata), status.code)


def _cut(text: str) -> str:
    data = text.encode()
    return text if len(data) <= MESSAGE_MAX else data[: MESSAGE_MAX - 3].decode(errors="ignore") + "…"


def _fitting(facts: Mapping[str, object]) -> dict[str, str]:
    room = FACTS_MAX
    kept: dict[str, str] = {}
    # Short ones first: one long log must not push the numbers out.
    for key, value in sorted(((key, str(value)) for key, value in facts.items()), key=lambda fact: len(fact[1])):
        data = value.encode()
        room -= len(key)
        if room <= 3:
            break
        kept[key] = value if len(data) <= room else "…" + data[len(data) - room + 3 :].decode(errors="ignore")
        room -= min(len(data), room)
    return kept
