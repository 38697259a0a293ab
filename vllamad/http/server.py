"""The HTTP face as a whole (floor 4): the application, and the server that binds, serves and closes it."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from aiohttp import web

from vllama.reasons import Reason
from vllamad.dialects.passing import WIRES, Face
from vllamad.domain.errors import VllamaError
from vllamad.http.audio import AUDIO, Audio
from vllamad.http.bodies import Bodies
from vllamad.http.creating import Creating
from vllamad.http.embeddings import Embeddings
from vllamad.http.middleware import Elsewhere, Front, add_headers
from vllamad.http.models import Models
from vllamad.http.ollama import Inference
from vllamad.http.openai import OpenAi
from vllamad.http.passing import Passing
from vllamad.http.port_owner import port_owner
from vllamad.http.realtime import REALTIME, Realtime
from vllamad.http.referring import Referring
from vllamad.http.remote_images import RemoteImages
from vllamad.http.routes import Routes
from vllamad.http.services import Asking, Policy, Services
from vllamad.http.system import NO_CLOUD, UNSUPPORTED, System, refuse, refuse_cloud

BACKLOG = 1024
KEEP_ALIVE_S = 75.0
"""Longer than the pools of usual clients keep a connection: then they close it, not we under their next request."""

SETTLE_S = 0.2
"""From the last connection taken until its request is read: a client sends it at once. Without it, 2 of 37 requests
were refused in a restart under load (four clients, two cores)."""

QUIET_LOOK_S = 0.05

MAX_HEADER_BYTES = 256 * 1024
"""Of one header, and of the request line; tracing systems put much into one."""

ROUTES_OF: web.AppKey[Callable[[Policy, Bodies], Routes]] = web.AppKey("routes_of")
BODIES = web.AppKey("bodies", Bodies)
FRONT = web.AppKey("front", Front)


def make_app(services: Services, policy: Policy | None = None, *, is_behind: bool = False) -> web.Application:
    """The application with every route of the face. ``is_behind``: acceptors alone connect to it, see
    ``referring.py``."""
    return _make_app(partial(make_routes, services), policy or Policy(), is_behind=is_behind)


def make_acceptors_app(services: Asking, policy: Policy, daemon: Path) -> web.Application:
    """The application of an acceptor: what asks a model; everything else is referred to the daemon, on its socket."""
    referring = Referring(daemon)

    def routes_of(policy: Policy, bodies: Bodies) -> Routes:
        routes = Routes()
        add_asking_routes(routes, services, policy, bodies)
        return routes

    async def close(_: web.Application) -> None:
        await referring.close()

    app = _make_app(routes_of, policy, elsewhere=referring.handle)
    app.on_cleanup.append(close)
    return app


def _make_app(
    routes_of: Callable[[Policy, Bodies], Routes],
    policy: Policy,
    *,
    is_behind: bool = False,
    elsewhere: Elsewhere | None = None,
) -> web.Application:
    app = web.Application()
    bodies = app[BODIES] = Bodies(policy.max_body_bytes)
    app[ROUTES_OF] = routes_of
    app[FRONT] = Front(routes_of(policy, bodies), policy, is_behind=is_behind, elsewhere=elsewhere)
    app.router.add_route("*", "/{path:.*}", app[FRONT].handle)
    app.on_response_prepare.append(add_headers)
    app.on_cleanup.append(_close_bodies)
    return app


def use_policy(app: web.Application, policy: Policy) -> None:
    """Answer by another policy from the next request on; those that are being answered keep theirs."""
    bodies = app[BODIES]
    bodies.max_bytes = policy.max_body_bytes
    app[FRONT].use(app[ROUTES_OF](policy, bodies), policy)


def make_routes(services: Services, policy: Policy, bodies: Bodies) -> Routes:
    """The table of routes."""
    system, models, creating = System(services, policy), Models(services, bodies), Creating(services, bodies)
    own = OpenAi(services)
    routes = Routes()
    routes.add("HEAD GET", "/", system.root, is_quiet=True, is_open=True)
    routes.add("HEAD GET", "/api/version", system.version, is_quiet=True, is_open=True)
    routes.add("GET", "/api/status", system.status, is_quiet=True)
    routes.add("HEAD GET", "/health", system.health, is_quiet=True, is_open=True)
    routes.add("HEAD GET", "/api/tags", models.tags, is_quiet=True)
    routes.add("GET", "/api/ps", models.ps, is_quiet=True)
    routes.add("POST", "/api/show", models.show)
    routes.add("POST", "/api/copy", models.copy)
    routes.add("DELETE", "/api/delete", models.delete)
    routes.add("POST", "/api/pull", models.pull)
    routes.add("POST", "/api/create", creating.create)
    routes.add("HEAD", "/api/blobs/*", creating.has_blob)
    routes.add("POST", "/api/blobs/*", creating.put_blob)
    routes.add("POST", "/api/me", system.me)
    routes.add("POST", "/api/signout", system.sign_out)
    routes.add("DELETE", "/api/user/keys/*", system.sign_out)
    routes.add("HEAD GET", "/v1/models", own.models, is_quiet=True, face=Face.OPENAI)
    routes.add("HEAD GET", "/v1/models/**", own.model, is_quiet=True, face=Face.OPENAI)
    routes.add("GET DELETE", "/v1/responses/*", own.stored, face=Face.OPENAI)
    routes.add("POST", "/v1/responses/*/cancel", own.stored, face=Face.OPENAI)
    add_asking_routes(routes, services, policy, bodies)
    for route, text in UNSUPPORTED.items():
        method, path = route.split()
        routes.add(method, path, refuse(text))
    for route, what in NO_CLOUD.items():
        method, path = route.split()
        routes.add(method, path, refuse_cloud(what))
    return routes


def add_asking_routes(routes: Routes, services: Asking, policy: Policy, bodies: Bodies) -> None:
    """The routes on which a model is asked, of every face: what an acceptor answers by itself."""
    inference, embeddings = Inference(services, bodies), Embeddings(services, bodies)
    audio, realtime = Audio(services, bodies), Realtime(services)
    passing = Passing(services, bodies, RemoteImages(policy.max_body_bytes) if policy.remote_images else None)
    routes.add("POST", "/api/generate", inference.generate)
    routes.add("POST", "/api/chat", inference.chat)
    routes.add("POST", "/api/embed", embeddings.embed)
    routes.add("POST", "/api/embeddings", embeddings.embeddings)
    for path, wire in WIRES.items():
        routes.add("POST", path, passing.handler(wire), face=wire.face)
    for path in AUDIO:
        routes.add("POST", path, audio.handler(path), face=Face.OPENAI)
    routes.add("GET", REALTIME, realtime.connect, face=Face.OPENAI)


async def _close_bodies(app: web.Application) -> None:
    app[BODIES].close()


class HttpServer:
    """Serves an application on a host and port, or on sockets that are bound already (socket activation)."""

    def __init__(
        self, app: web.Application, host: str = "", port: int = 0, sockets: Sequence[socket.socket] = ()
    ) -> None:
        self._front = app[FRONT]
        self._host = host
        self._port = port
        self._sockets = list(sockets)
        # Hanging up must cancel the handler, or the engine would generate to the end for nobody.
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=0.1,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        self._sites: list[web.SockSite] = []

    @property
    def addresses(self) -> list[str]:
        """Where it listens, as host:port."""
        return addresses_of(self._sockets)

    async def start(self) -> None:
        """Bind and serve. Raises ALREADY_RUNNING (the port is taken), PERMISSION_DENIED, CONFIG_INVALID (no such
        address)."""
        if not self._sockets:
            self._sockets = await bind(self._host, self._port)
        await self._runner.setup()
        for each in self._sockets:
            site = web.SockSite(self._runner, each, backlog=BACKLOG)
            await site.start()
            self._sites.append(site)

    def hand_over(self) -> tuple[int, ...]:
        """Descriptors of the sockets that outlive this server: connections wait in them from ``stop_listening`` on.
        They are the caller's."""
        return tuple(os.dup(each.fileno()) for each in self._sockets)

    async def stop_listening(self) -> None:
        """Take no new connections; those that are open go on."""
        sites, self._sites = self._sites, []
        for site in sites:
            await site.stop()

    async def let_go(self) -> None:
        """Read what has been sent on connections that were just taken, then close those that are idle: their clients
        connect again, to a successor if there is one, where a request here would only be told that we leave. Those
        with a request end after its answer. Call it after ``stop_listening``."""
        await asyncio.sleep(SETTLE_S)
        if self._runner.server is not None:
            self._front.leave(self._runner.server.connections)

    async def quiet(self, seconds: float) -> bool:
        """True once every connection has ended, that is: its answer has left; False if that takes longer. Call it after
        ``let_go``."""
        try:
            async with asyncio.timeout(seconds):
                # Not told of; some have no handler any more, and an answer that its client reads slowly.
                while self._runner.server is not None and self._runner.server.connections:  # noqa: ASYNC110
                    await asyncio.sleep(QUIET_LOOK_S)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop listening and end every connection; handlers that still run are cancelled. Let requests finish before,
        by draining the gate."""
        await self.stop_listening()
        await self._runner.cleanup()


def addresses_of(listeners: Sequence[socket.socket]) -> list[str]:
    """Where they listen, as host:port."""
    return [_shown(each.getsockname()) for each in listeners if each.fileno() >= 0]


async def bind(host: str, port: int, *, is_shared: bool = False) -> list[socket.socket]:
    """Sockets that listen on every address of a host. ``is_shared``: others of ours may listen on the same ones, and
    get their part of the connections. Raises ALREADY_RUNNING (the port is taken), PERMISSION_DENIED, CONFIG_INVALID (no
    such address)."""
    where = f"{host or '*'}:{port}"
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise VllamaError(
            Reason.CONFIG_INVALID, f"cannot listen on {where}: {error.strerror}", "set server.host, or use --host"
        ) from error
    bound: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            # A second listener on a port is only found out here when SO_REUSEADDR let both bind.
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            for other in bound:
                other.close()
            raise _bind_failure(where, port, error) from error
        bound.append(listener)
    return bound


def _bind_failure(where: str, port: int, error: OSError) -> VllamaError:
    if error.errno == errno.EADDRINUSE:
        owner = port_owner(port)
        return VllamaError(
            Reason.ALREADY_RUNNING,
            f"cannot listen on {where}: the port is taken" + (f" by {owner}" if owner else ""),
            f"stop what holds it, or choose another: vllamad --port {port + 1}",
            port=port,
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return VllamaError(
            Reason.PERMISSION_DENIED,
            f"cannot listen on {where}: ports below 1024 need a privilege",
            "choose a higher one: vllamad --port 11434",
            port=port,
        )
    return VllamaError(
        Reason.CONFIG_INVALID,
        f"cannot listen on {where}: {os.strerror(error.errno or 0)}",
        "set server.host to an address of this machine, or use --host",
        port=port,
    )


def _shown(name: object) -> str:
    if isinstance(name, tuple):
        host, port = str(name[0]), name[1]  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(name)
