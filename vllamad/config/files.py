"""What a configuration file says (floor 2): a parsed document becomes a layer, and what is wrong in it a list."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vllamad.config.layers import Found, Layer, describe, nearest, read_value
from vllamad.config.lines import line_of
from vllamad.config.model_rows import MODEL_ROWS, ModelRow
from vllamad.config.rows import PATH_KINDS
from vllamad.config.settings import EMPTY_SECTIONS, FILE_ROWS, PLACE_ROWS, SECTIONS


@dataclass(slots=True)
class File:
    """One file while it is read."""

    path: Path
    lines: dict[tuple[str | int, ...], int]
    problems: list[str]

    def source(self, *path: str | int) -> str:
        line = line_of(self.lines, path)
        return f"{self.path}:{line}" if line else str(self.path)


def file_layer(file: File, document: dict[str, object], models: list[tuple[ModelRow, Layer]]) -> Layer:
    layer = Layer()
    for name, content in document.items():
        if name == "model":
            _read_model_rows(file, content, models)
        elif name in EMPTY_SECTIONS and isinstance(content, dict):
            for key in cast("dict[str, object]", content):
                file.problems.append(
                    f"{file.source(name, key)}: {name}.{key}: section [{name}] has no settings in this version"
                )
        elif name in SECTIONS and isinstance(content, dict):
            for key, raw in cast("dict[str, object]", content).items():
                _read_key(file, name, key, raw, layer)
        elif name in SECTIONS or name in EMPTY_SECTIONS:
            file.problems.append(f"{file.source(name)}: {name}: found {describe(content)}; allowed: a table [{name}]")
        else:
            file.problems.append(f"{file.source(name)}: {_unknown_name(name, content)}")
    return layer


def _read_key(file: File, section: str, key: str, raw: object, layer: Layer) -> None:
    source = file.source(section, key)
    row = FILE_ROWS.get(f"{section}.{key}")
    if row is None:
        file.problems.append(f"{source}: {_unknown_key(section, key)}")
        return
    found = read_value(row, raw, source, file.problems)
    if found is not None:
        if row.kind.name in PATH_KINDS and isinstance(found.value, str) and _is_relative(row.kind.name, found.value):
            found = Found(str(file.path.parent / found.value), source)
        layer[row.key] = found


def _is_relative(kind: str, text: str) -> bool:
    """True for a path that is meant from where the file lies; not for a command that is looked up on PATH."""
    return bool(text) and not text.startswith(("/", "~")) and (kind == "path" or "/" in text)


def _unknown_key(section: str, key: str) -> str:
    own = [row.name for row in FILE_ROWS.values() if row.section == section]
    near = nearest(key, own)
    if near:
        return f"unknown key {section}.{key}: did you mean {section}.{near}?"
    elsewhere = [row.key for row in FILE_ROWS.values() if row.name == key]
    if elsewhere:
        return f"unknown key {section}.{key}: did you mean {elsewhere[0]}?"
    return f"unknown key {section}.{key}; section [{section}] has {', '.join(own)}"


def _unknown_name(name: str, content: object) -> str:
    if name in PLACE_ROWS:
        row = PLACE_ROWS[name]
        return f"{name}: no file can set this; use {row.flag} or {row.env[0]}"
    if isinstance(content, dict):
        near = nearest(name, [*SECTIONS, *EMPTY_SECTIONS, "model"])
        shown = "[[model]]" if near == "model" else f"[{near}]"
        return f"unknown section [{name}]" + (f": did you mean {shown}?" if near else "")
    names = {row.name: row for row in reversed(FILE_ROWS.values())}
    near = nearest(name, names)
    return f"unknown key {name}: keys stand in sections" + (
        f"; did you mean {names[near].key}, in [{names[near].section}]?" if near else ""
    )


# --- [[model]] rows --------------------------------------------------------------------------------------------------


def _read_model_rows(file: File, content: object, models: list[tuple[ModelRow, Layer]]) -> None:
    rows = cast("list[object]", content) if isinstance(content, list) else [content]
    if not isinstance(content, list) or not all(isinstance(table, dict) for table in rows):
        source = file.source("model")
        file.problems.append(
            f"{source}: model: found {describe(cast('object', content))}; allowed: rows, each headed [[model]]"
        )
        return
    for index, table in enumerate(rows):
        _read_model_row(file, index, cast("dict[str, object]", table), models)


def _read_model_row(file: File, index: int, table: dict[str, object], models: list[tuple[ModelRow, Layer]]) -> None:
    layer = Layer()
    for key, raw in table.items():
        source = file.source("model", index, key)
        row = MODEL_ROWS.get(key)
        if row is None:
            near = nearest(key, MODEL_ROWS)
            known = f"did you mean {near}?" if near else f"a row has {', '.join(MODEL_ROWS)}"
            file.problems.append(f"{source}: unknown key {key} in a [[model]] row: {known}")
            continue
        found = read_value(row, raw, source, file.problems)
        if found is not None:
            layer[key] = found
    if "match" not in table:
        file.problems.append(f"{file.source('model', index)}: [[model]] row without match: it names the models")
    elif "match" in layer and not layer["match"].value:
        file.problems.append(f'{layer["match"].source}: model.match: found ""; allowed: a pattern like "qwen3:*"')
    else:
        given: dict[str, Any] = {MODEL_ROWS[key].attribute: found.value for key, found in layer.items()}
        models.append((ModelRow(**given), layer))
