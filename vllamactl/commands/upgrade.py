"""`vllamactl upgrade`."""

import asyncio
import time
from pathlib import Path

import click

from vllama.control.v1.daemon_pb2 import GetStatusResponse, UpgradeResponse
from vllamactl import human
from vllamactl.client import Client, connect
from vllamactl.exits import CtlError
from vllamactl.invocation import Invocation, Verb
from vllamactl.options import read_span
from vllamactl.plain import plain

SUCCESSOR_S = 60.0
"""How long nobody may answer while the process lives: it takes a second."""
RESTART_S = 8.0
"""The same when the process has ended: a service manager waits for a second before it starts another one."""
LOOK_S = 0.1
LOOK_AT = "see why: journalctl -u vllamad"


@click.command("upgrade", cls=Verb, short_help="Have the installed daemon take over from the one that runs.")
@click.option("--dry-run", is_flag=True, help="Only find out whether it can take over.")
@click.option(
    "--drain",
    metavar="SPAN",
    callback=read_span,
    help="How long requests in flight may take, like 5m; as server.drain is set if not given.",
)
@click.pass_obj
def command(invocation: Invocation, dry_run: bool, drain: float | None) -> None:
    """Have the vllamad that is installed now take the place of the one that runs, without unloading a model.

    The new program is asked first whether it starts, likes its configuration and can take over; if not, nothing
    changes. Then requests in flight are finished, those that come wait, and the process becomes the new program: its
    number, its engines and its listening sockets stay. Everything that would need a restart is in force afterwards.
    """
    console = invocation.console

    async def work(client: Client) -> None:
        before = await client.get_status()
        told = await client.upgrade(drain, dry_run)
        if dry_run:
            if console.is_json:
                console.document(plain(told))
            console.done(foreseen(before, told))
            return
        if busy := before.active_requests + before.waiting_requests:
            console.say(f"{busy} request{'' if busy == 1 else 's'} in flight: waiting for the end", "•")
        began = time.monotonic()
        try:
            after = await _taken_over(client.socket_path, before, told)
        except asyncio.CancelledError:
            console.say("the upgrade goes on without you: see vllamactl status", "•")
            raise
        if console.is_json:
            document = {"from": before.version, "to": after.version, "seconds": round(time.monotonic() - began, 2)}
            console.document(document | {"kept": kept(before, after), "ended": ended(before, after)})
        else:
            console.done(summary(before, after, time.monotonic() - began))

    invocation.run("upgrade the daemon", work)


def foreseen(before: GetStatusResponse, told: UpgradeResponse) -> str:
    """What would happen, in a line."""
    models = f"; {', '.join(told.models)} would stay loaded" if told.models else ""
    return f"vllamad {told.version} can take over from {before.version}{models}: this was a dry run"


def summary(before: GetStatusResponse, after: GetStatusResponse, seconds: float) -> str:
    """What has happened, in a line."""
    stayed, lost = kept(before, after), ended(before, after)
    parts = [f"vllamad {after.version} took over from {before.version} in {human.short_span(seconds)}"]
    parts += [f"kept {', '.join(stayed)}"] if stayed else []
    parts += [f"ended {', '.join(lost)}: see the log for why"] if lost else []
    return "; ".join(parts)


def kept(before: GetStatusResponse, after: GetStatusResponse) -> list[str]:
    """Models whose engines are the same processes as before."""
    pids = {worker.pid for worker in after.workers if worker.pid}
    return sorted({worker.model for worker in before.workers if worker.pid in pids})


def ended(before: GetStatusResponse, after: GetStatusResponse) -> list[str]:
    """Models whose engines are not there any more."""
    return sorted({worker.model for worker in before.workers if worker.pid} - set(kept(before, after)))


async def _taken_over(path: str, before: GetStatusResponse, told: UpgradeResponse) -> GetStatusResponse:
    """Return the status of the successor once it serves. Raises INTERNAL if another daemon serves instead,
    DAEMON_UNREACHABLE if none does."""
    while True:
        now = await _status(path, before.pid)
        if now.state == GetStatusResponse.SERVING:
            if now.pid == before.pid and now.upgrades > before.upgrades:
                return now
            what = "the daemon that ran goes on" if now.pid == before.pid else "it was started anew, and loads again"
            raise CtlError("INTERNAL", f"vllamad {told.version} did not take over: {what}", LOOK_AT)
        if now.state == GetStatusResponse.DRAINING:
            raise CtlError("DRAINING", "the daemon was asked to stop meanwhile", "it stops: vllamactl status")
        await asyncio.sleep(LOOK_S)


async def _status(path: str, pid: int) -> GetStatusResponse:
    """Ask whoever answers; each time anew, for the socket is another one afterwards, and is not there for a moment."""
    began = time.monotonic()
    while True:
        try:
            async with connect([path], LOOK_S) as client:
                return await client.get_status()
        except CtlError as error:
            if error.reason != "DAEMON_UNREACHABLE":
                raise
            longest = SUCCESSOR_S if _is_alive(pid) else RESTART_S
            if time.monotonic() - began > longest:
                raise CtlError("DAEMON_UNREACHABLE", "the daemon ended, and none was started", LOOK_AT) from error


def _is_alive(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # nothing is left there of one that has ended
    except OSError:
        return False
