"""What every request passes (floor 4): its id, the checks of Host and Origin, the route, the error envelope, one log
line. One of the few places with a broad ``except``."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from vllama import __version__
from vllama.reasons import Reason
from vllamad.dialects.passing import Face
from vllamad.domain.errors import VllamaError
from vllamad.http import origins
from vllamad.http.calls import GONE, Call, new_call
from vllamad.http.errors import bug, error_answer
from vllamad.http.origins import Origins, allows_host, is_address
from vllamad.http.referring import HERE, PEER
from vllamad.http.routes import Routes
from vllamad.http.services import Policy

log = logging.getLogger("vllamad.http")

_SERVER = f"vllama/{__version__}"


_current: ContextVar[Call | None] = ContextVar("call", default=None)
"""The request that this task answers: every request has a task, and a context, of its own."""


Elsewhere = Callable[[web.Request], Awaitable[web.StreamResponse]]
"""Has a request answered by another process."""


class Front:
    """The handler of every request. ``is_behind``: clients connect to another process, which refers them to this one,
    and tells who they are. ``elsewhere`` takes what there is no route for."""

    def __init__(
        self, routes: Routes, policy: Policy, *, is_behind: bool = False, elsewhere: Elsewhere | None = None
    ) -> None:
        self._is_behind = is_behind
        self._elsewhere = elsewhere
        self._busy: set[RequestHandler] = set()
        """Connections with a request."""
        self._is_leaving = False
        self.use(routes, policy)

    def use(self, routes: Routes, policy: Policy) -> None:
        """Answer so from the next request on."""
        self._routes = routes
        self._policy = policy
        self._origins = Origins(policy.origins)
        self._keys = tuple(key.encode() for key in policy.api_keys)

    def leave(self, connections: Iterable[RequestHandler]) -> None:
        """Have each of these connections end: now if there is no request on it, else with its answer. Not sooner: what
        is sent on one that was told to close, aiohttp throws away (3.14), the rest of a body included."""
        self._is_leaving = True
        for connection in connections:
            if connection not in self._busy:
                connection.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request. Cancelled when its client leaves."""
        self._busy.add(request.protocol)
        try:
            if self._elsewhere is not None and request.method not in (self._routes.find(request.path) or ()):
                return await self._elsewhere(request)
            return await self._handle(request)
        finally:
            self._busy.discard(request.protocol)
            if self._is_leaving:
                request.protocol.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        call = new_call(request)
        if self._is_behind:
            call.caller = request.headers.get(PEER, "")
        _current.set(call)
        try:
            answer = await self._answer(request, call)
            call.status = call.status or answer.status
        except VllamaError as error:
            call.error = str(error.reason)
            answer = error_answer(error, call)
            call.status = answer.status
        except asyncio.CancelledError:
            call.status = GONE
            raise
        except ConnectionResetError:
            # It left while we wrote, before we were told. Raised on, aiohttp would take it for a bug of ours.
            call.status = GONE
            if request.transport is not None:
                request.transport.abort()
            answer = web.Response(status=GONE)  # goes nowhere
        except Exception as error:  # the HTTP boundary: a bug answers 500 and shows its id
            log.exception("http.bug id=%s route=%s %s", call.id, call.method, call.path)
            call.error = f"bug:{type(error).__name__}"
            answer = error_answer(bug(call), call)
            call.status = answer.status
        finally:
            call.write_log()
        return answer

    async def _answer(self, request: web.Request, call: Call) -> web.StreamResponse:
        methods = self._routes.find(request.path)
        route = methods.get(request.method) if methods is not None else None
        if methods is not None:
            call.face = next(iter(methods.values())).face  # a path has one
        if route is not None:
            call.is_quiet = route.is_quiet
        elif methods is not None:
            call.headers.append(("Allow", ", ".join(methods)))
        refusal = self._check_caller(request, call)
        if refusal is not None:
            return refusal
        if self._keys and not (route is not None and route.is_open):
            self._check_key(request, call)
        if route is None:
            return self._routes.miss(request, call)
        return await route.handler(request, call)

    def _check_key(self, request: web.Request, call: Call) -> None:
        """Raises UNAUTHENTICATED; what was sent is neither told nor logged."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "").strip()
        given = sent.encode("utf-8", "surrogateescape")
        # Every key is compared, each in constant time: how long it takes says nothing.
        if sum(hmac.compare_digest(given, key) for key in self._keys):
            # Callers share an address (a proxy's, a container's); a key is theirs. What is shown of it opens nothing.
            call.caller = f"key-{hashlib.sha256(given).hexdigest()[:8]}"
            return
        call.headers.append(("WWW-Authenticate", "Bearer"))
        raise VllamaError(
            Reason.UNAUTHENTICATED,
            "the API key is not known here" if sent else "an API key is needed",
            "send one of auth.api_keys as Authorization: Bearer KEY or x-api-key",
        )

    def _check_caller(self, request: web.Request, call: Call) -> web.Response | None:
        """Origin first, then Host; an answer if that ends it."""
        host = request.headers.get("Host", "")
        origin = request.headers.get("Origin", "")
        if origin and not self._origins.is_same(origin, host):
            if not self._origins.allows(origin):
                return web.Response(status=403)
            self._allow_origin(origin, call, is_preflight=request.method == "OPTIONS")
            if request.method == "OPTIONS":
                return web.Response(status=204)
        if not self._policy.check_host:
            return None
        if not allows_host(host, self._listening_on(request)):
            return web.Response(status=403)
        if request.method == "OPTIONS" and not is_address(host):
            return web.Response(status=204)
        return None

    def _listening_on(self, request: web.Request) -> str:
        """The address that the connection came in on; "" on a Unix socket."""
        if self._is_behind:
            return request.headers.get(HERE, "")
        name: tuple[str, int] | str | None = None
        if request.transport is not None:
            name = request.transport.get_extra_info("sockname")
        return name[0] if isinstance(name, tuple) else ""

    def _allow_origin(self, origin: str, call: Call, *, is_preflight: bool) -> None:
        add = call.headers.append
        if self._origins.allows_all:
            add(("Access-Control-Allow-Origin", "*"))
        else:
            add(("Access-Control-Allow-Origin", origin))
            add(("Vary", "Origin"))
        if is_preflight:
            add(("Access-Control-Allow-Methods", origins.ALLOWED_METHODS))
            is_ollama = call.face is Face.OLLAMA
            add(("Access-Control-Allow-Headers", origins.ALLOWED_HEADERS if is_ollama else origins.PASSING_HEADERS))
            add(("Access-Control-Max-Age", origins.MAX_AGE_S))
            add(("Vary", "Access-Control-Request-Method"))
            add(("Vary", "Access-Control-Request-Headers"))


async def add_headers(request: web.BaseRequest, answer: web.StreamResponse) -> None:
    """Runs when the head of any answer is about to leave."""
    answer.headers["Server"] = _SERVER
    call = _current.get()
    if call is not None:
        answer.headers["X-Request-Id"] = call.id
        for name, value in call.headers:
            answer.headers.add(name, value)
