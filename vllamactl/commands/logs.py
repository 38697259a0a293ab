"""`vllamactl logs`."""

from contextlib import aclosing

import click

from vllamactl.client import Client
from vllamactl.invocation import Invocation, Verb, complete_models
from vllamactl.plain import plain

ALL = -1


def read_lines(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    """Read how many lines: a number above zero, or "all"."""
    if value == "all":
        return ALL
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor 'all'")
    return int(value)


@click.command("logs", cls=Verb, short_help="Show log lines of the daemon or of a model's engine.")
@click.argument("model", default="", shell_complete=complete_models)
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C, over restarts of the engine.")
@click.option(
    "--lines",
    "-n",
    metavar="N",
    default="100",
    show_default=True,
    callback=read_lines,
    help="How many old lines first, or 'all'.",
)
@click.pass_obj
def command(invocation: Invocation, model: str, follow: bool, lines: int) -> None:
    """Show the daemon's log lines, or those of MODEL's engine."""
    console = invocation.console

    async def work(client: Client) -> None:
        async with aclosing(client.stream_logs(model, lines, follow)) as answers:
            async for answer in answers:
                if answer.missed and not console.is_json:
                    console.warn(f"[missed {answer.missed} lines]")
                if console.is_json:
                    line = plain(answer.line) if answer.HasField("line") else {}
                    console.document({**line, "missed": answer.missed} if answer.missed else line)
                elif answer.HasField("line"):
                    console.write(console.printable(answer.line.text) + "\n", flush=True)

    invocation.run(f"show the log of {model}" if model else "show the log", work)
