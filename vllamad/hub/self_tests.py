"""What self-tests found (floor 2, fills ``ports.SelfTests``): one JSON file in the state folder, an entry for each
processor and engine. One that is lost or damaged costs another test.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vllamad.domain.self_test import SelfTest
from vllamad.hub.records import read_record, write_record

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
        try:
            write_record(self._path, FORMAT, {"tests": [asdict(one) for one in kept]})
        except OSError as error:
            log.warning("self-test.unwritten path=%s why=%s", self._path, error)

    def _load(self) -> list[SelfTest]:
        return read_record(self._path, FORMAT, _tests, [], "self-test", log)


def _tests(document: dict[str, Any]) -> list[SelfTest]:
    return [_read(entry) for entry in cast(list[dict[str, Any]], document["tests"])]


def _read(entry: dict[str, Any]) -> SelfTest:
    """Raises ValueError, KeyError, TypeError for what ``record`` has not written."""
    return SelfTest(str(entry["key"]), float(entry["bfloat16_ms"]), float(entry["float32_ms"]))
