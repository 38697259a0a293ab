"""``/v1/realtime`` (floor 4): a websocket to the engine of a model that transcribes speech as it comes.

The name stands in the address, as with OpenAI: ``/v1/realtime?model=NAME``. The engine itself is told in its first
message, but it speaks first, and which engine that is has to be known before. Frames pass both ways unread.
"""

import asyncio

import orjson
from aiohttp import WSCloseCode, WSMsgType, web

from vllama.reasons import Reason
from vllamad.dialects import openai
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import EngineSocket
from vllamad.http import headers
from vllamad.http.calls import Call
from vllamad.http.passing import keep_alive_of
from vllamad.http.services import Asking

REALTIME = "/v1/realtime"
MAX_FRAME_BYTES = 32 * 1024 * 1024
PROTOCOL = "realtime"
"""Clients in a browser offer it beside their key, which is not ours to accept."""

PING_S = 30.0
"""A client that vanished without a word would hold its lease for ever."""


class Realtime:
    """The route of websockets."""

    def __init__(self, services: Asking) -> None:
        self._services = services

    async def connect(self, request: web.Request, call: Call) -> web.StreamResponse:
        name = request.query.get("model", "").strip()
        answer = web.WebSocketResponse(protocols=(PROTOCOL,), max_msg_size=MAX_FRAME_BYTES, heartbeat=PING_S)
        if not answer.can_prepare(request).ok:
            raise VllamaError(Reason.INVALID_REQUEST, f"{REALTIME} is a websocket: connect with ws:// or wss://")
        if not name:
            raise VllamaError(Reason.INVALID_REQUEST, f"model is required: {REALTIME}?model=NAME", field="model")
        call.model = name
        model = await call.find(self._services.catalog, name)
        async with self._services.gate.lease(model, keep_alive_s=keep_alive_of(request), caller=call.caller) as lease:
            call.waited_ms = lease.waited_ns / 1e6
            engine = await lease.connect(REALTIME, headers.onward(request, call, content_type=""))
            try:
                await answer.prepare(request)
                await self._talk(call, answer, engine)
            finally:
                engine.close()
        call.status = 101
        return answer

    async def _talk(self, call: Call, answer: web.WebSocketResponse, engine: EngineSocket) -> None:
        """Until one side ends it."""
        # Tasks, because either side may speak at any time; none outlives the lease.
        down = asyncio.create_task(_down(answer, engine), name="realtime.down")
        up = asyncio.create_task(_up(answer, engine), name="realtime.up")
        try:
            done, _ = await asyncio.wait({down, up}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await answer.close(code=engine.close_code or WSCloseCode.OK)
        except VllamaError as error:
            call.error = str(error.reason)
            if not answer.closed:
                event = {"type": "error", **openai.error_body(error)}
                await answer.send_str(orjson.dumps(event).decode())
                await answer.close(code=WSCloseCode.INTERNAL_ERROR, message=error.reason.lower().encode())
        finally:
            for task in (down, up):
                task.cancel()
            await asyncio.gather(down, up, return_exceptions=True)


async def _down(answer: web.WebSocketResponse, engine: EngineSocket) -> None:
    async for frame in engine.frames():
        if isinstance(frame, str):
            await answer.send_str(frame)
        else:
            await answer.send_bytes(frame)


async def _up(answer: web.WebSocketResponse, engine: EngineSocket) -> None:
    async for message in answer:
        if message.type in {WSMsgType.TEXT, WSMsgType.BINARY}:
            await engine.send(message.data)
