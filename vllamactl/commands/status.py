"""`vllamactl status`."""

import time

import click

from vllama.control.v1.daemon_pb2 import Acceptor, Device, GetStatusResponse, Zygote
from vllama.control.v1.workers_pb2 import Worker
from vllamactl import human
from vllamactl.client import Client
from vllamactl.console import GREEN, Console
from vllamactl.invocation import Invocation, Verb
from vllamactl.plain import plain, seconds_of
from vllamactl.render import Column, pairs, table
from vllamactl.workers import size_bytes, state, until

WORKER_COLUMNS = (
    Column(" "),
    Column("MODEL", is_elastic=True),
    Column("STATE"),
    Column("SIZE"),
    Column("DEVICE"),
    Column("UNTIL"),
)


@click.command("status", cls=Verb, short_help="Show what the daemon is doing.")
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Show the daemon, its engine, the loaded models and the latest decisions on one page."""
    console = invocation.console

    async def work(client: Client) -> None:
        status = await client.get_status()
        if console.is_json:
            console.document(plain(status))
        elif console.is_quiet:
            console.data(GetStatusResponse.State.Name(status.state).lower())
        else:
            for line in page(status, console, time.time()):
                console.write(line + "\n")

    invocation.run("show the status", work)


def page(status: GetStatusResponse, console: Console, now: float) -> list[str]:
    """Return the whole page."""
    is_serving = status.state == GetStatusResponse.SERVING
    mark = console.paint(console.symbol("✓" if is_serving else "•"), GREEN if is_serving else "")
    word = GetStatusResponse.State.Name(status.state).lower()
    since = f" for {human.span(now - seconds_of(status.start_time)).lower()}" if status.HasField("start_time") else ""
    lines = [f"{mark} vllamad {status.version}, {word}{since} (pid {status.pid})"]
    lines += pairs(_facts(status))
    if status.workers:
        lines += ["", "Loaded"]
        rows = [_row(worker, console, now) for worker in status.workers]
        width = console.width - 2 if console.width else None
        # The header would say nothing that the cells do not.
        lines += [f"  {line}" for line in table(WORKER_COLUMNS, rows, width)[1:]]
        for worker in status.workers:
            if worker.HasField("failure"):
                lines.append(f"  {worker.failure.message}")
                lines += [f"  hint: {worker.failure.hint}"] if worker.failure.hint else []
    if status.needs_restart:
        waiting = status.needs_restart
        lines += [
            "",
            "Needs a restart",
            *(f"  {one.key}: {one.before} {console.symbol('→')} {one.after}" for one in waiting),
        ]
    if status.waits:
        lines += ["", "Waiting", *(f"  {sentence}" for sentence in status.waits)]
    if status.decisions:
        lines += ["", "Latest decisions"]
        for decision in status.decisions:
            at = time.strftime("%H:%M:%S", time.localtime(seconds_of(decision.time)))
            lines.append(f"  {at}  {decision.text}")
    return lines


def _facts(status: GetStatusResponse) -> list[tuple[str, str]]:
    engine = status.engine
    engine_words = engine.version or ("not known yet" if not engine.problem else "")
    loaded = sum(1 for worker in status.workers if worker.state in {Worker.READY, Worker.DRAINING})
    fast = sum(1 for worker in status.workers if worker.fast_path == "on")
    facts = [
        ("http", status.http_url),
        *(("", _acceptor(acceptor)) for acceptor in status.acceptors),
        ("socket", status.socket_path),
        ("state", status.state_folder),
        ("memory", human.size(status.memory_bytes) if status.memory_bytes else ""),
        ("engine", " ".join(part for part in (engine_words, f"on {engine.device}" if engine.device else "") if part)),
        ("", f"problem: {engine.problem}" if engine.problem else ""),
        ("", engine.python),
        *(("", _zygote(zygote)) for zygote in engine.zygotes),
        ("models", f"{status.models} on disk, {loaded} loaded"),
        ("", f"{fast} with the fast path" if fast else ""),
        ("requests", f"{status.active_requests} running, {status.waiting_requests} waiting"),
    ]
    facts += [("device", _device(device)) for device in status.devices]
    if status.HasField("storage"):
        storage = status.storage
        facts.append(
            ("storage", f"{human.size(storage.models_bytes)} of models, {human.size(storage.free_bytes)} free")
        )
    return facts


def _acceptor(acceptor: Acceptor) -> str:
    """``process 1: 3 requests, 61 MB (pid 4711)``"""
    if not acceptor.pid:
        return f"process {acceptor.number}: none; it is started again, after {acceptor.starts} times"
    requests = f"{acceptor.requests} request{'' if acceptor.requests == 1 else 's'}"
    doing = requests if acceptor.is_ready else "starts"
    again = f", started {acceptor.starts} times" if acceptor.starts > 1 else ""
    return f"process {acceptor.number}: {doing}, {human.memory(acceptor.memory_bytes)}{again} (pid {acceptor.pid})"


def _zygote(zygote: Zygote) -> str:
    """``zygote ready: 412 MB, 3 engines forked from it (pid 4711)``"""
    if not zygote.pid:
        return f"zygote {zygote.state}: {zygote.problem}" if zygote.problem else f"zygote {zygote.state}"
    engines = f"{zygote.forked} engine{'' if zygote.forked == 1 else 's'} forked from it"
    return f"zygote {zygote.state}: {human.memory(zygote.memory_bytes)}, {engines} (pid {zygote.pid})"


def _device(device: Device) -> str:
    """``GPU 0: 34.1 GiB of 79.2 GiB reserved, others hold 1.2 GiB, 35.9 GiB to give``"""
    usable = device.usable_bytes or device.total_bytes
    parts = [f"{human.memory(device.reserved_bytes)} of {human.memory(usable)} reserved"]
    if device.foreign_bytes:
        parts.append(f"others hold {human.memory(device.foreign_bytes)}")
    parts.append(f"{human.memory(device.giveable_bytes)} to give")
    if device.loading:
        parts.append(f"loads {device.loading}")
    if device.HasField("temperature_c"):
        parts.append(f"{device.temperature_c} °C")
    if device.HasField("utilisation"):
        parts.append(f"{device.utilisation * 100:.0f} % busy")
    text = f"{device.name}: {', '.join(parts)}"
    return f"{device.name}: nothing is placed on it: {device.problem}" if device.problem else text


def _row(worker: Worker, console: Console, now: float) -> tuple[str, ...]:
    mark = {Worker.READY: "✓", Worker.FAILED: "✗"}.get(worker.state, "•")
    size = human.size(size_bytes(worker)) if size_bytes(worker) else "-"
    return (
        console.symbol(mark),
        worker.holder or worker.model,
        state(worker),
        size,
        worker.device or "-",
        until(worker, now),
    )
