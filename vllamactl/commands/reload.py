"""`vllamactl reload`."""

import click

from vllama.control.v1.daemon_pb2 import Change, ReloadResponse
from vllamactl.client import Client
from vllamactl.invocation import Invocation, Verb
from vllamactl.plain import plain
from vllamactl.render import Column, table

COLUMNS = (
    Column("KEY"),
    Column("BEFORE"),
    Column("AFTER", is_elastic=True),
    Column("EFFECT"),
    Column("SOURCE", drop=1),
)

EFFECTS = {
    Change.AT_ONCE: "at once",
    Change.AT_LOAD: "with the next load",
    Change.AT_RESTART: "needs a restart",
}


@click.command("reload", cls=Verb, short_help="Have the daemon read its configuration anew.")
@click.option(
    "--dry-run", is_flag=True, help="Only show what would change, and what that would mean for loaded models."
)
@click.pass_obj
def command(invocation: Invocation, dry_run: bool) -> None:
    """Have the daemon read its whole configuration anew and take over what needs no restart.

    Models that are loaded as they would be loaded now are not touched, and no request fails. If the configuration is
    wrong, nothing changes, and the exit status is 78.
    """
    console = invocation.console

    async def work(client: Client) -> None:
        told = await client.reload(dry_run)
        for warning in told.warnings:
            console.say(f"warning: {warning}", "•")
        if console.is_json:
            console.document(plain(told))
        elif console.is_quiet:
            for change in told.changes:
                console.data(change.key)
        else:
            for line in changes(told, console.width):
                console.data(line)
            console.done(summary(told))

    invocation.run("reload the configuration", work)


def changes(told: ReloadResponse, width: int | None) -> list[str]:
    """Return what changed as a table, then a sentence for each thing that a table does not tell; [] if nothing did."""
    if not told.changes:
        return []
    rows = [(one.key, one.before or "-", one.after or "-", _effect(one), one.source or "-") for one in told.changes]
    notes = [f"{one.key}: {one.note}" for one in told.changes if one.note]
    return [*table(COLUMNS, rows, width), *notes, *(one.text for one in told.models)]


def summary(told: ReloadResponse) -> str:
    """Return the outcome in a line."""
    if not told.changes:
        return "nothing differs from what is in force"
    waiting = sum(one.effect == Change.AT_RESTART for one in told.changes)
    count = len(told.changes) - waiting
    settings = f"{count or 'no'} setting{'' if count == 1 else 's'}"
    done = f"{settings} would change: this was a dry run" if told.dry_run else f"{settings} changed"
    return done + (f", {waiting} need{'s' if waiting == 1 else ''} a restart" if waiting else "")


def _effect(one: Change) -> str:
    return EFFECTS.get(one.effect, "-")
