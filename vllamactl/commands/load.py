"""`vllamactl load`."""

import click

from vllamactl.client import Client
from vllamactl.follow import follow
from vllamactl.invocation import Invocation, Verb, complete_models
from vllamactl.options import KEEP_ALIVE_HELP, read_span


@click.command("load", cls=Verb, short_help="Load a model.")
@click.argument("model", shell_complete=complete_models)
@click.option("--keep-alive", metavar="SPAN", callback=read_span, help=KEEP_ALIVE_HELP)
@click.option("--detach", "-d", is_flag=True, help="Print the operation's name and leave; the load goes on.")
@click.pass_obj
def command(invocation: Invocation, model: str, keep_alive: float | None, detach: bool) -> None:
    """Load MODEL and return when it is ready. Ctrl-C cancels the load unless someone else waits for it."""

    async def work(client: Client) -> None:
        await follow(
            invocation.console,
            client,
            lambda: client.start_worker(model, keep_alive),
            verb="loading",
            done="loaded",
            detach=detach,
        )

    invocation.run(f"load {model}", work)
