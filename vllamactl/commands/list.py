"""`vllamactl list`."""

import time

import click

from vllamactl import human
from vllamactl.client import Client
from vllamactl.invocation import Invocation, Verb
from vllamactl.plain import Plain, plain, seconds_of
from vllamactl.render import Column, table

COLUMNS = (Column("NAME", is_elastic=True), Column("ID", drop=1), Column("SIZE"), Column("MODIFIED"))
ONLY_IN_SHOW = ("template", "license", "files")


@click.command("list", cls=Verb, short_help="List the models on disk.")
@click.argument("prefix", default="")
@click.pass_obj
def command(invocation: Invocation, prefix: str) -> None:
    """List the models on disk, newest first; with PREFIX only those whose names begin like that."""
    console = invocation.console

    async def work(client: Client) -> None:
        models = [model for model in await client.list_models() if model.name.lower().startswith(prefix.lower())]
        if console.is_json:
            rows: list[Plain] = [
                {key: value for key, value in plain(model).items() if key not in ONLY_IN_SHOW} for model in models
            ]
            console.document({"models": rows})
            return
        if console.is_quiet:
            lines = [model.name for model in models]
        else:
            now = time.time()
            cells = [
                (
                    model.name,
                    model.digest[:12],
                    human.size(model.size_bytes),
                    human.instant(seconds_of(model.modify_time), now),
                )
                for model in models
            ]
            lines = table(COLUMNS, cells, console.width)
        for line in lines:
            console.data(line)

    invocation.run("list the models", work)
