"""`vllamactl ps`."""

import time

import click

from vllamactl import human
from vllamactl.client import Client
from vllamactl.invocation import Invocation, Verb
from vllamactl.plain import plain
from vllamactl.render import Column, table
from vllamactl.workers import failure_lines, processor, size_bytes, state, until

COLUMNS = (
    Column("NAME", is_elastic=True),
    Column("ID", drop=1),
    Column("SIZE"),
    Column("PROCESSOR"),
    Column("CONTEXT"),
    Column("CPU", drop=2),
    Column("STATE"),
    Column("UNTIL"),
)


@click.command("ps", cls=Verb, short_help="List the models that are loaded.")
@click.argument("prefix", default="")
@click.pass_obj
def command(invocation: Invocation, prefix: str) -> None:
    """List the models that are loaded, loading or failed, and when they leave."""
    console = invocation.console

    async def work(client: Client) -> None:
        workers = [worker for worker in await client.list_workers() if worker.model.startswith(prefix)]
        if console.is_json:
            console.document({"workers": [plain(worker) for worker in workers]})
            return
        if console.is_quiet:
            lines = [worker.model for worker in workers]
        else:
            now = time.time()
            rows = [
                (
                    worker.holder or worker.model,
                    worker.model_digest[:12] or "-",
                    human.size(size_bytes(worker)) if size_bytes(worker) else "-",
                    processor(worker),
                    str(worker.context_length or "-"),
                    f"{worker.cpu_time.seconds} s" if worker.HasField("cpu_time") else "-",
                    state(worker),
                    until(worker, now),
                )
                for worker in workers
            ]
            lines = table(COLUMNS, rows, console.width)
        for line in lines:
            console.data(line)
        for worker in workers:
            for line in failure_lines(worker):
                console.say(line)

    invocation.run("list what is loaded", work)
