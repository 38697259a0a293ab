"""`vllamactl config`."""

import click

from vllama.control.v1.daemon_pb2 import Setting
from vllamactl.client import Client
from vllamactl.invocation import Invocation, Verb
from vllamactl.plain import plain
from vllamactl.render import Column, table

COLUMNS = (Column("KEY"), Column("VALUE", is_elastic=True), Column("SOURCE"))


@click.command("config", cls=Verb, short_help="Show the daemon's settings and where they come from.")
@click.option("--show", is_flag=True, help="As TOML with comments: what each is for, and what lost against it.")
@click.pass_obj
def command(invocation: Invocation, show: bool) -> None:
    """Show every setting of the daemon with its value and where that came from."""
    console = invocation.console

    async def work(client: Client) -> None:
        settings = await client.get_config()
        if console.is_json:
            console.document({"settings": [plain(setting) for setting in settings]})
            return
        if console.is_quiet:
            lines = [setting.key for setting in settings]
        elif show:
            lines = "\n\n".join(in_full(setting) for setting in settings).split("\n")
        else:
            lines = table(COLUMNS, [row(setting) for setting in settings], console.width)
        for line in lines:
            console.data(line)

    invocation.run("show the configuration", work)


def row(setting: Setting) -> tuple[str, ...]:
    """Return a setting as a row of the table; what waits for a restart stands behind what is in force."""
    waits = f" (after a restart: {setting.pending.after})" if setting.HasField("pending") else ""
    return setting.key, setting.value + waits, setting.source


def in_full(setting: Setting) -> str:
    """Return a setting with all that is known about it as comments."""
    comments = [setting.help] if setting.help else []
    comments.append(f"from {setting.source}" + ("" if setting.is_reloadable else "; a change needs a restart"))
    comments += [f"over {loser}" for loser in setting.overrode]
    if setting.HasField("pending"):
        comments.append(f"after a restart: {setting.pending.after}, from {setting.pending.source}")
    return "\n".join([*(f"# {comment}" for comment in comments), f"{setting.key} = {setting.value}"])
