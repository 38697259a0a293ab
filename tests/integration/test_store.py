"""The model store on a real disk: shared contents, exact removal, and crashes and faults at every step."""

import errno
import hashlib
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from tests.fakes.hub import tiny_model
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model, Recipe, Source, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.ports import HubSource, StagedModel
from vllamad.hub import contents as contents_module
from vllamad.hub import store as store_module
from vllamad.hub.manifests import file_name, write_manifest
from vllamad.hub.store import STALE_STAGING_S, ModelStore

SOURCE = Source(SourceKind.HUB, "org/repo", "c0ffee")


def _ref(text: str) -> ModelRef:
    return ModelRef.parse(text)


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def _stage(store: ModelStore, key: str, files: dict[str, bytes]) -> StagedModel:
    return StagedModel(_write(store.staging(key) / "files", files), SOURCE)


def _add(store: ModelStore, name: str, files: dict[str, bytes]) -> Model:
    return store.commit(_ref(name), _stage(store, name, files))


def _open(folder: Path) -> ModelStore:
    store = ModelStore(folder)
    store.load()
    return store


def _assert_sound(folder: Path) -> dict[str, Model]:
    """What is on disk is exactly what the manifests name, and every model can be read through its folder."""
    models = {model.name: model for model in ModelStore(folder).load()}
    needed = {f"sha256-{file.sha256}" for model in models.values() for file in model.files}
    assert {path.name for path in (folder / "blobs").iterdir()} == needed
    assert {path.name for path in (folder / "folders").iterdir()} == {model.digest for model in models.values()}
    assert {path.name for path in (folder / "manifests").iterdir()} == {
        f"{file_name(model.ref.key)}.json" for model in models.values()
    }
    for model in models.values():
        for file in model.files:
            data = (Path(model.path) / file.path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size_bytes, file.sha256)
    return models


def test_a_model_is_stored_listed_and_survives_a_restart(tmp_path: Path) -> None:
    store = _open(tmp_path)
    files = {**tiny_model(), "1_Pooling/config.json": b"{}"}
    model = store.commit(_ref("Org/Repo"), _stage(store, "Org/Repo", files), HubSource("Org/Repo"))
    assert model.name == "Org/Repo:latest"
    assert model.source == SOURCE
    assert model.details.parameter_count == 64 * 64
    assert model.size_bytes == sum(map(len, files.values()))
    assert (Path(model.path) / "1_Pooling" / "config.json").read_bytes() == b"{}"
    assert ModelStore(tmp_path).load() == [model] == store.load()
    assert not list((tmp_path / "staging").iterdir())
    _assert_sound(tmp_path)


def test_everything_is_readable_by_another_user_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        model = _add(_open(tmp_path / "models"), "a/b", tiny_model())
    finally:
        os.umask(before)
    for path in [tmp_path / "models", *(tmp_path / "models").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o644), path
    assert Path(model.path).is_dir()


def test_names_that_differ_in_case_are_one_model_and_the_first_spelling_stays(tmp_path: Path) -> None:
    store = _open(tmp_path)
    _add(store, "Org/Repo:V1", tiny_model())
    second = _add(store, "org/repo:v1", tiny_model(salt="2"))
    assert second.name == "Org/Repo:V1"
    assert list(_assert_sound(tmp_path)) == ["Org/Repo:V1"]


def test_the_digest_depends_on_contents_and_paths_only(tmp_path: Path) -> None:
    store = _open(tmp_path)
    one, two = _add(store, "a/one", tiny_model()), _add(store, "a/two", tiny_model())
    other = _add(store, "a/other", tiny_model() | {"LICENSE": b"none"})
    assert one.digest == two.digest != other.digest
    assert one.path == two.path
    assert len(one.digest) == 64


def test_removing_frees_exactly_what_no_other_model_needs(tmp_path: Path) -> None:
    store = _open(tmp_path)
    files, others = tiny_model(), tiny_model(salt="2", rows=100)
    one, two = _add(store, "a/one", files), _add(store, "a/two", others)
    copy = store.copy(one, _ref("mine"))
    assert (copy.name, copy.digest) == ("mine:latest", one.digest)
    own = sum(len(data) for path, data in others.items() if files[path] != data)
    assert 0 < own < two.size_bytes
    assert store.remove(two) == own
    assert store.remove(one) == 0
    assert store.remove(one) == 0, "again"
    assert list(_assert_sound(tmp_path)) == ["mine:latest"]
    assert store.remove(copy) == one.size_bytes
    assert _assert_sound(tmp_path) == {}


def test_copying_onto_itself_changes_nothing_and_a_removed_model_cannot_be_copied(tmp_path: Path) -> None:
    store = _open(tmp_path)
    model = _add(store, "a/one", tiny_model())
    assert store.copy(model, _ref("A/One")) == model
    store.remove(model)
    with pytest.raises(VllamaError) as caught:
        store.copy(model, _ref("b"))
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_replacing_a_model_frees_what_the_old_one_used_alone(tmp_path: Path) -> None:
    store = _open(tmp_path)
    _add(store, "a/one", tiny_model())
    new = _add(store, "a/one", tiny_model(salt="2"))
    assert _assert_sound(tmp_path) == {"a/one:latest": new}


def test_a_folder_of_the_users_is_copied_and_stays_as_it_is(tmp_path: Path) -> None:
    store = _open(tmp_path / "models")
    folder = _write(tmp_path / "mine", tiny_model() | {"pytorch_model.bin": b"the same again", "notes.txt": b"private"})
    model = store.commit(_ref("mine"), StagedModel(folder, Source(SourceKind.FOLDER)))
    assert sorted(file.path for file in model.files) == [
        "LICENSE", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    (folder / "config.json").write_bytes(b"edited later")
    assert (folder / "notes.txt").exists()
    assert list(_assert_sound(tmp_path / "models")) == ["mine:latest"]


@pytest.mark.parametrize("what", ["missing", "empty", "no room"])
def test_folders_that_cannot_be_stored(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _open(tmp_path / "models")
    folder = tmp_path / "mine"
    if what == "empty":
        folder.mkdir()
    elif what == "no room":
        _write(folder, tiny_model())
        monkeypatch.setattr(ModelStore, "free_bytes", lambda _self: 100)  # pyright: ignore
    with pytest.raises(VllamaError) as caught:
        store.commit(_ref("mine"), StagedModel(folder, Source(SourceKind.FOLDER)))
    expected = {"missing": Reason.INVALID_REQUEST, "empty": Reason.UNSUPPORTED, "no room": Reason.STORAGE_FULL}
    assert caught.value.reason is expected[what]
    assert str(tmp_path) in caught.value.message
    assert _assert_sound(tmp_path / "models") == {}


# --- crashes ---------------------------------------------------------------------------------------------------------


def _die_at(folder: Path, step: str, work: Callable[[ModelStore], object]) -> None:
    """Do ``work`` in a process that ends, with no chance to tidy up, as soon as ``step`` is true on disk."""
    pid = os.fork()
    if pid == 0:
        store = ModelStore(folder, on_step=lambda reached: os._exit(9) if reached == step else None)
        store.load()
        work(store)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9, f"the step {step!r} was not reached"


@pytest.mark.parametrize("step", ["hashed", "blobs", "folder", "manifest written", "manifest", "folder removed"])
def test_a_crash_while_replacing_leaves_the_old_model_or_the_new_one(tmp_path: Path, step: str) -> None:
    old = _add(_open(tmp_path), "a/one", tiny_model())
    other = _add(_open(tmp_path), "a/other", tiny_model(salt="3"))
    _die_at(tmp_path, step, lambda store: _add(store, "a/one", tiny_model(salt="2")))
    models = _assert_sound(tmp_path)
    is_new = step in {"manifest", "folder removed"}
    assert models["a/other:latest"] == other
    assert (models["a/one:latest"] != old) is is_new
    # The staged files are still there, so the same commit now succeeds without a download.
    store = _open(tmp_path)
    staged = StagedModel(store.staging("a/one") / "files", SOURCE)
    new = store.commit(_ref("a/one"), staged)
    assert _assert_sound(tmp_path)["a/one:latest"].digest == new.digest != old.digest


@pytest.mark.parametrize("step", ["manifest removed", "folder removed"])
def test_a_crash_while_removing_leaves_no_orphan(tmp_path: Path, step: str) -> None:
    store = _open(tmp_path)
    gone, kept = _add(store, "a/gone", tiny_model()), _add(store, "a/kept", tiny_model(salt="2"))
    _die_at(tmp_path, step, lambda store: store.remove(gone))
    assert _assert_sound(tmp_path) == {"a/kept:latest": kept}


def test_a_crash_during_an_import_leaves_no_copy(tmp_path: Path) -> None:
    _open(tmp_path / "models")
    folder = _write(tmp_path / "mine", tiny_model())
    staged = StagedModel(folder, Source(SourceKind.FOLDER))
    _die_at(tmp_path / "models", "hashed", lambda store: store.commit(_ref("mine"), staged))
    assert list((tmp_path / "models" / "staging").iterdir())
    assert _assert_sound(tmp_path / "models") == {}
    assert not list((tmp_path / "models" / "staging").iterdir())


def test_a_folder_that_went_missing_is_put_back(tmp_path: Path) -> None:
    model = _add(_open(tmp_path), "a/one", tiny_model())
    for link in Path(model.path).iterdir():
        link.unlink()
    Path(model.path).rmdir()
    assert _assert_sound(tmp_path) == {"a/one:latest": model}


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut off", "not json", "another version", "a folder", "another's", "wrong digest"])
def test_an_unreadable_manifest_is_told_once_and_left_alone(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = _open(tmp_path)
    good, bad = _add(store, "a/good", tiny_model()), _add(store, "a/bad", tiny_model(salt="2"))
    path = tmp_path / "manifests" / "a+bad=latest.json"
    text = path.read_bytes()
    match damage:
        case "cut off":
            path.write_bytes(text[: len(text) // 2])
        case "not json":
            path.write_bytes(b"\xff\xfe")
        case "another version":
            path.write_bytes(text.replace(b'"format": 1', b'"format": 99'))
        case "a folder":
            path.unlink()
            path.mkdir()
        case "another's":
            path.write_bytes(write_manifest(replace(bad, ref=_ref("b/bad"))))
        case _:
            path.write_bytes(text.replace(bad.digest.encode(), good.digest.encode()))
    store = ModelStore(tmp_path)
    with caplog.at_level(logging.ERROR):
        assert store.load() == [good]
        assert store.load() == [good]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["store.unreadable"]
    assert path.exists()
    # Nobody knows what the unreadable one needs, so no contents go until it is repaired.
    assert store.remove(good) == 0
    assert all((tmp_path / "blobs" / f"sha256-{file.sha256}").exists() for file in (*bad.files, *good.files))
    if damage != "a folder":
        path.write_bytes(text)
        assert _assert_sound(tmp_path) == {"a/bad:latest": bad}


def test_a_model_whose_contents_are_damaged_is_not_listed_and_pulling_again_heals_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = _open(tmp_path)
    model = _add(store, "a/one", tiny_model())
    weights = next(file for file in model.files if file.path == "model.safetensors")
    (tmp_path / "blobs" / f"sha256-{weights.sha256}").write_bytes(b"cut")
    store = ModelStore(tmp_path)
    assert store.load() == []
    assert "a/one:latest" in caplog.text
    assert _add(store, "a/one", tiny_model()).digest == model.digest
    assert list(_assert_sound(tmp_path)) == ["a/one:latest"]


def _full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/models/manifests/x")


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (contents_module, "link_or_copy"),
        (contents_module, "sync_folder"),
        (store_module, "write_whole"),
        (store_module, "sync_file"),
    ],
)
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, module: ModuleType, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _open(tmp_path)
    old = _add(store, "a/one", tiny_model())
    with monkeypatch.context() as patch:
        patch.setattr(module, where, _full)
        with pytest.raises(VllamaError) as caught:
            _add(store, "a/one", tiny_model(salt="2"))
    assert caught.value.reason is Reason.STORAGE_FULL
    assert "/models/manifests/x" in caught.value.message
    assert "vllamactl rm" in (caught.value.hint or "")
    assert store.load() == [old]
    new = _add(store, "a/one", tiny_model(salt="2"))
    assert _assert_sound(tmp_path) == {"a/one:latest": new}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EROFS])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: object) -> NoReturn:
        raise OSError(number, os.strerror(number), str(path))

    store = ModelStore(tmp_path)
    monkeypatch.setattr(store_module.os, "scandir", deny)
    with pytest.raises(VllamaError) as caught:
        store.load()
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert str(tmp_path / "blobs") in caught.value.message
    assert caught.value.hint


def test_a_file_where_the_store_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(VllamaError) as caught:
        ModelStore(tmp_path / "models").load()
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert str(tmp_path / "models") in caught.value.message


def test_a_disk_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("vllamad.hub.solid.os.link", refuse)
    _add(_open(tmp_path), "a/one", tiny_model())
    assert list(_assert_sound(tmp_path)) == ["a/one:latest"]


def test_staging_survives_a_restart_until_it_is_discarded_or_stale(tmp_path: Path) -> None:
    store = _open(tmp_path)
    for key in ("Org/Repo:main", "fresh", "stale"):
        (store.staging(key) / "partial").write_bytes(b"some")
    old = time.time() - STALE_STAGING_S - 60
    for path in (store.staging("stale") / "partial", store.staging("stale")):
        os.utime(path, (old, old))
    store = _open(tmp_path)
    assert (store.staging("Org/Repo:main") / "partial").read_bytes() == b"some"
    assert not (tmp_path / "staging" / "stale").exists()
    store.discard("fresh")
    store.discard("fresh")
    assert sorted(path.name for path in (tmp_path / "staging").iterdir()) == ["Org+Repo=main"]


def test_staging_that_cannot_be_resumed_is_gone_after_a_restart(tmp_path: Path) -> None:
    store = _open(tmp_path)
    for key in ("Org/Repo:main", "other"):
        (store.staging(key, is_resumable=False) / "half").write_bytes(b"some")
    store.discard("other")
    assert len(list((tmp_path / "staging").iterdir())) == 1
    _open(tmp_path)
    assert not list((tmp_path / "staging").iterdir())


def test_a_model_can_be_committed_from_staging_that_cannot_be_resumed(tmp_path: Path) -> None:
    store = _open(tmp_path)
    folder = _write(store.staging("k", is_resumable=False) / "files", tiny_model())
    store.commit(_ref("a/one"), StagedModel(folder, SOURCE))
    assert list(_assert_sound(tmp_path)) == ["a/one:latest"]
    assert not list((tmp_path / "staging").iterdir())


def test_temporary_files_go_even_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    kept = _add(_open(tmp_path), "a/one", tiny_model())
    (tmp_path / "manifests" / "a+two=latest.json").write_text("damaged")
    blobs = sorted(path.name for path in (tmp_path / "blobs").iterdir())
    (tmp_path / "blobs" / f".tmp-1-sha256-{'0' * 64}").write_text("half of a copy")
    (tmp_path / "blobs" / f"sha256-{'1' * 64}").write_text("perhaps the damaged one's")
    assert _open(tmp_path).load() == [kept]
    assert sorted(path.name for path in (tmp_path / "blobs").iterdir()) == sorted([*blobs, f"sha256-{'1' * 64}"])


def test_file_names_are_safe_and_different_for_different_keys() -> None:
    keys = ["a/b:c", "a+b=c", "a%2Fb", "..", ".", "a/../b", "é", "x" * 600, "x" * 601, "a b", "A/b:c"]
    names = [file_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert all(name not in {".", ".."} and "/" not in name and len(name.encode()) <= 200 for name in names)


def test_commits_and_removals_in_many_threads_leave_a_sound_store(tmp_path: Path) -> None:
    store = _open(tmp_path)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(4):
                model = _add(store, f"a/m{number}", tiny_model(salt=str((number + turn) % 3)))
                if turn % 2:
                    store.remove(model)
                    store.copy(_add(store, f"a/m{number}", tiny_model(salt="9")), _ref(f"copy{number}"))
        except BaseException as error:  # noqa: BLE001 told to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(_assert_sound(tmp_path)) == 8


def test_a_thousand_manifests_load(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    model = _add(_open(tmp_path), "a/one", tiny_model())
    for number in range(999):
        copy = replace(model, ref=_ref(f"many:{number}"), modified_time=float(number))
        (tmp_path / "manifests" / f"many={number}.json").write_bytes(write_manifest(copy))
    started = time.perf_counter()
    models = ModelStore(tmp_path).load()
    took_ms = (time.perf_counter() - started) * 1000
    record_property("load_ms", took_ms)
    print(f"1000 manifests in {took_ms:.0f} ms")
    assert len(models) == 1000
    assert models[0] == model
    assert [m.modified_time for m in models] == sorted((m.modified_time for m in models), reverse=True)


# --- adapters --------------------------------------------------------------------------------------------------------


def _adapter(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, **config}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights of " + folder.name.encode())
    return folder


def test_an_adapter_is_kept_with_its_model_and_goes_with_it(tmp_path: Path) -> None:
    store = _open(tmp_path / "store")
    base = _add(store, "a/one", tiny_model())
    adapter = store.adopt(_adapter(tmp_path / "lora"))
    child = store.derive(base, ModelRef.parse("child"), Recipe(ancestors=("a/one:latest",)), adapter)
    assert (child.path, child.digest != base.digest, adapter.rank) == (base.path, True, 4)
    assert child.size_bytes > base.size_bytes
    assert sorted(path.name for path in Path(adapter.path).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert ModelStore(tmp_path / "store").load() == [child, base]
    assert store.remove(child) == child.size_bytes - base.size_bytes
    assert not Path(adapter.path).exists()
    assert list(_assert_sound(tmp_path / "store")) == ["a/one:latest"]


def test_an_adapter_that_no_model_took_goes_at_the_next_start(tmp_path: Path) -> None:
    store = _open(tmp_path / "store")
    _add(store, "a/one", tiny_model())
    adapter = store.adopt(_adapter(tmp_path / "lora"))
    ModelStore(tmp_path / "store").load()
    assert not Path(adapter.path).exists()
    _assert_sound(tmp_path / "store")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "adapters of type 'IA3' are not supported"),
        ({"r": 1024}, "its rank 1024 is above 512"),
        ({"r": "many"}, "adapters of type 'LORA' are not supported"),
    ],
)
def test_what_the_engine_cannot_serve_is_no_adapter(tmp_path: Path, config: dict[str, object], message: str) -> None:
    with pytest.raises(VllamaError) as caught:
        _open(tmp_path / "store").adopt(_adapter(tmp_path / "lora", **config))
    assert caught.value.reason is Reason.UNSUPPORTED
    assert message in caught.value.message


def test_a_folder_without_adapter_files_is_refused_by_the_missing_one(tmp_path: Path) -> None:
    with pytest.raises(VllamaError, match=r"it has no adapter_config\.json"):
        _open(tmp_path / "store").adopt(tmp_path)
