"""What loaders were seen to take (floor 2, fills ``ports.LoadTimes``): one JSON file in the state folder.

Nothing depends on it: a file that is lost or damaged costs a few loads that are not the quickest, so it is said once in
the log and begun anew.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from vllamad.hub.solid import replace_file

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
        try:
            document = cast(dict[str, Any], json.loads(self._path.read_bytes()))
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}: written by another version")
            models = cast(dict[str, dict[str, object]], document["models"])
            return {key: {loader: _seconds(value) for loader, value in seen.items()} for key, seen in models.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("loaders.unreadable path=%s why=%s: %s", self._path, type(error).__name__, error)
            return {}

    def record(self, seen: Mapping[str, Mapping[str, float | None]]) -> None:
        """See ``ports.LoadTimes``."""
        newest = dict(list(seen.items())[-MOST:])
        try:
            replace_file(self._path, json.dumps({"format": FORMAT, "models": newest}, indent=1).encode())
        except OSError as error:
            log.warning("loaders.unwritten path=%s why=%s", self._path, error)


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
