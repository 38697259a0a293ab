"""Which headers go on, and which end here (floor 4)."""

from collections.abc import Mapping

from aiohttp import web

from vllamad.http.calls import Call

_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_NOT_ONWARD = _HOP_BY_HOP | {
    # Secrets are for this daemon at most, and a worker's host is its socket.
    "host", "authorization", "x-api-key", "cookie", "origin", "referer",
    # The body is ours by now: whole, unpacked, JSON.
    "content-length", "content-type", "content-encoding", "expect", "accept-encoding",
    "x-keep-alive",
}  # fmt: skip
_NOT_BACK = _HOP_BY_HOP | {"content-length", "server", "date", "x-request-id", "vary"}
_CORS = "access-control-"
"""Who may ask from a browser is decided here; the engine knows nothing of the page."""

_WEBSOCKET = "sec-websocket-"

EVENT_STREAM = "text/event-stream"


def onward(request: web.Request, call: Call, content_type: str = "application/json") -> dict[str, str]:
    """The headers for the engine: the request's own but for what concerns this hop or is a secret. Ollama's clients
    never say what their body is, so it is said here."""
    named = {name.strip().lower() for name in request.headers.get("Connection", "").split(",")}
    headers = {
        name: value
        for name, value in request.headers.items()
        if (low := name.lower()) not in _NOT_ONWARD and low not in named and not low.startswith(_WEBSOCKET)
    }
    # Of whatever case the caller's was: one id, and the one that the log shows.
    for name in [name for name in headers if name.lower() == "x-request-id"]:
        del headers[name]
    headers["X-Request-Id"] = call.id
    if content_type:
        headers["Content-Type"] = content_type
    return headers


def back(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers for the client. Nobody between may hold a stream of events back."""
    kept = {name: value for name, value in headers.items() if name not in _NOT_BACK and not name.startswith(_CORS)}
    if is_events(headers):
        kept |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return kept


def is_events(headers: Mapping[str, str]) -> bool:
    """True for a stream of server-sent events."""
    return headers.get("content-type", "").startswith(EVENT_STREAM)
