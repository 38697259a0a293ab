"""What the fast path spares: the same questions to two daemons, one with it and one without, each with an engine.

What is counted is the processor time of all that a token passes on its way out: the engine's API server and the daemon.
The engine's core computes the token; its time is shown beside, and should be the same on both sides.
"""

import contextlib
from pathlib import Path

from benchmarks.client import BenchFailed, Client, Target
from benchmarks.comparing import prompts
from benchmarks.machine import PROC, cpu_s
from benchmarks.measuring import LOAD_S, MODEL, Effort, Say, daemon_of, give_model, pid_of
from benchmarks.report import Row, streams_of
from benchmarks.samples import Samples, pair_ratios, turns
from tests.fakes.daemon import Daemon

WITH, WITHOUT = "auto", "off"
TOKENS = 100
"""Of an answer. A request has a price of its own, on both sides: the shorter its answer, the larger its share."""


def measure_fast_path(engine: Path, gguf: Path, kept: Path | None, effort: Effort, say: Say) -> list[Row]:
    """Processor time by token, for one stream and for many."""
    with contextlib.ExitStack() as stack:
        daemons = [stack.enter_context(daemon_of(engine)) for _ in (WITH, WITHOUT)]
        for daemon, setting in zip(daemons, (WITH, WITHOUT), strict=True):
            daemon.environment["VLLAMA_ENGINE_FAST_PATH"] = setting
            give_model(daemon, gguf, kept, say)
            daemon.ctl("load", MODEL, timeout=LOAD_S)
        if [worker_of(daemon)["fast_path"] for daemon in daemons] != ["on", "off"]:
            raise BenchFailed(f"the engine has no fast path: {worker_of(daemons[0])['fast_path']}")
        client = stack.enter_context(Client())
        rows: list[Row] = []
        for streams in (1, effort.many, effort.most):
            rows += _contest(client, daemons, streams, effort.path_pairs, say)
    return rows


def worker_of(daemon: Daemon) -> dict[str, str]:
    """The only worker."""
    (worker,) = daemon.workers()
    return worker


def _contest(client: Client, daemons: list[Daemon], streams: int, pairs: int, say: Say) -> list[Row]:
    paths: tuple[list[float], list[float]] = ([], [])
    cores: tuple[list[float], list[float]] = ([], [])
    asked = prompts(streams)
    servers = [int(worker_of(daemon)["pid"]) for daemon in daemons]
    inner = [children_of(server) for server in servers]
    for number, order in enumerate(turns(pairs + 1)):
        for which in order:
            daemon, server = daemons[which], servers[which]
            before = cpu_s(pid_of(daemon)) + cpu_s(server), sum(map(cpu_s, inner[which]))
            played = client.play(Target.daemon(daemon.port), MODEL, asked, TOKENS)
            after = cpu_s(pid_of(daemon)) + cpu_s(server), sum(map(cpu_s, inner[which]))
            if number:  # the first pair warms up
                paths[which].append((after[0] - before[0]) * 1e6 / played.tokens)
                cores[which].append((after[1] - before[1]) * 1e6 / played.tokens)
        if number:
            say(f"{streams_of(streams)}, pair {number} of {pairs}: {paths[0][-1]:.0f} and {paths[1][-1]:.0f} µs/token")
    return [
        _row(f"fast path, {streams_of(streams)}: API server and daemon", paths),
        _row(f"fast path, {streams_of(streams)}: the engine's core", cores),
    ]


def children_of(pid: int) -> list[int]:
    """Processes that this one has started, by any of its threads."""
    return [int(child) for each in (PROC / str(pid) / "task").glob("*/children") for child in each.read_text().split()]


def _row(what: str, sides: tuple[list[float], list[float]]) -> Row:
    one, other = Samples.of(sides[0]), Samples.of(sides[1])
    return Row(what, "µs/token", one, "without it", other, pair_ratios(one, other))
