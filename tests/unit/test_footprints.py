"""The store of measured footprints: found again by what they depend on, lost without harm."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from vllamad.domain.footprint import EngineSettings, Footprint, Origin, Window, footprint_key
from vllamad.hub import footprints
from vllamad.hub.footprints import FootprintStore

SEEN = Footprint(
    2, 16 << 30, 131_072, 1 << 30, 2 << 30, 3 << 30, (Window(1024, 77),), 9, 16, 5, 33.5, Origin.MEASURED, ("a note",)
)
KEY = footprint_key("a" * 64, "0.32.0", EngineSettings(), 2, "NVIDIA H100")


def test_a_footprint_is_found_again_by_another_daemon(tmp_path: Path) -> None:
    path = tmp_path / "made" / "footprints.json"
    FootprintStore(path).record(KEY, SEEN, model="llama3.1:8b", engine_version="0.32.0")
    assert FootprintStore(path).find(KEY) == SEEN
    assert FootprintStore(path).find("another") is None
    assert json.loads(path.read_text())["footprints"][KEY]["model"] == "llama3.1:8b"
    assert [each.name for each in path.parent.iterdir()] == ["footprints.json"]


def test_the_last_measurement_counts(tmp_path: Path) -> None:
    store = FootprintStore(tmp_path / "f")
    store.record(KEY, SEEN)
    store.record(KEY, replace(SEEN, weights_bytes=1))
    found = FootprintStore(tmp_path / "f").find(KEY)
    assert found is not None and found.weights_bytes == 1


@pytest.mark.parametrize(
    "other",
    [
        footprint_key("b" * 64, "0.32.0", EngineSettings(), 2, "NVIDIA H100"),
        footprint_key("a" * 64, "0.33.0", EngineSettings(), 2, "NVIDIA H100"),
        footprint_key("a" * 64, "0.32.0", EngineSettings(dtype="float16"), 2, "NVIDIA H100"),
        footprint_key("a" * 64, "0.32.0", EngineSettings(), 1, "NVIDIA H100"),
        footprint_key("a" * 64, "0.32.0", EngineSettings(), 2, "NVIDIA A100"),
    ],
)
def test_whatever_changes_memory_makes_another_key(other: str) -> None:
    assert other != KEY


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'{"format": 99, "footprints": {}}',
        b'{"format": 1}',
        b'{"format": 1, "footprints": []}',
        b'{"format": 1, "footprints": {"k": {}}}',
        b'{"format": 1, "footprints": {"k": 5}}',
    ],
)
def test_an_unreadable_file_is_said_once_and_begun_anew(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "f"
    path.write_bytes(text)
    store = FootprintStore(path)
    with caplog.at_level(logging.WARNING):
        assert store.find(KEY) is None
        store.record(KEY, SEEN)
    assert len(caplog.records) == 1 and "footprints.unreadable" in caplog.text
    assert FootprintStore(path).find(KEY) == SEEN


@pytest.mark.parametrize("value", [-1, 1.5, "1", None, True])
def test_numbers_that_are_none_are_not_believed(tmp_path: Path, value: object) -> None:
    path = tmp_path / "f"
    FootprintStore(path).record(KEY, SEEN)
    document = json.loads(path.read_text())
    document["footprints"][KEY]["weights_bytes"] = value
    path.write_text(json.dumps(document))
    assert FootprintStore(path).find(KEY) is None


def test_a_file_that_cannot_be_written_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    store = FootprintStore(tmp_path / "file" / "f")
    with caplog.at_level(logging.WARNING):
        store.record(KEY, SEEN)
    assert "footprints.unwritten" in caplog.text
    assert store.find(KEY) == SEEN


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprints, "MOST", 3)
    store = FootprintStore(tmp_path / "f")
    for key in "abcad":
        store.record(key, SEEN)
    assert [bool(store.find(key)) for key in "abcd"] == [True, False, True, True]
