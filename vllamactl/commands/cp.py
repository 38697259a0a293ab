"""`vllamactl cp`."""

import click

from vllamactl.client import Client
from vllamactl.invocation import Invocation, Verb, complete_models
from vllamactl.plain import plain


@click.command("cp", cls=Verb, short_help="Give a model a second name.")
@click.argument("source", shell_complete=complete_models)
@click.argument("destination")
@click.pass_obj
def command(invocation: Invocation, source: str, destination: str) -> None:
    """Give SOURCE a second name. Both share their files; a DESTINATION that exists is replaced."""
    console = invocation.console

    async def work(client: Client) -> None:
        copy = await client.copy_model(source, destination)
        if console.is_json:
            console.document(plain(copy))
        console.done(f"copied {source} to {copy.name or destination}")

    invocation.run(f"copy {source} to {destination}", work)
