"""What is loaded again after a start, and the file that says so."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllamad.domain.ports import LoadedStore
from vllamad.domain.restore import MOST_TRIES, LoadedModel, Restore, as_tried, to_restore
from vllamad.hub import loaded
from vllamad.hub.loaded import LoadedFile

NOW = 1_900_000_000.0
IDLE = LoadedModel("qwen3:8b", 300.0, NOW - 100, NOW + 200)

spans = st.one_of(st.floats(0, 1e6), st.just(math.inf))
instants = st.floats(0, 4e9)
models = st.builds(
    LoadedModel,
    name=st.sampled_from(["a", "b:1b", "org/C:main", "hf.co/org/d"]),
    keep_alive_s=spans,
    used_time=instants,
    expire_time=st.one_of(st.none(), instants, st.just(math.inf)),
    tries=st.integers(0, 3),
)


def test_what_is_left_of_a_keep_alive_is_kept_and_so_is_the_whole() -> None:
    assert to_restore([IDLE], NOW) == [Restore("qwen3:8b", 300.0, 200.0)]


def test_what_has_expired_stays_away() -> None:
    assert to_restore([IDLE], NOW + 200) == []
    assert to_restore([replace(IDLE, keep_alive_s=0.0, expire_time=None)], NOW) == []


def test_what_was_in_use_has_its_whole_keep_alive_however_long_the_daemon_was_away() -> None:
    busy = replace(IDLE, expire_time=None)
    assert to_restore([busy], NOW + 1e6) == [Restore("qwen3:8b", 300.0, 300.0)]


def test_what_stays_for_ever_comes_back_for_ever() -> None:
    model = LoadedModel("pinned", math.inf, NOW - 1e6, math.inf)
    assert to_restore([model], NOW) == [Restore("pinned", math.inf, math.inf)]


def test_a_clock_that_was_set_back_gives_nobody_more_than_the_whole() -> None:
    assert to_restore([IDLE], NOW - 1e6) == [Restore("qwen3:8b", 300.0, 300.0)]


def test_the_one_that_was_used_last_comes_first() -> None:
    found = to_restore([replace(IDLE, name=name, used_time=NOW - ago) for name, ago in (("b", 20), ("a", 10))], NOW)
    assert [each.name for each in found] == ["a", "b"]


def test_a_model_that_never_got_ready_again_is_left_alone_after_some_starts() -> None:
    recorded = [IDLE]
    for _ in range(MOST_TRIES):
        assert to_restore(recorded, NOW)
        recorded = as_tried(recorded, NOW)
    assert to_restore(recorded, NOW) == as_tried(recorded, NOW) == []


@given(st.lists(models, max_size=6), instants)
def test_everything_that_is_restored_has_time_left_and_never_more_than_the_whole(
    given_: list[LoadedModel], now: float
) -> None:
    for each in to_restore(given_, now):
        assert 0 < each.left_s <= each.keep_alive_s


@given(st.lists(models, max_size=6))
def test_another_daemon_reads_what_was_recorded(
    tmp_path_factory: pytest.TempPathFactory, given_: list[LoadedModel]
) -> None:
    path = tmp_path_factory.mktemp("state") / "made" / "loaded.json"
    store: LoadedStore = LoadedFile(path)
    store.record(given_)
    assert LoadedFile(path).load() == given_
    assert [each.name for each in path.parent.iterdir()] == ["loaded.json"]


def test_for_ever_and_in_use_can_be_told_apart_by_people(tmp_path: Path) -> None:
    path = tmp_path / "loaded.json"
    LoadedFile(path).record([LoadedModel("a", math.inf, 1.0, math.inf), LoadedModel("b", 5.0, 1.0, None)])
    first, second = json.loads(path.read_text())["models"]
    assert (first["keep_alive_s"], first["expire_time"]) == ("forever", "forever")
    assert (second["keep_alive_s"], second["expire_time"]) == (5.0, None)


def test_what_did_not_change_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LoadedFile(tmp_path / "loaded.json")
    store.record([IDLE])
    monkeypatch.setattr(loaded, "replace_file", lambda _path, _content: pytest.fail("written"))
    store.record([IDLE])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"format": 99, "models": []}',
        b'{"format": 1}',
        b'{"format": 1, "models": {"a": 1}}',
        b'{"format": 1, "models": [{"name": "a"}]}',
        b'{"format": 1, "models": [{"name": 1, "keep_alive_s": 1, "used_time": 1, "expire_time": 1, "tries": 0}]}',
        b'{"format": 1, "models": [{"name": "a", "keep_alive_s": "1", "used_time": 1, "expire_time": 1, "tries": 0}]}',
        b'{"format": 1, "models": [{"name": "a", "keep_alive_s": -1, "used_time": 1, "expire_time": 1, "tries": 0}]}',
        b'{"format": 1, "models": [{"name": "a", "keep_alive_s": NaN, "used_time": 1, "expire_time": 1, "tries": 0}]}',
        b'{"format": 1, "models": [{"name": "a", "keep_alive_s": 1, "used_time": true, "expire_time": 1, "tries": 0}]}',
    ],
)
def test_a_damaged_file_is_said_once_and_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    path = tmp_path / "loaded.json"
    path.write_bytes(text)
    store = LoadedFile(path)
    with caplog.at_level(logging.WARNING):
        assert store.load() == []
    assert caplog.text.count("loaded.unreadable") == 1
    store.record([IDLE])
    assert store.load() == [IDLE]


def test_a_missing_file_is_nothing_to_talk_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert LoadedFile(tmp_path / "none").load() == []
    assert caplog.text == ""


def test_a_disk_that_fails_is_said_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    store = LoadedFile(tmp_path / "file" / "loaded.json")
    with caplog.at_level(logging.WARNING):
        store.record([IDLE])
        store.record([IDLE])
    assert caplog.text.count("loaded.unwritten") == 1, "once for each reason: this is asked every other second"
