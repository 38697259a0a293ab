"""One run of vllamactl (floor 4): the global options, and how a verb's coroutine is run with a client."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from vllamactl.console import Console
from vllamactl.places import socket_candidates

if TYPE_CHECKING:
    from vllamactl.client import Client


class Invocation:
    """What every verb gets. ``doing`` is what was tried, for the error line: "pull smollm2"."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.socket: str | None = None
        self.doing = ""

    def run(self, doing: str, work: "Callable[[Client], Awaitable[None]]", wait_s: float | None = None) -> None:
        """Connect, run ``work``, and say so if the daemon is of another version."""
        self.doing = doing
        asyncio.run(self._run(work, wait_s))

    async def _run(self, work: "Callable[[Client], Awaitable[None]]", wait_s: float | None) -> None:
        from vllama import __version__
        from vllamactl.client import WAIT_S, connect

        async with connect(socket_candidates(self.socket), WAIT_S if wait_s is None else wait_s) as client:
            gc.enable()
            await work(client)
            if client.daemon_version and client.daemon_version != __version__:
                self.console.say(f"vllamactl is {__version__}, the daemon is {client.daemon_version}", "•")


def _set_socket(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value:
        context.ensure_object(Invocation).socket = value


def _set_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Invocation).console.is_json = True


def _set_quiet(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Invocation).console.is_quiet = True


def global_options() -> list[click.Parameter]:
    """Return the options that stand before or after the verb."""
    return [
        click.Option(
            ["--socket"],
            metavar="PATH",
            expose_value=False,
            callback=_set_socket,
            type=click.Path(),
            help="The daemon's control socket (VLLAMA_SOCKET).",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_set_json,
            help="One JSON document on stdout; for streams one object a line.",
        ),
        click.Option(
            ["--quiet", "-q"],
            is_flag=True,
            expose_value=False,
            callback=_set_quiet,
            help="Names only, or nothing.",
        ),
    ]


class Verb(click.Command):
    """A command that takes the global options too: `vllamactl ps --json` is what people type."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options()


def complete_models(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the models whose names begin like that, for the shell; none if the daemon does not answer."""
    from vllamactl.exits import CtlError

    names: list[str] = []

    async def fetch(client: "Client") -> None:
        names.extend(model.name for model in await client.list_models())

    try:
        # The shell asks with a context of its own, before any callback ran.
        Invocation(Console.standard()).run("", fetch, wait_s=0)
    except CtlError:
        return []
    return [name for name in names if name.startswith(incomplete)]
