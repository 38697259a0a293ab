"""Print a manual page: vllamad(8), vllamactl(1) or vllama-config(5), from the tables that the programs work by.

Usage: python -m scripts.package.manual vllamad.8|vllamactl.1|vllama-config.5
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator

import click

from vllama import __version__
from vllama.reasons import ROWS as REASONS
from vllamactl.cli import cli
from vllamactl.invocation import global_options
from vllamad.config.flags import build_parser
from vllamad.config.rows import Row
from vllamad.config.settings import FILE_ROWS, SECTIONS

SEE = {
    "vllamad.8": "vllamactl(1), vllama-config(5), systemctl(1), journalctl(1)",
    "vllamactl.1": "vllamad(8), vllama-config(5)",
    "vllama-config.5": "vllamad(8), vllamactl(1)",
}


# --- roff ------------------------------------------------------------------------------------------------------------


def text(words: str) -> str:
    """Plain text as roff takes it: nothing in it is a command or a hyphen that may be broken."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("`", "")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines())


def title(page: str, what: str) -> Iterator[str]:
    name, _, section = page.rpartition(".")
    yield f'.TH {name.upper()} {section} "" "vllama {__version__}"'
    yield ".SH NAME"
    yield f"{text(name)} \\- {text(what)}"


def item(term: str, words: Iterable[str]) -> Iterator[str]:
    yield ".TP"
    yield f".B {text(term)}"
    paragraphs = [each for each in words if each]
    yield text(paragraphs[0]) if paragraphs else "\\&"
    for paragraph in paragraphs[1:]:
        yield ".IP"
        yield text(paragraph)


def block(words: str) -> Iterator[str]:
    yield from (".PP", ".nf", text(words), ".fi")


# --- pages -----------------------------------------------------------------------------------------------------------


def vllamad_page() -> Iterator[str]:
    yield from title("vllamad.8", "serve language models behind Ollama's, OpenAI's and Anthropic's APIs")
    yield from (".SH SYNOPSIS", ".B vllamad", "[\\fIOPTION\\fR]...")
    yield ".SH DESCRIPTION"
    yield text(
        "vllamad supervises vLLM workers, one for each loaded model, and serves clients of Ollama, OpenAI and "
        "Anthropic on 127.0.0.1:11434. It stays in the foreground; mostly systemd runs it as vllamad.service. The "
        "engine, vLLM, is no part of the package: vllamactl engine install brings it."
    )
    yield ".SH OPTIONS"
    for action in build_parser()._actions:  # argparse shows them nowhere else
        term = ", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else "")
        yield from item(term, [(action.help or "").replace("%%", "%")])
    yield ".SH EXIT STATUS"
    yield from item("0", ["It was asked to stop, and has."])
    yield from item("78", ["The configuration is wrong; systemd does not try that again."])
    yield from item("other", ["Why it could not start, as in vllamactl(1)."])
    yield ".SH FILES"
    for path, meaning in {
        "/etc/vllama/config.toml, /etc/vllama/config.d/*.toml": "Settings, see vllama-config(5).",
        "/etc/credstore/vllama.hub_token, /etc/credstore/vllama.api_keys": "Secrets; root's, mode 0600.",
        "/var/lib/vllama": "Models (models), engines (engines), and what was learnt about them.",
        "/var/cache/vllama": "What engines compiled; may be deleted while vllamad is stopped.",
        "/run/vllama/vllamad.sock": "Where vllamactl connects; open to members of the group vllama.",
    }.items():
        yield from item(path, [meaning])
    yield ".SH SIGNALS"
    yield text(
        "SIGTERM and SIGINT stop it: it takes no more requests, lets those in flight finish (server.drain), and ends "
        "its workers. A second one ends the waiting."
    )


def vllamactl_page() -> Iterator[str]:
    yield from title("vllamactl.1", "talk to vllamad: models, what is loaded, and a chat on the terminal")
    yield from (".SH SYNOPSIS", ".B vllamactl", "[\\fIOPTION\\fR]... \\fIVERB\\fR [\\fIARGUMENT\\fR]...")
    yield ".SH DESCRIPTION"
    yield text("Data goes to stdout, everything said to people to stderr.")
    context = click.Context(cli, info_name="vllamactl")
    yield ".SH OPTIONS"
    yield text("They stand before or after the verb.")
    yield from _options(cli, context, frozenset())
    yield ".SH VERBS"
    yield from _verbs(cli, context)
    yield ".SH EXIT STATUS"
    by_status: dict[int, list[str]] = {}
    for reason, row in REASONS.items():
        by_status.setdefault(row.exit, []).append(f"{reason}: {row.meaning}")
    yield from item("0", ["Done."])
    for status in sorted(by_status):
        yield from item(str(status), by_status[status])
    yield ".SH ENVIRONMENT"
    yield from item("VLLAMA_SOCKET", ["The daemon's control socket."])
    yield from item("VLLAMA_STATE_DIR", ["The daemon's state folder, for daemons of one's own."])
    yield from item("NO_COLOR", ["If set, nothing is coloured."])


def _verbs(group: click.Group, context: click.Context) -> Iterator[str]:
    shared = frozenset(parameter.name for parameter in global_options())
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        inner = click.Context(command, info_name=name, parent=context)
        yield f".SS {text(' '.join([inner.command_path, *command.collect_usage_pieces(inner)]))}"
        for part in (command.help or "").strip().split("\n\n"):
            part = part.strip("\n")
            yield from (
                block(part.removeprefix("\b\n")) if part.startswith("\b") else (".PP", text(" ".join(part.split())))
            )
        yield from _options(command, inner, shared)
        if isinstance(command, click.Group):
            yield from _verbs(command, inner)


def _options(command: click.Command, context: click.Context, without: frozenset[str | None]) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in without:
            record = parameter.get_help_record(context)
            if record is not None:
                yield from item(*record[:1], record[1:])


def config_page() -> Iterator[str]:
    yield from title("vllama-config.5", "settings of vllamad")
    yield from (".SH SYNOPSIS", ".I /etc/vllama/config.toml", ".br", ".I /etc/vllama/config.d/*.toml")
    yield ".SH DESCRIPTION"
    yield text(
        "TOML. Later wins: the defaults, /etc/vllama/config.toml, /etc/vllama/config.d/*.toml in the order of their "
        "names, a user's own file (not for a system service), the environment, the command line. vllamad --check "
        "tells whether all is right, vllamactl config shows every value and where it came from."
    )
    for name, owner in SECTIONS.items():
        yield f".SH [{name}]"
        yield text(" ".join((owner.__doc__ or "").split()))
        for row in FILE_ROWS.values():
            if row.section == name:
                yield from item(f"{row.name} = {row.kind.to_toml(row.default)}", _about(row))
    yield ".SH [[model]]"
    yield text("Settings for models whose names match a pattern; the most specific row wins. See the file itself.")


def _about(row: Row) -> list[str]:
    names = ", ".join(name for name in (row.flag, *row.env, row.ollama) if name)
    return [row.help, row.why, f"Also {names}."]


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "vllamad.8": vllamad_page,
    "vllamactl.1": vllamactl_page,
    "vllama-config.5": config_page,
}


def page(name: str) -> str:
    """The whole page, with its references at the end."""
    lines = [*PAGES[name](), ".SH SEE ALSO", text(SEE[name])]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", choices=PAGES)
    sys.stdout.write(page(parser.parse_args().page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
