"""Images by address: refused unless configured, and never from this network."""

import asyncio
import base64
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.fakes.wire import Request, Wire, whole, wire
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.http import remote_images
from vllamad.http.remote_images import MAX_REDIRECTS, RemoteImages, is_public
from vllamad.http.services import Policy

PIXEL = b"\x89PNG\r\n\x1a\n not really"
LIMIT = 4096


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.0.8", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1",
        "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1", "2001:0:7f00:1::1", "::7f00:1",
        "2001:db8::1", "not an address",
    ],
)  # fmt: skip
def test_addresses_that_are_never_asked(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_the_public_internet(address: str) -> None:
    assert is_public(address)


def site(handler: Callable[[web.Request], Awaitable[web.StreamResponse]], work: Callable[[str], Awaitable[Any]]) -> Any:
    """Run ``work`` with the address of a little web server."""

    async def scene() -> Any:
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        async with TestServer(app) as server:
            return await work(f"http://{server.host}:{server.port}")

    return asyncio.run(scene())


async def pixel(request: web.Request) -> web.StreamResponse:
    assert "Authorization" not in request.headers and "Cookie" not in request.headers
    return web.Response(body=PIXEL, content_type="image/png")


def refused(error: pytest.ExceptionInfo[VllamaError]) -> tuple[Reason, str]:
    return error.value.reason, error.value.message


def test_an_image_becomes_a_data_url() -> None:
    found = site(pixel, lambda url: RemoteImages(LIMIT, lambda _address: True).fetch(f"{url}/a.png"))
    assert found == "data:image/png;base64," + base64.b64encode(PIXEL).decode()


def test_the_images_of_a_request_share_one_limit() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(1800), content_type="image/png")

    async def work(url: str) -> None:
        images = RemoteImages(LIMIT, lambda _address: True)
        assert len(await images.fetch_all([url] * 2)) == 2
        with pytest.raises(VllamaError, match="bytes that are left for it"):
            await images.fetch_all([url] * 3)
        with pytest.raises(VllamaError, match="may name 16 of them"):
            await images.fetch_all([url] * 17)

    site(handler, work)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0x7f000001", "2130706433", "127.1"])
def test_this_machine_is_not_asked_however_it_is_written(host: str) -> None:
    hits: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        hits.append(request.path)
        return web.Response()

    async def work(url: str) -> None:
        port = url.rpartition(":")[2]
        with pytest.raises(VllamaError) as caught:
            await RemoteImages(LIMIT).fetch(f"http://{host}:{port}/a.png")
        assert caught.value.reason in {Reason.PERMISSION_DENIED, Reason.INVALID_REQUEST}

    site(handler, work)
    assert hits == []


def test_a_name_with_one_address_here_is_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was looked at is the one that is connected to: no second look-up could say otherwise."""

    async def lookup(self: Any, host: str, port: int, **more: Any) -> list[Any]:
        asked.append(host)
        found = [("1.1.1.1", port), ("127.0.0.1", port)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

    asked: list[str] = []
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    with pytest.raises(VllamaError) as caught:
        asyncio.run(RemoteImages(LIMIT).fetch("http://rebind.example/a.png"))
    assert refused(caught)[0] is Reason.PERMISSION_DENIED
    assert asked == ["rebind.example"]


def test_redirections_pass_the_same_gate() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/here":
            raise web.HTTPFound("/a.png")
        if request.path == "/inside":
            raise web.HTTPFound("http://169.254.169.254/latest")
        if request.path == "/file":
            raise web.HTTPFound("file:///etc/passwd")
        if request.path == "/round":
            raise web.HTTPFound("/round")
        return await pixel(request)

    async def work(url: str) -> None:
        images = RemoteImages(LIMIT, lambda address: address.startswith("127."))
        assert (await images.fetch(f"{url}/here")).startswith("data:image/png")
        for path, reason in (
            ("inside", Reason.PERMISSION_DENIED),
            ("file", Reason.INVALID_REQUEST),
            ("round", Reason.INVALID_REQUEST),
        ):
            with pytest.raises(VllamaError) as caught:
                await images.fetch(f"{url}/{path}")
            assert caught.value.reason is reason
        assert f"more than {MAX_REDIRECTS} redirections" in caught.value.message

    site(handler, work)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("large", "larger than the 4096 bytes"),
        ("page", "no image"),
        ("gone", "answered 404"),
        ("endless", "larger than"),
    ],
)
def test_what_is_no_image_or_too_large(path: str, told: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if path == "gone":
            return web.Response(status=404)
        if path == "endless":
            answer = web.StreamResponse(headers={"Content-Type": "image/png"})
            await answer.prepare(request)
            while True:
                await answer.write(bytes(1000))
        return web.Response(body=bytes(5000), content_type="text/html" if path == "page" else "image/png")

    async def work(url: str) -> None:
        with pytest.raises(VllamaError, match=told) as caught:
            await RemoteImages(LIMIT, lambda _address: True).fetch(f"{url}/{path}")
        assert caught.value.reason is Reason.INVALID_REQUEST

    site(handler, work)


def test_a_site_that_says_nothing_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_images, "DEADLINE_S", 0.2)

    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    async def work(url: str) -> None:
        with pytest.raises(VllamaError, match="did not come within"):
            await RemoteImages(LIMIT, lambda _address: True).fetch(url)

    site(handler, work)


@pytest.mark.parametrize("text", ["ftp://x/a", "file:///etc/passwd", "http://", "//x/a", "http://user:pw@x/a", "x"])
def test_only_plain_web_addresses(text: str) -> None:
    with pytest.raises(VllamaError) as caught:
        asyncio.run(RemoteImages(LIMIT).fetch(text))
    assert caught.value.reason is Reason.INVALID_REQUEST


# --- on the face -----------------------------------------------------------------------------------------------------


def content(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"model": "m", "messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize("is_on", [False, True])
def test_the_engine_never_gets_an_address(is_on: bool) -> None:
    import aiohttp

    async def engine(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"{}"))

    async def scene() -> Wire:
        async with wire(engine, policy=Policy(remote_images=is_on)) as made, aiohttp.ClientSession() as session:
            for url in ("http://127.0.0.1:1/a.png", "https://10.0.0.1/a.png"):
                async with session.post(f"{made.url}/v1/chat/completions", json=content(url)) as answer:
                    assert answer.status == (403 if is_on else 400)
                    said = (await answer.json())["error"]["message"]
                    assert ("not on the public internet" in said) is is_on
            async with session.post(
                f"{made.url}/v1/chat/completions", json=content("data:image/png;base64,aGk=")
            ) as ok:
                assert ok.status == 200
            return made

    made = asyncio.run(scene())
    assert [request.fields["messages"][0]["content"][0]["image_url"]["url"] for request in made.requests] == [
        "data:image/png;base64,aGk="
    ]
