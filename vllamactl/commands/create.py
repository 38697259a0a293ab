"""`vllamactl create`."""

from pathlib import Path

import click

from vllama.control.v1.models_pb2 import CreateModelRequest
from vllamactl.client import Client
from vllamactl.exits import CtlError
from vllamactl.follow import follow
from vllamactl.invocation import Invocation, Verb

WORKS = "use --from with a GGUF file, a folder of safetensors, or a model's name"


@click.command("create", cls=Verb, short_help="Make a model from a file, a folder or another model.")
@click.argument("name")
@click.option("--from", "source", metavar="SOURCE", help="MODEL, DIR (safetensors) or FILE.gguf.")
@click.option("--file", "-f", "modelfile", metavar="MODELFILE", help="Ollama's recipe; not supported yet, --from is.")
@click.option("--detach", "-d", is_flag=True, help="Print the operation's name and leave; the work goes on.")
@click.pass_obj
def command(invocation: Invocation, name: str, source: str | None, modelfile: str | None, detach: bool) -> None:
    """Make a local model NAME. One of that name is replaced when the new one is complete.

    The daemon reads files and folders as its own user.
    """
    invocation.doing = f"create {name}"
    if modelfile is not None:
        raise CtlError("UNSUPPORTED", "a Modelfile is not supported yet", WORKS)
    if not source:
        raise CtlError("INVALID_REQUEST", "there is nothing to make it from", WORKS)
    request = creation(name, source)

    async def work(client: Client) -> None:
        await follow(
            invocation.console,
            client,
            lambda: client.create_model(request),
            verb="creating",
            done="created",
            detach=detach,
        )

    invocation.run(f"create {name}", work)


def creation(name: str, source: str) -> CreateModelRequest:
    """Tell a path from a model's name: what looks like a path, or is one here, is a path."""
    path = Path(source).expanduser()
    if path.is_dir():
        return CreateModelRequest(name=name, from_folder=str(path.resolve()))
    if path.suffix.lower() == ".gguf" or source.startswith(("/", "./", "../", "~")) or path.is_file():
        if not path.exists():
            raise CtlError("INVALID_REQUEST", f"there is no file {path}", WORKS)
        if path.suffix.lower() != ".gguf":
            raise CtlError("UNSUPPORTED", f"{path} is no GGUF file", WORKS)
        return CreateModelRequest(name=name, from_gguf=str(path.resolve()))
    return CreateModelRequest(name=name, from_model=source)
