"""The configuration as it was loaded (floor 2): the frozen tree, and the history of every value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllamad.config.layers import Found
from vllamad.config.model_rows import MODEL_ROWS, ModelRow
from vllamad.config.places import Places
from vllamad.config.rows import Effect, Row
from vllamad.config.settings import FILE_ROWS, PLACE_ROWS, ROWS, SECTIONS, Settings


@dataclass(frozen=True, slots=True)
class Setting:
    """A value with its history. ``overrode`` is what lost against it, the strongest first."""

    value: object
    source: str
    overrode: tuple[Found, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that two configurations have otherwise, for people. ``before`` and ``after`` are as in a file, secrets
    hidden; "" is a key of a row that is not there. ``source`` is where ``after`` comes from; ``note`` says what the
    values do not."""

    key: str
    before: str
    after: str
    source: str
    effect: Effect
    note: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """A setting for people: everything is text, secrets are hidden. ``pending`` is what was read since and waits for a
    restart, None if nothing does."""

    key: str
    value: str
    source: str
    overrode: tuple[str, ...]
    is_reloadable: bool
    help: str
    pending: Change | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration. ``values`` has every setting by key, and ``model[PATTERN].KEY`` for what rows say;
    ``files`` are those that were read, weakest first; ``warnings`` are for the log; ``pending`` is what was read since
    and waits for a restart."""

    settings: Settings
    values: Mapping[str, Setting]
    places: Places
    is_system_service: bool
    files: tuple[Path, ...]
    warnings: tuple[str, ...]
    pending: tuple[Change, ...] = ()

    def shown(self) -> tuple[Shown, ...]:
        """What ``vllamactl config`` lists."""
        pending = {change.key: change for change in self.pending}
        return tuple(_show(key, setting, pending.get(key)) for key, setting in self.values.items())


def build_settings(values: Mapping[str, Setting], model: tuple[ModelRow, ...]) -> Settings:
    """The frozen tree of what ``values`` say."""
    sections: dict[str, Any] = {
        name: owner(**{row.attribute: values[row.key].value for row in FILE_ROWS.values() if row.section == name})
        for name, owner in SECTIONS.items()
    }
    places: dict[str, Any] = {row.attribute: values[row.key].value for row in PLACE_ROWS.values()}
    return Settings(**sections, **places, model=model)


def row_of(key: str) -> Row:
    """The row of a key of ``Loaded.values``."""
    return ROWS.get(key) or MODEL_ROWS[key.rpartition(".")[2]]


def _show(key: str, setting: Setting, pending: Change | None) -> Shown:
    row = row_of(key)
    return Shown(
        key=key,
        value=row.written(setting.value),
        source=setting.source,
        overrode=tuple(f"{found.source}: {row.written(found.value)}" for found in setting.overrode),
        is_reloadable=row.is_reloadable,
        help=row.help,
        pending=pending,
    )
