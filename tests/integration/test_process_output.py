"""Lines out of bytes, the ring that keeps them, and its followers."""

import asyncio
import gc
import os

import pytest

from vllamad.domain.ports import OutputLine
from vllamad.process.output import MAX_LINE_BYTES, LineRing, LineSplitter, PipeReader


def split(*parts: bytes) -> list[str]:
    splitter = LineSplitter()
    lines = [line for part in parts for line in splitter.feed(part)]
    return lines + splitter.end()


def test_lines_are_found_wherever_the_bytes_are_cut() -> None:
    data = "eins\nzwei\r\n\n  \rdrei äöü\nvier".encode()
    for cut in range(len(data) + 1):
        assert split(data[:cut], data[cut:]) == ["eins", "zwei", "drei äöü", "vier"]


def test_a_progress_bar_is_a_line_per_redraw() -> None:
    assert split(b"\rload:   0%\rload: 100%\nload: done\n") == ["load:   0%", "load: 100%", "load: done"]


def test_invalid_utf8_and_terminal_controls_do_no_harm() -> None:
    assert split(b"a\xff\xfeb\n\x1b[31mred\x1b[0m \x1b]0;\x07 bell\n") == ["a\ufffd\ufffdb", "red 0; bell"]


@pytest.mark.parametrize("step", [1000, 64 * 1024, 10**6])
def test_long_lines_are_cut_once_and_hold_no_memory(step: int) -> None:
    data = b"x" * 300_000 + b"\nnext\n"
    splitter = LineSplitter()
    lines: list[str] = []
    for at in range(0, len(data), step):
        lines += splitter.feed(data[at : at + step])
        assert len(splitter._rest) <= MAX_LINE_BYTES
    assert lines == ["x" * MAX_LINE_BYTES + " …", "next"]


def test_reader_sees_lines_and_the_end() -> None:
    async def scene() -> None:
        read_end, write_end = os.pipe()
        lines: list[str] = []
        ended = asyncio.Event()

        def take(line: str) -> None:
            lines.append(line)
            if line == "last":
                ended.set()

        reader = PipeReader(read_end, take)
        os.write(write_end, b"first\nlast")
        os.close(write_end)
        async with asyncio.timeout(5):
            await ended.wait()
        assert lines == ["first", "last"]
        reader.close()
        reader.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(read_end)

    asyncio.run(scene(), debug=True)


def test_closing_a_reader_drains_what_is_there_though_the_writer_lives() -> None:
    async def scene() -> None:
        read_end, write_end = os.pipe()
        lines: list[str] = []
        reader = PipeReader(read_end, lines.append)
        os.write(write_end, b"one\ntwo")
        reader.close()
        assert lines == ["one", "two"]
        os.close(write_end)

    asyncio.run(scene(), debug=True)


def test_ring_keeps_the_newest_and_counts_all() -> None:
    ring = LineRing(capacity=3, time=lambda: 7.0)
    for i in range(5):
        ring.append(f"line {i}")
    assert ring.tail(-1) == [OutputLine(n, 7.0, f"line {n - 1}") for n in (3, 4, 5)]
    assert [line.number for line in ring.tail(2)] == [4, 5]
    assert ring.tail(0) == []
    assert len(ring.tail(99)) == 3


def test_ring_takes_over_what_several_workers_bring_along_once() -> None:
    before, ring = LineRing(), LineRing()
    for text in ("one", "two"):
        before.append(text)
    ring.restore(before.tail(-1))
    ring.restore(before.tail(-1))
    ring.append("three")
    assert [(line.number, line.text) for line in ring.tail(-1)] == [(1, "one"), (2, "two"), (3, "three")]


def test_followers_get_every_line_from_now_on_and_slow_ones_see_the_gap() -> None:
    async def scene() -> None:
        ring = LineRing(capacity=10, follower_capacity=2)
        ring.append("before")
        quick, slow = ring.follow(), ring.follow()
        got: list[int] = []
        for i in range(5):
            ring.append(f"line {i}")
            got.append((await anext(quick)).number)
        assert got == [2, 3, 4, 5, 6]
        assert [(await anext(slow)).number for _ in range(2)] == [5, 6]
        waiting = asyncio.create_task(anext(slow))
        await asyncio.sleep(0)
        ring.append("woken")
        async with asyncio.timeout(5):
            assert (await waiting).text == "woken"

    asyncio.run(scene(), debug=True)


def test_a_follower_that_was_dropped_is_forgotten() -> None:
    async def scene() -> None:
        ring = LineRing()
        task = asyncio.create_task(_read_all(ring))
        await asyncio.sleep(0)
        assert len(ring._followers) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del task
        await asyncio.sleep(0)
        gc.collect()
        assert len(ring._followers) == 0

    asyncio.run(scene())


async def _read_all(ring: LineRing) -> None:
    async for _line in ring.follow():
        pass
