"""`vllamactl version`."""

import click

from vllama import __version__
from vllamactl.client import Client
from vllamactl.exits import CtlError
from vllamactl.invocation import Invocation, Verb


@click.command("version", cls=Verb, short_help="Show the versions of client and daemon.")
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Show the versions of client and daemon. Works without a daemon too."""
    console = invocation.console
    daemon: str | None = None
    engine: str | None = None
    problem: CtlError | None = None

    async def work(client: Client) -> None:
        nonlocal daemon, engine
        status = await client.get_status()
        daemon, engine = status.version, status.engine.version or None
        client.daemon_version = ""  # the page says it

    try:
        invocation.run("ask the daemon for its version", work, wait_s=0)
    except CtlError as error:
        problem = error
    if console.is_json:
        console.document({"client": __version__, "daemon": daemon, "engine": engine})
    elif console.is_quiet:
        console.data(__version__)
    else:
        console.data(f"vllamactl {__version__}")
        if daemon is not None:
            console.data(f"vllamad {daemon}")
        if engine:
            console.data(f"engine {engine}")
        if problem is not None:
            console.warn(f"vllamactl: {problem.message}")
