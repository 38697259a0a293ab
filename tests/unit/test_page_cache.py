"""Weights that are brought into the page cache: real files, and the kernel's own word for what it keeps."""

import asyncio
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vllamad.domain.ports import Prefetched
from vllamad.host.page_cache import CHUNK_BYTES, PosixPageCache, weights_in

PATIENCE_S = 20.0
PLENTY = 1 << 40


def resident_share(file: Path) -> float:
    """The part of a file's pages that are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = file.stat().st_size
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, mmap.MAP_PRIVATE) as view:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        address = ctypes.c_char.from_buffer(view)
        found = libc.mincore(ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(size), pages)
        del address
        assert found == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages) / len(pages)


def drop(file: Path) -> None:
    """Have the kernel forget a file."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def prefetch(cache: PosixPageCache, folder: Path) -> Prefetched:
    return asyncio.run(asyncio.wait_for(cache.prefetch(folder), PATIENCE_S))


def test_all_of_a_files_pages_are_there_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(40 * CHUNK_BYTES + 1))
    drop(file)
    if resident_share(file) > 0.1:
        pytest.skip("this file system does not forget what it was told to forget")
    assert prefetch(PosixPageCache(lambda: PLENTY), tmp_path) == Prefetched(file.stat().st_size)
    deadline = time.monotonic() + PATIENCE_S
    while resident_share(file) < 1.0:
        assert time.monotonic() < deadline, resident_share(file)
        time.sleep(0.01)


def test_what_would_push_others_out_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    cache = PosixPageCache(lambda: 1999)
    assert prefetch(cache, tmp_path) == Prefetched(
        0, "1000 bytes are more than half of the memory that is available (999)"
    )
    assert prefetch(PosixPageCache(lambda: 2000), tmp_path) == Prefetched(1000)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    assert "No such file" in prefetch(PosixPageCache(lambda: PLENTY), tmp_path).why
    assert prefetch(PosixPageCache(lambda: PLENTY), tmp_path / "nowhere") == Prefetched(0)


def test_the_engines_choice_of_files(tmp_path: Path) -> None:
    for name in ("b.bin", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "config.json"):
        (tmp_path / name).touch()
    names = [file.name for file in weights_in(tmp_path)]
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_whoever_gives_up_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(8 * CHUNK_BYTES))
    asked, may_go_on = threading.Event(), threading.Event()
    offsets: list[int] = []

    def slow(_descriptor: int, offset: int, _length: int, _advice: int) -> None:
        offsets.append(offset)
        asked.set()
        assert may_go_on.wait(PATIENCE_S)

    monkeypatch.setattr(os, "posix_fadvise", slow)

    async def scene() -> None:
        asking = asyncio.create_task(PosixPageCache(lambda: PLENTY).prefetch(tmp_path))
        await asyncio.to_thread(asked.wait, PATIENCE_S)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled(), "the loop does not wait for the disk"
        may_go_on.set()
        await _until(lambda: not any(one.name.startswith("prefetch") for one in threading.enumerate()))

    asyncio.run(scene())
    assert offsets == [0]


async def _until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_true():  # noqa: ASYNC110 - threads do not tell of their ends
            await asyncio.sleep(0.001)
