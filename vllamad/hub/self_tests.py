"""What self-tests found (floor 2, fills ``ports.SelfTests``): one JSON file in the state folder, an entry for each
processor and engine. One that is lost or damaged costs another test.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vllamad.domain.self_test import SelfTest
from vllamad.hub.solid import replace_file

log = logging.getLogger(__name__)

FORMAT = 1
MOST = 20
"""A state folder that moves between machines keeps a few; the oldest goes first."""


class SelfTestFile:
    """The file at ``path``. Blocking: callers run it in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, key: str) -> SelfTest | None:
        """See ``ports.SelfTests``."""
        return next((test for test in self._load() if test.key == key), None)

    def record(self, test: SelfTest) -> None:
        """See ``ports.SelfTests``."""
        kept = [*(one for one in self._load() if one.key != test.key), test][-MOST:]
        document = {"format": FORMAT, "tests": [asdict(one) for one in kept]}
        try:
            replace_file(self._path, json.dumps(document, indent=1).encode())
        except OSError as error:
            log.warning("self-test.unwritten path=%s why=%s", self._path, error)

    def _load(self) -> list[SelfTest]:
        try:
            document = cast(dict[str, Any], json.loads(self._path.read_bytes()))
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}: written by another version")
            return [_read(entry) for entry in cast(list[dict[str, Any]], document["tests"])]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("self-test.unreadable path=%s why=%s: %s", self._path, type(error).__name__, error)
            return []


def _read(entry: dict[str, Any]) -> SelfTest:
    """Raises ValueError, KeyError, TypeError for what ``record`` has not written."""
    return SelfTest(str(entry["key"]), float(entry["bfloat16_ms"]), float(entry["float32_ms"]))
