"""Two configurations side by side: when each setting takes effect, what differs, and what is in force afterwards."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllamad.config.difference import ORDER, difference, taken_over
from vllamad.config.load import load
from vllamad.config.loaded import Loaded, Setting, build_settings
from vllamad.config.model_rows import MODEL_ROWS, ModelRow
from vllamad.config.places import Places
from vllamad.config.rows import Effect, Row
from vllamad.config.settings import PLACE_ROWS, ROWS

NEED_A_RESTART = {
    # Bound, opened or given away once.
    "server.host", "server.port", "control.socket", "control.group",
    # What every estimate and every process of an engine goes by.
    "engine.python", "engine.device", "engine.zygote",
    # It runs once, after the start.
    "engine.self_test",
    # Lowered, they would be less than what is reserved.
    "engine.gpu_memory_utilization", "engine.cpu_memory_bytes",
    # Rings are kept as they were made; engines that were not started for sleep cannot.
    "engine.log_lines", "scheduler.sleep",
    # Who reads the log has been told its form.
    "logging.format",
    # Processes are started with the sockets that they share.
    "server.processes",
    # Places.
    "config", "state_dir", "runtime_dir",
}  # fmt: skip
NEXT_LOAD = {
    "models.context_length", "models.cache_tokens", "engine.cpu_kv_bytes", "engine.max_num_batched_tokens",
    "engine.max_num_seqs", "engine.enforce_eager", "engine.dtype", "engine.args", "engine.env",
    "engine.prefetch", "engine.warm_up", "engine.fast_loaders", "engine.fast_path", "scheduler.num_parallel",
}  # fmt: skip


def with_effect(rows: Mapping[str, Row], effect: Effect) -> set[str]:
    return {key for key, row in rows.items() if row.effect is effect}


def test_every_setting_says_when_a_change_takes_effect() -> None:
    """A new setting has to be decided on here too: what is not, needs a restart."""
    assert with_effect(ROWS, Effect.AT_RESTART) == NEED_A_RESTART
    assert with_effect(ROWS, Effect.AT_LOAD) == NEXT_LOAD
    assert with_effect(ROWS, Effect.AT_ONCE) == ROWS.keys() - NEED_A_RESTART - NEXT_LOAD
    assert all(row.is_reloadable for row in MODEL_ROWS.values())
    assert not any(row.is_reloadable for row in PLACE_ROWS.values())
    at_once = {"match", "keep_alive", "priority", "replicas", "pin"}
    assert with_effect(MODEL_ROWS, Effect.AT_ONCE) == at_once


class Files:
    """A configuration file that is read again and again."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.toml"

    def read(self, text: str, **environ: str) -> Loaded:
        self.file.write_text(text)
        self.file.chmod(0o600)
        return load({"config": str(self.file)}, {"HOME": "/", **environ}, is_system_service=True)


@pytest.fixture
def files(short_folder: Path) -> Files:
    return Files(short_folder)


def test_a_change_tells_both_values_where_it_stands_and_when_it_counts(files: Files) -> None:
    before, after = files.read(""), files.read("[scheduler]\nmax_queue = 7\n[server]\nport = 80\n")
    port, queue = difference(before, after)
    assert (queue.key, queue.before, queue.after, queue.effect) == ("scheduler.max_queue", "512", "7", Effect.AT_ONCE)
    assert queue.source == f"{files.file}:2"
    assert (port.key, port.before, port.after, port.effect) == ("server.port", "11434", "80", Effect.AT_RESTART)


def test_the_same_value_from_elsewhere_is_no_difference(files: Files) -> None:
    before, after = files.read("[models]\nkeep_alive = 90\n"), files.read("", VLLAMA_MODELS_KEEP_ALIVE="90s")
    assert difference(before, after) == ()
    assert taken_over(before, after).values["models.keep_alive"].source == "VLLAMA_MODELS_KEEP_ALIVE"


def test_what_needs_a_restart_stays_and_is_told_until_it_is_put_back(files: Files) -> None:
    started = files.read("[server]\nport = 1\n")
    now = taken_over(started, files.read("[server]\nport = 2\n[scheduler]\nmax_queue = 3\n"))
    assert (now.settings.server.port, now.settings.scheduler.max_queue) == (1, 3)
    assert [(one.key, one.before, one.after) for one in now.pending] == [("server.port", "1", "2")]
    shown = {one.key: one for one in now.shown()}["server.port"]
    assert shown.value == "1" and shown.pending == now.pending[0]
    again = taken_over(now, files.read("[server]\nport = 2\n"))
    assert [one.key for one in again.pending] == ["server.port"], "told again, for as long as it is not in force"
    assert taken_over(again, files.read("[server]\nport = 1\n")).pending == ()


def test_keys_are_counted_and_not_shown(files: Files) -> None:
    one, two, three = ("first-key-of-many-1", "second-key-of-many2", "third-key-of-many-3")
    before = files.read(f'[auth]\napi_keys = ["{one}", "{two}"]\n')
    (change,) = difference(before, files.read(f'[auth]\napi_keys = ["{two}", "{three}"]\n'))
    assert (change.before, change.after, change.note) == ('"***"', '"***"', "1 new, 1 revoked")
    (change,) = difference(before, files.read(""))
    assert (change.after, change.note) == ("[]", "no key is asked for any more")
    assert "key-of-many" not in str(change)


def test_rows_differ_by_key_and_their_flags_add_up(files: Files) -> None:
    row = '[[model]]\nmatch = "a*"\n'
    before = files.read(row + 'args = ["--x"]\npin = true\n')
    after = files.read(row + 'args = ["--x"]\n' + row + 'args = ["--y"]\ncontext_length = 512\n')
    changes = {one.key: one for one in difference(before, after)}
    assert changes["model[a*].pin"].after == "" and changes["model[a*].context_length"].before == ""
    assert changes["model[a*].args"].after == '["--x", "--y"]'
    assert changes["model[a*].args"].effect is Effect.AT_LOAD
    assert taken_over(before, after).settings.model == after.settings.model


def test_another_order_of_rows_is_a_change(files: Files) -> None:
    rows = ['[[model]]\nmatch = "a?"\npin = true\n', '[[model]]\nmatch = "?b"\npin = false\n']
    before, after = files.read("".join(rows)), files.read("".join(reversed(rows)))
    (change,) = difference(before, after)
    assert (change.key, change.before, change.after) == (ORDER, "a?, ?b", "?b, a?")
    assert taken_over(before, after).settings.for_model("ab").is_pinned


# --- any two configurations --------------------------------------------------------------------------------------


def other(row: Row) -> Any:
    """A value that is not the default."""
    default = row.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    if isinstance(default, tuple):
        return (("name", "meaning"),) if row.name == "aliases" else ("sixteen-letters-1",)
    return default + "x"


ROW_SETS = (
    (),
    (ModelRow("a*", pin=True),),
    (ModelRow("a*", pin=True, context_length=512), ModelRow("b", args=("--x",))),
    (ModelRow("b", args=("--x",)), ModelRow("b", args=("--y",), keep_alive_s=3.0)),
)
PLACES = Places(Path("/s"), Path("/r"), Path("/r/c"), Path("/r/w"), Path("/s/c"))


def made(changed: frozenset[str], rows: int, places: Places = PLACES) -> Loaded:
    values = {
        key: Setting(other(row), f"{key}:1") if key in changed else Setting(row.default, "default")
        for key, row in ROWS.items()
    }
    model = ROW_SETS[rows]
    settings = build_settings(values, model)
    for one in model:
        for name, row in MODEL_ROWS.items():
            value = getattr(one, row.attribute)
            if name != "match" and value is not None:
                values[f"model[{one.match}].{name}"] = Setting(value, "file:9")
    return Loaded(settings, values, places, False, (), ())


configurations = st.builds(made, st.frozensets(st.sampled_from(sorted(ROWS))), st.integers(0, len(ROW_SETS) - 1))


def test_folders_and_sockets_stay_where_they_are() -> None:
    elsewhere = replace(PLACES, socket=Path("/elsewhere"))
    assert taken_over(made(frozenset(), 0), made(frozenset({"control.socket"}), 0, elsewhere)).places == PLACES


@given(configurations, configurations)
def test_there_and_back_again_is_where_it_began(a: Loaded, b: Loaded) -> None:
    there = taken_over(a, b)
    back = taken_over(there, a)
    assert back == a


@given(configurations, configurations)
def test_what_is_in_force_is_the_new_but_for_what_waits(a: Loaded, b: Loaded) -> None:
    there = taken_over(a, b)
    for key, row in ROWS.items():
        from_ = b if row.is_reloadable else a
        assert there.values[key].value == from_.values[key].value, key
    waiting = {change.key for change in there.pending}
    assert waiting == {key for key in NEED_A_RESTART if a.values[key].value != b.values[key].value}
    assert {change.key for change in difference(there, b)} == waiting
    assert there.settings.model == b.settings.model
    assert taken_over(there, b) == there, "once more changes nothing"
