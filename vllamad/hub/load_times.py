"""What loaders were seen to take (floor 2, fills ``ports.LoadTimes``): one JSON file in the state folder.

Nothing depends on it: a file that is lost or damaged costs a few loads that are not the quickest, so it is said once in
the log and begun anew.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from vllamad.hub.records import read_record, write_record

log = logging.getLogger(__name__)

FORMAT = 1
MOST = 500
"""Models that are kept; those whose last load is longest ago go first."""


class LoadTimesFile:
    """The file at ``path``. Blocking: callers run it in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, dict[str, float | None]]:
        """See ``ports.LoadTimes``."""
        return read_record(self._path, FORMAT, _models, {}, "loaders", log)

    def record(self, seen: Mapping[str, Mapping[str, float | None]]) -> None:
        """See ``ports.LoadTimes``."""
        newest = dict(list(seen.items())[-MOST:])
        try:
            write_record(self._path, FORMAT, {"models": newest})
        except OSError as error:
            log.warning("loaders.unwritten path=%s why=%s", self._path, error)


def _models(document: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    models = cast(dict[str, dict[str, object]], document["models"])
    return {key: {loader: _seconds(value) for loader, value in seen.items()} for key, seen in models.items()}


def _seconds(value: object) -> float | None:
    """Raises TypeError or ValueError for what ``record`` has not written."""
    if value is None:
        return None
    if type(value) not in {int, float}:
        raise TypeError(f"{value!r} is no time")
    seconds = float(cast(float, value))
    if not 0.0 <= seconds < math.inf:
        raise ValueError(f"{seconds} is no time")
    return seconds
