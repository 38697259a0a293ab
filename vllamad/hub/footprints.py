"""What models were seen to need (floor 2): one JSON file, written anew after a load, read once.

A measurement holds for the files that were loaded, by the engine that loaded them, with the settings that change
memory; anything else is another entry. Nothing depends on it: a file that is lost or damaged costs an estimate, so it
is said once in the log and begun anew.
"""

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vllamad.domain.footprint import Footprint, Origin, Window
from vllamad.hub.records import read_record, write_record

log = logging.getLogger(__name__)

FORMAT = 1
MOST = 500
"""Entries that are kept, some 600 bytes each; the ones that were written longest ago go first."""


class FootprintStore:
    """Measured footprints by ``footprint_key``. Synchronous: callers run it in a thread, also in several."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, Any]] | None = None

    def find(self, key: str) -> Footprint | None:
        """What was measured, or None."""
        with self._lock:
            entry = self._known().get(key)
        return _footprint(entry) if entry is not None else None

    def record(self, key: str, footprint: Footprint, *, model: str = "", engine_version: str = "") -> None:
        """Keep a measurement, in place of an earlier one; ``model`` and ``engine_version`` are for people who look into
        the file. One that cannot be written is used as long as the daemon runs; the log says why."""
        with self._lock:
            entries = self._known()
            entries.pop(key, None)
            entries[key] = {"model": model, "engine": engine_version, **asdict(footprint)}
            for oldest in list(entries)[: max(0, len(entries) - MOST)]:
                del entries[oldest]
            try:
                write_record(self._path, FORMAT, {"footprints": entries})
            except OSError as error:
                log.warning("footprints.unwritten path=%s why=%s", self._path, error)

    def _known(self) -> dict[str, dict[str, Any]]:
        if self._entries is None:
            self._entries = read_record(self._path, FORMAT, _entries, {}, "footprints", log)
        return self._entries


_NUMBERS = (
    "devices", "weights_bytes", "kv_bytes_per_token", "activation_bytes", "overhead_bytes", "host_bytes",
    "sequence_bytes", "block_tokens", "empty_bytes",
)  # fmt: skip


def _entries(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    entries = cast(dict[str, dict[str, Any]], document["footprints"])
    for entry in entries.values():
        _footprint(entry)
    return entries


def _footprint(entry: Mapping[str, Any]) -> Footprint:
    """Raises ValueError, KeyError, TypeError for what ``record`` has not written."""
    numbers: dict[str, int] = {name: entry[name] for name in _NUMBERS}
    windows = tuple(Window(**window) for window in cast(list[dict[str, int]], entry["windows"]))
    for value in (*numbers.values(), *(number for window in windows for number in (window.tokens, window.token_bytes))):
        if type(value) is not int or value < 0:
            raise ValueError(f"{value!r} is no number of bytes")
    load_s = float(entry.get("load_s", 0.0))  # absent where it was not seen
    if not 0.0 <= load_s < math.inf:
        raise ValueError(f"{load_s} is no time")
    if not numbers["devices"] or not numbers["block_tokens"]:
        raise ValueError("0 devices or tokens in a block")
    return Footprint(
        **numbers, windows=windows, load_s=load_s, origin=Origin(entry["origin"]), notes=tuple(entry["notes"])
    )
