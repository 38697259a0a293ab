"""`vllamactl doctor`."""

import asyncio
import gc

import click

from vllamactl.console import GREEN, RED, YELLOW
from vllamactl.exits import Reported
from vllamactl.invocation import Invocation, Verb
from vllamactl.places import socket_candidates

FAILED = 1
TIMEOUT_S = 5.0


@click.command("doctor", cls=Verb, short_help="Find out what is wrong on this machine, and what to type about it.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long each check may take; all run at the same time.",
)
@click.pass_obj
def command(invocation: Invocation, timeout: float) -> None:
    """Check service, permissions, configuration, engine, driver, disk, network and what else goes wrong.

    Works while the daemon is down or hangs, and changes nothing. As root it sees everything; as another user it says
    what it could not look at. --quiet shows problems only. The exit status is 1 if a check failed, 0 if none did:
    warnings are none.
    """
    from vllamactl.doctor import report
    from vllamactl.doctor.examination import examine
    from vllamactl.doctor.finding import State
    from vllamactl.doctor.machine import Machine

    console = invocation.console
    invocation.doing = "look at this machine"
    gc.enable()
    findings = asyncio.run(examine(Machine(), socket_candidates(invocation.socket), timeout))
    if console.is_json:
        console.document(report.document(findings))
    else:
        colors = {State.FAIL: RED, State.WARN: YELLOW, State.OK: GREEN, State.SKIPPED: ""}
        lines = report.page(
            findings,
            mark=lambda state: console.paint(console.symbol(report.MARKS[state]), colors[state]),
            arrow=console.symbol("→"),
            width=console.width,
            only_problems=console.is_quiet,
        )
        for line in lines:
            console.write(line + "\n")
    if report.has_failed(findings):
        raise Reported(FAILED)
