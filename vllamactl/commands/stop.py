"""`vllamactl stop`."""

import click

from vllamactl.client import Client
from vllamactl.follow import follow
from vllamactl.invocation import Invocation, Verb, complete_models


@click.command("stop", cls=Verb, short_help="Unload a model.")
@click.argument("model", shell_complete=complete_models)
@click.option("--force", "-f", is_flag=True, help="Break off the requests that are running.")
@click.pass_obj
def command(invocation: Invocation, model: str, force: bool) -> None:
    """Unload MODEL and return when none of its processes is left. Running requests finish first.

    Ctrl-C stops the waiting, not the unloading.
    """

    async def work(client: Client) -> None:
        await follow(
            invocation.console,
            client,
            lambda: client.stop_worker(model, force),
            verb="stopping",
            done="stopped",
            cancels=False,
        )

    invocation.run(f"stop {model}", work)
