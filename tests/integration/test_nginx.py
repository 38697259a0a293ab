"""The example for nginx, in front of a real daemon: tokens as they come, hang-ups, pictures, websockets' headers."""

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.daemon import Daemon

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
EXAMPLE = Path(__file__).parents[2] / "packaging/examples/nginx.conf"
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture(scope="module")
def port(house: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where nginx listens, with the example as it is but for the two ports."""
    folder = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site = EXAMPLE.read_text()
    for old, new in (("listen 8080;", f"listen 127.0.0.1:{port};"), ("127.0.0.1:11434", f"127.0.0.1:{house.port}")):
        assert site.count(old) == 1
        site = site.replace(old, new)
    (folder / "site.conf").write_text(site)
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}\ninclude {folder}/site.conf;\n}}\n"
    )
    assert NGINX is not None
    server = subprocess.Popen([NGINX, "-p", str(folder), "-c", "nginx.conf", "-e", str(folder / "error.log")])
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "error.log").read_text()
                time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def ask(port: int, body: dict[str, object], path: str = "/api/chat") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def running(house: Daemon) -> int:
    return json.loads(house.ctl("--json", "status").stdout).get("active_requests", 0)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_tokens_come_as_they_are_made_and_a_hang_up_ends_them(house: Daemon, port: int, path: str) -> None:
    answer = ask(port, {"model": "endless", "stream": True, **CHAT}, path)
    assert answer.status == 200
    seen = [answer.readline() for _ in range(20)]  # of an answer that takes a quarter of an hour
    assert b"content" in b"".join(seen)
    assert running(house) == 1
    answer.close()
    deadline = time.monotonic() + 10
    while running(house):
        assert time.monotonic() < deadline, "the generation goes on"
        time.sleep(0.05)


def test_large_requests_pass_and_both_logs_know_them_by_one_id(house: Daemon, port: int) -> None:
    answer = ask(port, {"model": "tiny", "stream": False, "unknown": "x" * 3_000_000, **CHAT})
    assert answer.status == 200, answer.read()
    assert json.loads(answer.read())["done"] is True
    identity = answer.headers["X-Request-Id"]
    assert len(identity) == 32 and f"id={identity}" in house.log_text()


def test_other_sites_names_are_not_let_in_by_it(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/api/tags", headers={"Host": "evil.example", "Origin": "https://evil.example"})
    assert connection.getresponse().status == 403
