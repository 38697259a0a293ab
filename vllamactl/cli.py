"""The command line (floor 5): the verbs, each imported only when it is used, and the one place where errors end."""

import importlib
import os
import sys

import click

from vllamactl.console import Console, ReaderLeft
from vllamactl.exits import BROKEN_PIPE, INTERRUPTED, CtlError, Interrupted, Reported, exit_status, explain
from vllamactl.invocation import Invocation, global_options

VERBS = {
    "pull": "pull",
    "list": "list",
    "ls": "list",
    "rm": "rm",
    "ps": "ps",
    "status": "status",
    "show": "show",
    "run": "run",
    "load": "load",
    "stop": "stop",
    "cp": "cp",
    "create": "create",
    "logs": "logs",
    "bench": "bench",
    "config": "config",
    "reload": "reload",
    "upgrade": "upgrade",
    "doctor": "doctor",
    "engine": "engine",
    "version": "version",
    "completion": "completion",
}
"""Verb to module in vllamactl.commands. A verb that stands here works; there are no placeholders."""

ALIASES = frozenset({"ls"})


class Verbs(click.Group):
    """Imports a verb when it is used: `ps` must not pay for what `run` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in VERBS if verb not in ALIASES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = VERBS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(f"vllamactl.commands.{module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f"did you mean {near[0]}?" if near else "all verbs: vllamactl --help"
            raise CtlError("INVALID_REQUEST", f"cannot {args[0]}: there is no such verb", hint)
        return super().resolve_command(ctx, args)


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from vllama import __version__

        click.echo(f"vllamactl {__version__}")
        context.exit()


cli = Verbs(
    name="vllamactl",
    params=[
        *global_options(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the client's version; `vllamactl version` asks the daemon too.",
        ),
    ],
    help="Talk to vllamad: models, what is loaded, and a chat on the terminal.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def run(arguments: list[str]) -> int:
    """Run a command line; returns the exit status. All output is written when it returns."""
    console = Console.standard()
    try:
        status = _run(arguments, console)
        console.write("", flush=True)
    except ReaderLeft:
        # What is still buffered would fail once more at the end of Python.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def _run(arguments: list[str], console: Console) -> int:
    invocation = Invocation(console)
    try:
        # Alone it shows the help, and fails: a script that forgot the verb must not think that all is well.
        outcome = cli.main(arguments or ["--help"], prog_name="vllamactl", standalone_mode=False, obj=invocation)
    except click.UsageError as error:
        return _fail(console, _usage(error), "")
    except click.ClickException as error:
        return _fail(console, CtlError("INVALID_REQUEST", error.format_message()), invocation.doing)
    except CtlError as error:
        return _fail(console, error, invocation.doing)
    except Reported as reported:
        return reported.status
    except (Interrupted, KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    if not arguments:
        return 2
    return outcome if isinstance(outcome, int) else 0


def _fail(console: Console, error: CtlError, doing: str) -> int:
    for line in explain(error, doing):
        console.warn(line)
    if console.is_json:
        # A script finds a document on stdout either way.
        console.document({"error": error.plain()})
    return exit_status(error.reason)


def _usage(error: click.UsageError) -> CtlError:
    path = error.ctx.command_path if error.ctx else "vllamactl"
    message = error.format_message().rstrip(".")
    return CtlError("INVALID_REQUEST", f"cannot run {path!r}: {message[:1].lower()}{message[1:]}", f"{path} --help")
