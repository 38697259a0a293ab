"""Bytes from the engine to the client: unchanged in any cut, in flat memory, and honest when they break off."""

import asyncio
import json
import resource
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import wire as fake
from tests.fakes.http_services import model
from tests.fakes.wire import Breaks, Request, Wire, chunk, head, says, whole, wire
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Recipe
from vllamad.http.services import Policy
from vllamad.supervisor.lease import engine_died

RECORDED = sorted((Path(__file__).parent / "streams").glob("*.sse"))
"""Streams of the real engine, byte by byte; the folder's page says how they were made."""

PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
BODY = {"model": "m:latest", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "stream": True}
EVENT = b'data: {"id":"c-1","created":1,"model":"m:latest","choices":[{"delta":{"content":"one"}}]}\n\n'


def run(script: fake.Script, work: Callable[[Wire, aiohttp.ClientSession], Awaitable[Any]], **more: Any) -> Any:
    async def scene() -> Any:
        async with wire(script, **more) as made, aiohttp.ClientSession() as session, asyncio.timeout(60):
            return await work(made, session)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the daemon's own loop
        return runner.run(scene())


async def ask(made: Wire, session: aiohttp.ClientSession, path: str = PATHS["chat"], **fields: Any) -> Any:
    async with session.post(made.url + path, json=BODY | fields) as answer:
        return answer.status, answer.headers, await answer.read()


def recorded(path: Path) -> tuple[str, bytes]:
    """The route, and the stream."""
    return PATHS[path.stem.split("-")[0]], path.read_bytes()


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_there_are_recordings_of_every_wire() -> None:
    assert {path.stem.split("-")[0] for path in RECORDED} == set(PATHS)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_stream_arrives_unchanged_under_any_cut(path: Path) -> None:
    route, data = recorded(path)

    @given(st.lists(st.integers(0, len(data)), max_size=60))
    @settings(max_examples=25, deadline=None)
    def any_cut(cuts: list[int]) -> None:
        status, headers, got = run(says(data, cuts), lambda made, session: ask(made, session, route))
        assert status == 200 and got == data
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-cache", "no")

    any_cut()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_under_another_name_the_name_is_all_that_changes(path: Path) -> None:
    route, data = recorded(path)
    served = json.loads(data[data.index(b'"model":') + 8 :].split(b",")[0])
    wanted = data.replace(b'"model":"%s"' % served.encode(), b'"model":"m"')
    assert wanted != data

    @given(st.lists(st.integers(0, len(data)), max_size=60))
    @settings(max_examples=25, deadline=None)
    def any_cut(cuts: list[int]) -> None:
        _, _, got = run(says(data, cuts), lambda made, session: ask(made, session, route, model="m"), served=served)
        assert got == wanted

    any_cut()


def test_a_slow_reader_gets_every_byte() -> None:
    _, data = recorded(RECORDED[0])

    async def work(made: Wire, session: aiohttp.ClientSession) -> bytes:
        got = b""
        async with session.post(made.url + PATHS["chat"], json=BODY) as answer:
            while piece := await answer.content.read(37):
                got += piece
                await asyncio.sleep(0.001)
        return got

    assert run(says(data, range(0, len(data), 101)), work) == data


def test_the_first_byte_is_not_held_back() -> None:
    """Not for an event, nor for a chunk of a size: what has come goes on while the engine says nothing more."""
    go_on = asyncio.Event()

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head() + chunk(EVENT[:9]))
        await writer.drain()
        await go_on.wait()
        writer.write(chunk(EVENT[9:]) + b"0\r\n\r\n")

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        async with session.post(made.url + PATHS["chat"], json=BODY | {"model": "m"}) as answer:
            assert await answer.content.readany() == EVENT[:9]
            go_on.set()
            assert await answer.content.read() == EVENT[9:].replace(b"m:latest", b"m")

    run(script, work)


def test_whole_answers_keep_their_length_and_their_bytes() -> None:
    body = b'{"id":"x", "model":"m:latest","choices":[]}'

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(
            whole(body, more="x-of-the-engine: 7\r\nserver: uvicorn\r\nx-request-id: other\r\nvary: Origin\r\n")
        )

    status, headers, got = run(script, ask)
    assert (status, got, headers["Content-Length"]) == (200, body, str(len(body)))
    assert (headers["X-Of-The-Engine"], headers["Server"].startswith("vllama/")) == ("7", True)
    assert "Vary" not in headers
    assert headers.getall("X-Request-Id") != ["other"] and len(headers.getall("X-Request-Id")) == 1
    _, headers, got = run(script, lambda made, session: ask(made, session, model="m"))
    assert got == body.replace(b"m:latest", b"m")


@pytest.mark.parametrize("path", [PATHS["chat"], "/api/chat"])
def test_an_old_client_gets_the_same_bytes_without_chunks(path: str) -> None:
    _, data = recorded(RECORDED[0])

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        body = json.dumps(BODY).encode()
        host, port = made.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        top, _, got = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert b"transfer-encoding" not in top.lower()
        if path == PATHS["chat"]:
            assert got == data
        else:
            assert json.loads(got.splitlines()[-1])["done"] is True
            assert all(json.loads(line)["model"] == BODY["model"] for line in got.splitlines())

    run(says(data, range(0, len(data), 101)), work)


# --- memory ----------------------------------------------------------------------------------------------------------

BIG_BYTES = 50_000_000
FLAT_KB = 8_000


def resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def floods(written: list[int]) -> fake.Script:
    """50 MB of events, as fast as they are taken."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head())
        block = chunk(EVENT * 500)
        while written[0] < BIG_BYTES:
            writer.write(block)
            await writer.drain()
            written[0] += len(block)
        writer.write(b"0\r\n\r\n")

    return script


@pytest.mark.parametrize("name", ["m:latest", "m"])
def test_memory_is_flat_while_50_mb_pass(name: str) -> None:
    written = [0]

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        before = resident_kb()
        most = size = 0
        async with session.post(made.url + PATHS["chat"], json=BODY | {"model": name}) as answer:
            async for piece in answer.content.iter_any():
                size += len(piece)
                most = max(most, resident_kb())
        assert size > BIG_BYTES * 0.9
        assert most - before < FLAT_KB

    run(floods(written), work)


@pytest.mark.parametrize("path", [PATHS["chat"], "/api/chat"])
def test_a_client_that_reads_nothing_stops_the_engine_and_fills_no_memory(path: str) -> None:
    written = [0]

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        before = resident_kb()
        body = json.dumps(BODY).encode()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        host, port = made.url.removeprefix("http://").split(":")
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(sock, request.encode() + body)
        last = -1
        while written[0] != last:  # until nothing moves any more
            last = written[0]
            await asyncio.sleep(0.3)
        assert 0 < written[0] < BIG_BYTES / 4, "the kernel's buffers and ours are full"
        assert resident_kb() - before < FLAT_KB
        sock.close()
        # The client has left: so does its request.
        await made.hung_up.wait()
        await made.world.gate.returned.wait()

    run(floods(written), work)


# --- when it breaks --------------------------------------------------------------------------------------------------


def breaks_after(data: bytes) -> fake.Script:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        if data:
            writer.write(head() + chunk(data))
            await writer.drain()
            await asyncio.sleep(0.05)
        raise Breaks

    return script


async def broken(made: Wire, session: aiohttp.ClientSession, path: str) -> tuple[bytes, bool]:
    """What came, and whether the framing called it whole; the connection must be closed."""
    reader, writer = await asyncio.open_connection(*made.url.removeprefix("http://").split(":"))
    body = json.dumps(BODY).encode()
    writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    raw = await reader.read()  # to the end: the server closes
    writer.close()
    _, _, framed = raw.partition(b"\r\n\r\n")
    return framed, framed.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "event", "marks"),
    [
        (PATHS["chat"], EVENT, [b'data: {"error":{"message":', b'"code":"engine_died"']),
        (PATHS["messages"], b'event: ping\ndata: {"type":"ping"}\n\n', [b"event: error\ndata: ", b'"api_error"']),
        (
            PATHS["responses"],
            b'event: x\ndata: {"type":"x","sequence_number":4}\n\n',
            [b'event: error\ndata: {"type":"error","sequence_number":5,"code":"engine_died"'],
        ),
    ],
)
def test_a_death_between_events_is_told_in_the_stream(path: str, event: bytes, marks: list[bytes]) -> None:
    got, is_whole = run(breaks_after(event), lambda made, session: broken(made, session, path))
    assert event in got and is_whole
    for mark in marks:
        assert mark in got
    assert b"[DONE]" not in got and b"message_stop" not in got


@pytest.mark.parametrize("cut", [1, 20, len(EVENT) - 1])
def test_a_death_inside_an_event_breaks_the_connection_off(cut: int) -> None:
    """Half an event with an error behind it would be nonsense to a client: it sees that the answer has no end."""
    got, is_whole = run(breaks_after(EVENT + EVENT[:cut]), lambda made, session: broken(made, session, PATHS["chat"]))
    assert EVENT in got and not is_whole and b"error" not in got


def test_a_death_inside_a_whole_answer_breaks_the_connection_off() -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"{" + b" " * 1000)[:-500])
        await writer.drain()
        await asyncio.sleep(0.05)
        raise Breaks

    with pytest.raises(aiohttp.ClientPayloadError):
        run(script, ask)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (PATHS["chat"], {"type": "api_error", "code": "engine_died"}),
        (PATHS["messages"], {"type": "api_error", "code": "engine_died"}),
    ],
)
def test_a_death_before_the_first_byte_has_a_status(path: str, wanted: dict[str, str]) -> None:
    for script in (breaks_after(b""), _head_only):
        status, headers, body = run(script, lambda made, session: ask(made, session, path))
        error = json.loads(body)["error"]
        assert (status, {name: error[name] for name in wanted}) == (502, wanted)
        assert headers["Content-Type"] == "application/json"


async def _head_only(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(head())
    await writer.drain()
    raise Breaks


def test_a_lease_that_breaks_is_told_in_its_own_words() -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head() + chunk(EVENT))
        await writer.drain()
        await asyncio.Event().wait()

    async def work(made: Wire, session: aiohttp.ClientSession) -> bytes:
        async with session.post(made.url + PATHS["chat"], json=BODY) as answer:
            assert await answer.content.readany() == EVENT
            made.lease.break_off(engine_died("m", "killed by SIGKILL"))
            return await answer.content.read()

    assert b"has stopped unexpectedly: killed by SIGKILL" in run(script, work)


def test_an_engine_that_falls_silent_is_noticed() -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head() + chunk(EVENT))
        await writer.drain()
        await asyncio.Event().wait()

    got, is_whole = run(script, lambda made, session: broken(made, session, PATHS["chat"]), idle_s=0.2)
    assert is_whole and b"it was silent for 0.2 s" in got


def test_a_client_that_leaves_cancels() -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head())
        while True:
            writer.write(chunk(EVENT))
            await writer.drain()
            await asyncio.sleep(0.01)

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        answer = await session.post(made.url + PATHS["chat"], json=BODY)
        assert await answer.content.readany()
        answer.close()
        await made.hung_up.wait()
        await made.world.gate.returned.wait()
        assert made.world.gate.active == 0

    run(script, work)


def test_a_client_that_leaves_before_the_answer_cancels_too() -> None:
    arrived = asyncio.Event()

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await asyncio.sleep(30)

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        task = asyncio.create_task(session.post(made.url + PATHS["chat"], json=BODY | {"stream": False}))
        await arrived.wait()
        task.cancel()
        await made.world.gate.returned.wait()

    run(script, work)


def test_a_stale_connection_is_tried_again_once() -> None:
    """The engine closes what it kept open, just as the next request is written."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        if len(made_by) == 1:
            raise Breaks
        made_by.append(request.connection)
        writer.write(whole(b"{}"))

    made_by: list[int] = []

    async def work(made: Wire, session: aiohttp.ClientSession) -> tuple[int, int]:
        first, _, _ = await ask(made, session)
        made_by_then = len(made.requests)
        original = made.script

        async def once(request: Request, writer: asyncio.StreamWriter) -> None:
            made.script = original
            made_by.append(0)
            raise Breaks

        made.script = once
        second, _, _ = await ask(made, session)
        assert len(made.requests) == made_by_then + 2, "sent again, once"
        assert made.requests[-1].body == made.requests[-2].body
        return first, second

    assert run(script, work) == (200, 200)


def test_a_fresh_connection_is_not_tried_again() -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        raise Breaks

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        status, _, _ = await ask(made, session)
        assert (status, len(made.requests)) == (502, 1)
        assert made.suspected

    run(script, work)


# --- headers and errors ----------------------------------------------------------------------------------------------


def test_which_headers_reach_the_engine() -> None:
    sent = {
        "X-Request-Id": "caller-7", "traceparent": "00-1-2-01", "tracestate": "a=b", "X-Vllm-Priority": "-3",
        "X-Cache-Salt": "s", "X-Session-ID": "7", "anthropic-beta": "x", "X-Unknown": "y",
        "Authorization": "Bearer secret", "x-api-key": "secret", "Cookie": "secret", "X-Keep-Alive": "7",
        "Connection": "keep-alive, X-Hop", "X-Hop": "gone", "TE": "trailers", "Proxy-Authorization": "secret",
        "Content-Type": "text/plain",
    }  # fmt: skip

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"{}"))

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        async with session.post(made.url + PATHS["chat"], data=json.dumps(BODY), headers=sent) as answer:
            assert answer.headers["X-Request-Id"] == "caller-7"
        (request,) = made.requests
        for name in list(sent)[:8]:
            assert request.headers[name.lower()] == sent[name]
        for name in ("authorization", "x-api-key", "cookie", "x-keep-alive", "x-hop", "te", "proxy-authorization"):
            assert name not in request.headers
        assert (request.headers["host"], request.headers["content-type"]) == ("engine", "application/json")
        assert made.world.gate.keep_alives == [("m:latest", 7.0)]

    run(script, work)


def test_an_id_that_is_not_sane_is_replaced_for_the_engine_too() -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"{}"))

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        async with session.post(made.url + PATHS["chat"], json=BODY, headers={"x-request-id": "a b"}) as answer:
            (request,) = made.requests
            assert request.headers["x-request-id"] == answer.headers["X-Request-Id"] != "a b"

    run(script, work)


def test_a_large_body_arrives_whole() -> None:
    text = "ä" * 2_000_000

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        status, _, got = await ask(made, session, messages=[{"role": "user", "content": text}])
        assert (status, got) == (200, EVENT)
        assert made.requests[0].fields["messages"][0]["content"] == text

    run(says(EVENT), work)


@pytest.mark.parametrize("size", [70_000, 200_000])
def test_large_heads_of_both_sides_pass(size: int) -> None:
    """Tracing systems put much into one header."""
    long = "x" * size

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        assert request.headers["tracestate"] == long
        writer.write(whole(b"{}", more=f"x-long: {long}\r\n"))

    async def work(made: Wire, session: aiohttp.ClientSession) -> tuple[int, int]:
        big = aiohttp.ClientSession(max_line_size=1 << 20, max_field_size=1 << 20)
        async with big, big.post(made.url + PATHS["chat"], json=BODY, headers={"tracestate": long}) as answer:
            return answer.status, len(answer.headers.get("X-Long", ""))

    assert run(script, work) == (200, size)


@pytest.mark.parametrize("status", [400, 403, 404, 422, 429, 500, 501, 503])
@pytest.mark.parametrize("path", [PATHS["chat"], PATHS["messages"]])
def test_the_engines_errors_keep_status_type_and_body(status: int, path: str) -> None:
    body = b'{"error": {"message":"m:latest","type":"SomeError","param":"p","code":7}}'

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(body, status, kind="application/json", more="retry-after: 3\r\n"))

    got, headers, answered = run(script, lambda made, session: ask(made, session, path, model="m"))
    assert (got, answered, headers["Retry-After"]) == (status, body, "3")


def test_a_route_that_the_engine_lacks_is_told_in_our_envelope() -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b'{"detail":"Not Found"}', 404))

    status, _, body = run(script, lambda made, session: ask(made, session, "/v1/rerank"))
    assert status == 400
    assert json.loads(body)["error"]["code"] == "unsupported"
    assert '"m:latest" does not support /v1/rerank' in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("reason", "status", "message_status", "waits"),
    [
        (Reason.QUEUE_FULL, 429, 529, True),
        (Reason.DRAINING, 503, 529, True),
        (Reason.DEADLINE_EXCEEDED, 504, 504, False),
        (Reason.WONT_FIT, 422, 422, False),
        (Reason.ENGINE_START_FAILED, 500, 500, False),
    ],
)
def test_our_own_errors_by_face(reason: Reason, status: int, message_status: int, waits: bool) -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("not to be asked")

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        made.world.gate.refusal = VllamaError(reason, "why")
        for path, wanted in ((PATHS["chat"], status), (PATHS["messages"], message_status)):
            got, headers, body = await ask(made, session, path)
            assert (got, json.loads(body)["error"]["code"]) == (wanted, reason.value.lower())
            assert ("Retry-After" in headers) is waits
            assert json.loads(body).get("type") == (None if path == PATHS["chat"] else "error")

    run(script, work)


@pytest.mark.parametrize(
    ("reason", "fact", "told"),
    [
        (Reason.ENGINE_START_FAILED, 28, "28"),
        (Reason.ENGINE_DIED, 0.2, "1"),
        (Reason.QUEUE_FULL, 40, "40"),
        (Reason.QUEUE_FULL, 0, None),
    ],
)
def test_a_failure_that_knows_when_to_ask_again_says_so_on_every_face(
    reason: Reason, fact: float, told: str | None
) -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("not to be asked")

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        made.world.gate.refusal = VllamaError(reason, "why", retry_after_s=fact)
        for path in (PATHS["chat"], PATHS["messages"], "/api/chat"):
            _status, headers, _body = await ask(made, session, path)
            assert headers.get("Retry-After") == told

    run(script, work)


def test_a_body_over_the_limit_is_413_on_every_face() -> None:
    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        for path in PATHS.values():
            status, _, body = await ask(made, session, path, prompt="x" * 5000)
            assert (status, json.loads(body)["error"]["code"]) == (413, "invalid_request")

    run(says(b""), work, policy=Policy(max_body_bytes=2048))


# --- the rest of the way ---------------------------------------------------------------------------------------------


def test_keep_alive_is_stripped_and_the_header_counts_without_it() -> None:
    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"{}"))

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        await ask(made, session, keep_alive="10m", unknown=[1])
        assert "keep_alive" not in made.requests[-1].fields
        assert made.requests[-1].fields["unknown"] == [1]
        for header in ("90", "1m30s"):
            async with session.post(made.url + PATHS["chat"], json=BODY, headers={"X-Keep-Alive": header}) as answer:
                assert answer.status == 200
        async with session.post(made.url + PATHS["chat"], json=BODY, headers={"X-Keep-Alive": "soon"}) as answer:
            assert answer.status == 400
        assert [seconds for _, seconds in made.world.gate.keep_alives] == [600, 90, 90]

    run(script, work)


def test_a_model_made_by_modelfile_brings_its_system_message() -> None:
    made_model = model("m", recipe=Recipe(system="Be brief.", parameters={"temperature": 0.3}))

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"{}"))

    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        await ask(made, session)
        fields = made.requests[-1].fields
        assert fields["messages"][0] == {"role": "system", "content": "Be brief."}
        assert fields["temperature"] == 0.3

    run(script, work, model=made_model)


def test_a_browser_may_send_what_both_clients_send() -> None:
    async def work(made: Wire, session: aiohttp.ClientSession) -> None:
        asking = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
        for path in PATHS.values():
            async with session.options(made.url + path, headers=asking) as answer:
                allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(",")
                assert answer.status == 204
                assert {"authorization", "x-api-key", "anthropic-version", "anthropic-beta"} <= set(allowed)
        async with session.post(made.url + PATHS["chat"], json=BODY, headers={"Origin": "https://evil.example"}) as no:
            assert no.status == 403
        async with session.post(made.url + PATHS["chat"], json=BODY, headers={"Host": "evil.example"}) as no:
            assert no.status == 403

    run(says(b""), work)
