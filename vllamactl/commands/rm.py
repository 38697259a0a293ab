"""`vllamactl rm`."""

import click

from vllamactl import human
from vllamactl.client import Client
from vllamactl.exits import CtlError, Reported, exit_status, explain
from vllamactl.invocation import Invocation, Verb, complete_models
from vllamactl.plain import Plain


@click.command("rm", cls=Verb, short_help="Remove models from disk.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, shell_complete=complete_models)
@click.option("--force", "-f", is_flag=True, help="Unload a model that is loaded instead of refusing.")
@click.pass_obj
def command(invocation: Invocation, models: tuple[str, ...], force: bool) -> None:
    """Remove models: their names, and the files that no other model uses.

    One that cannot be removed does not keep the others; the exit status is then the first failure's.
    """
    console = invocation.console

    async def work(client: Client) -> None:
        removed: list[Plain] = []
        failed: list[Plain] = []
        status = 0
        for model in models:
            try:
                freed = await client.delete_model(model, force)
            except CtlError as error:
                if error.reason == "DAEMON_UNREACHABLE":
                    raise
                for line in explain(error, f"remove {model}"):
                    console.warn(line)
                failed.append({"name": model, **error.plain()})
                status = status or exit_status(error.reason)
                continue
            removed.append({"name": model, "freed_bytes": freed})
            if console.is_quiet and not console.is_json:
                console.data(model)
            console.done(f"removed {model}, freed {human.size(freed)}")
        if console.is_json:
            console.document({"removed": removed, "failed": failed})
        if status:
            raise Reported(status)

    invocation.run(f"remove {models[0]}", work)
