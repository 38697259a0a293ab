"""``/``, ``/api/version``, ``/api/status``, ``/health``, and Ollama's routes that this version refuses (floor 4)."""

from aiohttp import web

from vllama.reasons import Reason
from vllamad.dialects.ollama_errors import Refusal
from vllamad.domain.errors import VllamaError
from vllamad.http.calls import Call, Handler, json_answer, text_answer
from vllamad.http.services import Policy, Services


class System:
    """The routes that need neither model nor engine."""

    def __init__(self, services: Services, policy: Policy) -> None:
        self._services = services
        self._policy = policy

    async def root(self, request: web.Request, call: Call) -> web.Response:
        """Clients look for these very words before anything else."""
        return text_answer("Ollama is running", content_type="text/plain; charset=utf-8")

    async def version(self, request: web.Request, call: Call) -> web.Response:
        return json_answer({"version": self._policy.ollama_version})

    async def status(self, request: web.Request, call: Call) -> web.Response:
        """There is no cloud here, whatever the configuration."""
        return json_answer({"cloud": {"disabled": True, "source": "config"}})

    async def me(self, request: web.Request, call: Call) -> web.Response:
        """Nobody is signed in: there is no account."""
        return json_answer({"error": "unauthorized", "signin_url": ""}, 401)

    async def sign_out(self, request: web.Request, call: Call) -> web.Response:
        raise Refusal(401, "you are not currently signed in", Reason.UNAUTHENTICATED)

    async def health(self, request: web.Request, call: Call) -> web.Response:
        """200 while requests can be served, 503 otherwise; the body says why."""
        health = self._services.health()
        return json_answer(health, 200 if health.get("status") == "ok" else 503)


UNSUPPORTED = {
    "POST /api/push": "push is not supported: models come from the hub, and go there by the hub's own tools",
}
"""Routes that Ollama has and this version has not: what to do instead."""

NO_CLOUD = {
    "POST /api/experimental/web_search": "web search",
    "POST /api/experimental/web_fetch": "web fetch",
}


def refuse(text: str) -> Handler:
    """A handler that says what is not supported, and what is."""

    async def handler(request: web.Request, call: Call) -> web.StreamResponse:
        raise VllamaError(Reason.UNSUPPORTED, text)

    return handler


def refuse_cloud(what: str) -> Handler:
    """A handler with the words that Ollama has for a server without its cloud."""

    async def handler(request: web.Request, call: Call) -> web.StreamResponse:
        raise Refusal(403, f"ollama cloud is disabled: {what} is unavailable", Reason.UNSUPPORTED)

    return handler
