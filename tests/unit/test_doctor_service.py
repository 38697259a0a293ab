"""What `vllamactl doctor` makes of unit, user, socket, daemon, version, configuration and permissions: facts in,
finding out."""

import errno
import stat
from typing import Any

import pytest

from vllamactl.doctor.facts import Account, Identity, Knock, Part, Reach, Service, Step, Unit, Way
from vllamactl.doctor.finding import State
from vllamactl.doctor.judge_access import barrier, judge_folders, judge_way
from vllamactl.doctor.judge_service import (
    judge_config,
    judge_daemon,
    judge_socket,
    judge_unit,
    judge_user,
    judge_version,
)

ROOT = Identity("root", 0, 0)
ANN = Identity("ann", 1000, 1000, frozenset({1000}), frozenset({1000}))
VLLAMA = Identity("vllama", 990, 990, frozenset({990, 44}), frozenset({990, 44}))
NO_UNIT = Unit()
SOCKET = "/run/vllama/vllamad.sock"


def unit(manager: str = "system", socket_state: str = "", is_socket_enabled: bool = False, **properties: str) -> Unit:
    base = {"Id": "vllamad.service", "LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}
    return Unit(manager, "", base | properties, socket_state, "", is_socket_enabled)


# --- unit


@pytest.mark.parametrize(
    ("seen", "state", "says", "remedy"),
    [
        (unit(), State.OK, "active and enabled", ""),
        (unit(UnitFileState="disabled"), State.WARN, "not enabled", "sudo systemctl enable vllamad"),
        (unit(UnitFileState="disabled", is_socket_enabled=True), State.OK, "enabled", ""),
        (unit(NeedDaemonReload="yes"), State.WARN, "changed on disk", "daemon-reload"),
        (unit(ActiveState="inactive"), State.WARN, "inactive", "sudo systemctl start vllamad"),
        (unit(ActiveState="inactive", UnitFileState="disabled"), State.WARN, "not enabled", "enable --now vllamad"),
        (unit(ActiveState="inactive", socket_state="active"), State.OK, "at the first connection", ""),
        (unit(manager="user", ActiveState="inactive"), State.WARN, "inactive", "systemctl --user start vllamad"),
        (unit(ActiveState="deactivating", SubState="stop-sigterm"), State.WARN, "stop-sigterm", "systemctl status"),
        (unit(LoadState="masked"), State.FAIL, "masked", "sudo systemctl unmask vllamad"),
        (unit(LoadState="bad-setting"), State.FAIL, "bad-setting", "systemd-analyze verify vllamad.service"),
        (Unit(unasked="systemd does not run here"), State.SKIPPED, "does not run here", ""),
        (NO_UNIT, State.WARN, "no unit vllamad.service", "scripts/install_units.py"),
    ],
)
def test_unit(seen: Unit, state: State, says: str, remedy: str) -> None:
    found = judge_unit(seen, has_daemon=False)
    assert found.state is state
    assert says in found.text and remedy in found.remedy


def test_a_daemon_that_was_started_by_hand_needs_no_unit() -> None:
    assert judge_unit(NO_UNIT, has_daemon=True).state is State.SKIPPED
    assert judge_unit(unit(ActiveState="inactive"), has_daemon=True).state is State.OK


@pytest.mark.parametrize(
    ("status", "code", "result", "says", "remedy"),
    [
        ("78", "1", "exit-code", "the configuration is wrong (status 78)", "vllamad --check --system"),
        ("203", "1", "exit-code", "cannot be executed (status 203)", "'program'"),
        ("217", "1", "exit-code", "no such user", "sudo systemd-sysusers"),
        ("219", "1", "exit-code", "an old process hangs", "subgroup.conf"),
        ("8", "1", "exit-code", "(status 8)", "journalctl -u vllamad"),
        ("9", "2", "oom-kill", "want of memory", "journalctl -k"),
        ("6", "2", "watchdog", "it hung", "journalctl -u vllamad"),
        ("78", "2", "signal", "it was killed (signal 78)", "journalctl"),
        ("1", "1", "start-limit-hit", "too often in a row", "journalctl -u vllamad"),
    ],
)
def test_how_a_unit_failed(status: str, code: str, result: str, says: str, remedy: str) -> None:
    seen = unit(ActiveState="failed", ExecMainStatus=status, ExecMainCode=code, Result=result)
    found = judge_unit(seen, has_daemon=False)
    assert found.state is State.FAIL
    assert "has failed" in found.text and says in found.text
    assert remedy in found.remedy


def test_a_unit_that_is_restarted_again_and_again_has_failed() -> None:
    seen = unit(ActiveState="activating", Result="exit-code", ExecMainStatus="8", ExecMainCode="1", NRestarts="7")
    found = judge_unit(seen, has_daemon=False)
    assert found.state is State.FAIL and "7 restarts" in found.text


# --- user


def test_user() -> None:
    assert judge_user(None).state is State.SKIPPED
    assert judge_user(Account("vllama", "vllama", True, True, "vllama", True)).state is State.OK
    gone = judge_user(Account("vllama", "vllama", False, False))
    assert gone.state is State.FAIL and "no user vllama and no group vllama" in gone.text
    assert gone.remedy == "sudo systemd-sysusers"
    groupless = judge_user(Account("vllama", "vllama", True, True, "llm", False))
    assert groupless.state is State.WARN and "groupadd --system llm" in groupless.remedy


# --- socket


def refused(number: int, **more: Any) -> Reach:
    return Reach((Knock(SOCKET, number, **more),))


def test_socket() -> None:
    assert judge_socket(Reach((Knock(SOCKET, 0, 812, 990),)), ANN).state is State.OK
    outside = judge_socket(refused(errno.EACCES, gid=990, group="vllama"), ANN)
    assert outside.state is State.FAIL and "not in group vllama" in outside.text
    assert outside.remedy == "sudo usermod -aG vllama ann, then log in again"


def test_a_shell_that_is_older_than_the_membership() -> None:
    me = Identity("ann", 1000, 1000, frozenset({1000}), frozenset({1000, 990}))
    found = judge_socket(refused(errno.EACCES, gid=990, group="vllama"), me)
    assert "this shell is older" in found.text and found.remedy.startswith("newgrp vllama")
    inside = Identity("ann", 1000, 1000, frozenset({990}))
    assert judge_socket(refused(errno.EACCES, gid=990, group="vllama"), inside).remedy.startswith("ls -ld /run/vllama ")


def test_nobody_is_told_to_join_the_group_of_root_or_of_a_person() -> None:
    found = judge_socket(refused(errno.EACCES, gid=0, group="root", is_shared=False), ANN)
    assert found.state is State.FAIL and "usermod" not in found.remedy and "control.group" in found.remedy


def test_no_socket_is_the_daemons_business() -> None:
    assert judge_socket(refused(errno.ENOENT), ANN).state is State.SKIPPED
    assert "left by a daemon" in judge_socket(refused(errno.ECONNREFUSED), ANN).text
    assert judge_socket(refused(errno.EIO), ANN).state is State.FAIL


# --- daemon and version

NOW = 1_790_000_000.0
STATUS = {
    "state": "SERVING",
    "pid": 812,
    "http_url": "http://127.0.0.1:11434",
    "start_time": "2026-09-21T11:13:20Z",
    "version": "0.1.0",
    "workers": [],
}
REACHED = Knock(SOCKET, 0, 812, 990)


def answering(**more: object) -> Reach:
    return Reach((REACHED,), STATUS | more)


def test_daemon() -> None:
    found = judge_daemon(answering(), unit(), NOW)
    assert (found.state, found.text) == (State.OK, "serving for 3 hours, pid 812, http://127.0.0.1:11434")
    assert judge_daemon(answering(state="DRAINING"), unit(), NOW).state is State.WARN
    failing = judge_daemon(answering(workers=[{"state": "FAILED", "model": "m:1"}] * 3), unit(), NOW)
    assert failing.state is State.WARN and "cannot load m:1 and 2 more" in failing.text
    assert failing.remedy == "vllamactl logs m:1"


def test_a_daemon_that_hangs_is_named_by_its_pid() -> None:
    found = judge_daemon(Reach((REACHED,), unanswered="nothing within 3 s"), unit(), NOW)
    assert found.state is State.FAIL and "pid 812 holds" in found.text and "nothing within 3 s" in found.text
    assert "sudo systemctl restart vllamad" in found.remedy
    assert "kill 812" in judge_daemon(Reach((REACHED,), unanswered="x"), NO_UNIT, NOW).remedy
    assert "accepts nobody" in judge_daemon(refused(errno.EAGAIN), unit(), NOW).text


def test_a_daemon_that_is_not_there_and_one_that_may_not_be_asked() -> None:
    assert judge_daemon(refused(errno.ENOENT), unit(), NOW).remedy == "sudo systemctl start vllamad"
    assert judge_daemon(refused(errno.ENOENT), NO_UNIT, NOW).remedy == "vllamad"
    assert judge_daemon(refused(errno.EACCES), unit(), NOW).state is State.SKIPPED


@pytest.mark.parametrize(
    ("running", "on_disk", "state", "says"),
    [
        ("0.1.0", "0.1.0", State.OK, "are 0.1.0"),
        ("0.1.0", "0.2.0", State.WARN, "vllamad 0.1.0 is running, 0.2.0 is installed"),
        ("", "0.2.0", State.WARN, "vllamactl is 0.1.0, vllamad is 0.2.0"),
        ("0.2.0", "0.2.0", State.WARN, "vllamactl is 0.1.0, vllamad is 0.2.0"),
        ("", "", State.SKIPPED, "not known"),
    ],
)
def test_version(running: str, on_disk: str, state: State, says: str) -> None:
    reach = answering(version=running) if running else refused(errno.ENOENT)
    found = judge_version("0.1.0", reach, Part({"version": on_disk}), unit())
    assert found.state is state and says in found.text


# --- configuration


def service(stand_in: bool = False, is_system: bool = True, unseen: str = "") -> Service:
    return Service(("/usr/bin/vllamad",), {}, "/", VLLAMA, 0, is_system, unseen, stand_in)


def config(**told: object) -> Part:
    return Part({"problem": "", "files": [], "warnings": [], **told})


def test_config() -> None:
    assert "as built in" in judge_config(config(), service()).text
    assert "/etc/vllama/config.toml" in judge_config(config(files=["/etc/vllama/config.toml"]), service()).text
    assert judge_config(Part(missing="cannot run it"), service()).state is State.SKIPPED
    assert "secrets" in judge_config(config(), service(unseen="secrets")).text
    warned = judge_config(config(warnings=["one", "two"]), service())
    assert (warned.state, warned.text) == (State.WARN, "one (1 more)")


def test_a_wrong_configuration_is_told_with_file_and_line() -> None:
    one = "cannot load the configuration: /etc/vllama/config.toml:2: unknown key server.prot: did you mean server.port?"
    found = judge_config(config(problem=one), service())
    assert found.state is State.FAIL and found.text.startswith("/etc/vllama/config.toml:2: unknown key")
    assert "vllamad --check --system" in found.remedy
    assert "--system" not in judge_config(config(problem=one), service(is_system=False)).remedy
    three = "cannot load the configuration: 3 problems\n  a.toml:1: x\n  a.toml:2: y\n  a.toml:3: z"
    assert judge_config(config(problem=three), service()).text == "a.toml:1: x (2 more)"


def test_a_file_that_only_the_daemon_may_read_is_no_problem() -> None:
    problem = "cannot load the configuration: /etc/vllama/config.toml: cannot read it: Permission denied"
    assert judge_config(config(problem=problem), service(stand_in=True)).state is State.SKIPPED
    assert judge_config(config(problem=problem), service()).state is State.FAIL


# --- permissions


def step(path: str, mode: int = 0o755, uid: int = 0, gid: int = 0, *, is_file: bool = False, acl: bool = False) -> Step:
    kind = stat.S_IFREG if is_file else stat.S_IFDIR
    return Step(path, kind | mode, uid, gid, "root" if uid == 0 else "vllama", "root", acl)


def way(path: str, *steps: Step, missing: str = "", unseen: str = "", name: str = "state folder") -> Way:
    return Way(name, path, (step("/"), *steps), missing, unseen)


PYTHON = way(
    "/root/engine/bin/python",
    step("/root", 0o700),
    step("/root/engine"),
    step("/root/engine/bin"),
    step("/root/engine/bin/python", is_file=True),
    name="engine.python",
)


def test_the_first_folder_that_cannot_be_passed_is_named() -> None:
    found = barrier(PYTHON, VLLAMA, "x")
    assert found is not None and found.step.path == "/root" and found.right == "x"
    judged = judge_way("engine", PYTHON, VLLAMA, "x", NO_UNIT)
    assert judged.state is State.FAIL
    assert judged.text == "vllama cannot pass /root (drwx------ root root) on the way to /root/engine/bin/python"
    assert "chmod o+x /root" in judged.remedy
    assert judge_way("engine", PYTHON, ROOT, "x", NO_UNIT).state is State.OK


def test_owner_group_and_others_count_as_the_kernel_counts_them() -> None:
    # The owner's bits count for the owner, even if others may more.
    mine = way("/a", step("/a", 0o077, uid=990))
    assert barrier(mine, VLLAMA, "x") is not None and barrier(mine, ANN, "x") is None
    group = way("/a", step("/a", 0o707, gid=44))
    assert barrier(group, VLLAMA, "w") is not None and barrier(group, ANN, "w") is None
    assert barrier(way("/a", step("/a", 0o600, is_file=True)), ROOT, "r") is None
    assert barrier(way("/a", step("/a", 0o600, is_file=True)), ROOT, "x") is not None


def test_homes_are_hidden_from_the_service_unless_they_are_bound() -> None:
    open_home = way("/home/ann/engine/python", step("/home"), step("/home/ann"), name="engine.python")
    hidden = judge_way("engine", open_home, VLLAMA, "x", unit(ProtectHome="yes"))
    assert hidden.state is State.FAIL and "does not see /home (ProtectHome=)" in hidden.text
    assert judge_way("engine", open_home, VLLAMA, "x", unit(ProtectHome="no")).state is State.OK
    bound = unit(ProtectHome="tmpfs", BindReadOnlyPaths="/root/engine:/root/engine:rbind")
    assert judge_way("engine", PYTHON, VLLAMA, "x", bound).state is State.OK


def test_an_access_list_is_not_guessed_at() -> None:
    found = judge_way("engine", way("/a", step("/a", 0o700, acl=True)), VLLAMA, "x", NO_UNIT)
    assert (found.state, found.remedy) == (State.WARN, "getfacl /a")


def test_folders() -> None:
    good = way("/var/lib/vllama", step("/var"), step("/var/lib"), step("/var/lib/vllama", 0o750, uid=990))
    foreign = way("/srv/models", step("/srv"), step("/srv/models"))
    assert judge_folders([], VLLAMA, NO_UNIT).state is State.SKIPPED
    assert judge_folders([(good, "wx")], VLLAMA, unit()).state is State.OK
    found = judge_folders([(good, "wx"), (foreign, "wx")], VLLAMA, unit())
    assert found.state is State.FAIL and "cannot write to /srv/models" in found.text
    assert found.remedy == "sudo chown -R vllama: /srv/models"


def test_a_folder_that_is_not_there_is_made_by_whoever_can() -> None:
    absent = way("/run/vllama", step("/run"), missing="/run/vllama")
    assert "made at the first start" in judge_way("folders", absent, VLLAMA, "wx", unit(), is_made=True).text
    own = judge_way("folders", absent, ANN, "wx", NO_UNIT, is_made=True)
    assert own.state is State.FAIL and "ann cannot make it in /run" in own.text
    assert judge_way("program", absent, VLLAMA, "x", unit()).state is State.FAIL
    below_a_file = way("/a/b", step("/a", is_file=True), missing="/a/b")
    assert "/a is not a folder" in judge_way("folders", below_a_file, ROOT, "wx", unit(), is_made=True).text


def test_what_may_not_be_looked_at_is_skipped_not_guessed() -> None:
    # Up to where it can be seen, the daemon's user passes; beyond, who knows.
    half = way("/var/lib/vllama/x", step("/var"), step("/var/lib/vllama", 0o700, uid=990), unseen="/var/lib/vllama")
    found = judge_way("folders", half, VLLAMA, "wx", unit(), is_made=True)
    assert (found.state, found.remedy) == (State.SKIPPED, "sudo vllamactl doctor")
