"""What the fake engine answers on its other wires: Anthropic's messages, OpenAI's responses, scores, recordings and
realtime websockets, in the shapes of vLLM 0.32. Pure, but for the websocket."""

import asyncio
import base64
import email
import email.policy
import hashlib
import json
import struct
from collections.abc import Iterator
from typing import Any

from engine_answers import Card, Plan, Refused, count_tokens, metrics

CREATED = 1_700_000_000
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def named(name: str, data: dict[str, Any]) -> bytes:
    """One event with a name."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()


# --- messages --------------------------------------------------------------------------------------------------------


def chat_of_messages(body: dict[str, Any]) -> dict[str, Any]:
    """The chat that a messages request comes to; raises Refused as vLLM does before it answers."""
    for name in ("messages", "max_tokens"):
        if name not in body:
            raise Refused(400, f"[{{'type': 'missing', 'loc': ('body', '{name}')}}]", "Bad Request")
    chat = {key: body[key] for key in ("temperature", "top_p", "max_tokens", "messages", "tool_choice") if key in body}
    if chat.get("tool_choice"):
        del chat["tool_choice"]
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if body.get("system"):
        chat["messages"] = [{"role": "system", "content": body["system"]}, *chat["messages"]]
    if body.get("tools"):
        chat["tools"] = [
            {"type": "function", "function": {"name": tool["name"], "parameters": tool["input_schema"]}}
            for tool in body["tools"]
        ]
    thinking = (body.get("thinking") or {}).get("type")
    chat["chat_template_kwargs"] = {"enable_thinking": thinking == "enabled"}
    return chat


def _stop_reason(decided: Plan) -> tuple[str, str | None]:
    if decided.tool_calls:
        return "tool_use", None
    if decided.finish_reason == "length":
        return "max_tokens", None
    return ("stop_sequence", decided.stop_reason) if decided.stop_reason else ("end_turn", None)


def _message_usage(decided: Plan, output_tokens: int) -> dict[str, Any]:
    return {"input_tokens": decided.prompt_tokens, "output_tokens": output_tokens, "cache_read_input_tokens": 0}


def message(card: Card, decided: Plan, number: int) -> dict[str, Any]:
    """The whole answer; what is None is left out."""
    content: list[dict[str, Any]] = []
    if decided.thoughts:
        content.append({"type": "thinking", "thinking": "".join(decided.thoughts)})
    if decided.tokens:
        content.append({"type": "text", "text": "".join(decided.tokens)})
    for call in decided.tool_calls:
        function = call["function"]
        content.append(
            {"type": "tool_use", "id": call["id"], "name": function["name"], "input": json.loads(function["arguments"])}
        )
    reason, sequence = _stop_reason(decided)
    answer = {
        "id": f"chatcmpl-{number:016x}", "type": "message", "role": "assistant", "content": content,
        "model": card.names[0], "stop_reason": reason,
    }  # fmt: skip
    if sequence:
        answer["stop_sequence"] = sequence
    return answer | {"usage": _message_usage(decided, decided.completion_tokens)}


def message_events(card: Card, decided: Plan, number: int) -> Iterator[bytes]:
    """The answer as a stream."""
    start = {
        "id": f"chatcmpl-{number:016x}", "type": "message", "role": "assistant", "content": [],
        "model": card.names[0], "stop_reason": None, "stop_sequence": None, "usage": _message_usage(decided, 0),
    }  # fmt: skip
    yield named("message_start", {"type": "message_start", "message": start})
    index = 0
    for kind, pieces in (("thinking", decided.thoughts), ("text", decided.tokens)):
        if not pieces:
            continue
        block = {"type": kind, kind: ""}
        yield named("content_block_start", {"index": index, "type": "content_block_start", "content_block": block})
        for piece in pieces:
            delta = {"type": f"{kind}_delta", kind: piece}
            yield named("content_block_delta", {"index": index, "type": "content_block_delta", "delta": delta})
        yield named("content_block_stop", {"index": index, "type": "content_block_stop"})
        index += 1
    for call in decided.tool_calls:
        block = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}}
        yield named("content_block_start", {"index": index, "type": "content_block_start", "content_block": block})
        delta = {"type": "input_json_delta", "partial_json": call["function"]["arguments"]}
        yield named("content_block_delta", {"index": index, "type": "content_block_delta", "delta": delta})
        yield named("content_block_stop", {"index": index, "type": "content_block_stop"})
        index += 1
    reason, sequence = _stop_reason(decided)
    usage = _message_usage(decided, decided.completion_tokens)
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    yield named("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
    yield named("message_stop", {"type": "message_stop"})


# --- responses -------------------------------------------------------------------------------------------------------


def chat_of_responses(body: dict[str, Any]) -> dict[str, Any]:
    """The chat that a responses request comes to."""
    if "input" not in body:
        raise Refused(400, "[{'type': 'missing', 'loc': ('body', 'input')}]", "Bad Request")
    if body.get("previous_response_id"):
        raise Refused(404, f"Response with id '{body['previous_response_id']}' not found.", "invalid_request_error")
    said = body["input"]
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    chat: dict[str, Any] = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
    for theirs, ours in (("max_output_tokens", "max_tokens"), ("temperature", "temperature"), ("top_p", "top_p")):
        if body.get(theirs) is not None:
            chat[ours] = body[theirs]
    if ((body.get("text") or {}).get("format") or {}).get("type") == "json_schema":
        chat["response_format"] = {"type": "json_schema"}
    return chat


def response(card: Card, body: dict[str, Any], decided: Plan, number: int, *, is_done: bool = True) -> dict[str, Any]:
    """The response object, explicit nulls and all."""
    is_cut = decided.finish_reason == "length"
    status = ("incomplete" if is_cut else "completed") if is_done else "in_progress"
    usage = {
        "input_tokens": decided.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": decided.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": decided.prompt_tokens + decided.completion_tokens,
    }  # fmt: skip
    return {
        "id": f"resp_{number:016x}", "created_at": CREATED,
        "incomplete_details": {"reason": "max_output_tokens"} if is_done and is_cut else None,
        "instructions": body.get("instructions"), "metadata": body.get("metadata"), "model": card.names[0],
        "object": "response", "output": [_item(decided, number)] if is_done else [], "parallel_tool_calls": True,
        "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0, "background": False,
        "max_output_tokens": body.get("max_output_tokens") or card.max_model_len, "max_tool_calls": None,
        "previous_response_id": None, "prompt": None, "reasoning": None, "service_tier": "auto", "status": status,
        "text": None, "top_logprobs": None, "truncation": "disabled", "usage": usage if is_done else None,
        "user": None, "metrics": metrics(decided, 0.001) if is_done else None,
    }  # fmt: skip


def _item(decided: Plan, number: int, *, is_done: bool = True) -> dict[str, Any]:
    part = {"annotations": [], "text": "".join(decided.tokens), "type": "output_text", "logprobs": None}
    return {
        "id": f"msg_{number:016x}", "content": [part] if is_done else [], "role": "assistant",
        "status": "completed" if is_done else "in_progress", "type": "message", "phase": None,
    }  # fmt: skip


def response_events(card: Card, body: dict[str, Any], decided: Plan, number: int) -> Iterator[bytes]:
    """The answer as a stream, numbered."""
    place = {"item_id": f"msg_{number:016x}", "output_index": 0, "content_index": 0}
    text = "".join(decided.tokens)
    part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
    begun = response(card, body, decided, number, is_done=False)
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": _item(decided, number, is_done=False)},
        {"type": "response.content_part.added", **place, "part": part},
        *({"type": "response.output_text.delta", **place, "delta": each, "logprobs": []} for each in decided.tokens),
        {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part | {"text": text}},
        {"type": "response.output_item.done", "output_index": 0, "item": _item(decided, number)},
        {"type": "response.completed", "response": response(card, body, decided, number)},
    ]
    for at, event in enumerate(events):
        yield named(event["type"], event | {"sequence_number": at})


# --- scores ----------------------------------------------------------------------------------------------------------


def scores(card: Card, path: str, body: dict[str, Any], number: int) -> dict[str, Any]:
    """How alike texts are: the share of words that two have in common."""
    is_rerank = path.endswith("/rerank")
    query = body["query"] if is_rerank else body.get("text_1", body.get("queries"))
    documents = body["documents"] if "documents" in body else body["text_2"]
    documents = [documents] if isinstance(documents, str) else documents
    words = set(str(query).lower().split())
    found = [len(words & set(each.lower().split())) / max(len(words), 1) for each in documents]
    tokens = sum(len(each.split()) for each in documents)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    if not is_rerank:
        data = [{"index": at, "object": "score", "score": score} for at, score in enumerate(found)]
        return {
            "id": f"score-{number}", "object": "list", "created": CREATED, "model": card.names[0], "data": data,
            "usage": usage | {"completion_tokens": 0, "prompt_tokens_details": None},
        }  # fmt: skip
    order = sorted(range(len(found)), key=lambda at: -found[at])[: body.get("top_n") or None]
    results = [
        {"index": at, "document": {"text": documents[at], "multi_modal": None}, "relevance_score": found[at]}
        for at in order
    ]
    return {"id": f"rerank-{number}", "model": card.names[0], "usage": usage, "results": results}


def token_count(card: Card, body: dict[str, Any]) -> dict[str, Any]:
    """What /v1/messages/count_tokens says."""
    count = len(count_tokens(card, chat_of_messages({"max_tokens": 1} | body)))
    return {"input_tokens": count, "context_management": {"original_input_tokens": count}}


# --- recordings ------------------------------------------------------------------------------------------------------


def form(content_type: str, body: bytes) -> dict[str, bytes]:
    """The fields of a multipart body; raises Refused."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    parsed = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    if not parsed.is_multipart():
        raise Refused(422, "[{'type': 'missing', 'loc': ('body', 'file')}]", "Unprocessable Entity")
    fields: dict[str, bytes] = {}
    for part in parsed.iter_parts():  # type: ignore[attr-defined]
        name = part.get_param("name", header="content-disposition")
        fields[str(name)] = part.get_payload(decode=True) or b""
    return fields


def transcription(fields: dict[str, bytes]) -> dict[str, Any]:
    """A recording says how long it is."""
    return {"text": f"{len(fields['file'])} bytes", "usage": {"type": "duration", "seconds": 1}}


# --- realtime --------------------------------------------------------------------------------------------------------


class Websocket:
    """As much of RFC 6455 as the daemon's client needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def accept(self, key: str) -> None:
        accepted = base64.b64encode(hashlib.sha1(key.encode() + MAGIC).digest()).decode()
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self._writer.write(f"{head}Sec-WebSocket-Accept: {accepted}\r\n\r\n".encode())
        await self._writer.drain()

    async def send(self, data: bytes, kind: int = TEXT) -> None:
        size = len(data)
        head = bytes([0x80 | kind])
        if size < 126:
            head += bytes([size])
        elif size < 65536:
            head += bytes([126]) + struct.pack(">H", size)
        else:
            head += bytes([127]) + struct.pack(">Q", size)
        self._writer.write(head + data)
        await self._writer.drain()

    async def receive(self) -> tuple[int, bytes]:
        """The next frame; clients of ours send no fragments."""
        first, second = await self._reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", await self._reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self._reader.readexactly(8))
        mask = await self._reader.readexactly(4) if second & 0x80 else bytes(4)
        data = await self._reader.readexactly(size)
        return first & 0x0F, bytes(each ^ mask[at % 4] for at, each in enumerate(data))


async def realtime(websocket: Websocket) -> None:
    """vLLM's protocol: it speaks first, wants a model, adds up what comes and says how much it was. Binary frames come
    back as they are, for the tests of the pipe."""

    async def say(event: dict[str, Any]) -> None:
        await websocket.send(json.dumps(event).encode())

    await say({"type": "session.created", "id": "sess-1", "created": CREATED})
    is_named, heard = False, 0
    while True:
        kind, data = await websocket.receive()
        if kind == CLOSE:
            await websocket.send(data[:2] or b"\x03\xe8", CLOSE)
            return
        if kind == PING:
            await websocket.send(data, PONG)
        elif kind == BINARY:
            await websocket.send(data, BINARY)
        elif kind == TEXT:
            event = json.loads(data)
            if event["type"] == "session.update":
                is_named = bool(event.get("model"))
            elif event["type"] == "input_audio_buffer.append":
                heard += len(base64.b64decode(event["audio"]))
            elif event["type"] == "input_audio_buffer.commit" and not is_named:
                await say({"type": "error", "error": "Model not validated.", "code": "model_not_validated"})
            elif event["type"] == "input_audio_buffer.commit":
                await say({"type": "transcription.delta", "delta": f"{heard} bytes"})
                await say({"type": "transcription.done", "text": f"{heard} bytes", "usage": None})
