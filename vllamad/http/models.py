"""``/api/{tags,show,ps,pull,delete,copy}`` (floor 4)."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from aiohttp import web

from vllama.reasons import Reason
from vllamad.dialects import ollama_models
from vllamad.dialects.go_values import dumps
from vllamad.dialects.modelfile import read_parameters
from vllamad.dialects.ollama_errors import PULL_NOT_FOUND, Refusal
from vllamad.dialects.ollama_models import PullLines
from vllamad.dialects.peek import Fields, bad_request, read_object
from vllamad.dialects.recipes import options_with
from vllamad.domain.errors import ModelNotFound, VllamaError
from vllamad.domain.model import Model, ModelDetails
from vllamad.domain.names import ModelRef
from vllamad.domain.operation import Operation
from vllamad.domain.view import WorkerView, one_per_model
from vllamad.http.bodies import Bodies
from vllamad.http.calls import PLAIN_JSON, Call, json_answer, start_lines
from vllamad.http.errors import end_lines
from vllamad.http.services import Services


class Models:
    """The routes about models rather than with them."""

    def __init__(self, services: Services, bodies: Bodies) -> None:
        self._services = services
        self._bodies = bodies
        self._tags: dict[int, tuple[Model, bytes]] = {}
        """Entries of the last list, by the identity of their models, which never change: clients ask for it again and
        again, and a thousand entries written anew hold up every stream for ten milliseconds."""

    async def tags(self, request: web.Request, call: Call) -> web.Response:
        known, self._tags = self._tags, {}
        for model in self._services.catalog.list():
            entry = known.get(id(model))
            self._tags[id(model)] = entry or (model, dumps(ollama_models.tag(model)))
        return json_answer(b'{"models":[' + b",".join(entry for _, entry in self._tags.values()) + b"]}")

    async def ps(self, request: web.Request, call: Call) -> web.Response:
        now_s = time.time()
        views = one_per_model(view for view in self._services.supervisor.views() if view.is_loaded)
        views.sort(key=lambda view: now_s + view.idle_s if view.expire_time is None else view.expire_time, reverse=True)
        return json_answer({"models": [ollama_models.running(view, self._details(view), now_s) for view in views]})

    async def show(self, request: web.Request, call: Call) -> web.Response:
        fields = await self._fields(request, "ShowRequest")
        name = fields.text("model") or fields.text("name")
        call.model = name
        system = fields.text("system")
        if not name:
            raise bad_request("model is required")
        ref = ModelRef.parse(name)
        try:
            model = self._services.catalog.resolve(name)
        except ModelNotFound as error:
            raise ModelNotFound(str(ref)) from error
        own = fields.mapping("options", "map[string]interface {}")
        parameters = read_parameters(options_with(model, own)) if own else model.recipe.parameters
        recipe = replace(model.recipe, system=system or model.recipe.system, parameters=parameters)
        source = self._services.catalog.source_name(model)
        return json_answer(ollama_models.show(replace(model, recipe=recipe), source))

    async def copy(self, request: web.Request, call: Call) -> web.Response:
        fields = await self._fields(request, "CopyRequest")
        source, destination = fields.text("source"), fields.text("destination")
        call.model = source
        for what, name in (("source", source), ("destination", destination)):
            _check_name(name, f'{what} "{name}" is invalid')
        try:
            await self._services.catalog.copy(source, destination)
        except ModelNotFound as error:
            raise ModelNotFound(source, f'model "{source}" not found') from error
        return web.Response()

    async def delete(self, request: web.Request, call: Call) -> web.Response:
        """Removes a model; a worker that serves it goes first."""
        fields = await self._fields(request, "DeleteRequest")
        name = fields.text("model") or fields.text("name")
        call.model = name
        if not name:
            raise bad_request("model is required")
        _check_name(name, f'name "{name}" is invalid')
        await self._services.loading.remove(name, force=True)
        return web.Response()

    async def pull(self, request: web.Request, call: Call) -> web.StreamResponse:
        """Follows the pull until it ends. When its last follower leaves, it stops; what was fetched is kept."""
        fields = await self._fields(request, "PullRequest")
        name = fields.text("model") or fields.text("name")
        is_stream = fields.flag("stream", default=True)
        call.model = name
        ModelRef.parse(name)
        call.error_type = PLAIN_JSON
        if not is_stream:
            lines = PullLines()
            async with aclosing(self._follow(name, lines)) as batches:
                async for _ in batches:
                    pass
            return json_answer({"status": "success"}, content_type=PLAIN_JSON)
        answer = await start_lines(request)
        lines = PullLines()
        await answer.write(dumps(lines.first()) + b"\n")
        try:
            async with aclosing(self._follow(name, lines)) as batches:
                async for batch in batches:
                    if batch:
                        await answer.write(batch)
        except VllamaError as error:
            call.error = str(error.reason)
            await end_lines(answer, error)
        await answer.write_eof()
        return answer

    async def _follow(self, name: str, lines: PullLines) -> AsyncGenerator[bytes, None]:
        """The status lines as they fall due; raises what the pull failed with. Close it to lose interest."""
        operations = self._services.operations
        try:
            operation = self._services.catalog.pull(name)
        except VllamaError as error:
            raise _pull_failure(error) from error
        last: Operation = operation
        try:
            async with aclosing(operations.watch(operation.name)) as snapshots:
                async for last in snapshots:
                    yield b"".join(dumps(line) + b"\n" for line in lines.feed(last))
        finally:
            if not last.is_done:
                operations.cancel(operation.name, only_if_unwatched=True)
        if last.error is not None:
            raise _pull_failure(last.error) from last.error

    async def _fields(self, request: web.Request, struct: str) -> Fields:
        body = await self._bodies.read(request)
        return Fields(await self._bodies.work(len(body), lambda: read_object(body, struct)), struct)

    def _details(self, view: WorkerView) -> ModelDetails:
        """A model that was removed while its worker is on the way down has none."""
        try:
            return self._services.catalog.resolve(view.model).details
        except ModelNotFound:
            return ModelDetails()


def _check_name(name: str, refusal: str) -> None:
    try:
        ModelRef.parse(name)
    except VllamaError as error:
        raise bad_request(refusal) from error


def _pull_failure(error: VllamaError) -> VllamaError:
    """Clients match Ollama's text for an unknown model; both it and a hub that is away have status 500 there."""
    if error.reason is Reason.MODEL_NOT_FOUND:
        return Refusal(500, PULL_NOT_FOUND, error.reason, error.hint or "")
    if error.reason is Reason.HUB_UNREACHABLE:
        return Refusal(500, f"pull model manifest: {error.message}", error.reason, error.hint or "")
    if error.hint and error.reason is Reason.HUB_FORBIDDEN:
        return VllamaError(error.reason, f"{error.message}; {error.hint}", error.hint, **error.facts)
    return error
