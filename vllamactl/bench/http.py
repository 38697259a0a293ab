"""A server as its clients see it (floor 3). The only file of vllamactl that imports aiohttp.

While an answer comes, nothing is done but to note when which bytes came: they are read when the clock has stopped.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp

from vllama import __version__
from vllamactl.bench.answers import PATHS, Api, Exchange, Fault

CONNECT_S = 10.0
FACTS_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask: a server's address without a path, which of its faces, under which name it has the model, the API
    key it wants ("": none), and its version where that is known without asking it."""

    name: str
    api: Api
    url: str
    model: str
    key: str = ""
    version: str = ""

    @property
    def place(self) -> tuple[str | None, int | None]:
        """Host and port, to see who is the same server."""
        parts = urlsplit(self.url)
        return parts.hostname, parts.port


def base_url(text: str, api: Api) -> str:
    """Return a server's address as it is asked: with a scheme, without the path that OpenAI's clients want in it.
    Raises ValueError with words for a person."""
    url = text.strip()
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    if api == "openai":
        url = url.removesuffix("/v1")
    parts = urlsplit(url)
    try:
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        port_is_right = False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_right or parts.query:
        raise ValueError(f"{text!r} is no address such as http://127.0.0.1:11434")
    return url


class Server:
    """Connections to one target, for the length of an ``async with`` block. Environment variables that name proxies are
    not read: what is measured would be the proxy."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self.target = target
        self._url = target.url + PATHS[target.api]
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_S)
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> "Server":
        headers = {"Content-Type": "application/json", "User-Agent": f"vllamactl/{__version__}"}
        if self.target.key:
            headers["Authorization"] = f"Bearer {self.target.key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=headers, timeout=self._timeout, trust_env=False
        )
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, body: bytes, began: float, index: int = 0, intended_s: float | None = None) -> Exchange:
        """Send one request and take what comes. ``began`` is the round's beginning by ``time.perf_counter``;
        ``intended_s`` when it was due (None: now). Does not raise for what goes wrong on the way."""
        reads: list[tuple[float, bytes]] = []
        status, fault = 0, None
        sent_s = time.perf_counter() - began
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as answer:
                status = answer.status
                async for chunk in answer.content.iter_any():
                    reads.append((time.perf_counter() - began, chunk))
        except aiohttp.ConnectionTimeoutError as error:  # a TimeoutError too, but not for the whole
            fault = self._fault(error, is_begun=False)
        except TimeoutError:
            fault = Fault("timeout", "DEADLINE_EXCEEDED", f"no whole answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as error:
            fault = self._fault(error, is_begun=bool(status))
        end_s = time.perf_counter() - began
        return Exchange(index, sent_s if intended_s is None else intended_s, sent_s, end_s, status, reads, fault)

    def _fault(self, error: Exception, is_begun: bool) -> Fault:
        if is_begun:
            return Fault("broken off", "ENGINE_DIED", f"the connection broke: {_words(error)}")
        return Fault("connection", "DAEMON_UNREACHABLE", f"cannot ask {self.target.url}: {_words(error)}")

    async def facts(self) -> dict[str, Any]:
        """What the server tells about itself and the model, as far as it does: ``version``, and ``details`` in Ollama's
        words, of which ``quantization_level`` and ``parameter_size`` matter here. Never fails."""
        version, shown = await asyncio.gather(
            self._json("GET", "/api/version"), self._json("POST", "/api/show", {"model": self.target.model})
        )
        if version is None:
            version = await self._json("GET", "/version")  # vLLM's own
        details: object = (shown or {}).get("details")
        return {
            "url": self.target.url,
            "api": self.target.api,
            "model": self.target.model,
            "version": (version or {}).get("version"),
            "details": cast("dict[str, Any]", details) if isinstance(details, dict) else None,
        }

    async def _json(self, method: str, path: str, data: Mapping[str, object] | None = None) -> dict[str, Any] | None:
        content = json.dumps(data).encode() if data is not None else None
        try:
            async with asyncio.timeout(FACTS_S):
                async with self._session.request(
                    method, self.target.url + path, data=content, allow_redirects=False
                ) as answer:
                    found: Any = json.loads(await answer.read()) if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, ValueError):  # TimeoutError is an OSError
            return None
        return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
