"""The engine's answers, byte by byte: any cut of them gives the same, and a part never passes for the whole."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.engine.connection import Connection, IdleConnections, request_head
from vllamad.engine.stream import HELD_BYTES, UdsEngineStream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


class Transport:
    """What a connection does to its socket."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sent = b""
        self.is_aborted = self.is_paused = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        if not self.is_aborted:
            self.is_aborted = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Line:
    """One connection with a question on its way."""

    def __init__(self) -> None:
        self.freed: list[Connection] = []
        self.lost: list[Connection] = []
        self.connection = Connection(self.freed.append, self.lost.append)
        self.transport = Transport(self.connection)
        self.connection.connection_made(cast("asyncio.Transport", self.transport))
        self.stream = self.ask()

    def ask(self) -> UdsEngineStream:
        stream = UdsEngineStream(self.connection, None, lambda why: VllamaError(Reason.ENGINE_DIED, why))
        self.connection.ask(b"GET / HTTP/1.1\r\n\r\n", stream)
        return stream

    async def hear(self, pieces: list[bytes]) -> None:
        """As from the socket, which is not read while it is paused."""
        for piece in pieces:
            while self.transport.is_paused:  # noqa: ASYNC110
                await asyncio.sleep(0)
            self.connection.data_received(piece)
            await asyncio.sleep(0)


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scene(), debug=True)


def chunked(parts: list[bytes]) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def sized(parts: list[bytes]) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % sum(map(len, parts)) + b"".join(parts)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]


async def collect(stream: UdsEngineStream, wants: list[bool]) -> bytes:
    """Read to the end; the sink has enough whenever ``wants`` says so."""
    got: list[bytes] = []
    turns = iter(wants)

    def take(piece: bytes) -> bool:
        got.append(piece)
        return next(turns, False)

    await stream.head
    while await stream.pour(take):  # noqa: ASYNC110
        await asyncio.sleep(0)
    return b"".join(got)


PARTS = st.lists(st.binary(max_size=40), max_size=6)
PLACES = st.lists(st.integers(0, 600), max_size=12)


@settings(max_examples=150)
@given(st.sampled_from([chunked, sized]), PARTS, PLACES, st.lists(st.booleans(), max_size=8))
def test_any_cut_and_any_sink_give_the_same_body(
    build: Callable[[list[bytes]], bytes], parts: list[bytes], places: list[int], wants: list[bool]
) -> None:
    async def scene() -> None:
        line = Line()
        reading = asyncio.create_task(collect(line.stream, wants))
        await line.hear(cut(build(parts), places))
        assert await reading == b"".join(parts)
        assert line.stream.status == 200
        assert line.stream.headers["content-type"] == "text/event-stream"
        assert line.freed == [line.connection] and not line.transport.is_aborted

    play(scene)


@settings(max_examples=100)
@given(st.sampled_from([chunked, sized]), PARTS, st.integers(0, 10_000), PLACES)
def test_a_part_is_never_taken_for_the_whole(
    build: Callable[[list[bytes]], bytes], parts: list[bytes], end: int, places: list[int]
) -> None:
    async def scene() -> None:
        line = Line()
        answer = build(parts)
        heard = answer[: end % len(answer)]
        reading = asyncio.create_task(collect(line.stream, []))
        await line.hear(cut(heard, places))
        line.connection.connection_lost(None)
        with pytest.raises(VllamaError, match=r"without an answer|before the end"):
            await reading
        assert line.freed == [] and line.lost == [line.connection]

    play(scene)


def test_what_one_read_brings_is_one_piece() -> None:
    async def scene() -> None:
        line = Line()
        pieces: list[bytes] = []
        reading = asyncio.create_task(line.stream.pour(lambda piece: pieces.append(piece) is not None))
        await asyncio.sleep(0)
        head, _, body = chunked([b"a", b"b", b"c", b"d"]).partition(b"\r\n\r\n")
        await line.hear([head + b"\r\n\r\n", body[:6], body[6:18], body[18:]])
        assert await reading is False
        assert pieces == [b"a", b"bc", b"d"]

    play(scene)


def test_an_answer_may_end_with_its_connection() -> None:
    async def scene() -> None:
        line = Line()
        reading = asyncio.create_task(collect(line.stream, []))
        await line.hear([HEAD + b"\r\n", b"all ", b"of it"])
        line.connection.connection_lost(None)
        assert await reading == b"all of it"
        assert line.freed == []

    play(scene)


def test_interim_answers_are_passed_over_and_the_next_question_may_follow() -> None:
    async def scene() -> None:
        line = Line()
        reading = asyncio.create_task(collect(line.stream, []))
        await line.hear([b"HTTP/1.1 100 Continue\r\n\r\n" + sized([b"one"])])
        assert await reading == b"one"
        again = line.ask()
        reading = asyncio.create_task(collect(again, []))
        await line.hear([sized([b"two"])])
        assert await reading == b"two"
        assert len(line.freed) == 2

    play(scene)


@pytest.mark.parametrize("answer", [sized([b"x"]) + b"HTTP", HEAD + b"Connection: close\r\nContent-Length: 1\r\n\r\nx"])
def test_a_connection_that_is_not_clean_is_not_used_again(answer: bytes) -> None:
    async def scene() -> None:
        line = Line()
        reading = asyncio.create_task(collect(line.stream, []))
        await line.hear([answer])
        assert await reading == b"x"
        assert line.freed == [] and line.transport.is_aborted

    play(scene)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"nonsense\r\n\r\n", "no HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1024 * 1024), "head of its answer is larger"),
    ],
)
def test_what_is_no_answer_is_told(answer: bytes, why: str) -> None:
    async def scene() -> None:
        line = Line()
        reading = asyncio.create_task(collect(line.stream, []))
        await line.hear([answer])
        with pytest.raises(VllamaError, match=why):
            await reading
        assert line.transport.is_aborted

    play(scene)


def test_a_reader_that_is_busy_stops_the_engine_and_loses_nothing() -> None:
    async def scene() -> None:
        line = Line()
        part = b"x" * 65536
        hearing = asyncio.create_task(line.hear(cut(chunked([part] * 20), [at * 65536 for at in range(21)])))
        await line.stream.head
        for _ in range(100):
            await asyncio.sleep(0)
        assert line.transport.is_paused and not hearing.done()
        assert sum(map(len, line.stream._held)) < HELD_BYTES + 2 * 65536
        assert await collect(line.stream, [True] * 10) == part * 20
        await hearing
        # Whoever gets the connection next is not to wait for ever.
        assert line.freed and not line.transport.is_paused

    play(scene)


def test_a_sink_that_fails_is_no_failure_of_the_engine() -> None:
    async def scene() -> None:
        line = Line()

        def take(piece: bytes) -> bool:
            raise ValueError(piece)

        reading = asyncio.create_task(line.stream.pour(take))
        await asyncio.sleep(0)
        await line.hear([sized([b"x"])])
        with pytest.raises(ValueError, match="x"):
            await reading

    play(scene)


def test_closing_drops_the_connection_and_wakes_the_reader() -> None:
    async def scene() -> None:
        line = Line()
        reading = asyncio.create_task(collect(line.stream, []))
        await line.hear([chunked([b"a", b"b"])[:-6]])
        line.stream.close()
        assert line.transport.is_aborted
        with pytest.raises(VllamaError, match="was closed"):
            await reading

    play(scene)


def test_a_body_goes_out_as_the_engine_takes_it() -> None:
    async def scene() -> None:
        line = Line()
        line.transport.sent = b""
        asked: list[int] = []

        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                asked.append(number)
                yield b"abc"

        line.connection.pause_writing()
        sending = asyncio.create_task(line.connection.send_rest(pieces(), is_chunked=True))
        for _ in range(5):
            await asyncio.sleep(0)
        assert asked == [0]
        line.connection.resume_writing()
        await sending
        assert line.transport.sent == b"3\r\nabc\r\n" * 3 + b"0\r\n\r\n"

    play(scene)


def test_idle_connections_are_taken_youngest_first_and_only_open_ones() -> None:
    async def scene() -> None:
        idle = IdleConnections(60.0)
        lines = [Line() for _ in range(3)]
        for line in lines:
            idle.put(line.connection)
        lines[2].transport.abort()
        assert idle.take() is lines[1].connection
        idle.close()
        assert idle.take() is None
        assert lines[0].transport.is_aborted

    play(scene)


def test_a_head_says_what_it_must_and_is_one_head() -> None:
    assert request_head("GET", "/health", {}, 0) == b"GET /health HTTP/1.1\r\nHost: engine\r\nAccept: */*\r\n\r\n"
    head = request_head("POST", "/v1/x", {"accept": "a/b", "X-Umlaut": "ä\udcff"}, None)
    assert head == (
        b"POST /v1/x HTTP/1.1\r\nHost: engine\r\naccept: a/b\r\nX-Umlaut: \xc3\xa4\xff\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    for path, value in (("/a b", "x"), ("/a\r\nX: y", "x"), ("/a", "x\r\nY: z")):
        with pytest.raises(ValueError, match="end of line or a blank"):
            request_head("POST", path, {"X": value}, 0)
