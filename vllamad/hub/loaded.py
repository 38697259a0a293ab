"""Which models are loaded (floor 2, fills ``ports.LoadedStore``): one JSON file in the state folder, for the next
start.

Written whole or not at all, and not when nothing changed. Nothing depends on it: a file that is lost or damaged costs
loads at the first requests, so it is said once in the log and begun anew.
"""

import logging
import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from vllamad.domain.restore import LoadedModel, is_valid
from vllamad.hub.records import encode_record, read_record
from vllamad.hub.solid import replace_file

log = logging.getLogger(__name__)

FORMAT = 1
FOREVER = "forever"
"""JSON has no infinity, and null means "in use"."""


class LoadedFile:
    """The file at ``path``. Blocking: callers run it in a thread, also in several."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._written: bytes | None = None
        self._fault = ""

    def load(self) -> list[LoadedModel]:
        """See ``ports.LoadedStore``."""
        return read_record(self._path, FORMAT, _models, [], "loaded", log)

    def record(self, models: Iterable[LoadedModel]) -> None:
        """See ``ports.LoadedStore``."""
        content = encode_record(FORMAT, {"models": [_entry(model) for model in models]})
        with self._lock:
            if content == self._written:
                return
            try:
                replace_file(self._path, content)
                self._written, self._fault = content, ""
            except OSError as error:
                if str(error) != self._fault:  # a disk stays full for hours, and this is asked every other second
                    log.warning("loaded.unwritten path=%s why=%s", self._path, error)
                self._fault = str(error)


def _models(document: dict[str, Any]) -> list[LoadedModel]:
    return [_read(entry) for entry in cast(list[dict[str, Any]], document["models"])]


def _entry(model: LoadedModel) -> dict[str, object]:
    return {
        "name": model.name,
        "keep_alive_s": _shown(model.keep_alive_s),
        "used_time": model.used_time,
        "expire_time": _shown(model.expire_time),
        "tries": model.tries,
    }


def _shown(number: float | None) -> float | str | None:
    return FOREVER if number is not None and math.isinf(number) else number


def _read(entry: dict[str, Any]) -> LoadedModel:
    """Raises ValueError, KeyError, TypeError for what ``record`` has not written."""
    expire = entry["expire_time"]
    model = LoadedModel(
        name=entry["name"],
        keep_alive_s=_number(entry["keep_alive_s"]),
        used_time=_number(entry["used_time"]),
        expire_time=None if expire is None else _number(expire),
        tries=entry["tries"],
    )
    if type(model.name) is not str or type(model.tries) is not int or not is_valid(model):
        raise ValueError(f"{entry!r} is no loaded model")
    return model


def _number(value: object) -> float:
    if value == FOREVER:
        return math.inf
    if type(value) not in {int, float}:
        raise TypeError(f"{value!r} is no number")
    return float(cast(float, value))
