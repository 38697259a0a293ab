"""`vllamactl run`."""

import sys
from collections.abc import Callable

import click

from vllama.control.v1.models_pb2 import Model
from vllamactl.answer import Answer, figures, stream_answer
from vllamactl.client import Client
from vllamactl.conversation import PARAMETERS, Conversation
from vllamactl.exits import CtlError
from vllamactl.follow import Interrupts, follow
from vllamactl.invocation import Invocation, Verb, complete_models
from vllamactl.options import KEEP_ALIVE_HELP, read_span


def sampling_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add one option per sampling parameter (a decorator)."""
    for name, kind in reversed(PARAMETERS.items()):
        words = "Where the answer ends; may be given again." if name == "stop" else f"Sampling: {name}."
        option = click.option("--" + name.replace("_", "-"), type=kind, multiple=name == "stop", help=words)
        function = option(function)
    return function


@click.command("run", cls=Verb, short_help="Ask a model, or chat with it.")
@click.argument("model", shell_complete=complete_models)
@click.argument("prompt", nargs=-1)
@click.option("--system", help="A system message.")
@click.option("--format", "format_", default="", help="'json', or a JSON schema that the answer must follow.")
@click.option("--think/--no-think", default=None, help="Let the model think first, or not; unset: as it likes.")
@click.option("--hide-thinking", is_flag=True, help="Let it think, but do not show it.")
@click.option("--keep-alive", "--keepalive", metavar="SPAN", callback=read_span, help=KEEP_ALIVE_HELP)
@click.option("--verbose", is_flag=True, help="Counts, times and tokens/s after the answer, on stderr.")
@sampling_options
@click.pass_obj
def command(
    invocation: Invocation,
    model: str,
    prompt: tuple[str, ...],
    system: str | None,
    format_: str,
    think: bool | None,
    hide_thinking: bool,
    keep_alive: float | None,
    verbose: bool,
    stop: tuple[str, ...],
    **sampling: float | None,
) -> None:
    """Ask MODEL and print its answer as it comes. Without a PROMPT on a terminal: chat with it.

    Piped input is the prompt, or follows it. A model that is not here is pulled first.
    """
    console = invocation.console
    chat = Conversation(
        model,
        system=system or "",
        format=format_,
        think=think,
        keep_alive_s=keep_alive,
        is_verbose=verbose,
        hides_thinking=hide_thinking,
    )
    for name, value in sampling.items():
        if value is not None:
            setattr(chat.options, name, value)
    chat.options.stop.extend(stop)
    invocation.doing = f"run {model}"
    asked = whole_prompt(" ".join(prompt))
    is_interactive = not asked and sys.stdin.isatty() and console.is_out_terminal and not console.is_json
    if not asked and not is_interactive:
        raise CtlError("INVALID_REQUEST", "the prompt is empty", f'vllamactl run {model} "your question"')

    async def ask(client: Client) -> None:
        await ensure_here(invocation, client, model)
        answer = Answer()
        with Interrupts() as interrupts:
            await interrupts.or_result(stream_answer(console, client, chat.request(asked), answer, chat.hides_thinking))
        if chat.is_verbose and answer.finish is not None:
            for line in figures(answer.finish):
                console.warn(line)

    async def talk(client: Client) -> None:
        from vllamactl.repl import Repl  # takes 0.2 s to import, and only a chat needs it

        async def make_ready(name: str) -> Model:
            known = await ensure_here(invocation, client, name)
            await follow(
                console,
                client,
                lambda: client.start_worker(name, chat.keep_alive_s),
                verb="loading",
                done="loaded",
            )
            return known

        await Repl(console, client, chat, await make_ready(model), make_ready).run()

    invocation.run(f"run {model}", talk if is_interactive else ask)


def whole_prompt(argument: str) -> str:
    """Return the prompt: the argument, and below it what is piped in."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()  # pyright: ignore[reportUnnecessaryComparison]
    return "\n\n".join(part for part in (argument, piped.rstrip("\n")) if part.strip())


async def ensure_here(invocation: Invocation, client: Client, name: str) -> Model:
    """Return the model, pulled first if it is not on this machine; that is what people know from Ollama."""
    try:
        return await client.get_model(name)
    except CtlError as error:
        if error.reason != "MODEL_NOT_FOUND":
            raise
    await follow(invocation.console, client, lambda: client.pull_model(name), verb="pulling", done="pulled")
    return await client.get_model(name)
