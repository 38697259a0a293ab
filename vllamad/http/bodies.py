"""Request bodies (floor 4): read up to a limit of our own, and big ones parsed off the loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aiohttp import web

from vllamad.dialects.ollama_errors import Refusal

T = TypeVar("T")

OFFLOAD_BYTES = 1024 * 1024
"""From here on JSON costs the loop milliseconds: other streams would stutter."""


class Bodies:
    """Reads bodies. One per application; ``close`` ends its threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        """Of bodies that are begun from now on."""
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="json")

    async def read(self, request: web.Request) -> bytes:
        """The whole body. Raises a refusal with status 413 once it is over the limit, without reading on."""
        if not request.can_read_body:
            return b""
        return b"".join([part async for part in self.pieces(request)])

    async def pieces(self, request: web.Request) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises the same refusal."""
        most = self.max_bytes
        if (request.content_length or 0) > most:
            raise _too_large(most)
        size = 0
        async for part in request.content.iter_any():
            size += len(part)
            if size > most:
                raise _too_large(most)
            yield part

    async def work(self, size: int, work: Callable[[], T]) -> T:
        """Run ``work`` here, or in a thread if it has to do with more than ``OFFLOAD_BYTES``."""
        if size < OFFLOAD_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"request body is larger than {most} bytes", hint="send less, or raise server.max_body_bytes")
