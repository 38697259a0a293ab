"""HTTP to one engine over its Unix socket (floor 2): the only module besides ``http/`` that imports aiohttp.

Bodies are bytes in both directions and nothing is held back. Every way in which the engine may fail us (refused,
reset, silent, half an answer) leaves here as ENGINE_DIED.
"""

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Adapter
from vllamad.engine.sleep import SleepSwitch

BASE = "http://engine"
HEALTH_DEADLINE_S = 5.0
CONNECT_DEADLINE_S = 5.0
KEEP_ALIVE_S = 60.0
"""Shorter than the engine's own (``VLLM_HTTP_TIMEOUT_KEEP_ALIVE``), so that we are the ones who close."""

READ_BUFFER_BYTES = 256 * 1024
"""A client that does not read stops the engine's connection here, not in our memory."""

ALREADY_KNOWN = "has already been loaded"
"""Two requests may teach it the same adapter at once."""

LARGE_BODY_BYTES = 1024 * 1024
"""Above it a body (images) is written in pieces, so that other streams get their turn in between."""

MAX_HEADER_BYTES = 256 * 1024
"""Of one header of an answer: what reached the engine in a head may come back in one."""

MAX_FRAME_BYTES = 32 * 1024 * 1024
"""Of a websocket: the engine takes clips of 25 MB, a third more in base64."""

_CACHE_USAGE = re.compile(rb"^vllm:kv_cache_usage_perc\{[^}\n]*\} ([0-9][0-9.e+-]*)$", re.MULTILINE)
"""In the engine's metrics; a share of 1 in spite of its name (vLLM 0.32)."""

_BROKEN = frozenset({None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE})

_log = logging.getLogger(__name__)


class UdsEngineClient:
    """A client for one incarnation. Fills ``EngineClient``.

    ``idle_s``: how long the body of an answer may stay silent before the engine counts as hung; None for ever. The
    wait for the head is not limited: a request that is not streamed has none until it is done.
    """

    def __init__(self, socket: Path, idle_s: float | None = None) -> None:
        self._socket = socket
        self._idle_s = idle_s
        self._pooled: aiohttp.ClientSession | None = None
        # For the second try of a request whose pooled connection was stale: the other pooled ones may be as old.
        self._fresh: aiohttp.ClientSession | None = None
        self._adapters: set[str] = set()
        self._switch = SleepSwitch(self.open)
        self._is_closed = False
        self.served_name = ""
        """See ``EngineClient.served_name``."""

    async def is_healthy(self) -> bool:
        """See ``EngineClient.is_healthy``."""
        if self._is_closed:
            return False
        try:
            async with asyncio.timeout(HEALTH_DEADLINE_S), self._session().get(f"{BASE}/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _log.debug("engine.unhealthy socket=%s error=%r", self._socket, error)
            return False

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
    ) -> "UdsEngineStream":
        """See ``EngineClient.open``. Cancelling drops the connection, and the engine the request."""
        head = {"Content-Type": "application/json"} if body is not None else {}
        head |= headers or {}
        trace = SimpleNamespace(is_reused=False)
        is_once = body is not None and not isinstance(body, bytes)
        try:
            try:
                answer = await self._send(self._session(is_fresh=is_once), method, path, body, head, trace)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # Not a byte came, and the connection was an old one: the engine had closed it when we wrote (it does
                # after an internal error). A request on a fresh connection is not sent twice: it may be what killed it.
                if not trace.is_reused:
                    raise
                _log.debug("engine.stale socket=%s error=%r", self._socket, error)
                answer = await self._send(self._session(is_fresh=True), method, path, body, head, trace)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._died(_why(error)) from error
        return UdsEngineStream(answer, self._idle_s, self._died)

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

    async def connect(self, path: str, headers: Mapping[str, str] | None = None) -> "UdsEngineSocket":
        """See ``EngineClient.connect``."""
        try:
            connection = await self._session(is_fresh=True).ws_connect(
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
        for session in (self._pooled, self._fresh):
            if session is not None:
                await session.close()

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: bytes | AsyncIterable[bytes] | None,
        headers: Mapping[str, str],
        trace: SimpleNamespace,
    ) -> aiohttp.ClientResponse:
        data = io.BytesIO(body) if isinstance(body, bytes) and len(body) > LARGE_BODY_BYTES else body
        return await session.request(
            method, f"{BASE}{path}", data=data, headers=headers, allow_redirects=False, trace_request_ctx=trace
        )

    def _session(self, *, is_fresh: bool = False) -> aiohttp.ClientSession:
        if self._is_closed:
            raise self._died("its worker is being stopped")
        session = self._fresh if is_fresh else self._pooled
        if session is None:
            session = self._make_session(is_fresh=is_fresh)
            if is_fresh:
                self._fresh = session
            else:
                self._pooled = session
        return session

    def _make_session(self, *, is_fresh: bool) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        keep_alive = {"force_close": True} if is_fresh else {"keepalive_timeout": KEEP_ALIVE_S}
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self._socket), limit=0, **cast("dict[str, Any]", keep_alive)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_DEADLINE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers={"User-Agent", "Accept-Encoding"},
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            trace_configs=[trace],
            trust_env=False,
        )

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


class UdsEngineStream:
    """An answer whose head is there. Fills ``EngineStream``."""

    def __init__(
        self, answer: aiohttp.ClientResponse, idle_s: float | None, died: Callable[[str], VllamaError]
    ) -> None:
        self._answer = answer
        self._idle_s = idle_s
        self._died = died
        self._is_silent = False
        self._headers = {name.lower(): value for name, value in answer.headers.items()}

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers, names in lower case."""
        return self._headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """See ``EngineStream.chunks``. Leaving early closes the stream."""
        loop = asyncio.get_running_loop()
        idle_s = self._idle_s
        # None while our own reader is busy with a chunk: its slowness is not the engine's silence.
        waiting_since: float | None = None
        timer: asyncio.TimerHandle | None = None

        def look(idle_s: float) -> None:
            # One timer a stream that looks back, instead of a new deadline for every token.
            nonlocal timer
            now = loop.time()
            due = (now if waiting_since is None else waiting_since) + idle_s
            if due > now:
                timer = loop.call_at(due, look, idle_s)
                return
            self._is_silent = True
            self.close()

        if idle_s is not None:
            timer = loop.call_later(idle_s, look, idle_s)
        try:
            while True:
                waiting_since = loop.time()
                chunk = await self._next()
                waiting_since = None
                if not chunk:
                    return
                yield chunk
        finally:
            if timer is not None:
                timer.cancel()
            # After the end this gives nothing up: the connection is back in the pool.
            self.close()

    async def _next(self) -> bytes:
        try:
            return await self._answer.content.readany()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            # RuntimeError is aiohttp's word for reading on after close().
            raise self._died(f"it was silent for {self._idle_s:g} s" if self._is_silent else _why(error)) from error

    async def read(self) -> bytes:
        """See ``EngineStream.read``."""
        return b"".join([chunk async for chunk in self.chunks()])

    def close(self) -> None:
        """See ``EngineStream.close``."""
        self._answer.close()


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


async def _note_reuse(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.is_reused = True


def _why(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorError():
            return f"it does not accept connections ({error.strerror})"
        case aiohttp.ClientPayloadError():
            return "the connection broke before the end of the answer"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return "it closed the connection without an answer"
        case TimeoutError():
            return "it does not accept connections in time"
        case _:
            return str(error) or type(error).__name__
