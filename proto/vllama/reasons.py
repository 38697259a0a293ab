"""THE table of failures: one row per Reason, one column per face (floor 0, shared by both programs).

A failure is raised once, where its numbers are known, as ``VllamaError(reason, message, hint, **facts)``; each face
looks its columns up here and nowhere else. ``docs/reference/errors.md`` is generated from this module.
"""

from dataclasses import dataclass
from enum import StrEnum

DOMAIN = "vllama"
"""The ``domain`` of the ErrorInfo that travels with every gRPC status."""


class Reason(StrEnum):
    """Stable machine name of a failure. Scripts may compare it; it never changes its meaning."""

    INVALID_REQUEST = "INVALID_REQUEST"
    UNSUPPORTED = "UNSUPPORTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    HUB_FORBIDDEN = "HUB_FORBIDDEN"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    NOT_FOUND = "NOT_FOUND"
    MODEL_IN_USE = "MODEL_IN_USE"
    ALREADY_RUNNING = "ALREADY_RUNNING"
    WONT_FIT = "WONT_FIT"
    QUEUE_FULL = "QUEUE_FULL"
    STORAGE_FULL = "STORAGE_FULL"
    STORAGE_FAILED = "STORAGE_FAILED"
    HUB_UNREACHABLE = "HUB_UNREACHABLE"
    ENGINE_START_FAILED = "ENGINE_START_FAILED"
    ENGINE_DIED = "ENGINE_DIED"
    START_TIMEOUT = "START_TIMEOUT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    DRAINING = "DRAINING"
    CANCELLED = "CANCELLED"
    CONFIG_INVALID = "CONFIG_INVALID"
    DAEMON_UNREACHABLE = "DAEMON_UNREACHABLE"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Row:
    """How one reason looks on every face.

    ``http`` is the status on our own routes and the OpenAI face; ``ollama`` the one on ``/api/*``, which differs where
    Ollama's clients depend on Ollama's number. ``grpc`` names a member of ``grpc.StatusCode``. ``exit`` is vllamactl's
    exit status. ``retry_after_s`` is the Retry-After header where waiting helps; a failure that knows better has a fact
    of that name. ``0`` means: never seen on that face.
    """

    http: int
    ollama: int
    openai_type: str
    anthropic_status: int
    anthropic_type: str
    grpc: str
    exit: int
    meaning: str
    retry_after_s: int | None = None


_INVALID = "invalid_request_error"
_API = "api_error"

# fmt: off
ROWS: dict[Reason, Row] = {
    Reason.INVALID_REQUEST: Row(
        400, 400, _INVALID, 400, _INVALID, "INVALID_ARGUMENT", 2, "The request is malformed; the text names the field."
    ),
    Reason.UNSUPPORTED: Row(
        400, 400, _INVALID, 400, _INVALID, "UNIMPLEMENTED", 2, "The model or this version cannot do what was asked."
    ),
    Reason.UNAUTHENTICATED: Row(
        401, 401, "authentication_error", 401, "authentication_error", "UNAUTHENTICATED", 5,
        "No valid API key was sent.",
    ),
    Reason.PERMISSION_DENIED: Row(
        403, 403, "permission_error", 403, "permission_error", "PERMISSION_DENIED", 5, "The caller may not do this."
    ),
    Reason.HUB_FORBIDDEN: Row(
        403, 403, "permission_error", 403, "permission_error", "PERMISSION_DENIED", 5,
        "The hub refuses the download: the licence was not accepted, or the token is missing or lacks access.",
    ),
    Reason.MODEL_NOT_FOUND: Row(
        404, 404, "not_found_error", 404, "not_found_error", "NOT_FOUND", 3, "No such model here, or on the hub."
    ),
    Reason.NOT_FOUND: Row(
        404, 404, "not_found_error", 404, "not_found_error", "NOT_FOUND", 3, "No such worker, operation or file."
    ),
    Reason.MODEL_IN_USE: Row(
        409, 409, _INVALID, 409, _INVALID, "FAILED_PRECONDITION", 6, "The model is loaded or being changed."
    ),
    Reason.ALREADY_RUNNING: Row(
        409, 409, _INVALID, 409, _INVALID, "FAILED_PRECONDITION", 6, "The same work, or another daemon, is running."
    ),
    Reason.WONT_FIT: Row(
        422, 500, _INVALID, 422, _INVALID, "FAILED_PRECONDITION", 6, "The model can never fit on this machine."
    ),
    Reason.QUEUE_FULL: Row(
        429, 503, "rate_limit_error", 529, "overloaded_error", "RESOURCE_EXHAUSTED", 7,
        "Too many requests wait for this model or in all.", retry_after_s=2,
    ),
    Reason.STORAGE_FULL: Row(
        500, 500, _API, 500, _API, "RESOURCE_EXHAUSTED", 7, "The disk that holds the models has no room."
    ),
    Reason.STORAGE_FAILED: Row(
        500, 500, _API, 500, _API, "INTERNAL", 8, "A file of the model store cannot be read or written."
    ),
    Reason.HUB_UNREACHABLE: Row(
        502, 502, _API, 502, _API, "UNAVAILABLE", 7, "The hub does not answer; finished bytes are kept."
    ),
    Reason.ENGINE_START_FAILED: Row(
        500, 500, _API, 500, _API, "INTERNAL", 8, "The engine ended while loading; its last log lines are attached."
    ),
    Reason.ENGINE_DIED: Row(
        502, 500, _API, 502, _API, "UNAVAILABLE", 8, "The engine ended while the request was in flight."
    ),
    Reason.START_TIMEOUT: Row(
        504, 500, _API, 504, _API, "DEADLINE_EXCEEDED", 124, "The engine was not ready within engine.start_timeout."
    ),
    Reason.DEADLINE_EXCEEDED: Row(
        504, 500, _API, 504, _API, "DEADLINE_EXCEEDED", 124, "The request's deadline passed."
    ),
    Reason.DRAINING: Row(
        503, 503, _API, 529, "overloaded_error", "UNAVAILABLE", 7,
        "The daemon or the model is on its way out.", retry_after_s=5,
    ),
    Reason.CANCELLED: Row(499, 499, _API, 499, _API, "CANCELLED", 130, "The caller went away, or cancelled the work."),
    Reason.CONFIG_INVALID: Row(
        0, 0, "", 0, "", "INVALID_ARGUMENT", 78, "The configuration is wrong; the text says where."
    ),
    Reason.DAEMON_UNREACHABLE: Row(0, 0, "", 0, "", "", 4, "vllamactl found no daemon behind the control socket."),
    Reason.INTERNAL: Row(
        500, 500, _API, 500, _API, "INTERNAL", 1, "A bug: the daemon's log holds the trace under the request's id."
    ),
}
# fmt: on
