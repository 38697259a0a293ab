"""vllamad's command line (floor 2), made from the settings table. Values stay text: ``load`` reads them like those of
any other layer, so that all problems come out together."""

import argparse
from collections.abc import Mapping

from vllama import __version__
from vllamad.config.kinds import TextList
from vllamad.config.settings import ROWS


def build_parser() -> argparse.ArgumentParser:
    """The parser; every setting's ``dest`` is its key. ``check``, ``json`` and ``system`` are the only others."""
    parser = argparse.ArgumentParser(
        prog="vllamad",
        description="Serve models to Ollama, OpenAI and Anthropic clients by supervised vLLM workers.",
        epilog="Every flag is a setting; configuration files and the environment have many more.",
        allow_abbrev=False,
    )
    for row in ROWS.values():
        if row.flag:
            is_list = isinstance(row.kind, TextList)
            parser.add_argument(
                row.flag,
                dest=row.key,
                metavar=row.metavar,
                action="append" if is_list else "store",
                help=row.help.replace("%", "%%") + (" May be repeated." if is_list else ""),
            )
    parser.add_argument("--check", action="store_true", help="Load the configuration, print problems, exit 0 or 78.")
    parser.add_argument(
        "--json", action="store_true", help="With --check: one JSON object a line, also on engine, GPUs and hub."
    )
    parser.add_argument("--system", action="store_true", help="With --check: as the service of the system would.")
    parser.add_argument("--version", action="version", version=f"vllamad {__version__}")
    return parser


def argv_values(arguments: argparse.Namespace) -> Mapping[str, object]:
    """What was given on the command line, by key: the first argument of ``load``."""
    given: dict[str, object] = vars(arguments)
    return {key: value for key, value in given.items() if key in ROWS and value is not None}
