"""A bench from its first request to its page (floor 4): Ctrl-C, the two forms of output, the exit status."""

import secrets
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from vllama.control.v1.models_pb2 import Model
from vllamactl.bench import environment
from vllamactl.bench.document import document
from vllamactl.bench.figures import worst_reason
from vllamactl.bench.http import Server, Target
from vllamactl.bench.options import STARTS, TIMEOUT_S, Options
from vllamactl.bench.report import page
from vllamactl.bench.running import Results, run
from vllamactl.bench.starting import Starts, start_document, start_page
from vllamactl.bench.view import BenchView
from vllamactl.bench.workload import Workload, marks
from vllamactl.client import Client
from vllamactl.console import Console
from vllamactl.exits import Interrupted, Reported, exit_status
from vllamactl.follow import Interrupts


async def bench_daemon(console: Console, client: Client, name: str, options: Options, asked: Workload) -> None:
    """Measure a model of the daemon, or how long it takes to load."""
    about: dict[str, Any] = {"machine": environment.machine()}
    status = await client.get_status()
    model = await client.get_model(name)
    version = ", ".join(part for part in (status.version, status.engine.version) if part)
    target = replace(options.target(name, status.http_url), version=version)
    about["daemon"] = await environment.daemon(client, status)
    if options.is_start:
        await _measure_starts(console, client, model, status.engine.device, target, options, asked, about)
    else:
        await _measure(console, Results(options.bench([target, *options.others(name)], asked)), about)


async def bench_address(console: Console, name: str, options: Options, asked: Workload) -> None:
    """Measure whatever server there is at an address."""
    about: dict[str, Any] = {"machine": environment.machine(), "daemon": None}
    targets = [options.target(name, ""), *options.others(name)]
    await _measure(console, Results(options.bench(targets, asked)), about)


async def _measure(console: Console, results: Results, about: dict[str, Any]) -> None:
    results.is_partial = await _is_interrupted(run(results, BenchView(console)))
    if console.is_json:
        console.document(document(results, about))
    else:
        for line in page(results):
            console.data(line)
    if results.is_partial:
        _end_early(console)
    samples = [sample for record in results.records for sample in record.played.samples]
    if reason := worst_reason(samples):
        faults = [sample.fault for sample in samples if sample.fault is not None]
        example = next(fault for fault in faults if fault.reason == reason)
        console.warn(f"vllamactl: {len(faults)} of {len(samples)} requests failed, such as: {example.words}")
        raise Reported(exit_status(reason))


async def _measure_starts(
    console: Console,
    client: Client,
    model: Model,
    device: str,
    target: Target,
    options: Options,
    asked: Workload,
    about: dict[str, Any],
) -> None:
    view = BenchView(console)
    mark = marks(secrets.randbits(32))
    async with Server(target, options.timeout_s or TIMEOUT_S) as server, view.shown():
        starts = Starts(client, server, model, options.swap_with or "", view.say, view.begin)
        before = await starts.look()
        try:
            is_partial = await _is_interrupted(
                starts.run(
                    options.repeat or STARTS,
                    lambda number: replace(asked.asks[0].marked(mark(number)), max_tokens=1),
                )
            )
        finally:
            await starts.restore(before)
    if console.is_json:
        console.document(start_document(model.name, starts.found, about, is_partial=is_partial))
    else:
        for line in start_page(model.name, starts.found, device):
            console.data(line)
    if is_partial:
        _end_early(console)


async def _is_interrupted(work: Coroutine[Any, Any, None]) -> bool:
    """Do the work; True if Ctrl-C came first."""
    with Interrupts() as interrupts:
        try:
            await interrupts.or_result(work)
        except Interrupted:
            return True
    return False


def _end_early(console: Console) -> None:
    console.say("interrupted: this is what there was until then", "✗")
    raise Interrupted
