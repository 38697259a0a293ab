"""The gateway against a source of tokens that is faster than any gateway: what is measured is the gateway.

Two kinds of load. *Flat out* the source sends as fast as it is read, so that many tokens come in one read. *Alone* each
stream gets a token every 10 ms, as from an engine's batch: each costs a read and a write of its own, which is most of
its price. What that costs at least is told by a pipe that moves bytes unread, and by nginx where it is installed.
"""

import contextlib
from pathlib import Path
from statistics import median

from benchmarks.client import Client, Target
from benchmarks.comparing import Side
from benchmarks.measuring import Effort, Say, daemon_of, pid_of, worker_target
from benchmarks.proxies import Way, nginx_program, nginx_to, pipe_to
from benchmarks.report import Row, streams_of
from benchmarks.samples import Samples, pair_ratios

SOURCE = Path(__file__).resolve().parent / "source_python"
STREAMS = (1, 16, 50)
FLAT, ALONE = "flat:latest", "alone:latest"
STEP_S = 0.01
FLAT_TOKENS = 20_000
"""Of a round, over all its streams."""

ALONE_TOKENS = 200
"""Of each stream of a round."""

OLLAMA, PASSING, PIPE, NGINX, DIRECT = "Ollama face", "passthrough", "a bare pipe", "nginx", "the source directly"


def measure_hotpath(effort: Effort, say: Say) -> list[Row]:
    """Speed, CPU by token, and the time that is added to a first token."""
    program = nginx_program()
    if program is None:
        say("• nginx is not installed, so it is not measured")
    faults = {"flat": {"step_s": 0.0, "tokens": FLAT_TOKENS}, "alone": {"step_s": STEP_S, "tokens": FLAT_TOKENS}}
    rows: list[Row] = []
    with daemon_of(SOURCE, **faults) as daemon, Client() as client:
        daemon.start()
        own = {
            OLLAMA: Way(Target.daemon(daemon.port), pid_of(daemon)),
            PASSING: Way(Target.passing(daemon.port), pid_of(daemon)),
        }
        for model in (FLAT, ALONE):
            daemon.ctl("load", model)
            worker = worker_target(daemon)
            with contextlib.ExitStack() as stack:
                ways = own | {PIPE: stack.enter_context(pipe_to(worker))}
                if program is not None:
                    ways[NGINX] = stack.enter_context(nginx_to(worker, program))
                if model == FLAT:
                    # The process between is nobody: its CPU is read and not shown.
                    ways[DIRECT] = Way(worker, ways[PIPE].pid)
                if model == FLAT:
                    rows += _first_tokens(contest(client, ways, model, 1, 1, effort.answers))
                for streams in STREAMS:
                    tokens = FLAT_TOKENS // streams if model == FLAT else ALONE_TOKENS
                    sides = contest(client, ways, model, streams, tokens, effort.source_rounds)
                    rows += (_flat_rows if model == FLAT else _alone_rows)(sides, streams)
                    told = ", ".join(f"{name} {median(side.cpu_us):.1f}" for name, side in sides.items())
                    say(f"{model.partition(':')[0]}, {streams_of(streams)}, µs/token: {told}")
            daemon.ctl("stop", model)
    return rows


def contest(
    client: Client, ways: dict[str, Way], model: str, streams: int, tokens: int, rounds: int
) -> dict[str, Side]:
    """Play each way once to warm up, then so many rounds in turns, the beginner changing from round to round."""
    asked = [f"question {number}" for number in range(streams)]
    sides = {name: Side() for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            way = ways[name]
            before = way.cpu_s()
            played = client.play(way.target, model, asked, tokens)
            spent = [now - then for now, then in zip(way.cpu_s(), before, strict=True)]
            if number:
                sides[name].note(played, sum(spent), max(spent))
    return sides


def _first_tokens(sides: dict[str, Side]) -> list[Row]:
    rows: list[Row] = []
    for name in (OLLAMA, PASSING, PIPE, NGINX):
        if name in sides:
            pairs = zip(sides[name].firsts, sides[DIRECT].firsts, strict=True)
            added = Samples.of([1000 * (through - direct) for through, direct in pairs])
            rows.append(Row(f"fast source, first token at 1 stream: added by {name}", "ms", added))
    return rows


def _flat_rows(sides: dict[str, Side], streams: int) -> list[Row]:
    rows: list[Row] = []
    for name in (OLLAMA, PASSING, NGINX):
        if name in sides:
            what = f"fast source flat out, {streams_of(streams)}: {name}"
            rows.append(_row(what, "tokens/s", sides[name].speeds, DIRECT, sides[DIRECT].speeds))
    return rows + _cpu_rows("flat out", sides, streams)


def _alone_rows(sides: dict[str, Side], streams: int) -> list[Row]:
    return _cpu_rows("tokens alone", sides, streams)


def _cpu_rows(load: str, sides: dict[str, Side], streams: int) -> list[Row]:
    rows: list[Row] = []
    for name in (OLLAMA, PASSING, NGINX):
        if name in sides:
            what = f"fast source {load}, {streams_of(streams)}: CPU of {name}"
            rows.append(_row(what, "µs/token", sides[name].cpu_us, PIPE, sides[PIPE].cpu_us))
    return rows


def _row(what: str, unit: str, measured: list[float], against: str, compared: list[float]) -> Row:
    one, other = Samples.of(measured), Samples.of(compared)
    return Row(what, unit, one, against, other, pair_ratios(one, other))
