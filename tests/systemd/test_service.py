"""vllamad under a real systemd: start, answer, restart, die, hang, stop."""

import json
import re
import time

import pytest

from tests.systemd.conftest import Figures
from tests.systemd.service import Service


def test_start_returns_when_both_faces_serve(service: Service) -> None:
    assert service.show("ActiveState") == "active"
    assert service.chat()["message"]["content"]
    answered = service.ctl("ann", "--json", "status")
    assert json.loads(answered.stdout)["state"] == "SERVING", answered.stderr
    service.wait("a status line", lambda: service.show("StatusText") == "1 model loaded, 0 requests")
    assert service.box.run("stat", "-c", "%A %U %G", "/run/vllama").stdout.strip() == "drwxr-x--- vllama vllama"
    socket = service.box.run("stat", "-c", "%A %U %G", "/run/vllama/vllamad.sock").stdout.strip()
    assert socket == "srw-rw---- vllama vllama"


def test_a_connection_starts_it(installed: Service) -> None:
    installed.systemctl("start", "vllamad.socket")
    assert installed.show("ActiveState") == "inactive"
    assert installed.chat()["message"]["content"]
    assert installed.show("ActiveState") == "active"
    installed.stop()


def test_a_worker_has_a_control_group_of_its_own(service: Service) -> None:
    assert service.chat()["message"]["content"]
    (worker,) = service.ps()
    journal = service.journal()
    # Forked, under all of the unit's hardening, from a zygote that has a group as well.
    assert f"process.fork title=tiny:latest pid={worker['pid']}" in journal
    zygote = re.findall(r"title=the zygote pid=(\d+)", journal)[-1]
    groups = [service.box.run("cat", f"/proc/{pid}/cgroup").stdout.strip() for pid in (worker["pid"], zygote)]
    assert {group.rpartition("/vllamad.service/")[2] for group in groups} == set(service.leaves())
    assert len(set(groups)) == 2
    assert service.box.run("cat", f"/proc/{service.main_pid()}/cgroup").stdout.rstrip().endswith("/vllamad")


def test_the_journal_answers_by_model_request_and_event(service: Service) -> None:
    service.box.run("journalctl", "--rotate")
    service.box.run("journalctl", "--vacuum-time=1s")
    assert service.chat()["message"]["content"]
    service.wait("the request's line", lambda: bool(service.entries("EVENT=http.request")))
    mine = service.entries("MODEL=tiny:latest")
    assert {"worker.state", "http.request"} <= {one.get("EVENT") for one in mine}
    (asked,) = service.entries("EVENT=http.request", "VLLAMA_ROUTE=POST /api/chat")
    assert asked["REQUEST_ID"] and int(asked["DURATION_MS"]) >= 0 and asked["VLLAMA_STATUS"] == "200"
    assert asked["PRIORITY"] == "6" and asked["_SYSTEMD_UNIT"] == "vllamad.service"
    assert service.entries(f"REQUEST_ID={asked['REQUEST_ID']}") == [asked]
    engine = service.entries("SYSLOG_IDENTIFIER=vllama-engine")
    assert engine and all(one["MODEL"] == "tiny:latest" and one["WORKER"] for one in engine)
    bad = [one for one in service.entries("-p", "warning") if one["EVENT"] != "process.unlimited"]
    assert bad == [], "all is well but that groups in this box may not limit memory"
    assert "MARKED-QUESTION" not in json.dumps(service.entries()), "what was asked is nobody's business"


def test_an_idle_daemon_writes_nothing(service: Service) -> None:
    assert service.chat()["message"]["content"]
    for last in ("EVENT=http.request", "EVENT=sizing.measured"):
        service.wait(last, lambda last=last: bool(service.entries(last)))
    time.sleep(1)
    before = len(service.entries())
    time.sleep(7)  # three rounds of housekeeping and of the watchdog, one of health
    assert service.entries()[before:] == []


def test_members_of_the_group_pull_and_remove_and_nobody_else(service: Service) -> None:
    with service.hub() as url:
        service.box.write("/etc/vllama/config.d/hub.toml", f'[models]\nhub_endpoint = "{url}"\n')
        service.systemctl("reload", "vllamad.service")
        pulled = service.ctl("ann", "pull", "org/small")
        assert pulled.returncode == 0, pulled.stderr
        assert service.chat("org/small")["message"]["content"]
        assert "org/small:latest" in {one["model"] for one in service.ps()}
        for words in (["pull", "org/small"], ["ps"], ["rm", "org/small"]):
            refused = service.ctl("bob", *words)
            assert refused.returncode == 5, refused.stderr
            assert "hint:" in refused.stderr and "group vllama" in refused.stderr
        for words in (["stop", "org/small"], ["rm", "org/small"]):
            done = service.ctl("ann", *words)
            assert done.returncode == 0, done.stderr
    service.box.run("rm", "/etc/vllama/config.d/hub.toml")
    assert [one["name"] for one in json.loads(service.ctl("ann", "--json", "list").stdout)["models"]] == ["tiny:latest"]
    assert "org/small:latest" not in {one["model"] for one in service.ps()}


def test_the_doctor_finds_all_well_and_tells_others_how_to_get_in(service: Service) -> None:
    found = doctor(service, "root")
    assert [one for one in found.values() if one["state"] == "fail"] == []
    well = ("user", "program", "folders", "config", "socket", "daemon", "version", "port", "engine", "leftovers")
    assert {check: found[check]["state"] for check in well} == dict.fromkeys(well, "ok")
    found = doctor(service, "bob", status=1)
    assert [check for check, one in found.items() if one["state"] == "fail"] == ["socket"]
    assert found["socket"]["remedy"] == "sudo usermod -aG vllama bob, then log in again"
    # What a stranger may not see is left open, not called broken.
    assert (found["daemon"]["state"], found["leftovers"]["state"]) == ("skipped", "skipped")


def doctor(service: Service, user: str, status: int = 0) -> dict[str, dict[str, str]]:
    """The checks of `vllamactl doctor`, by name."""
    done = service.ctl(user, "--json", "doctor", "--timeout=60")
    assert done.returncode == status, done.stdout + done.stderr
    return {one["id"]: one for one in json.loads(done.stdout)["checks"]}


def test_a_restart_under_load_refuses_nobody(service: Service, figures: Figures) -> None:
    assert service.chat()["message"]["content"]
    load = service.begin_load()
    before = service.main_pid()
    service.systemctl("restart", "vllamad.service")
    assert service.main_pid() != before
    assert service.chat()["message"]["content"]
    told = json.loads(load.communicate(timeout=60)[0])
    assert set(told["counts"]) == {"200"}, told
    figures.tell(f"restart under load: {told['counts']['200']} answers, the longest took {told['longest_s']} s")


def test_a_reload_under_load_fails_nobody_and_a_wrong_file_fails_the_reload_alone(service: Service) -> None:
    file = "/etc/vllama/config.toml"
    assert service.chat()["message"]["content"]
    (worker,) = service.ps()
    daemon = service.main_pid()
    load = service.begin_load()
    try:
        service.box.write(file, "[models]\nkeep_alive = '1h'\n", "644")
        service.systemctl("reload", "vllamad.service")
        service.box.write(file, "[models]\nkeep_alive = 'long'\n", "644")
        refused = service.box.run("systemctl", "reload", "vllamad.service", check=False)
        assert refused.returncode != 0
        assert service.show("ActiveState") == "active" and service.show("ReloadResult") == "exit-code"
        assert service.journal().count(f"{file}:2: models.keep_alive: found") == 2, "of the daemon, and of the reload"
        service.systemctl("kill", "--signal=HUP", "--kill-whom=main", "vllamad.service")
        service.wait("the signal's line", lambda: len(service.entries("EVENT=config.unchanged")) == 2)
        service.wait("back in service", lambda: service.show("SubState") == "running")
    finally:
        told = json.loads(load.communicate(timeout=60)[0])
        service.box.run("rm", file)
    assert set(told["counts"]) == {"200"}, told
    assert service.main_pid() == daemon and [one["pid"] for one in service.ps()] == [worker["pid"]]
    (shown,) = [
        one for one in json.loads(service.ctl("ann", "--json", "config").stdout)["settings"]
        if one["key"] == "models.keep_alive"
    ]  # fmt: skip
    assert shown["value"] == '"1h"', "what was in force before the wrong file"


def test_a_killed_daemon_comes_back_with_its_models(service: Service, figures: Figures) -> None:
    assert service.chat()["message"]["content"]
    service.wait("it is noted what is loaded", lambda: "tiny" in service.box.run(
        "cat", "/var/lib/vllama/loaded.json", check=False).stdout)  # fmt: skip
    (worker,) = service.ps()
    (shared,) = service.shared_memory()
    restored = len(service.entries("EVENT=restore.load"))
    before = service.main_pid()
    begun = time.monotonic()
    service.systemctl("kill", "--signal=KILL", "--kill-whom=main", "vllamad.service")
    assert service.chat()["message"]["content"], "whoever comes meanwhile waits in the socket"
    figures.tell(f"killed daemon, from SIGKILL to the next answer: {time.monotonic() - begun:.2f} s (RestartSec=1s)")
    assert service.main_pid() not in {0, before} and service.show("NRestarts") == "1"
    service.wait("the model is loaded again", lambda: [one["state"] for one in service.ps()] == ["READY"])
    assert service.ps()[0]["pid"] != worker["pid"]
    assert len(service.entries("EVENT=restore.load")) == restored + 1
    assert len(service.leaves()) == 2, "the worker's and the zygote's"
    assert shared not in service.shared_memory(), "systemd killed whoever had it"


def test_a_frozen_loop_is_ended_by_the_watchdog_and_its_stack_is_in_the_journal(service: Service) -> None:
    before = service.main_pid()
    service.systemctl("kill", "--signal=USR2", "--kill-whom=main", "vllamad.service")
    service.wait("started again", lambda: service.main_pid() not in {0, before}, 40)
    service.wait("serving", lambda: service.show("ActiveState") == "active")
    journal = service.journal()
    assert "Watchdog timeout" in journal
    (stack,) = re.findall(r"Fatal Python error: Aborted\n(.*)", journal, re.DOTALL)
    assert re.search(r'sitecustomize.py", line \d+ in wait_for_ever\n.*vllamad/__main__.py", line', stack, re.DOTALL)
    assert service.chat()["message"]["content"]


def test_nothing_is_left_after_a_stop(service: Service) -> None:
    assert service.chat()["message"]["content"]
    assert service.processes() and service.leaves() and service.listeners() and service.shared_memory()
    service.stop()
    assert service.processes() == []
    assert service.leaves() == []
    assert service.listeners() == []
    assert service.shared_memory() == []
    assert service.box.run("ls", "/run/vllama", check=False).returncode != 0
    assert service.show("Result") == "success"


def test_a_broken_configuration_is_not_tried_again(installed: Service) -> None:
    installed.box.write("/etc/vllama/config.toml", "[server]\nprot = 1\n")
    try:
        installed.systemctl("start", "vllamad.service", check=False)
        assert installed.show("ExecMainStatus") == "78"
        assert installed.show("NRestarts") == "0"
        assert "did you mean server.port" in installed.journal()
        found = doctor(installed, "root", status=1)
        assert "(status 78)" in found["unit"]["text"] and "vllamad --check --system" in found["unit"]["remedy"]
        assert found["config"]["text"].startswith("/etc/vllama/config.toml:2: unknown key server.prot")
    finally:
        installed.box.run("rm", "/etc/vllama/config.toml")
        installed.stop()


@pytest.mark.parametrize("name", ["hub_token", "api_keys"])
def test_a_secret_reaches_the_daemon_alone(installed: Service, name: str) -> None:
    installed.box.write(f"/etc/credstore/vllama.{name}", "sesame-1234-sesame-1234\n", "600")
    try:
        installed.start()
        shown = json.loads(installed.ctl("ann", "--json", "config").stdout)
        assert f"/{name}" in json.dumps(shown) and "sesame" not in json.dumps(shown)
        environments = installed.box.run("sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
        assert "sesame" not in environments.stdout + installed.journal()
    finally:
        installed.box.run("rm", f"/etc/credstore/vllama.{name}")
        installed.stop()
