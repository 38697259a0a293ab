"""Who may ask from a browser (floor 4): Ollama's rules for ``Origin`` and, against DNS rebinding, for ``Host``."""

import ipaddress
import re
import socket
from collections.abc import Sequence

ALLOWED_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
ALLOWED_HEADERS = ",".join(
    (
        "Authorization",
        "Content-Type",
        "User-Agent",
        "Accept",
        "X-Requested-With",
        "Openai-Beta",
        "X-Stainless-Arch",
        "X-Stainless-Async",
        "X-Stainless-Custom-Poll-Interval",
        "X-Stainless-Helper-Method",
        "X-Stainless-Lang",
        "X-Stainless-Os",
        "X-Stainless-Package-Version",
        "X-Stainless-Poll-Helper",
        "X-Stainless-Retry-Count",
        "X-Stainless-Runtime",
        "X-Stainless-Runtime-Version",
        "X-Stainless-Timeout",
    )
)
PASSING_HEADERS = ",".join(
    (
        ALLOWED_HEADERS,
        "X-Api-Key",
        "Anthropic-Version",
        "Anthropic-Beta",
        "Anthropic-Dangerous-Direct-Browser-Access",
        "X-Keep-Alive",
        "X-Request-Id",
    )
)
"""Beyond Ollama's list: what Anthropic's client sends from a browser, and what our own routes read."""
MAX_AGE_S = "43200"

_LOCAL = re.compile(r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0)(?::\d*)?")
_APPS = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


class Origins:
    """The origins that may ask. ``*`` in ``extra`` allows every one; an entry may hold one ``*``."""

    def __init__(self, extra: Sequence[str]) -> None:
        self.allows_all = "*" in extra
        patterns = ["(?:.*)".join(re.escape(part) for part in entry.split("*")) for entry in extra]
        self._extra = re.compile("|".join(patterns)) if patterns else None

    def allows(self, origin: str) -> bool:
        """True if a page from ``origin`` may ask."""
        return bool(
            self.allows_all
            or _LOCAL.fullmatch(origin)
            or origin.startswith(_APPS)
            or (self._extra is not None and self._extra.fullmatch(origin))
        )

    @staticmethod
    def is_same(origin: str, host: str) -> bool:
        """True for a page of this very server."""
        return origin in {f"http://{host}", f"https://{host}"}


def allows_host(header: str, listening_on: str = "") -> bool:
    """True if a ``Host`` header names this machine: rebinding attacks name something else. ``listening_on`` is the
    address that the connection came in on."""
    host = _without_port(header).lower()
    address = _address(host)
    if address is not None:
        return address.is_loopback or address.is_private or address.is_unspecified or host == listening_on
    return host in {"", "localhost", socket.gethostname().lower()} or host.endswith(_LOCAL_SUFFIXES)


def is_address(header: str) -> bool:
    """True if a ``Host`` header holds an IP address."""
    return _address(_without_port(header)) is not None


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header if header.count(":") > 1 else header.partition(":")[0]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
