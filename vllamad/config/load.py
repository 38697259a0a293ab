"""Loading the configuration (floor 2): every layer is read, the strongest value of each setting wins, and each value
remembers where it came from and what it overrode. After this, nothing reads the environment any more.

The only module that knows the TOML parser.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import tomli

from vllama.reasons import Reason
from vllamad.config.environment import environment_layers, read_address
from vllamad.config.files import File, file_layer
from vllamad.config.layers import Findings, Found, Layer, read_text, read_value
from vllamad.config.lines import key_lines
from vllamad.config.loaded import Loaded, Setting, build_settings
from vllamad.config.model_rows import ModelRow
from vllamad.config.places import (
    SYSTEM_CONFIG,
    SYSTEM_STATE,
    detect_system_service,
    places_problems,
    resolve_places,
    user_config,
)
from vllamad.config.rows import PATH_KINDS, Row
from vllamad.config.settings import PLACE_ROWS, ROWS
from vllamad.domain.errors import VllamaError

DEFAULT_SOURCE = "default"


def load(
    argv_values: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    is_system_service: bool | None = None,
    cwd: Path | None = None,
    etc: Path = SYSTEM_CONFIG,
    uid: int | None = None,
    pid: int | None = None,
) -> Loaded:
    """Read every layer and merge them. ``argv_values`` is what ``flags.argv_values`` returns; the other arguments are
    for tests. Raises CONFIG_INVALID with all problems at once."""
    cwd = cwd or Path.cwd()
    uid = os.getuid() if uid is None else uid
    home = _home(environ, uid)
    findings = Findings()
    flags = _flag_layer(argv_values, findings.problems)
    environment = environment_layers(environ, findings)
    above = [*environment, flags]
    places_given = {key: _strongest(above, key) for key in PLACE_ROWS}
    is_system = is_system_service
    if is_system is None:
        # Root without systemd is a user like any other, unless told to work on the system's own folder.
        wants_system = uid == 0 and _absolute(places_given["state_dir"], cwd, home) == SYSTEM_STATE
        is_system = wants_system or detect_system_service(environ, uid, os.getpid() if pid is None else pid)

    config = places_given["config"]
    if config:
        files = [(_absolute(config, cwd, home), True)]
    else:
        files = [(path, False) for path in _found_files(environ, findings.problems, home, cwd, etc, is_system)]
    read: list[Path] = []
    layers: list[Layer] = [{key: Found(row.default, DEFAULT_SOURCE) for key, row in ROWS.items()}]
    models: list[tuple[ModelRow, Layer]] = []
    for path, is_required in files:
        document = _read_document(path, is_required, findings.problems)
        if document is not None:
            read.append(path)
            layers.append(file_layer(document[0], document[1], models))
            _warn_of_open_secret(path, layers[-1], findings.warnings)
    layers += above

    values = {key: _merge(ROWS[key], layers, base=cwd, home=home) for key in ROWS}
    values |= _model_values(models)
    places = resolve_places(
        environ,
        uid=uid,
        home=home,
        is_system=is_system,
        state_dir=_text(values["state_dir"]),
        runtime_dir=_text(values["runtime_dir"]),
        socket=_text(values["control.socket"]),
    )
    by_socket = values["control.socket"] if values["control.socket"].value else values["runtime_dir"]
    findings.problems += places_problems(places, by_socket.source)
    if findings.problems:
        raise _invalid(findings.problems)
    settings = build_settings(values, tuple(row for row, _ in models))
    return Loaded(settings, values, places, is_system, tuple(read), tuple(findings.warnings))


def _invalid(problems: list[str]) -> VllamaError:
    if len(problems) == 1:
        text = problems[0]
    else:
        text = f"{len(problems)} problems" + "".join(f"\n  {problem}" for problem in problems)
    return VllamaError(
        Reason.CONFIG_INVALID,
        f"cannot load the configuration: {text}",
        "correct it, then run: vllamad --check",
        problems=len(problems),
    )


# --- layers ----------------------------------------------------------------------------------------------------------


def _home(environ: Mapping[str, str], uid: int) -> Path:
    if environ.get("HOME", "").startswith("/"):
        return Path(environ["HOME"])
    import pwd

    try:
        return Path(pwd.getpwuid(uid).pw_dir)
    except KeyError:
        return Path("/")


def _flag_layer(argv_values: Mapping[str, object], problems: list[str]) -> Layer:
    layer = Layer()
    for key, value in argv_values.items():
        row = ROWS[key]
        if key == "server.host" and isinstance(value, str):
            # --host takes a port as well, as VLLAMA_HOST does; --port wins over it.
            layer = read_address(value, row.flag, problems) | layer
            continue
        is_text = isinstance(value, str)
        found = read_text(row, value, row.flag, problems) if is_text else read_value(row, value, row.flag, problems)
        if found is not None:
            layer[key] = found
    return layer


def _strongest(layers: list[Layer], key: str) -> str:
    return next((str(layer[key].value) for layer in reversed(layers) if key in layer), "")


def _found_files(
    environ: Mapping[str, str], problems: list[str], home: Path, cwd: Path, etc: Path, is_system: bool
) -> list[Path]:
    """Where files may be, weakest first."""
    folder = etc / "config.d"
    try:
        parts = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        parts = []
    except OSError as error:
        problems.append(f"{folder}: cannot read it: {error.strerror}")
        parts = []
    own = [] if is_system else [user_config(environ, home), cwd / "vllama.toml"]
    return [etc / "config.toml", *parts, *own]


def _read_document(path: Path, is_required: bool, problems: list[str]) -> tuple[File, dict[str, object]] | None:
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = cast("dict[str, object]", tomli.loads(text))
    except (FileNotFoundError, NotADirectoryError):
        if is_required:
            problems.append(f"{path}: there is no such file")
    except OSError as error:
        problems.append(f"{path}: cannot read it: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8: byte {error.start}")
    except tomli.TOMLDecodeError as error:
        problems.append(f"{path}: not TOML: {error}")
    else:
        return File(path, key_lines(text), problems), document
    return None


# --- merging ---------------------------------------------------------------------------------------------------------


def _merge(row: Row, layers: list[Layer], *, base: Path, home: Path) -> Setting:
    found = [layer[row.key] for layer in reversed(layers) if row.key in layer]
    if row.kind.name in PATH_KINDS:
        found = [Found(_path_text(str(each.value), row, base, home), each.source) for each in found]
    return Setting(found[0].value, found[0].source, tuple(found[1:]))


def _path_text(text: str, row: Row, base: Path, home: Path) -> str:
    is_command = row.kind.name == "program" and "/" not in text
    return text if not text or is_command else str(_absolute(text, base, home))


def _absolute(text: str, base: Path, home: Path) -> Path:
    if text == "~" or text.startswith("~/"):
        return home / text[2:]
    return Path(os.path.normpath(base / text))


def _text(setting: Setting) -> str:
    return str(setting.value)


def _warn_of_open_secret(path: Path, layer: Layer, warnings: list[str]) -> None:
    for key, found in layer.items():
        if ROWS[key].is_secret and found.value and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            warnings.append(f"{found.source}: {key} is a secret in a file that others can read; chmod 600 {path}")


def _model_values(models: list[tuple[ModelRow, Layer]]) -> dict[str, Setting]:
    values: dict[str, Setting] = {}
    for row, layer in models:
        for name, found in layer.items():
            key = f"model[{row.match}].{name}"
            if name == "match":
                continue
            lost = values.get(key)
            overrode = (Found(lost.value, lost.source), *lost.overrode) if lost else ()
            values[key] = Setting(found.value, found.source, overrode)
    return values
