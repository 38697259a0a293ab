"""The kernel's copies of files in memory (floor 2): fills ``PageCache``.

An engine maps its weights, and a page that is not in memory is read when it is touched, one piece after the other. A
disk that is told all that will be needed (``POSIX_FADV_WILLNEED``) works on many pieces at once: 2 GiB came in 1.3 to
1.9 s instead of 9.5 to 11.5 s (a virtual disk, 2026-11). Nothing is copied, and what is there costs 12 ms a GiB.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

from vllamad.domain.ports import Prefetched

CHUNK_BYTES = 128 << 10
"""Asked for at once. Of more than its window for reading ahead the kernel leaves out the rest, without a word (Linux
6.18: half of each 16 MiB came); this is the window's usual size. The call waits while the disk's queue is full."""

MOST_OF_AVAILABLE = 0.5
"""The largest part of the memory that is available which weights may take. On CPU the engine makes a copy of them
beside; and what is pushed out for them may be what others run on."""

PATTERNS = ("*.safetensors", "*.bin", "*.pt")
"""What the engine reads, the first of which there is any (vLLM 0.32, load format "auto")."""


class PosixPageCache:
    """``available_bytes`` tells how much memory there is to be had now."""

    def __init__(self, available_bytes: Callable[[], int]) -> None:
        self._available_bytes = available_bytes

    async def prefetch(self, folder: Path) -> Prefetched:
        """See ``PageCache.prefetch``."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Prefetched] = loop.create_future()
        is_told_to_stop = threading.Event()

        def settle(found: Prefetched) -> None:
            if not done.done():
                done.set_result(found)

        def work() -> None:
            found = self._prefetch(folder, is_told_to_stop)
            if not is_told_to_stop.is_set():
                loop.call_soon_threadsafe(settle, found)

        # A thread of its own that nobody waits for: a disk that hangs must hold up neither other work nor our end.
        threading.Thread(target=work, name=f"prefetch {folder.name}", daemon=True).start()
        try:
            return await done
        finally:
            is_told_to_stop.set()

    def _prefetch(self, folder: Path, is_told_to_stop: threading.Event) -> Prefetched:
        try:
            files = weights_in(folder)
            total = sum(file.stat().st_size for file in files)
            room = int(self._available_bytes() * MOST_OF_AVAILABLE)
            if total > room:
                return Prefetched(0, f"{total} bytes are more than half of the memory that is available ({room})")
            done = 0
            for file in files:
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    size = os.fstat(descriptor).st_size
                    for offset in range(0, size, CHUNK_BYTES):
                        if is_told_to_stop.is_set():
                            return Prefetched(done, "stopped")
                        length = min(CHUNK_BYTES, size - offset)
                        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
                        done += length
                finally:
                    os.close(descriptor)
            return Prefetched(done)
        except OSError as error:  # the engine will meet it too, and say so where it matters
            return Prefetched(0, str(error))


def weights_in(folder: Path) -> list[Path]:
    """The files of weights in a model's folder, in the order in which they are read."""
    for pattern in PATTERNS:
        if found := sorted(folder.glob(pattern)):
            return found
    return []
