"""What grows with what there is much of: models in the store, requests that wait, connections that do nothing."""

import contextlib
import http.client
import json
import resource
import socket
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

from benchmarks.client import BenchFailed
from benchmarks.machine import cpu_s, resident_mb
from benchmarks.measuring import Effort, HeardDaemon, Say, daemon_of, pid_of, run_s
from benchmarks.report import Row
from benchmarks.samples import Samples
from tests.fakes.daemon import FAKE_PYTHON, Daemon
from vllamad.domain.names import ModelRef
from vllamad.hub.store import ModelStore

MODELS = (10, 1000)
WAITING = (10, 1000)
IDLE = (10, 5000)
QUICK, SLOW = "quick:latest", "slow:latest"
LOADING_S = 3600.0
"""Longer than anything here: what waits for that model goes on waiting."""

SETTLE_S = 1.0
CHAT = {"model": QUICK, "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 1}}


def measure_scaling(effort: Effort, say: Say) -> list[Row]:
    """Everything on this page."""
    rows: list[Row] = []
    for count in MODELS:
        rows += _models(count, effort.calls)
        say(f"{count} models: done")
    for count in WAITING:
        rows += _waiting(count, effort.calls)
        say(f"{count} waiting requests: done")
    for count in IDLE:
        rows += _idle(count, effort.calls)
        say(f"{count} idle connections: done")
    return rows


def _models(count: int, calls: int) -> list[Row]:
    with daemon_of(FAKE_PYTHON, m={}) as daemon:
        _copy_model(daemon.state / "models", count)
        started = time.perf_counter()
        daemon.start()
        start_s = time.perf_counter() - started
        pid = pid_of(daemon)
        with connected(daemon) as ask:
            assert len(json.loads(ask("GET", "/api/tags"))["models"]) == count
            tags, cpu = timed(lambda: ask("GET", "/api/tags"), calls, pid)
        listing = [sys.executable, "-m", "vllamactl", f"--socket={daemon.socket}", "list"]
        run_s(listing, daemon.environment)
        lists = [run_s(listing, daemon.environment) for _ in range(calls)]
        name = f"{count:,} models in the store"
        return [
            Row(f"{name}: launch to READY", "s", Samples.of([start_s])),
            Row(f"{name}: /api/tags", "ms", tags),
            Row(f"{name}: /api/tags, daemon's CPU", "ms", cpu),
            Row(f"{name}: vllamactl list", "s", Samples.of(lists)),
            Row(f"{name}: memory", "MB", Samples.of([resident_mb(pid)])),
        ]


def _copy_model(folder: Path, count: int) -> None:
    """So many names for the one model that is there."""
    store = ModelStore(folder)
    (model,) = store.load()
    for number in range(1, count):
        store.copy(model, ModelRef.parse(f"{model.ref.model}{number}"))


def _waiting(count: int, calls: int) -> list[Row]:
    """A short answer of one model while so many requests wait for another that loads."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(
            _daemon({"quick": {}, "slow": {"load_s": LOADING_S}}, VLLAMA_SCHEDULER_MAX_QUEUE=str(10 * count))
        )
        daemon.ctl("load", QUICK)
        body = json.dumps(CHAT | {"model": SLOW}).encode()
        head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        waiting = [stack.enter_context(_open(daemon)) for _ in range(count)]
        for each in waiting:
            each.sendall(head + body)
        with connected(daemon) as ask:
            _until(lambda: json.loads(ask("GET", "/health"))["queue"]["waiting"] == count, "the requests do not wait")
            times, cpu = timed(lambda: ask("POST", "/api/chat", CHAT), calls, pid_of(daemon))
            before = cpu_s(pid_of(daemon))
            time.sleep(SETTLE_S)
            idle_ms = (cpu_s(pid_of(daemon)) - before) * 1000 / SETTLE_S
        for each in waiting:
            each.close()
        name = f"{count:,} requests wait for another model"
        return [
            Row(f"{name}: an answer of one token", "ms", times),
            Row(f"{name}: that answer, daemon's CPU", "ms", cpu),
            Row(f"{name}: daemon's CPU meanwhile", "ms/s", Samples.of([idle_ms])),
        ]


def _idle(count: int, calls: int) -> list[Row]:
    """A short answer beside so many connections that have asked once and now do nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 100:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 1000), hard))
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(_daemon({"quick": {}}))
        daemon.ctl("load", QUICK)
        pid = pid_of(daemon)
        with connected(daemon) as ask:
            timed(lambda: ask("POST", "/api/chat", CHAT), calls, pid)
            before_mb = resident_mb(pid)
            for _ in range(count):
                one = stack.enter_context(_open(daemon))
                one.sendall(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if b"200 OK" not in one.recv(4096):
                    raise BenchFailed("a connection was not served")
            times, cpu = timed(lambda: ask("POST", "/api/chat", CHAT), calls, pid)
            added_kb = 1000 * (resident_mb(pid) - before_mb) / count
        name = f"{count:,} idle connections"
        return [
            Row(f"{name}: an answer of one token", "ms", times),
            Row(f"{name}: that answer, daemon's CPU", "ms", cpu),
            Row(f"{name}: memory of the daemon", "MB", Samples.of([resident_mb(pid)])),
            Row(f"{name}: memory of each", "kB", Samples.of([added_kb])),
        ]


@contextlib.contextmanager
def _daemon(models: dict[str, dict[str, object]], **environment: str) -> Generator[Daemon]:
    daemon = HeardDaemon(FAKE_PYTHON, {"PYTHONWARNINGS": "", **environment})
    try:
        for name, faults in models.items():
            daemon.add_model(f"{name}:latest", **faults)
        yield daemon.start()
    finally:
        daemon.close()


Ask = Callable[..., bytes]


@contextlib.contextmanager
def connected(daemon: Daemon) -> Generator[Ask]:
    """A function that asks on one connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)

    def ask(method: str, path: str, body: object = None) -> bytes:
        connection.request(method, path, json.dumps(body).encode() if body is not None else None)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise BenchFailed(f"{path}: {answer.status} {data[:300]!r}")
        return data

    try:
        yield ask
    finally:
        connection.close()


def timed(call: Callable[[], object], calls: int, pid: int) -> tuple[Samples, Samples]:
    """Wall time of each call, and what it cost a process, in ms; the first one is for warming up."""
    walls: list[float] = []
    cpus: list[float] = []
    for number in range(calls + 1):
        before, started = cpu_s(pid), time.perf_counter()
        call()
        if number:
            walls.append(1000 * (time.perf_counter() - started))
            cpus.append(1000 * (cpu_s(pid) - before))
    return Samples.of(walls), Samples.of(cpus)


@contextlib.contextmanager
def _open(daemon: Daemon) -> Generator[socket.socket]:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as made:
        yield made


def _until(is_so: Callable[[], bool], problem: str) -> None:
    ends_at = time.monotonic() + 60
    while not is_so():
        if time.monotonic() > ends_at:
            raise BenchFailed(problem)
        time.sleep(0.1)
