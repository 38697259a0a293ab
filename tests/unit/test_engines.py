"""Which engines are installed and in use, and what is refused; making one is the integration ring's."""

import fcntl
import json
import os
import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest

from scripts import engine_env
from vllamactl import engines as module
from vllamactl.engine_environment import COMPLETE, Recipe
from vllamactl.engines import NEEDED_BYTES, Engines, environment_name, lock_file, recipe
from vllamactl.exits import CtlError
from vllamactl.places import SYSTEM_STATE, state_folder


def put(engines: Engines, name: str, made_time: float = 1.0, *, is_complete: bool = True) -> None:
    folder = engines.folder / name
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").touch()
    if is_complete:
        facts = {"device": "cpu", "version": name.split("-")[1], "made_time": made_time, "size_bytes": 7}
        (folder / COMPLETE).write_text(json.dumps(facts))


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    found = Engines(tmp_path)
    put(found, "cpu-1.0-aa", 1.0)
    put(found, "cpu-2.0-bb", 2.0)
    put(found, "cpu-3.0-cc", 3.0, is_complete=False)
    return found


def test_only_what_was_finished_counts_and_the_newest_comes_first(engines: Engines) -> None:
    engines.use("cpu-1.0-aa")
    assert [(one.name, one.version, one.use) for one in engines.all()] == [
        ("cpu-2.0-bb", "2.0", ""),
        ("cpu-1.0-aa", "1.0", "current"),
    ]
    assert Engines(engines.folder / "elsewhere").all() == []


def test_the_one_before_is_kept_for_a_rollback(engines: Engines) -> None:
    engines.use("cpu-1.0-aa")
    assert engines.target("previous") == ""
    engines.use("cpu-2.0-bb")
    engines.use("cpu-2.0-bb")
    assert (engines.target("current"), engines.target("previous")) == ("cpu-2.0-bb", "cpu-1.0-aa")
    assert not list(engines.folder.glob("*.tmp")), "links are replaced, never missing"


def test_the_beginning_of_a_name_is_enough_if_it_is_one_engines(engines: Engines) -> None:
    assert engines.find("cpu-1").name == "cpu-1.0-aa"
    with pytest.raises(CtlError, match=r"may be any of cpu-2\.0-bb, cpu-1\.0-aa"):
        engines.find("cpu")
    with pytest.raises(CtlError, match="no engine cpu-3") as missing:
        engines.find("cpu-3")
    assert missing.value.reason == "NOT_FOUND" and "cpu-2.0-bb" in missing.value.hint


def test_the_one_in_use_is_not_removed(engines: Engines) -> None:
    engines.use("cpu-1.0-aa")
    engines.use("cpu-2.0-bb")
    with pytest.raises(CtlError, match="is the one in use"):
        engines.remove(engines.find("cpu-2"))
    engines.remove(engines.find("cpu-1"))
    assert [one.name for one in engines.all()] == ["cpu-2.0-bb"]
    assert engines.target("previous") == ""


def test_without_room_nothing_is_begun(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**12, 0, 2 * 1024**3))
    said = r"has 2\.0 GiB free, and an engine needs 5 GiB"
    with pytest.raises(CtlError, match=said) as full, engines.held(NEEDED_BYTES["cpu"]):
        pytest.fail("it was begun")
    assert full.value.reason == "STORAGE_FULL"


def test_two_do_not_change_it_at_once(engines: Engines) -> None:
    with engines.held(), pytest.raises(CtlError, match="somebody else changes") as busy, engines.held():
        pytest.fail("both were let in")
    assert busy.value.reason == "ALREADY_RUNNING"
    with engines.held(), (engines.folder / ".lock").open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_root_does_not_follow_a_link_that_another_user_put_there(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "engines").symlink_to(elsewhere)
    with pytest.raises(CtlError, match="no permission to change") as refused, Engines(tmp_path).held():
        pytest.fail("it was followed")
    assert refused.value.reason == "PERMISSION_DENIED"


def test_who_may_not_write_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root, who runs tests, may write everywhere
    with pytest.raises(CtlError, match="no permission to write to") as refused, Engines(tmp_path).held():
        pytest.fail("it was written to")
    assert "sudo vllamactl engine" in refused.value.hint


def test_what_is_made_can_be_read_by_the_daemons_user(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Engines(tmp_path).held():
            assert stat.S_IMODE((tmp_path / "engines").stat().st_mode) == 0o755
    finally:
        os.umask(before)


# --- what is installed, and where ------------------------------------------------------------------------------------


def test_the_lock_decides_the_version_and_the_name(tmp_path: Path) -> None:
    lock = tmp_path / "own.lock"
    lock.write_text("# mine\nvllm-cpu==9.9.9\ntorch==2\n")
    own = recipe("cpu", lock=lock)
    assert (own.version, own.arguments) == ("9.9.9", ["--no-deps", "-r", str(lock)])
    name = environment_name(own, "3.11")
    assert name.startswith("cpu-9.9.9-")
    assert name != environment_name(own, "3.12"), "another Python needs another environment"
    lock.write_text(lock.read_text() + "new==1\n")
    assert name != environment_name(own, "3.11"), "and so do other packages"
    with pytest.raises(CtlError, match="has no line vllm==VERSION"):
        recipe("cuda", lock=lock)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_our_own_lock_is_found_and_taken_for_its_version_only(device: str) -> None:
    assert lock_file(device) is not None
    ours = recipe(device)
    assert recipe(device, ours.version) == ours
    other = recipe(device, "0.33.0")
    assert other.lock is None and other.arguments[0].endswith("==0.33.0")
    assert "gguf" in other.arguments


def test_without_a_lock_a_version_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "lock_file", lambda _device: None)
    with pytest.raises(CtlError, match="no lock file for cuda"):
        recipe("cuda")
    assert recipe("cuda", "0.33.0") == Recipe("cuda", "0.33.0", None)


def test_the_script_of_the_checkout_keeps_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLAMA_ENGINES", str(tmp_path))
    folder = engine_env.environment_folder("cpu")
    assert folder.parent == tmp_path and folder.name.startswith("cpu-py3.")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").touch()
    (folder / COMPLETE).write_text("complete\n")  # as earlier versions wrote it
    assert engine_env.ensure("cpu") == folder / "bin/python"


def test_whose_state_folder_is_meant(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert state_folder("/srv/x", home, is_root=True) == "/srv/x"
    assert state_folder("", home | {"VLLAMA_STATE_DIR": "/srv/y"}, is_root=True) == "/srv/y"
    assert state_folder("", home, is_root=True) == SYSTEM_STATE
    own = tmp_path / ".local/share/vllama"
    own.mkdir(parents=True)
    assert state_folder("", home, is_root=False) == str(own)
