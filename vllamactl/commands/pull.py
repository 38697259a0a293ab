"""`vllamactl pull`."""

import click

from vllamactl.client import Client
from vllamactl.follow import follow
from vllamactl.invocation import Invocation, Verb


@click.command("pull", cls=Verb, short_help="Fetch a model from the hub.")
@click.argument("model")
@click.option("--detach", "-d", is_flag=True, help="Print the operation's name and leave; the pull goes on.")
@click.pass_obj
def command(invocation: Invocation, model: str, detach: bool) -> None:
    """Fetch MODEL from the hub, or look whether there is a newer one.

    What was fetched before is not fetched again. Ctrl-C cancels the pull unless someone else watches it too.
    """

    async def work(client: Client) -> None:
        await follow(
            invocation.console,
            client,
            lambda: client.pull_model(model),
            verb="pulling",
            done="pulled",
            detach=detach,
        )

    invocation.run(f"pull {model}", work)
