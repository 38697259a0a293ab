"""One request as the HTTP face follows it (floor 4): its id, what the log line says of it, and the kinds of answers."""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from vllamad.dialects.go_values import dumps
from vllamad.dialects.passing import Face
from vllamad.domain.model import Model
from vllamad.host.logs import event
from vllamad.http.services import Names

log = logging.getLogger("vllamad.http")

JSON = "application/json; charset=utf-8"
PLAIN_JSON = "application/json"
NDJSON = "application/x-ndjson"
TEXT = "text/plain"
LINE_HEADERS = {"Content-Type": NDJSON, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Of a stream of lines: nobody between may hold it back."""

GONE = 499
"""What the log says of a client that left; nobody is there to read a status."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True)
class Call:
    """What is known of a request so far. ``face`` decides in whose envelope a failure is told; ``error_type`` is the
    content type of an error answer: Ollama's differs with the route and the moment."""

    id: str
    method: str
    path: str
    caller: str
    is_quiet: bool = False
    face: Face = Face.OLLAMA
    model: str = ""
    """As it was asked for; ``found`` is the name of the one that it meant."""
    found: str = ""
    status: int = 0
    error: str = ""
    error_type: str = JSON
    waited_ms: float = 0.0
    first_token_ms: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """What every answer to this request carries beside its own headers."""
    started_ns: int = field(default_factory=time.perf_counter_ns)

    async def find(self, catalog: Names, name: str) -> Model:
        """The model that is asked for by this name; the log line is about it from now on. Raises ModelNotFound."""
        model = await catalog.find(name)
        self.found = model.name
        return model

    @property
    def spent_ns(self) -> int:
        """Since the request's head was read."""
        return time.perf_counter_ns() - self.started_ns

    def write_log(self) -> None:
        """One line a request, without a word of what was asked or answered."""
        level = logging.DEBUG if self.is_quiet and self.status < 500 else logging.INFO
        if not log.isEnabledFor(level):
            return
        fields: dict[str, Any] = {
            "id": self.id,
            "caller": self.caller,
            "route": f"{self.method} {self.path[:200]}",
            "status": self.status,
            "total_ms": round(self.spent_ns / 1e6, 1),
        }
        if self.model:
            # One name for all lines about a model, whatever it was called by.
            fields["model"] = self.found or self.model[:200]
        if self.waited_ms:
            fields["waited_ms"] = round(self.waited_ms, 1)
        if self.first_token_ms:
            fields["first_token_ms"] = round(self.first_token_ms, 1)
        if self.tokens:
            fields |= {"prompt_tokens": self.prompt_tokens, "tokens": self.tokens}
        if self.error:
            fields["error"] = self.error
        event(log, level, "http.request", **fields)


Handler = Callable[[web.Request, Call], Awaitable[web.StreamResponse]]


def new_call(request: web.Request) -> Call:
    """Begin to follow a request; the caller's own id is kept if it is sane."""
    wanted = request.headers.get("X-Request-Id", "")
    identity = wanted if _SANE_ID.fullmatch(wanted) else uuid.uuid4().hex
    return Call(identity, request.method, request.path, request.remote or "")


def json_answer(value: object, status: int = 200, content_type: str = JSON) -> web.Response:
    """An object as JSON, or bytes that are JSON already."""
    body = value if isinstance(value, bytes) else dumps(value)
    return web.Response(status=status, body=body, headers={"Content-Type": content_type})


def text_answer(text: str, status: int = 200, content_type: str = TEXT) -> web.Response:
    """Plain text."""
    return web.Response(status=status, body=text.encode(), headers={"Content-Type": content_type})


async def start_lines(request: web.Request) -> web.StreamResponse:
    """Send the head of a stream of lines. From here on the status is spent."""
    answer = web.StreamResponse(headers=LINE_HEADERS)
    await answer.prepare(request)
    return answer
