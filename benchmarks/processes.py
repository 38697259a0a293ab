"""HTTP in one process against several (``server.processes``), in front of the same kind of fast source.

All of them share this machine's cores with who asks and with the source, so on two cores several processes cannot be
faster: what counts is the CPU of all of them for a token, and that of the busiest, which fills its core first. And the
time that a lease takes when it is asked for over a channel.
"""

import contextlib

from benchmarks.client import Client, Target
from benchmarks.comparing import Side
from benchmarks.hotpath import ALONE, ALONE_TOKENS, FLAT, FLAT_TOKENS, SOURCE, STEP_S, contest
from benchmarks.measuring import Effort, Say, daemon_of, pid_of
from benchmarks.proxies import Way
from benchmarks.report import Row, streams_of
from benchmarks.samples import Samples, pair_ratios
from tests.fakes.daemon import Daemon

STREAMS = (16, 100)
COUNT = 2
ONE, SEVERAL = "one process", f"{COUNT} processes"
FACES = {"Ollama face": Target.daemon, "passthrough": Target.passing}


def measure_processes(effort: Effort, say: Say) -> list[Row]:
    """Speed, CPU by token and the first token, each with one process and with several, in turns."""
    faults = {"flat": {"step_s": 0.0, "tokens": FLAT_TOKENS}, "alone": {"step_s": STEP_S, "tokens": FLAT_TOKENS}}
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        daemons = {name: stack.enter_context(daemon_of(SOURCE, **faults)) for name in (ONE, SEVERAL)}
        daemons[SEVERAL].environment["VLLAMA_SERVER_PROCESSES"] = str(COUNT)
        client = stack.enter_context(Client())
        for daemon in daemons.values():
            daemon.start()
        for model in (FLAT, ALONE):
            for daemon in daemons.values():
                daemon.ctl("load", model)
            for face, target in FACES.items():
                ways = {name: _way(daemon, target(daemon.port)) for name, daemon in daemons.items()}
                if model == FLAT:
                    rows += _request_rows(face, contest(client, ways, model, 1, 1, effort.answers))
                for streams in STREAMS:
                    tokens = FLAT_TOKENS // streams if model == FLAT else ALONE_TOKENS
                    sides = contest(client, ways, model, streams, tokens, effort.source_rounds)
                    kind = "flat out" if model == FLAT else "tokens alone"
                    rows += _token_rows(f"{face}, {kind}, {streams_of(streams)}", sides, with_speed=model == FLAT)
                    say(f"{face}, {kind}, {streams_of(streams)}: done")
            for daemon in daemons.values():
                daemon.ctl("stop", model)
    return rows


def _way(daemon: Daemon, target: Target) -> Way:
    acceptors = daemon.json("status").get("acceptors", [])
    return Way(target, pid_of(daemon), tuple(int(one["pid"]) for one in acceptors))


def _request_rows(face: str, sides: dict[str, Side]) -> list[Row]:
    one, several = sides[ONE], sides[SEVERAL]
    added = Samples.of([1000 * (b - a) for a, b in zip(one.firsts, several.firsts, strict=True)])
    cpu = [Samples.of(side.cpu_us) for side in (several, one)]
    return [
        Row(f"{face}, an answer of one token: its first token, added by {SEVERAL}", "ms", added),
        Row(f"{face}, an answer of one token: CPU of {SEVERAL}", "µs", cpu[0], ONE, cpu[1], pair_ratios(*cpu)),
    ]


def _token_rows(what: str, sides: dict[str, Side], *, with_speed: bool) -> list[Row]:
    figures = {
        f"CPU of {SEVERAL} and the daemon": ("µs/token", [side.cpu_us for side in sides.values()]),
        "CPU of the busiest one": ("µs/token", [side.busiest_us for side in sides.values()]),
    }
    if with_speed:
        figures["speed"] = ("tokens/s", [side.speeds for side in sides.values()])
    rows: list[Row] = []
    for figure, (unit, (one, several)) in figures.items():
        measured, compared = Samples.of(several), Samples.of(one)
        rows.append(Row(f"{what}: {figure}", unit, measured, ONE, compared, pair_ratios(measured, compared)))
    return rows
