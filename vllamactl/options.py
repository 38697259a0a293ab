"""Option values that several verbs read (floor 4)."""

import click

from vllamactl import human

KEEP_ALIVE_HELP = "How long it may stay idle: 5m, 1h30m, 300 (seconds), -1 (for ever); unset: as the daemon is set."


def read_span(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Read a span of time in Ollama's forms as seconds (a callback of click)."""
    if value is None:
        return None
    try:
        return human.parse_span(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
