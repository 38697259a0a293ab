"""The table of routes (floor 4) and the answers for what is not in it, as Ollama's router gives them.

One catch-all handler looks paths up here: aiohttp's own router answers unknown paths, wrong methods and stray slashes
in other words than clients of Ollama know.
"""

import posixpath
import re
from dataclasses import dataclass

from aiohttp import web

from vllamad.dialects.passing import Face
from vllamad.http.calls import Call, Handler, text_answer


@dataclass(frozen=True, slots=True)
class Route:
    """A handler; the log tells of a ``quiet`` one at DEBUG only, because programs poll it. An ``open`` one asks for no
    key: load balancers and clients look at it before they know one."""

    handler: Handler
    is_quiet: bool = False
    face: Face = Face.OLLAMA
    is_open: bool = False


class Routes:
    """Paths to methods to handlers. A path that ends in ``/*`` matches one more segment, one that ends in ``/**`` any
    number of them, and ``/*/`` in the middle one"""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._prefixes: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []

    def add(
        self,
        methods: str,
        path: str,
        handler: Handler,
        *,
        is_quiet: bool = False,
        face: Face = Face.OLLAMA,
        is_open: bool = False,
    ) -> None:
        """Add a handler for blank-separated methods."""
        found = self._table_of(path)
        for method in methods.split():
            found[method] = Route(handler, is_quiet, face, is_open)

    def _table_of(self, path: str) -> dict[str, Route]:
        if "/*/" in path or path.endswith("/**"):
            pattern = re.escape(path).replace(r"\*\*", ".+").replace(r"\*", "[^/]+")
            known = next((found for each, found in self._patterns if each.pattern == pattern), None)
            if known is None:
                known = dict[str, Route]()
                self._patterns.append((re.compile(pattern), known))
            return known
        if path.endswith("/*"):
            return self._prefixes.setdefault(path[:-1], {})
        return self._exact.setdefault(path, {})

    def find(self, path: str) -> dict[str, Route] | None:
        """The methods of a path; None if there is no such path."""
        found = self._exact.get(path)
        if found is None and self._prefixes:
            head, slash, tail = path.rpartition("/")
            found = self._prefixes.get(head + slash) if tail else None
        if found is None:
            found = next((methods for pattern, methods in self._patterns if pattern.fullmatch(path)), None)
        return found

    def miss(self, request: web.Request, call: Call) -> web.Response:
        """The answer for a path or method that is not there; call it only then."""
        path = request.path
        if "//" in path:
            return _redirect(request, 307, "Temporary Redirect", posixpath.normpath("/" + path.lstrip("/")))
        if self.find(path) is not None:
            return text_answer("405 method not allowed", 405)
        bare = path.rstrip("/")
        if bare != path and self.find(bare) is not None:
            if request.method == "GET":
                return _redirect(request, 301, "Moved Permanently", bare)
            return _redirect(request, 307, "Temporary Redirect", bare)
        return text_answer("404 page not found", 404)


def _redirect(request: web.Request, status: int, reason: str, path: str) -> web.Response:
    location = path + (f"?{request.query_string}" if request.query_string else "")
    answer = web.Response(status=status, headers={"Location": location})
    if request.method in {"GET", "HEAD"}:
        answer.headers["Content-Type"] = "text/html; charset=utf-8"
        shown = location.replace("&", "&amp;").replace('"', "&#34;").replace("<", "&lt;").replace(">", "&gt;")
        answer.body = f'<a href="{shown}">{reason}</a>.\n\n'.encode()
    return answer
