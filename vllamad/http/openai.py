"""``/v1/models`` and ``/v1/responses/*`` (floor 4): what the engine cannot answer for all models together."""

from aiohttp import web

from vllama.reasons import Reason
from vllamad.dialects import anthropic, openai
from vllamad.dialects.passing import Face
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.names import ModelRef
from vllamad.http.calls import PLAIN_JSON, Call, json_answer
from vllamad.http.services import Services

MODELS = "/v1/models/"
RESPONSES = "/v1/responses/"
ANTHROPIC_MARK = "anthropic-version"
"""Both clients ask the same path for their models; this header, which Anthropic's always sends, tells them apart."""


class OpenAi:
    """The routes about models and stored answers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def models(self, request: web.Request, call: Call) -> web.Response:
        face = anthropic if _is_anthropic(request, call) else openai
        return json_answer(face.model_list(self._services.catalog.list()), content_type=PLAIN_JSON)

    async def model(self, request: web.Request, call: Call) -> web.Response:
        """One model under any of its names, slashes, tag and all."""
        face = anthropic if _is_anthropic(request, call) else openai
        name = request.path.removeprefix(MODELS)
        call.model = name
        try:
            model = await call.find(self._services.catalog, name)
        except ModelNotFound as error:
            raise ModelNotFound(str(ModelRef.parse(name))) from error
        return json_answer(face.model_card(name, model), content_type=PLAIN_JSON)

    async def stored(self, request: web.Request, call: Call) -> web.Response:
        """Neither the engine nor the daemon keeps answers, so there is none to get, cancel or delete."""
        identity = request.path.removeprefix(RESPONSES).removesuffix("/cancel")
        raise VllamaError(
            Reason.NOT_FOUND,
            f"Response with id '{identity[:100]}' not found: responses are not stored here; send the whole"
            " conversation as input",
            field="response_id",
        )


def _is_anthropic(request: web.Request, call: Call) -> bool:
    if ANTHROPIC_MARK in request.headers:
        call.face = Face.ANTHROPIC
    return call.face is Face.ANTHROPIC
