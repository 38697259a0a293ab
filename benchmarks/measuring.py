"""What is measured: starting, the client's wall time, the gateway alone, loading, and streaming with a real engine.

Each function returns the rows it is good for, and leaves nothing running.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import ROOT, BenchFailed, Client, Target
from benchmarks.comparing import Comparison, compare, prompts
from benchmarks.machine import cpu_s, resident_mb
from benchmarks.report import Row, streams_of
from benchmarks.samples import Samples, pair_ratios
from tests.fakes.daemon import FAKE_PYTHON, Daemon

MODEL = "smollm2:135m"
MANIFEST = Path("manifests") / "smollm2=135m.json"
IDLE_S = 5.0
FAST, PACED = "fast:latest", "paced:latest"
FAKE_TOKENS = 1000
PACE_S = 0.02
"""A token every 20 ms on each stream: all arrive alone, as from an engine, not in heaps."""

LOAD_S = 900.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each thing is measured."""

    starts: int = 7
    calls: int = 10
    fake_pairs: int = 6
    answers: int = 30
    loads: int = 3
    single_pairs: int = 6
    many_pairs: int = 4
    many: int = 16
    most_pairs: int = 3
    most: int = 50
    source_rounds: int = 5
    single_tokens: int = 32
    many_tokens: int = 48
    path_pairs: int = 8


QUICK = Effort(
    starts=3,
    calls=5,
    fake_pairs=2,
    answers=10,
    loads=1,
    single_pairs=2,
    many_pairs=2,
    most_pairs=1,
    source_rounds=2,
    path_pairs=2,
)


class HeardDaemon(Daemon):
    """One whose notifications are read all the time, as a service manager does it: the kernel keeps ten of them, and
    holds up who sends the next."""

    _hearing: threading.Thread | None = None

    def start(self, *extra: str) -> "HeardDaemon":
        if self._hearing is not None:
            self._hearing.join()  # it would take what the next one says
        super().start(*extra)
        self._hearing = threading.Thread(target=self._hear, name="hearing")
        self._hearing.start()
        return self

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._hearing is not None:
                self._hearing.join()

    def _hear(self) -> None:
        while self.child is not None and self.child.poll() is None:
            try:
                self._notify.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return  # closed


@contextlib.contextmanager
def daemon_of(engine: Path, **faults: dict[str, Any]) -> Generator[Daemon]:
    """A daemon that is not started, in a folder of its own; ``faults`` are models of the fake engine."""
    # What a test wants to hear of Python's warnings costs time.
    environment = {"PYTHONWARNINGS": ""}
    if ROOT in engine.parents:  # a fake one: a zygote of it would be that of the tests
        environment["VLLAMA_ENGINE_ZYGOTE"] = "off"
    daemon = HeardDaemon(engine, environment)
    try:
        for name, values in faults.items():
            daemon.add_model(f"{name}:latest", **values)
        yield daemon
    finally:
        daemon.close()


def pid_of(daemon: Daemon) -> int:
    assert daemon.child is not None
    return daemon.child.pid


def worker_target(daemon: Daemon) -> Target:
    """The one worker that runs, asked past the daemon."""
    (path,) = (daemon.runtime / "workers").glob("*/s")
    return Target.worker(path)


def run_s(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of a command that must succeed."""
    started = time.perf_counter()
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    spent_s = time.perf_counter() - started
    if result.returncode != 0:
        raise BenchFailed(f"{' '.join(command)} ended with {result.returncode}: {result.stderr.decode()[-500:]}")
    return spent_s


def measure_start(effort: Effort) -> list[Row]:
    """From the launch of the daemon to its READY, its imports alone beside each, and its memory."""
    starts: list[float] = []
    imports: list[float] = []
    ready: list[float] = []
    with daemon_of(FAKE_PYTHON) as daemon:
        # Taking an interpreter down costs as much as a third of the imports, and no start waits for it.
        importing = [sys.executable, "-c", "import os, uvloop, vllamad.app; os._exit(0)"]
        run_s(importing, daemon.environment)
        for number in range(effort.starts):
            imports.append(run_s(importing, daemon.environment))
            started = time.perf_counter()
            daemon.launch()
            daemon.wait_told("READY=1", 60.0)
            starts.append(time.perf_counter() - started)
            ready.append(resident_mb(pid_of(daemon)))
            if number + 1 < effort.starts:
                daemon.stop()
        time.sleep(IDLE_S)
        idle = resident_mb(pid_of(daemon))
    one, other = Samples.of(starts), Samples.of(imports)
    return [
        Row("daemon: launch to READY", "s", one, "a process that only imports it", other, pair_ratios(one, other)),
        Row("daemon: memory at READY", "MB", Samples.of(ready)),
        Row(f"daemon: memory after {IDLE_S:.0f} s idle", "MB", Samples.of([idle])),
    ]


def measure_ps(effort: Effort) -> list[Row]:
    """Wall time of ``vllamactl ps`` with one model loaded, an interpreter that does nothing beside each."""
    with daemon_of(FAKE_PYTHON, fast={}) as daemon:
        daemon.start()
        daemon.ctl("load", FAST)
        listing = [sys.executable, "-m", "vllamactl", f"--socket={daemon.socket}", "ps"]
        run_s(listing, daemon.environment)
        lists: list[float] = []
        floors: list[float] = []
        for _ in range(effort.calls):
            floors.append(run_s([sys.executable, "-c", "pass"], daemon.environment))
            lists.append(run_s(listing, daemon.environment))
    one, other = Samples.of(lists), Samples.of(floors)
    return [Row("vllamactl ps", "s", one, "python -c pass", other, pair_ratios(one, other))]


def measure_gateway(effort: Effort, say: Say) -> list[Row]:
    """What the daemon itself can pass on, and at which price: the engine is a fake that only writes."""
    against = "the fake asked directly"
    rows: list[Row] = []
    paced: dict[str, Any] = {"tokens": FAKE_TOKENS, "token_delay_s": PACE_S}
    with daemon_of(FAKE_PYTHON, fast={"tokens": FAKE_TOKENS}, paced=paced) as daemon, Client() as client:
        daemon.start()
        pid, through = pid_of(daemon), Target.daemon(daemon.port)
        daemon.ctl("load", FAST)
        targets = (through, worker_target(daemon))
        found = compare(client, targets, FAST, pid, streams=1, tokens=1, pairs=effort.answers)
        rows += [
            found.first_row("gateway alone, an answer of one token: its first token", against),
            found.cpu_row("gateway alone, an answer of one token: daemon's CPU", "µs"),
        ]
        for streams, tokens in ((1, FAKE_TOKENS), (effort.many, FAKE_TOKENS // 2)):
            found = compare(
                client, targets, FAST, pid, streams=streams, tokens=tokens, pairs=effort.fake_pairs, watch=say
            )
            name = f"gateway alone, {streams_of(streams)} flat out"
            rows += [found.speed_row(name, against), found.cpu_row(f"{name}: daemon's CPU")]
        daemon.ctl("stop", FAST)
        daemon.ctl("load", PACED)
        spent: list[float] = []
        client.play(through, PACED, prompts(effort.many), 50)
        for _ in range(effort.fake_pairs):
            before = cpu_s(pid)
            played = client.play(through, PACED, prompts(effort.many), 100)
            spent.append((cpu_s(pid) - before) * 1e6 / played.tokens)
        name = f"gateway alone, {streams_of(effort.many)} at {1 / PACE_S:.0f} tokens/s each: daemon's CPU"
        rows.append(Row(name, "µs/token", Samples.of(spent)))
    return rows


def measure_engine(
    engine: Path, gguf: Path, kept: Path | None, effort: Effort, say: Say
) -> tuple[list[Row], dict[str, Any]]:
    """Loading and streaming with a real engine; also what runs it. ``kept``: a state folder that has the model."""
    with daemon_of(engine) as daemon:
        give_model(daemon, gguf, kept, say)
        rows = _loads(daemon, effort, say)
        with Client() as client:
            compared = _streaming(daemon, client, effort, say)
        rows += compared
        before = cpu_s(pid_of(daemon))
        time.sleep(IDLE_S)
        idle_ms = (cpu_s(pid_of(daemon)) - before) * 1000 / IDLE_S
        rows += [
            Row("daemon: CPU with an idle worker", "ms/s", Samples.of([idle_ms])),
            Row("daemon: memory after all streams", "MB", Samples.of([resident_mb(pid_of(daemon))])),
        ]
        about: dict[str, Any] = daemon.request("GET", "/health").json()["engine"]
    return rows, about


def _loads(daemon: Daemon, effort: Effort, say: Say) -> list[Row]:
    """A request that finds its model on disk only, to its first token. Leaves the model loaded."""
    through = Target.daemon(daemon.port)
    waits: list[float] = []
    owns: list[float] = []
    for number in range(effort.loads):
        if number:
            daemon.ctl("stop", MODEL, timeout=LOAD_S)
        with Client() as client:
            played = client.play(through, MODEL, prompts(1), 4, LOAD_S)
        waits.append(played.answers[0].first_s)
        (worker,) = daemon.workers()
        owns.append(float(worker["load_duration"].removesuffix("s")))
        say(f"load {number + 1} of {effort.loads}: {waits[-1]:.1f} s to the first token, {owns[-1]:.1f} s to READY")
    rows = [_load_row("load, engine's caches empty: request to first token", waits[:1], owns[:1])]
    if effort.loads > 1:
        rows.append(_load_row("load again: request to first token", waits[1:], owns[1:]))
    return rows


def _load_row(what: str, waits: list[float], owns: list[float]) -> Row:
    one, other = Samples.of(waits), Samples.of(owns)
    return Row(what, "s", one, "the engine's own start", other, pair_ratios(one, other))


def _streaming(daemon: Daemon, client: Client, effort: Effort, say: Say) -> list[Row]:
    against = "the worker asked directly"
    targets = (Target.daemon(daemon.port), worker_target(daemon))
    rows: list[Row] = []
    for streams, tokens, pairs in (
        (1, effort.single_tokens, effort.single_pairs),
        (effort.many, effort.many_tokens, effort.many_pairs),
        (effort.most, effort.many_tokens, effort.most_pairs),
    ):
        found: Comparison = compare(
            client, targets, MODEL, pid_of(daemon), streams=streams, tokens=tokens, pairs=pairs, watch=say
        )
        name = f"/api/chat, {streams_of(streams)}"
        rows += [
            found.speed_row(name, against),
            found.first_row(f"{name}: first token", against),
            found.cpu_row(f"{name}: daemon's CPU"),
            found.client_row(f"{name}: asking process's CPU", against),
            Row(f"{name}: answers that are the same", "%", Samples.of([100 * found.same_share])),
        ]
    return rows


def give_model(daemon: Daemon, gguf: Path, kept: Path | None, say: Say) -> None:
    """Start a daemon that has the model: linked from another's state folder, or made anew."""
    is_reused = kept is not None and reuse_model(kept, daemon.state)
    daemon.start()
    if not is_reused:
        say(f"→ making {MODEL} out of {gguf.name}; `make demo` keeps one that is used instead")
        daemon.ctl("create", MODEL, "--from", str(gguf), timeout=LOAD_S)


def reuse_model(kept: Path, state: Path) -> bool:
    """Link an already converted model's files into a new state folder; False if there is none. Nothing that is there
    changes: the store never writes into a file that has its name."""
    if not (kept / "models" / MANIFEST).is_file():
        return False
    ignore = shutil.ignore_patterns("staging", ".tmp-*")
    shutil.copytree(kept / "models", state / "models", symlinks=True, ignore=ignore, copy_function=_link_or_copy)
    return True


def _link_or_copy(source: str, destination: str) -> str:
    try:
        os.link(source, destination)
    except OSError:  # another file system
        shutil.copy2(source, destination)
    return destination
