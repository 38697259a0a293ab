"""Files on their way in (floor 3): the port ``Uploads`` without blocking the loop or leaving halves behind."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec

from vllamad.domain.ports import Upload, Uploads

P = ParamSpec("P")


class Incoming:
    """One upload that is open."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""
        await _in_thread(self._upload.write, data)

    async def finish(self) -> None:
        """Check it and make it known. Raises INVALID_REQUEST if it is not what was announced."""
        await _in_thread(self._upload.finish)


async def _in_thread(work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Cancelling waits for it: the file must not be closed under a write."""
    future = asyncio.get_running_loop().run_in_executor(None, lambda: work(*args, **kwargs))
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


class Receiving:
    """What the faces need of uploads."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    async def find(self, sha256: str) -> Path | None:
        """The file with this digest, or None."""
        return await asyncio.to_thread(self._uploads.find, sha256)

    @asynccontextmanager
    async def receive(self, sha256: str, size_bytes: int) -> AsyncGenerator[Incoming, None]:
        """Receive a file in the body of the ``async with``; if that is left before ``finish``, nothing of it stays."""
        upload = await asyncio.to_thread(self._uploads.begin, sha256, size_bytes)
        try:
            yield Incoming(upload)
        finally:
            # Not awaited: it runs in the middle of a cancellation, and unlinking one file takes no time.
            upload.abandon()
