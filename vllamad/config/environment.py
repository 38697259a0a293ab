"""The environment as layers (floor 2): Ollama's names, systemd's credentials, names of other programs, our own.

Ollama starts with a warning where one of its variables makes no sense, and so do we: its users must not be stopped by
a setting of another program. Our own names are strict.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllamad.config.kinds import Duration, Refused
from vllamad.config.layers import Findings, Found, Layer, nearest, read_text
from vllamad.config.rows import ENV_PREFIX, Row
from vllamad.config.settings import ROWS

OTHER_NAMES = frozenset(
    {
        "VLLAMA_ENGINES",
        # Every child of a daemon has it, as has the program that is asked whether it can take over.
        "VLLAMA_WORKER",
        "VLLAMA_TEST_ENGINE_PYTHON",
        "VLLAMA_TEST_GGUF",
        "VLLAMA_TEST_EMBEDDING_MODEL",
        "VLLAMA_TEST_NODE_MODULES",
    }
)
"""Names with our prefix that are no settings of the daemon but may stand in its environment."""


@dataclass(frozen=True, slots=True)
class Address:
    """An ``OLLAMA_HOST``. ``port`` None: not named. ``problem`` says what could not be read; ``host`` still holds."""

    host: str
    port: int | None = None
    problem: str = ""


def parse_address(text: str) -> Address:
    """Read ``[scheme://]host[:port][/path]`` as Ollama does: a scheme brings its own port (80, 443), ``:1234`` means
    every interface, IPv6 goes with or without brackets, a path is for clients and dropped here."""
    rest = _trim(text)
    scheme, separator, after = rest.partition("://")
    port: int | None = None
    if separator:
        port = {"http": 80, "https": 443}.get(scheme.lower())
        if port is None:
            return Address("", None, f"unknown scheme {scheme}")
        rest = after
    rest = rest.partition("/")[0]
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", rest)
    if bracketed:
        host, number = bracketed[1], bracketed[2]
    elif rest.count(":") == 1:
        host, _, number = rest.partition(":")
    else:
        host, number = rest, None
    if not re.fullmatch(r"[A-Za-z0-9_.:%-]*", host):
        return Address("", None, f"{host} is neither a host name nor an address")
    if scheme.lower() == "https" and separator:
        return Address(host, port, "vllamad speaks plain HTTP, not https")
    if number is not None:
        if not re.fullmatch(r"[0-9]{1,5}", number) or int(number) > 65535:
            return Address(host, port, f"port {number or 'is empty'}: not a number from 0 to 65535")
        port = int(number)
    return Address(host, port)


def read_address(text: str, source: str, problems: list[str]) -> Layer:
    """The two settings of an address, for ``VLLAMA_HOST`` and ``--host``."""
    address = parse_address(text)
    if address.problem:
        problems.append(f'{source}: server.host: found "{text}"; allowed: host, host:port or :port ({address.problem})')
        return {}
    layer: Layer = {"server.host": Found(address.host, source)}
    if address.port is not None:
        layer["server.port"] = Found(address.port, source)
    return layer


def environment_layers(environ: Mapping[str, str], findings: Findings) -> list[Layer]:
    """What the environment says, weakest layer first. An empty variable counts as unset."""
    given = {name: text for name, value in environ.items() if (text := _trim(value))}
    _refuse_unknown(given, findings.problems)
    foreign, short, full = Layer(), Layer(), Layer()
    for row in ROWS.values():
        for name in row.env:
            if name not in given or name == "VLLAMA_HOST":
                continue
            found = read_text(row, given[name], name, findings.problems)
            layer = full if name == _full_name(row) else short if name.startswith(ENV_PREFIX) else foreign
            if found is not None:
                layer[row.key] = found
    if "VLLAMA_HOST" in given:
        short |= read_address(given["VLLAMA_HOST"], "VLLAMA_HOST", findings.problems)
    credentials = _credentials(environ, findings.problems)
    return [_ollama_layer(given, findings.warnings), credentials, foreign, short, full]


def _full_name(row: Row) -> str:
    return f"{ENV_PREFIX}{row.section}_{row.name}".upper() if row.section else ""


def _refuse_unknown(given: Mapping[str, str], problems: list[str]) -> None:
    known = {name for row in ROWS.values() for name in row.env if name.startswith(ENV_PREFIX)} | OTHER_NAMES
    for name in sorted(given):
        if name.startswith(ENV_PREFIX) and name not in known:
            near = nearest(name, known)
            problems.append(f"{name}: unknown variable" + (f": did you mean {near}?" if near else ""))


def _credentials(environ: Mapping[str, str], problems: list[str]) -> Layer:
    """Secrets that systemd hands over by LoadCredential=, as files named like the setting's last word."""
    layer = Layer()
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return layer
    for row in ROWS.values():
        file = Path(folder) / row.name
        if not row.is_secret or not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{file}: {row.key}: cannot read the credential: {error}")
            continue
        found = read_text(row, text, str(file), problems) if text else None
        if found is not None:
            layer[row.key] = found
    return layer


def _trim(text: str) -> str:
    """As Ollama trims its variables: blanks, then quotes."""
    return text.strip().strip("\"'").strip()


def _is_true(text: str) -> bool:
    return text.lower() not in {"0", "f", "false"}


def _unsigned(text: str) -> int | None:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise Refused
    return int(text)


def _not_zero(text: str) -> int | None:
    return _unsigned(text) or None  # 0 is "decide yourself" there, which our default does


def _timeout(text: str) -> float | None:
    seconds = Duration().from_text(text)
    return seconds if seconds > 0 else math.inf


_OLLAMA: dict[str, tuple[str, Callable[[str], object | None]]] = {
    "OLLAMA_ORIGINS": ("server.origins", ROWS["server.origins"].kind.from_text),
    "OLLAMA_KEEP_ALIVE": ("models.keep_alive", ROWS["models.keep_alive"].kind.from_text),
    "OLLAMA_MAX_QUEUE": ("scheduler.max_queue", _not_zero),
    "OLLAMA_MAX_LOADED_MODELS": ("scheduler.max_loaded_models", _unsigned),
    "OLLAMA_NUM_PARALLEL": ("scheduler.num_parallel", _unsigned),
    "OLLAMA_LOAD_TIMEOUT": ("engine.start_timeout", _timeout),
    "OLLAMA_CONTEXT_LENGTH": ("models.context_length", _unsigned),
    "OLLAMA_DEBUG": ("logging.level", lambda text: "debug" if _is_true(text) else None),
}
"""How Ollama's variables are read where its rules differ from ours; None leaves the setting as it was."""


def _ollama_layer(given: Mapping[str, str], warnings: list[str]) -> Layer:
    layer = Layer()
    for name, (key, read) in _OLLAMA.items():
        if name not in given:
            continue
        try:
            value = read(given[name])
        except Refused as error:
            more = f": {error}" if str(error) else ""
            warnings.append(f'{name}="{given[name]}" is ignored{more}; allowed: {ROWS[key].kind.allowed}')
            continue
        if value is not None:
            layer[key] = Found(value, name)
    if "OLLAMA_HOST" in given:
        address = parse_address(given["OLLAMA_HOST"])
        if address.problem:
            warnings.append(f'OLLAMA_HOST="{given["OLLAMA_HOST"]}" is not taken as it stands: {address.problem}')
        if address.host or not address.problem:
            layer["server.host"] = Found(address.host, "OLLAMA_HOST")
        if address.port is not None:
            layer["server.port"] = Found(address.port, "OLLAMA_HOST")
    return layer
