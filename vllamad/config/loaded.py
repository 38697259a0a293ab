"""The configuration as it was loaded (floor 2): the frozen tree, and the history of every value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllamad.config.layers import Found
from vllamad.config.model_rows import MODEL_ROWS
from vllamad.config.places import Places
from vllamad.config.settings import ROWS, Settings


@dataclass(frozen=True, slots=True)
class Setting:
    """A value with its history. ``overrode`` is what lost against it, the strongest first."""

    value: object
    source: str
    overrode: tuple[Found, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """A setting for people: everything is text, secrets are hidden."""

    key: str
    value: str
    source: str
    overrode: tuple[str, ...]
    is_reloadable: bool
    help: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration. ``values`` has every setting by key, and ``model[PATTERN].KEY`` for what rows say;
    ``files`` are those that were read, weakest first; ``warnings`` are for the log."""

    settings: Settings
    values: Mapping[str, Setting]
    places: Places
    is_system_service: bool
    files: tuple[Path, ...]
    warnings: tuple[str, ...]

    def shown(self) -> tuple[Shown, ...]:
        """What ``vllamactl config`` lists."""
        return tuple(_show(key, setting) for key, setting in self.values.items())


def _show(key: str, setting: Setting) -> Shown:
    row = ROWS.get(key) or MODEL_ROWS[key.rpartition(".")[2]]
    return Shown(
        key=key,
        value=row.written(setting.value),
        source=setting.source,
        overrode=tuple(f"{found.source}: {row.written(found.value)}" for found in setting.overrode),
        is_reloadable=row.is_reloadable,
        help=row.help,
    )
