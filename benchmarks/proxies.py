"""What stands in the daemon's place for a comparison: a pipe that moves bytes unread, and nginx as a plain proxy.

nginx is the best that is known at passing a stream on. It is only measured where it is installed.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import ROOT, BenchFailed, Target
from benchmarks.machine import cpu_s

START_S = 5.0
NGINX = """
daemon off;
master_process off;
{user}
error_log {folder}/error.log warn;
pid {folder}/pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream engine {{ server unix:{socket}; keepalive 256; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Way:
    """Whom to ask, and the process that stands between, or several: whose CPU counts."""

    target: Target
    pid: int
    others: tuple[int, ...] = ()

    def cpu_s(self) -> list[float]:
        """What each has used so far."""
        return [cpu_s(pid) for pid in (self.pid, *self.others)]


@contextlib.contextmanager
def pipe_to(worker: Target) -> Generator[Way]:
    """A pipe in front of a worker."""
    command = [sys.executable, "-m", "benchmarks.pipe_process", worker.socket]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            yield Way(Target.passing(int(child.stdout.readline())), child.pid)
        finally:
            child.stdin.close()


def nginx_program() -> str | None:
    """Where nginx is; the variable NGINX may name it."""
    return shutil.which(os.environ.get("NGINX") or "nginx", path=os.environ["PATH"] + ":/usr/sbin")


@contextlib.contextmanager
def nginx_to(worker: Target, program: str) -> Generator[Way]:
    """nginx in front of a worker, as one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="vl-nginx-") as name:
        folder = Path(name)
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, socket=worker.socket, port=port, user=user))
        command = [program, "-p", name, "-c", "nginx.conf", "-e", f"{folder}/error.log"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
            try:
                _wait_for(child, port)
                yield Way(Target.passing(port), child.pid)
            finally:
                child.terminate()


def _wait_for(child: "subprocess.Popen[str]", port: int) -> None:
    ends_at = time.monotonic() + START_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if child.poll() is not None or time.monotonic() > ends_at:
            child.terminate()
            assert child.stderr is not None
            raise BenchFailed(f"nginx did not start: {child.stderr.read()[-300:]}")
        time.sleep(0.02)
