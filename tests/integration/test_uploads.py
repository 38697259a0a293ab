"""Files that clients send, on a real disk and through the HTTP face."""

import asyncio
import hashlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.http_services import make_world, model
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.http.server import HttpServer, make_app
from vllamad.hub.uploads import KEPT_S, UploadFolder
from vllamad.models.receiving import Receiving

DATA = b"a model, or so it says" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


class Moment:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        import time

        return time.time() + self.ahead_s


@pytest.fixture
def moment() -> Moment:
    return Moment()


@pytest.fixture
def uploads(tmp_path: Path, moment: Moment) -> UploadFolder:
    (tmp_path / "blobs").mkdir()
    return UploadFolder(tmp_path / "uploads", tmp_path / "blobs", now=moment)


def send(uploads: UploadFolder, data: bytes = DATA, digest: str = DIGEST) -> None:
    upload = uploads.begin(digest, len(data))
    upload.write(data[:100])
    upload.write(data[100:])
    upload.finish()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_an_upload_is_found_by_its_digest_in_any_case(uploads: UploadFolder, tmp_path: Path) -> None:
    assert uploads.find(DIGEST) is None
    send(uploads)
    assert uploads.find(DIGEST.upper()) == tmp_path / "uploads" / f"sha256-{DIGEST}"
    assert (tmp_path / "uploads" / f"sha256-{DIGEST}").read_bytes() == DATA


def test_what_the_store_has_need_not_be_sent(uploads: UploadFolder, tmp_path: Path) -> None:
    (tmp_path / "blobs" / f"sha256-{DIGEST}").write_bytes(DATA)
    assert uploads.find(DIGEST) == tmp_path / "blobs" / f"sha256-{DIGEST}"
    uploads.discard(DIGEST)
    assert uploads.find(DIGEST) is not None


def test_other_bytes_than_announced_are_refused_and_removed(uploads: UploadFolder, tmp_path: Path) -> None:
    with pytest.raises(VllamaError) as caught:
        send(uploads, data=b"something else entirely")
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert f'expected "sha256:{DIGEST}"' in caught.value.message
    assert names(tmp_path / "uploads") == []


def test_an_upload_goes_after_an_hour_unless_somebody_asks_for_it(
    uploads: UploadFolder, tmp_path: Path, moment: Moment
) -> None:
    send(uploads)
    moment.ahead_s = KEPT_S - 60
    uploads.sweep()
    assert uploads.find(DIGEST) is not None
    moment.ahead_s = KEPT_S + 60
    uploads.sweep()
    assert names(tmp_path / "uploads") == []


def test_what_a_crash_left_goes_at_the_next_start(uploads: UploadFolder, tmp_path: Path) -> None:
    uploads.begin(DIGEST, 10).write(b"half")
    assert len(names(tmp_path / "uploads")) == 1
    uploads.sweep()
    assert len(names(tmp_path / "uploads")) == 1  # somebody may be writing it
    uploads.sweep(all_temporary=True)
    assert names(tmp_path / "uploads") == []


def test_a_file_that_cannot_fit_is_refused_before_its_first_byte(uploads: UploadFolder, tmp_path: Path) -> None:
    too_much = shutil.disk_usage(tmp_path).free * 2
    with pytest.raises(VllamaError) as caught:
        uploads.begin(DIGEST, too_much)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert names(tmp_path / "uploads") == []


# --- over HTTP ---


def over_http(uploads: UploadFolder, scene: Callable[[aiohttp.ClientSession, str], Awaitable[None]]) -> None:
    async def run() -> None:
        world = make_world(model("m"))
        services = world.services
        object.__setattr__(services, "uploads", Receiving(uploads))
        server = HttpServer(make_app(services), "127.0.0.1", 0)
        await server.start()
        try:
            async with aiohttp.ClientSession() as session, asyncio.timeout(20):
                await scene(session, f"http://{server.addresses[0]}/api/blobs/sha256:")
        finally:
            await server.close()

    asyncio.run(run())


def test_a_blob_is_sent_once(uploads: UploadFolder) -> None:
    async def scene(session: aiohttp.ClientSession, url: str) -> None:
        async with session.head(url + DIGEST) as answer:
            assert answer.status == 404
        async with session.post(url + DIGEST, data=DATA) as answer:
            assert (answer.status, await answer.read()) == (201, b"")
        async with session.head(url + DIGEST) as answer:
            assert answer.status == 200
        async with session.post(url + DIGEST, data=DATA) as answer:
            assert (answer.status, await answer.read()) == (200, b"")

    over_http(uploads, scene)


def test_a_blob_may_be_larger_than_a_body_and_come_without_its_length(uploads: UploadFolder) -> None:
    block = bytes(range(256)) * 4096  # 1 MiB, sent 80 times: more than limits.max_body_bytes
    digest = hashlib.sha256()
    for _ in range(80):
        digest.update(block)

    async def blocks():
        for _ in range(80):
            yield block

    async def scene(session: aiohttp.ClientSession, url: str) -> None:
        async with session.post(url + digest.hexdigest(), data=blocks()) as answer:
            assert answer.status == 201
        found = uploads.find(digest.hexdigest())
        assert found is not None and found.stat().st_size == 80 << 20

    over_http(uploads, scene)


def test_a_client_that_leaves_in_the_middle_leaves_nothing(uploads: UploadFolder, tmp_path: Path) -> None:
    async def scene(session: aiohttp.ClientSession, url: str) -> None:
        host, port = session_address(url)
        _, writer = await asyncio.open_connection(host, port)
        head = f"POST /api/blobs/sha256:{DIGEST} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5000000\r\n\r\n"
        writer.write(head.encode() + b"x" * 2_000_000)
        await writer.drain()
        while not (tmp_path / "uploads").is_dir() or not names(tmp_path / "uploads"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        writer.close()
        while names(tmp_path / "uploads"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    over_http(uploads, scene)


def session_address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").partition("/")[0].split(":")
    return host, int(port)
