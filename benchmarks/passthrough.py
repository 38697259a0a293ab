"""What the passthrough costs: the same request, byte by byte, asked of the daemon and of the worker behind it.

The engine is the fake, so that what is seen is the daemon's part. One model name is the one that the worker shows, the
other has to be put into every chunk. Beside the daemon stands a pipe that moves bytes unread: what any detour costs.
"""

from benchmarks.client import Client, Target
from benchmarks.comparing import compare, prompts
from benchmarks.machine import cpu_s
from benchmarks.measuring import FAKE_TOKENS, FAST, PACE_S, PACED, Effort, Say, daemon_of, pid_of, worker_target
from benchmarks.proxies import pipe_to
from benchmarks.report import Row, streams_of
from benchmarks.samples import Samples, pair_ratios, turns
from tests.fakes.daemon import FAKE_PYTHON

AGAINST = "the fake asked directly"
OTHER_NAME = "fast"
"""Means the same model as ``FAST``."""


PIPE = "a pipe that moves bytes unread"


def measure_passthrough(effort: Effort, say: Say) -> list[Row]:
    """Time to the first token at one stream, and the daemon's CPU for each streamed chunk. A token is a chunk here."""
    rows: list[Row] = []
    faults = {"fast": {"tokens": FAKE_TOKENS}, "paced": {"tokens": FAKE_TOKENS, "token_delay_s": PACE_S}}
    with daemon_of(FAKE_PYTHON, **faults) as daemon, Client() as client:
        daemon.start()
        pid, through = pid_of(daemon), Target.passing(daemon.port)
        daemon.ctl("load", FAST)
        targets = (through, worker_target(daemon))
        found = compare(client, targets, FAST, pid, streams=1, tokens=1, pairs=effort.answers)
        added = [1000 * (one - other) for one, other in zip(found.through.firsts, found.direct.firsts, strict=True)]
        name = "passthrough, an answer of one token"
        rows += [
            found.first_row(f"{name}: first token", AGAINST),
            Row(f"{name}: added to the first token", "ms", Samples.of(added)),
            found.cpu_row(f"{name}: daemon's CPU", "µs"),
        ]
        for model, what in ((FAST, "passthrough"), (OTHER_NAME, "passthrough under another name")):
            for streams, tokens in ((1, FAKE_TOKENS), (effort.many, FAKE_TOKENS // 2)):
                found = compare(
                    client, targets, model, pid, streams=streams, tokens=tokens, pairs=effort.fake_pairs, watch=say
                )
                name = f"{what}, {streams_of(streams)} flat out"
                rows += [found.speed_row(name, AGAINST), found.cpu_row(f"{name}: daemon's CPU", "µs/chunk")]
        daemon.ctl("stop", FAST)
        daemon.ctl("load", PACED)
        with pipe_to(worker_target(daemon)) as pipe:
            for streams in (1, effort.many):
                sides = ((through, pid), (pipe.target, pipe.pid))
                spent = _paced(client, sides, streams, effort.fake_pairs)
                name = f"passthrough, {streams_of(streams)} at {1 / PACE_S:.0f} chunks/s each: daemon's CPU"
                ratio = pair_ratios(spent[0], spent[1])
                rows.append(Row(name, "µs/chunk", spent[0], PIPE, spent[1], ratio))
    return rows


def _paced(
    client: Client, sides: tuple[tuple[Target, int], tuple[Target, int]], streams: int, pairs: int
) -> tuple[Samples, Samples]:
    """CPU of each side's process for a chunk that arrives alone."""
    found: tuple[list[float], list[float]] = ([], [])
    for target, _ in sides:
        client.play(target, PACED, prompts(streams), 50)
    for order in turns(pairs):
        for which in order:
            target, pid = sides[which]
            before = cpu_s(pid)
            played = client.play(target, PACED, prompts(streams), 100)
            found[which].append((cpu_s(pid) - before) * 1e6 / played.tokens)
    return Samples.of(found[0]), Samples.of(found[1])
