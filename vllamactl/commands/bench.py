"""`vllamactl bench`. What it measures with is imported when it runs: completion and `--help` need none of it."""

import asyncio
import math
from typing import TYPE_CHECKING, Any

import click

from vllamactl.invocation import Invocation, Verb, complete_models
from vllamactl.options import read_span

if TYPE_CHECKING:
    from vllamactl.bench.figures import Limits
    from vllamactl.client import Client

APIS = click.Choice(["ollama", "openai"])


def _read_users(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    numbers = _numbers(value)
    if any(number < 1 or number != int(number) for number in numbers):
        raise click.BadParameter(f"{value!r} must be whole numbers from 1 on, such as 1,4,16")
    return tuple(dict.fromkeys(int(number) for number in numbers))


def _read_rates(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    numbers = _numbers(value)
    if any(number <= 0 for number in numbers):
        raise click.BadParameter(f"{value!r} must be numbers of requests a second, such as 2.5 or 1,2,4")
    return tuple(dict.fromkeys(numbers))


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise click.BadParameter(f"{text!r} must be numbers with commas between them")
    return numbers


def _read_limits(_context: click.Context, _parameter: click.Parameter, value: str | None) -> "Limits | None":
    if value is None:
        return None
    from vllamactl.bench.figures import Limits

    try:
        return Limits.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("bench", cls=Verb, short_help="Measure a model as clients see it, or how long it takes to load.")
@click.argument("model", shell_complete=complete_models)
@click.option(
    "--concurrency",
    "-c",
    "users",
    metavar="N[,N...]",
    callback=_read_users,
    help="How many users ask at once; each asks again when it is answered. Unset: 1.",
)
@click.option(
    "--rate",
    "rates",
    metavar="R[,R...]",
    callback=_read_rates,
    help="Requests a second at random instants instead (Poisson), whatever the server does; times count from then.",
)
@click.option(
    "--requests",
    "-n",
    metavar="N",
    type=click.IntRange(1),
    help="Requests in a round. Unset: 10 for each user, half a minute's at a --rate, or the --workload once.",
)
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(1),
    help="How often everything is played. Unset: once, five times with --against.",
)
@click.option(
    "--warmup",
    "warmups",
    metavar="N",
    type=click.IntRange(0),
    help="Requests before, that are not measured. Unset: one for each user, 16 at most.",
)
@click.option("--prompt", metavar="TEXT", help="What is asked. Unset: for long stories.")
@click.option("--prompt-file", metavar="FILE", type=click.Path(), help="The same from a file.")
@click.option(
    "--workload",
    metavar="FILE",
    type=click.Path(),
    help="A request on each line, in JSON: prompt or messages, and max_tokens if it has its own.",
)
@click.option(
    "--max-tokens",
    metavar="N",
    type=click.IntRange(1),
    help="Where an answer ends, if the model does not end it before. Unset: 128.",
)
@click.option(
    "--distinct/--same",
    "is_distinct",
    default=None,
    help="A mark of its own before each prompt, so that none comes from a prefix cache; unset: all but a --workload.",
)
@click.option("--seed", type=int, metavar="N", help="Draws the instants of a --rate. Unset: 0.")
@click.option("--api", type=APIS, default="ollama", show_default=True, help="By which API the model is asked.")
@click.option("--url", metavar="URL", help="Where it is asked. Unset: where the daemon says that it listens.")
@click.option(
    "--against",
    nargs=2,
    type=(APIS, str),
    metavar="API URL",
    help="Ask another server the same, in turns, and compare: ollama or openai, and its address.",
)
@click.option("--against-model", metavar="MODEL", help="The model's name there, if it has another.")
@click.option(
    "--goodput",
    "limits",
    metavar="LIMITS",
    callback=_read_limits,
    help="Also tell how many requests keep these limits, in ms: ttft:200,tpot:50,latency:5000.",
)
@click.option(
    "--timeout", "timeout_s", metavar="SPAN", callback=read_span, help="What takes longer has failed. Unset: 10m."
)
@click.option("--start", "is_start", is_flag=True, help="Measure how long the model takes to load instead.")
@click.option("--repeat", metavar="N", type=click.IntRange(1), help="With --start: how often. Unset: 3 times.")
@click.option(
    "--swap-with",
    metavar="MODEL",
    help="With --start: load this one in between, instead of unloading. Where models sleep, this measures the wake.",
)
@click.pass_obj
def command(invocation: Invocation, model: str, **options: Any) -> None:
    """Measure MODEL as its clients see it: latency, time to the first token and between tokens, requests and tokens a
    second.

    Everything goes over HTTP, at temperature 0, and tokens are those that the server counted. With --url no daemon is
    needed. API keys are read from VLLAMA_API_KEY, and for the other server from VLLAMA_AGAINST_API_KEY. Ctrl-C ends it
    early and shows what there is. If requests failed, the exit status is that of their most frequent failure.
    """
    from vllamactl.bench.options import Options
    from vllamactl.bench.session import bench_address, bench_daemon

    invocation.doing = f"bench {model}"
    chosen = Options(**options)
    chosen.check()
    asked = chosen.asked()

    async def work(client: "Client") -> None:
        await bench_daemon(invocation.console, client, model, chosen, asked)

    if chosen.url is not None and not chosen.is_start:
        asyncio.run(bench_address(invocation.console, model, chosen, asked))
    else:
        invocation.run(f"bench {model}", work)
