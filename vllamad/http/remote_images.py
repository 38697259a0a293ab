"""Fetching images that requests name by address (floor 4), where that is configured: never from this network.

The engine would fetch whatever it is told. Here every address that a name has is looked at before a connection is made
to it, and the connection goes to the very address that was looked at; redirections pass the same gate. Only the public
internet is left: no private, loopback, link-local (cloud metadata), multicast or reserved address, nor one that hides
another inside.
"""

import asyncio
import base64
import ipaddress
import socket
from collections.abc import Callable, Sequence

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

MAX_IMAGES = 16
MAX_REDIRECTS = 3
DEADLINE_S = 15.0
BLOCK_BYTES = 64 * 1024

_NEVER = tuple(
    ipaddress.ip_network(each)
    for each in (
        # IPv6 with an IPv4 address inside, which a gateway may connect to: NAT64, 6to4, Teredo, compatible.
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "2001::/23",
        "::/96",
        # Of the protocols themselves; Python 3.11 takes some of these for public.
        "192.0.0.0/24",
        "192.88.99.0/24",
    )
)


class _Forbidden(OSError):
    """An address that is not of the public internet."""


def is_public(text: str) -> bool:
    """True for an address of the public internet."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_public(str(address.ipv4_mapped))
    if any(address.version == network.version and address in network for network in _NEVER):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class PublicResolver(AbstractResolver):
    """Resolves a name to its addresses if all of them are public: one that also names something here is a trap."""

    def __init__(self, allows: Callable[[str], bool] = is_public) -> None:
        self._allows = allows

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        results: list[ResolveResult] = []
        for kind, _, protocol, _, address in found:
            if not self._allows(str(address[0])):
                raise _Forbidden(f"{host} is not on the public internet")
            results.append(
                ResolveResult(
                    hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )  # fmt: skip
        return results

    async def close(self) -> None:
        """Nothing is kept."""


class RemoteImages:
    """Fetches images. ``max_bytes`` for those of one request together; ``allows`` says which addresses may be connected
    to."""

    def __init__(self, max_bytes: int, allows: Callable[[str], bool] = is_public) -> None:
        self._max_bytes = max_bytes
        self._allows = allows

    async def fetch_all(self, texts: Sequence[str]) -> list[str]:
        """The images behind a request's addresses, one after the other. Raises INVALID_REQUEST, PERMISSION_DENIED."""
        if len(texts) > MAX_IMAGES:
            raise _failed(f"a request may name {MAX_IMAGES} of them, this one names {len(texts)}")
        found: list[str] = []
        left = self._max_bytes
        for text in texts:
            found.append(await self.fetch(text, left))
            left -= len(found[-1]) * 3 // 4
        return found

    async def fetch(self, text: str, most: int | None = None) -> str:
        """The image behind an address, as a ``data:`` URL. Raises INVALID_REQUEST, PERMISSION_DENIED."""
        try:
            async with asyncio.timeout(DEADLINE_S), self._session() as session:
                return await self._follow(session, self._checked(text), self._max_bytes if most is None else most)
        except _Forbidden as error:
            raise _denied() from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _Forbidden):
                raise _denied() from error
            raise _failed("it cannot be reached") from error
        except TimeoutError as error:
            raise _failed(f"it did not come within {DEADLINE_S:.0f} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _failed("it cannot be read") from error

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=PublicResolver(self._allows), use_dns_cache=False, force_close=True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "vllamad", "Accept": "image/*"},
            trust_env=False,
        )

    def _checked(self, text: str) -> URL:
        url = URL(text.strip())
        if url.scheme not in {"http", "https"} or not url.host or url.user or url.password:
            raise VllamaError(Reason.INVALID_REQUEST, "an image's address must be a plain http or https URL")
        try:
            ipaddress.ip_address(url.host)
        except ValueError:
            return url
        # A bare address never comes to the resolver.
        if not self._allows(url.host):
            raise _Forbidden(url.host)
        return url

    async def _follow(self, session: aiohttp.ClientSession, url: URL, most: int) -> str:
        for _ in range(MAX_REDIRECTS + 1):
            async with session.get(url, allow_redirects=False) as answer:
                if answer.status in {301, 302, 303, 307, 308} and "Location" in answer.headers:
                    url = self._checked(str(url.join(URL(answer.headers["Location"]))))
                    continue
                return await _read(answer, most)
        raise _failed(f"it is behind more than {MAX_REDIRECTS} redirections")


async def _read(answer: aiohttp.ClientResponse, most: int) -> str:
    if answer.status != 200:
        raise _failed(f"its server answered {answer.status}")
    if not answer.content_type.startswith("image/"):
        raise _failed("it is no image by its Content-Type")
    content = bytearray()
    async for block in answer.content.iter_chunked(BLOCK_BYTES):
        content += block
        if len(content) > most:
            raise _failed(f"it is larger than the {max(most, 0)} bytes that are left for it")
    encoded = await asyncio.to_thread(base64.b64encode, content)
    return f"data:{answer.content_type};base64,{encoded.decode()}"


def _denied() -> VllamaError:
    return VllamaError(
        Reason.PERMISSION_DENIED,
        "cannot fetch an image: its address is not on the public internet",
        "send it as a data: URL",
    )


def _failed(why: str) -> VllamaError:
    return VllamaError(Reason.INVALID_REQUEST, f"cannot fetch an image: {why}", "send it as a data: URL")
