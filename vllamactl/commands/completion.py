"""`vllamactl completion`."""

import click
from click.shell_completion import get_completion_class

from vllamactl.exits import CtlError
from vllamactl.invocation import Invocation, Verb

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_VLLAMACTL_COMPLETE"
"""Click's own name for it: with this variable set, vllamactl answers the shell instead of running a verb."""


@click.command("completion", cls=Verb, short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL. It completes verbs, options and the names of models.

    \b
    bash: source <(vllamactl completion bash)
    zsh:  source <(vllamactl completion zsh)
    fish: vllamactl completion fish | source
    """
    invocation = context.ensure_object(Invocation)
    script = get_completion_class(shell)
    if script is None:
        raise CtlError("UNSUPPORTED", f"cannot complete for {shell}", "one of: bash, zsh, fish")
    completer = script(context.find_root().command, {}, "vllamactl", VARIABLE)
    # Not .source(): for bash that would run bash to look at its version, on whichever machine builds the package.
    invocation.console.data((completer.source_template % completer.source_vars()).rstrip("\n"))
