"""What a row of the settings table is (floor 2), and how a field of a dataclass becomes one."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar, cast

from vllamad.config.kinds import Duration, Kind

T = TypeVar("T")

ENV_PREFIX = "VLLAMA_"

PATH_KINDS = frozenset({"path", "program"})
"""Names of the kinds whose values are paths; a program may also be a command to look up."""


class Effect(Enum):
    """When a setting that was changed takes effect. What needs a restart stays as it was until then; a reload tells."""

    AT_ONCE = "at once"
    AT_LOAD = "with the next load"
    AT_RESTART = "needs a restart"


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as everyone who lists settings sees it. ``section`` is "" for places, which no file can set, and
    "model" for keys of a ``[[model]]`` row. ``env`` has the strongest name first."""

    section: str
    name: str
    attribute: str
    kind: Kind[Any]
    default: Any
    help: str
    why: str
    unit: str
    env: tuple[str, ...]
    ollama: str
    flag: str
    metavar: str
    is_secret: bool
    effect: Effect

    @property
    def is_reloadable(self) -> bool:
        """True if a change needs no restart."""
        return self.effect is not Effect.AT_RESTART

    @property
    def key(self) -> str:
        """``server.port``; places are plain: ``state_dir``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    def written(self, value: object) -> str:
        """A value as it would stand in a file; a secret as ``"***"``."""
        if self.is_secret and value:
            return '"***"'
        return self.kind.to_toml(value)


@dataclass(frozen=True, slots=True)
class _Text:
    kind: Kind[Any]
    help: str
    why: str
    unit: str = ""
    short: tuple[str, ...] = ()
    ollama: str = ""
    flag: str = ""
    metavar: str = ""
    is_secret: bool = False
    effect: Effect = Effect.AT_RESTART
    """A restart is what takes up any change: whoever promises more has to carry it out."""


def row(kind: Kind[T], default: T, help: str, why: str = "", **more: Any) -> T:
    """Declare a setting; ``more`` are the columns of ``_Text``."""
    return field(default=default, metadata={"text": _Text(kind, help, why, **more)})


def maybe(kind: Kind[T], help: str, why: str = "", effect: Effect = Effect.AT_LOAD) -> T | None:
    """Declare a key of a ``[[model]]`` row, which may be left out."""
    return cast("T | None", field(default=None, metadata={"text": _Text(kind, help, why, effect=effect)}))


def rows_of(section: str, owner: type[Any], has_full_name: bool = False) -> Iterator[Row]:
    """The rows that a dataclass declares. With ``has_full_name``, each is also VLLAMA_<SECTION>_<KEY>."""
    for item in fields(owner):
        text = cast("_Text | None", item.metadata.get("text"))
        if text is None:
            continue
        name = item.name.removesuffix("_s") if isinstance(text.kind, Duration) else item.name
        full = (f"{ENV_PREFIX}{section}_{name}".upper(),) if has_full_name else ()
        yield Row(
            section=section,
            name=name,
            attribute=item.name,
            kind=text.kind,
            default=item.default,
            help=text.help,
            why=text.why,
            unit=text.unit,
            env=full + text.short,
            ollama=text.ollama,
            flag=text.flag,
            metavar=text.metavar,
            is_secret=text.is_secret,
            effect=text.effect,
        )
