"""The official ``openai`` and ``anthropic`` clients at our face, with what the real engine once wrote behind it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.fakes.wire import Breaks, Request, Script, Wire, chunk, head, says, whole, wire
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

STREAMS = Path(__file__).parent / "streams"
SERVED = "smollm2:talent"
HI: Any = [{"role": "user", "content": "Hi"}]
PARIS = "The capital of France is Paris."


def talk(script: Script, conversation: Callable[[Wire, openai.AsyncOpenAI, anthropic.AsyncAnthropic], Awaitable[Any]]):
    async def scene() -> Any:
        async with (
            wire(script, served=SERVED) as made,
            openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key="secret", max_retries=0) as client,
            anthropic.AsyncAnthropic(base_url=made.url, api_key="secret", max_retries=0) as claude,
        ):
            return await conversation(made, client, claude)

    return asyncio.run(scene())


def stream(name: str) -> Script:
    data = (STREAMS / name).read_bytes()
    return says(data, range(0, len(data), 211))


def test_a_chat_with_logprobs_and_usage() -> None:
    async def work(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        parts = [part async for part in await client.chat.completions.create(model="m", messages=HI, stream=True)]
        assert {part.model for part in parts} == {"m"}
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == PARIS
        assert parts[-1].usage and parts[-1].usage.completion_tokens == 8
        assert all("secret" not in value for value in made.requests[0].headers.values())

    talk(stream("chat-logprobs.sse"), work)


def test_a_call_that_comes_in_pieces() -> None:
    async def work(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        async with client.chat.completions.stream(model="m", messages=HI) as events:
            final = await events.get_final_completion()
        (call,) = final.choices[0].message.tool_calls or []
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        assert (final.model, final.choices[0].finish_reason) == ("m", "tool_calls")

    talk(stream("chat-tools.sse"), work)


def test_messages_with_thoughts_and_with_a_call() -> None:
    async def text(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        async with claude.messages.stream(model="m", max_tokens=9, messages=HI) as events:
            kinds = [event.type async for event in events]
            final = await events.get_final_message()
        assert (kinds[0], kinds[-1], final.model) == ("message_start", "message_stop", "m")
        assert [block.type for block in final.content] == ["thinking", "text"]
        assert made.requests[0].headers["anthropic-version"]

    async def call(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        async with claude.messages.stream(model="m", max_tokens=9, messages=HI) as events:
            final = await events.get_final_message()
        (use,) = [block for block in final.content if block.type == "tool_use"]
        assert (use.input, final.stop_reason) == ({"city": "Paris"}, "tool_use")

    talk(stream("messages.sse"), text)
    talk(stream("messages-tools.sse"), call)


def test_a_response_and_its_events() -> None:
    async def work(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        async with client.responses.stream(model="m", input="Hi") as events:
            numbers = [event.sequence_number async for event in events]
            final = await events.get_final_response()
        assert numbers == list(range(len(numbers)))
        assert (final.model, final.status, final.output_text.strip()) == ("m", "completed", PARIS)

    talk(stream("responses.sse"), work)


def test_a_death_in_mid_stream_is_raised_by_both_clients() -> None:
    def dies_in(name: str) -> Script:
        events = (STREAMS / name).read_bytes().split(b"\n\n")

        async def script(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(head() + b"".join(chunk(event + b"\n\n") for event in events[:5]))
            await writer.drain()
            await asyncio.sleep(0.05)
            raise Breaks

        return script

    async def chat(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(openai.APIError, match="the engine failed") as caught:
            async for _ in await client.chat.completions.create(model="m", messages=HI, stream=True):
                pass
        assert caught.value.code == "engine_died"

    async def response(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(openai.APIError, match="the engine failed"):
            async for _ in await client.responses.create(model="m", input="Hi", stream=True):
                pass

    async def messages(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(anthropic.APIStatusError, match="the engine failed"):
            async for _ in await claude.messages.create(model="m", messages=HI, max_tokens=9, stream=True):
                pass

    talk(dies_in("chat-tools.sse"), chat)
    talk(dies_in("responses.sse"), response)
    talk(dies_in("messages.sse"), messages)


OPENAI_CLASSES = {
    Reason.INVALID_REQUEST: openai.BadRequestError,
    Reason.UNSUPPORTED: openai.BadRequestError,
    Reason.UNAUTHENTICATED: openai.AuthenticationError,
    Reason.PERMISSION_DENIED: openai.PermissionDeniedError,
    Reason.MODEL_NOT_FOUND: openai.NotFoundError,
    Reason.MODEL_IN_USE: openai.ConflictError,
    Reason.WONT_FIT: openai.UnprocessableEntityError,
    Reason.QUEUE_FULL: openai.RateLimitError,
    Reason.DRAINING: openai.InternalServerError,
    Reason.ENGINE_START_FAILED: openai.InternalServerError,
}


@pytest.mark.parametrize("reason", OPENAI_CLASSES)
def test_every_reason_is_raised_as_its_class(reason: Reason) -> None:
    """UNAUTHENTICATED as well, though nobody asks for keys in this version."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("not to be asked")

    async def work(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        error = VllamaError(reason, "why")
        made.world.gate.refusal = error
        with pytest.raises(OPENAI_CLASSES[reason], match="why") as caught:
            await client.chat.completions.create(model="m", messages=HI)
        assert (caught.value.status_code, caught.value.code) == (error.row.http, reason.value.lower())
        with pytest.raises(anthropic.APIStatusError, match="why") as other:
            await claude.messages.create(model="m", messages=HI, max_tokens=9)
        assert other.value.status_code == error.row.anthropic_status
        body: Any = other.value.body
        assert body["error"]["type"] == error.row.anthropic_type

    talk(script, work)


def test_a_client_waits_as_long_as_it_is_told_and_is_served_then() -> None:
    answer = {"id": "x", "object": "chat.completion", "created": 1, "model": SERVED}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(json.dumps(answer | {"choices": [choice]}).encode()))

    async def work(made: Wire, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
        made.world.gate.refusal = VllamaError(Reason.QUEUE_FULL, "why")
        asyncio.get_running_loop().call_later(1, lambda: setattr(made.world.gate, "refusal", None))
        patient = client.with_options(max_retries=1)
        assert (await patient.chat.completions.create(model="m", messages=HI)).choices[0].message.content == "Hello"

    talk(script, work)
