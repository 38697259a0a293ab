"""The process that asks and holds the stopwatch. A line of JSON in is a round of requests, a line out its answers.

A process of its own, so that asking costs nothing in the one that measures, and the same process for both sides of a
comparison. While the clock runs, bytes are kept as they come and nothing is parsed.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import aiohttp
import uvloop

from benchmarks.answers import Answer, BadAnswer, Dialect, read_answer

Reads = list[tuple[float, bytes]]


async def ask(session: aiohttp.ClientSession, url: str, body: bytes) -> Reads:
    """One request; what came, by seconds after it was sent."""
    reads: Reads = []
    started = time.perf_counter()
    async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
        async for chunk in answer.content.iter_any():
            reads.append((time.perf_counter() - started, chunk))
        if answer.status != 200:
            raise BadAnswer(f"status {answer.status}: {b''.join(chunk for _, chunk in reads)[:300]!r}")
    return reads


async def play(session: aiohttp.ClientSession, url: str, dialect: Dialect, bodies: list[bytes]) -> dict[str, Any]:
    """All requests of a round at once."""
    cpu_s, started = time.process_time(), time.perf_counter()
    streams = await asyncio.gather(*(ask(session, url, body) for body in bodies))
    spent_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    answers: list[Answer] = [read_answer(dialect, reads) for reads in streams]
    reads = sum(len(each) for each in streams)
    return {"spent_s": spent_s, "cpu_s": cpu_s, "reads": reads, "answers": [asdict(answer) for answer in answers]}


async def serve() -> None:
    """Play rounds until there is no more line. Connections are kept between the rounds on one target."""
    loop = asyncio.get_running_loop()
    sessions: dict[str, aiohttp.ClientSession] = {}
    try:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            session = sessions.get(asked["socket"])
            if session is None:
                session = sessions[asked["socket"]] = _session(asked["socket"])
            bodies = [json.dumps(body).encode() for body in asked["bodies"]]
            try:
                async with asyncio.timeout(asked["deadline_s"]):
                    told = await play(session, asked["url"], asked["dialect"], bodies)
            except (BadAnswer, aiohttp.ClientError, OSError, TimeoutError) as error:
                told = {"error": str(error) or f"{type(error).__name__} after {asked['deadline_s']:.0f} s"}
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
    finally:
        for session in sessions.values():
            await session.close()


def _session(path: str) -> aiohttp.ClientSession:
    connector = aiohttp.UnixConnector(path, limit=0) if path else aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
