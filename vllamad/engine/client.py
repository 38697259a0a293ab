"""HTTP to one engine over its Unix socket (floor 2); websockets by aiohttp, which only ``http/`` imports beside it.

Bodies are bytes in both directions and nothing is held back. Every way in which the engine may fail us (refused,
reset, silent, half an answer) leaves here as ENGINE_DIED.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import aiohttp

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Adapter
from vllamad.domain.ports import FAST_PATH_ON
from vllamad.engine import fast_path
from vllamad.engine.connection import HOST, Connection, IdleConnections, request_head
from vllamad.engine.sleep import SleepSwitch
from vllamad.engine.stream import UdsEngineStream
from vllamad.engine.warming import warm_up

BASE = f"http://{HOST}"
HEALTH_DEADLINE_S = 5.0
CONNECT_DEADLINE_S = 5.0
KEEP_ALIVE_S = 60.0
"""Shorter than the engine's own (``VLLM_HTTP_TIMEOUT_KEEP_ALIVE``), so that we are the ones who close."""

ALREADY_KNOWN = "has already been loaded"
"""Two requests may teach it the same adapter at once."""

LARGE_BODY_BYTES = 1024 * 1024
"""Above it a body (images) is written in pieces, so that other streams get their turn in between."""

PIECE_BYTES = 256 * 1024

MAX_HEADER_BYTES = 256 * 1024
"""Of one header of a websocket's answer."""

MAX_FRAME_BYTES = 32 * 1024 * 1024
"""Of a websocket: the engine takes clips of 25 MB, a third more in base64."""

_CACHE_USAGE = re.compile(rb"^vllm:kv_cache_usage_perc\{[^}\n]*\} ([0-9][0-9.e+-]*)$", re.MULTILINE)
"""In the engine's metrics; a share of 1 in spite of its name (vLLM 0.32)."""

_BROKEN = frozenset({None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE})

_log = logging.getLogger(__name__)


class UdsEngineClient:
    """A client for one incarnation. Fills ``EngineClient``.

    ``idle_s``: how long the body of an answer may stay silent before the engine counts as hung; None for ever. The
    wait for the head is not limited: a request that is not streamed has none until it is done. ``asks_for_lines``: ask
    the engine whether it has the fast path.
    """

    def __init__(self, socket: Path, idle_s: float | None = None, *, asks_for_lines: bool = False) -> None:
        self._socket = socket
        self._idle_s = idle_s
        self._asks_for_lines = asks_for_lines
        self._connections: set[Connection] = set()
        self._idle = IdleConnections(KEEP_ALIVE_S)
        self._websockets: aiohttp.ClientSession | None = None
        self._adapters: set[str] = set()
        self._switch = SleepSwitch(self.open)
        self._is_closed = False
        self.served_name = ""
        """See ``EngineClient.served_name``."""
        self.fast_path = ""
        """See ``EngineClient.fast_path``."""

    async def is_healthy(self) -> bool:
        """See ``EngineClient.is_healthy``."""
        if self._is_closed:
            return False
        try:
            async with asyncio.timeout(HEALTH_DEADLINE_S):
                stream = await self.open("GET", "/health")
                await stream.read()
        except (VllamaError, TimeoutError) as error:
            _log.debug("engine.unhealthy socket=%s error=%r", self._socket, error)
            return False
        return stream.status == 200

    async def context_length(self) -> int:
        """See ``EngineClient.context_length``."""
        stream = await self.open("GET", "/v1/models")
        body = await stream.read()
        try:
            card = cast("dict[str, Any]", json.loads(body))["data"][0]
            self.served_name = str(card["id"])
            return int(card["max_model_len"])
        except (ValueError, LookupError, TypeError) as error:
            raise self._died(f"its list of models cannot be read (status {stream.status})") from error

    async def look_for_fast_path(self) -> None:
        """See ``EngineClient.look_for_fast_path``."""
        if not self._asks_for_lines:
            self.fast_path = "off"
            return
        stream = await self.open("GET", fast_path.ROUTE)
        self.fast_path = fast_path.objection(stream.status, await stream.read()) or FAST_PATH_ON

    async def cache_usage(self) -> float:
        """See ``EngineClient.cache_usage``."""
        stream = await self.open("GET", "/metrics")
        match = _CACHE_USAGE.search(await stream.read())
        return float(match[1]) if match is not None and stream.status == 200 else 0.0

    async def open(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> UdsEngineStream:
        """See ``EngineClient.open``. Cancelling drops the connection, and the engine the request."""
        self._check_open()
        fields = {"Content-Type": "application/json"} if body is not None else {}
        fields |= headers or {}
        is_once = body is not None and not isinstance(body, bytes)
        connection = None if is_once else self._idle.take()
        if connection is not None:
            try:
                return await self._send(connection, method, path, body, fields)
            except VllamaError as error:
                # Not a byte came, and the connection was an old one: the engine had closed it when we wrote (it does
                # after an internal error). A request on a fresh connection is not sent twice: it may be what killed it.
                if connection.is_answered:
                    raise
                self._check_open()
                _log.debug("engine.stale socket=%s error=%s", self._socket, error.message)
        # The second try is never on a pooled connection: the others may be as old.
        return await self._send(await self._connect(), method, path, body, fields)

    async def learn(self, adapter: Adapter) -> None:
        """See ``EngineClient.learn``. Until it knows the name, the engine would answer without the adapter."""
        if adapter.name in self._adapters:
            return
        body = json.dumps({"lora_name": adapter.name, "lora_path": adapter.path}).encode()
        stream = await self.open("POST", "/v1/load_lora_adapter", body)
        said = (await stream.read()).decode("utf-8", "replace")
        if stream.status != 200 and ALREADY_KNOWN not in said:
            raise VllamaError(
                Reason.UNSUPPORTED,
                f"the engine cannot use the adapter: {_message(said)}",
                "it must have been trained for this very base model",
            )
        self._adapters.add(adapter.name)

    async def sleep(self, level: int) -> None:
        """See ``EngineClient.sleep``."""
        await self._switch.sleep(level)

    async def wake(self) -> None:
        """See ``EngineClient.wake``."""
        await self._switch.wake()

    async def is_sleeping(self) -> bool:
        """See ``EngineClient.is_sleeping``."""
        return await self._switch.is_sleeping()

    async def canary(self) -> None:
        """See ``EngineClient.canary``."""
        await self._switch.canary()

    async def warm_up(self) -> None:
        """See ``EngineClient.warm_up``."""
        await warm_up(self.open)

    async def connect(self, path: str, headers: Mapping[str, str] | None = None) -> "UdsEngineSocket":
        """See ``EngineClient.connect``."""
        try:
            connection = await self._websocket_session().ws_connect(
                f"{BASE}{path}", headers=headers, max_msg_size=MAX_FRAME_BYTES, autoclose=True
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status >= 500:
                raise self._died(f"it refused a websocket with {error.status}") from error
            raise VllamaError(
                Reason.UNSUPPORTED,
                f"the engine has no websocket at {path.partition('?')[0]} for this model",
                "choose a model that transcribes speech as it comes",
            ) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._died(_why(error)) from error
        return UdsEngineSocket(connection, self._died)

    async def close(self) -> None:
        """See ``EngineClient.close``."""
        self._is_closed = True
        self._idle.close()
        for connection in list(self._connections):
            connection.abandon()
        if self._websockets is not None:
            await self._websockets.close()

    async def _send(
        self,
        connection: Connection,
        method: str,
        path: str,
        body: bytes | AsyncIterable[bytes] | None,
        headers: Mapping[str, str],
    ) -> UdsEngineStream:
        """One request on one connection, to the head of its answer. Raises what ``body`` does, or ENGINE_DIED."""
        stream = UdsEngineStream(connection, self._idle_s, self._died)
        length = len(body) if isinstance(body, bytes) else 0 if body is None else None
        head = request_head(method, path, headers, length)
        try:
            if body is None or (isinstance(body, bytes) and len(body) <= LARGE_BODY_BYTES):
                connection.ask(head + (body or b""), stream)
                await stream.head
                return stream
            connection.ask(head, stream)
            pieces = _pieces(body) if isinstance(body, bytes) else aiter(body)
            sending = asyncio.create_task(connection.send_rest(pieces, is_chunked=length is None))
            try:
                # An engine that refuses a body may answer before it has read it.
                await asyncio.wait({sending, stream.head}, return_when=asyncio.FIRST_COMPLETED)
                if not stream.head.done():
                    sending.result()
                await stream.head
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            return stream
        except BaseException:
            connection.drop()
            raise

    async def _connect(self) -> Connection:
        """A new connection. Raises ENGINE_DIED."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                _, connection = await loop.create_unix_connection(
                    lambda: Connection(self._idle.put, self._forget), str(self._socket)
                )
        except TimeoutError as error:
            raise self._died("it does not accept connections in time") from error
        except OSError as error:
            raise self._died(f"it does not accept connections ({error.strerror or error})") from error
        if self._is_closed:  # meanwhile
            connection.drop()
        self._check_open()
        self._connections.add(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._idle.forget(connection)

    def _websocket_session(self) -> aiohttp.ClientSession:
        self._check_open()
        if self._websockets is None:
            self._websockets = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self._socket), limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_DEADLINE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers={"User-Agent", "Accept-Encoding"},
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
                trust_env=False,
            )
        return self._websockets

    def _check_open(self) -> None:
        if self._is_closed:
            raise self._died("its worker is being stopped")

    def _died(self, why: str) -> VllamaError:
        return VllamaError(
            Reason.ENGINE_DIED,
            f"cannot finish the request: the engine failed: {why}",
            "ask again; vllamactl logs shows what the engine said last",
        )


def _message(said: str) -> str:
    try:
        return str(json.loads(said)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return said[:300]


class UdsEngineSocket:
    """A websocket to the engine. Fills ``EngineSocket``."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse, died: Callable[[str], VllamaError]) -> None:
        self._connection = connection
        self._died = died

    @property
    def close_code(self) -> int | None:
        """See ``EngineSocket.close_code``."""
        return self._connection.close_code

    async def send(self, frame: str | bytes) -> None:
        """See ``EngineSocket.send``."""
        try:
            if isinstance(frame, str):
                await self._connection.send_str(frame)
            else:
                await self._connection.send_bytes(frame)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise self._died(_why(error)) from error

    async def frames(self) -> AsyncIterator[str | bytes]:
        """See ``EngineSocket.frames``."""
        async for message in self._connection:
            if message.type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}:
                yield cast("str | bytes", message.data)
        if self._connection.close_code in _BROKEN:
            raise self._died("the websocket broke")

    def close(self) -> None:
        """See ``EngineSocket.close``."""
        # Its own ``close`` is a handshake, and whoever breaks a lease cannot wait for one.
        self._connection._response.close()  # pyright: ignore[reportPrivateUsage]


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(body), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES].tobytes()


def _why(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorError():
            return f"it does not accept connections ({error.strerror})"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return "it closed the connection without an answer"
        case TimeoutError():
            return "it does not accept connections in time"
        case _:
            return str(error) or type(error).__name__
