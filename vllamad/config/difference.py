"""Two configurations side by side (floor 2): what differs between the one in force and one that was read since, and
what is in force once as much of it as can be is taken over. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from vllamad.config.loaded import Change, Loaded, Setting, build_settings, row_of
from vllamad.config.model_rows import ModelRow
from vllamad.config.rows import Effect, Row
from vllamad.config.settings import ROWS

ORDER = "model"
"""The key of a change that is in no value: rows that stand in another order."""

_NOWHERE = Setting(None, "")


def difference(in_force: Loaded, read: Loaded) -> tuple[Change, ...]:
    """Every setting whose value differs, in the order of the table; what waits for a restart already is among them, for
    as long as it is not put back. That a value comes from elsewhere is no difference."""
    keys = dict.fromkeys([*read.values, *in_force.values])
    changes = [
        change
        for key in keys
        if (change := _change(key, in_force.values.get(key, _NOWHERE), read.values.get(key, _NOWHERE)))
    ]
    has_rows = any(change.key not in ROWS for change in changes)
    if not has_rows and in_force.settings.model != read.settings.model:
        before, after = _patterns(in_force.settings.model), _patterns(read.settings.model)
        changes.append(Change(ORDER, before, after, "", Effect.AT_ONCE, "the order of [[model]] rows"))
    return tuple(changes)


def taken_over(in_force: Loaded, read: Loaded) -> Loaded:
    """What is in force after a reload: all of ``read`` but what needs a restart, which stays as it was and is told as
    ``pending``."""
    pending = tuple(change for change in difference(in_force, read) if change.effect is Effect.AT_RESTART)
    kept = {change.key: in_force.values[change.key] for change in pending}
    values = {**read.values, **kept}
    settings = build_settings(values, read.settings.model)
    return replace(read, settings=settings, values=values, places=in_force.places, pending=pending)


def _change(key: str, before: Setting, after: Setting) -> Change | None:
    row = row_of(key)
    was, will_be = _held(row, before), _held(row, after)
    if was == will_be:
        return None
    is_keys = row.is_secret and isinstance(row.default, tuple)
    note = _note_on_keys(cast("Sequence[str]", was), cast("Sequence[str]", will_be)) if is_keys else ""
    return Change(
        key,
        row.written(was) if before is not _NOWHERE else "",
        row.written(will_be) if after is not _NOWHERE else "",
        after.source,
        row.effect,
        note,
    )


def _held(row: Row, setting: Setting) -> object:
    """The value that holds. Flags for an engine add up over rows with one pattern, all else is the last one's."""
    if row.section != "model" or row.name != "args" or setting is _NOWHERE:
        return setting.value
    oldest_first = [*(found.value for found in reversed(setting.overrode)), setting.value]
    return tuple(argument for args in oldest_first for argument in cast("Sequence[str]", args))


def _note_on_keys(before: Sequence[str], after: Sequence[str]) -> str:
    """What became of keys, none of which may be shown."""
    was, will_be = set(before), set(after)
    if not will_be:
        return "no key is asked for any more"
    return ", ".join(_counts(new=len(will_be - was), revoked=len(was - will_be))) or "the same keys"


def _counts(**counts: int) -> Iterator[str]:
    yield from (f"{count} {word}" for word, count in counts.items() if count)


def _patterns(rows: Sequence[ModelRow]) -> str:
    return ", ".join(each.match for each in rows)
