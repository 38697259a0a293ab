"""Requests that another process answers (floor 4): from an acceptor to the daemon's own HTTP, and back.

Bytes pass both ways as they come, unread, and a side that leaves is gone for the other one too. Nothing is checked or
logged on the way: the daemon does both, once, as if the client had come to it. What it cannot see of the connection is
told in two headers, which it believes on this socket only.
"""

import re
from pathlib import Path
from urllib.parse import quote

import aiohttp
from aiohttp import web
from yarl import URL

PEER, HERE = "X-Vllama-Peer", "X-Vllama-Here"
"""The address of the client, and the one that it connected to."""

CONNECT_S = 10.0
"""The daemon's loop may be busy for a moment."""

MAX_HEADER_BYTES = 1024 * 1024
_ENDS_HERE = frozenset(
    {
        "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect",
        PEER.lower(), HERE.lower(),
    }
)  # fmt: skip
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
_UNSENDABLE = re.compile("[\ud800-\udfff]")
"""What stands for a byte that is no UTF-8, see PEP 383: it cannot be written again."""


class Referring:
    """Passes requests on to the daemon that listens on ``socket``."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Have one request answered. Cancelled when its client leaves; then the daemon sees it leave as well."""
        try:
            async with self._open().request(
                request.method,
                URL(f"http://daemon{quote(request.raw_path, safe=_VISIBLE, errors='surrogateescape')}", encoded=True),
                headers=_headers(request),
                data=request.content.iter_any() if request.can_read_body else None,
                allow_redirects=False,
            ) as answer:
                return await _pass_back(request, answer)
        except (aiohttp.ClientError, ConnectionResetError):
            # One side is gone. If it is the daemon, the client has to see an answer that broke off, or none.
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)  # goes nowhere

    async def close(self) -> None:
        """Close what is open to the daemon."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A connection for each: that is cheap on a Unix socket, and none is ever stale.
                connector=aiohttp.UnixConnector(str(self._socket), limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers={"User-Agent", "Accept", "Accept-Encoding", "Content-Type"},
                auto_decompress=False,
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
                trust_env=False,
            )
        return self._session


def _headers(request: web.Request) -> list[tuple[str, str]]:
    """The request's own, as often as it has them; a body that was packed is unpacked by now."""
    of_packed = {"content-encoding", "content-length"} if "Content-Encoding" in request.headers else set[str]()
    ends_here = _ENDS_HERE | of_packed
    headers = [
        (name, value)
        for name, value in request.headers.items()
        if name.lower() not in ends_here and not _UNSENDABLE.search(value)
    ]
    here: object = request.transport.get_extra_info("sockname") if request.transport is not None else None
    headers.append((PEER, request.remote or ""))
    headers.append((HERE, str(here[0]) if isinstance(here, tuple) else ""))  # pyright: ignore[reportUnknownArgumentType]
    return headers


async def _pass_back(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    passed = web.StreamResponse(status=answer.status, reason=answer.reason)
    for name, value in answer.headers.items():
        if name.lower() not in _ENDS_HERE:
            passed.headers.add(name, value)
    await passed.prepare(request)
    async for piece in answer.content.iter_any():
        await passed.write(piece)
    await passed.write_eof()
    return passed
