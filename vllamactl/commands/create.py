"""`vllamactl create`."""

import sys
from pathlib import Path

import click

from vllama.control.v1.models_pb2 import CreateModelRequest
from vllamactl.client import Client
from vllamactl.exits import CtlError
from vllamactl.follow import follow
from vllamactl.invocation import Invocation, Verb

WORKS = "use --from with a GGUF file, a folder of safetensors, or a model's name; or -f with a Modelfile"
MODELFILE = Path("Modelfile")
"""What is read in the folder where one stands, if nothing else is said: as Ollama's client does."""


@click.command("create", cls=Verb, short_help="Make a model from a file, a folder or another model.")
@click.argument("name")
@click.option("--from", "source", metavar="SOURCE", help="MODEL, DIR (safetensors) or FILE.gguf.")
@click.option("--file", "-f", "modelfile", metavar="MODELFILE", help="A recipe; - reads it from standard input.")
@click.option("--detach", "-d", is_flag=True, help="Print the operation's name and leave; the work goes on.")
@click.pass_obj
def command(invocation: Invocation, name: str, source: str | None, modelfile: str | None, detach: bool) -> None:
    """Make a local model NAME. One of that name is replaced when the new one is complete.

    With a Modelfile, --from wins over its FROM line; without either, ./Modelfile is read. The daemon reads files and
    folders as its own user.
    """
    invocation.doing = f"create {name}"
    if modelfile is None and not source:
        if not MODELFILE.is_file():
            raise CtlError("INVALID_REQUEST", "there is nothing to make it from", WORKS)
        modelfile = str(MODELFILE)
    request = creation(name, source) if source else CreateModelRequest(name=name)
    if modelfile is not None:
        request.modelfile, request.folder = read_modelfile(modelfile)

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


def read_modelfile(place: str) -> tuple[bytes, str]:
    """Return a Modelfile and the folder where its relative paths begin."""
    try:
        if place == "-":
            return sys.stdin.buffer.read(), str(Path.cwd())
        path = Path(place).expanduser()
        return path.read_bytes(), str(path.resolve().parent)
    except OSError as error:
        raise CtlError("INVALID_REQUEST", f"cannot read {place}: {error.strerror}", WORKS) from error


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
