"""What loaders took, over restarts."""

import json
from pathlib import Path

import pytest

from vllamad.hub.load_times import MOST, LoadTimesFile


def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    seen: dict[str, dict[str, float | None]] = {"model": {"default 1": 2.5, "fast 2": None}}
    LoadTimesFile(tmp_path / "loaders.json").record(seen)
    assert LoadTimesFile(tmp_path / "loaders.json").load() == seen


def test_nothing_was_recorded_yet(tmp_path: Path) -> None:
    assert LoadTimesFile(tmp_path / "loaders.json").load() == {}


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"format": 2, "models": {}}', '{"format": 1, "models": {"m": {"fast": "soon"}}}',
     '{"format": 1, "models": {"m": {"fast": -1}}}', '{"format": 1, "models": {"m": {"fast": true}}}'],
)  # fmt: skip
def test_a_damaged_file_is_said_and_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    path = tmp_path / "loaders.json"
    path.write_text(content)
    assert LoadTimesFile(path).load() == {}
    assert "loaders.unreadable" in caplog.text


def test_the_oldest_are_forgotten_first(tmp_path: Path) -> None:
    file = LoadTimesFile(tmp_path / "loaders.json")
    file.record({str(number): {"fast": 1.0} for number in range(MOST + 2)})
    found = file.load()
    assert len(found) == MOST and "1" not in found and str(MOST + 1) in found


def test_a_disk_that_refuses_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    LoadTimesFile(tmp_path / "file" / "loaders.json").record({})
    assert "loaders.unwritten" in caplog.text


def test_people_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "loaders.json"
    LoadTimesFile(path).record({"model": {"fast 2": 1.0}})
    assert json.loads(path.read_text())["models"]["model"] == {"fast 2": 1.0}
