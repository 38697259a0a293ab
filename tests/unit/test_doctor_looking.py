"""How `vllamactl doctor` gathers facts: from files below a root that a test made, and from what systemctl prints."""

import asyncio
import errno
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllamactl.doctor import daemon, host, paths, processes, systemd
from vllamactl.doctor.examination import Examination, examine
from vllamactl.doctor.facts import Identity, Knock, Part, Service, Unit
from vllamactl.doctor.finding import State, ok
from vllamactl.doctor.machine import Done, Machine, in_thread
from vllamactl.doctor.program import Program

ME = Identity("me", os.geteuid(), os.getegid())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    # Nothing leaves this machine: nobody listens there.
    return Machine(tmp_path / "root", {"PATH": os.environ["PATH"], "HF_ENDPOINT": "http://127.0.0.1:1"})


def put(machine: Machine, path: str, text: str | bytes) -> Path:
    place = machine.path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text.encode() if isinstance(text, str) else text)
    return place


# --- systemd

SHOWN = """\
Id=vllamad.service
LoadState=loaded
ActiveState=active
MainPID=812
User=vllama
StateDirectory=vllama
ExecStart={ path=/usr/bin/vllamad ; argv[]=/usr/bin/vllamad --port 1 ; ignore_errors=no ; start_time=[n/a] }
Environment=A=1 "B=two words"
BindReadOnlyPaths=/root/x:/root/x:rbind /y

Id=vllamad.socket
LoadState=loaded
ActiveState=active
UnitFileState=enabled

Id=ollama.service
LoadState=not-found
ActiveState=inactive
"""


def test_what_systemctl_shows_is_read() -> None:
    unit = systemd.read("system", SHOWN)
    assert unit.is_installed and unit.number("MainPID") == 812
    assert (unit.socket_state, unit.is_socket_enabled, unit.ollama_state) == ("active", True, "")
    assert systemd.command(unit) == ("/usr/bin/vllamad", "--port", "1")
    assert systemd.environment(unit) == {"A": "1", "B": "two words", "STATE_DIRECTORY": "/var/lib/vllama"}
    assert unit.bound == ("/root/x", "/y")
    assert not systemd.read("system", SHOWN.replace("loaded", "not-found")).is_installed


class Scripted(Machine):
    """Answers commands from a table."""

    def __init__(self, root: Path, answers: dict[str, Done]) -> None:
        super().__init__(root, {"XDG_RUNTIME_DIR": "/run/user/7"})
        self.answers = answers
        self.asked: list[str] = []

    async def run(self, *words: str) -> Done:
        self.asked.append(" ".join(words))
        return next(answer for start, answer in self.answers.items() if self.asked[-1].startswith(start))


def test_the_users_own_unit_counts_where_the_system_has_none(tmp_path: Path) -> None:
    none = SHOWN.replace("LoadState=loaded", "LoadState=not-found")
    machine = Scripted(tmp_path, {"systemctl show": Done(0, none, ""), "systemctl --user": Done(0, SHOWN, "")})
    assert "does not run" in asyncio.run(systemd.look(machine)).unasked and machine.asked == []
    machine.path(systemd.BOOTED).mkdir(parents=True)
    unit = asyncio.run(systemd.look(machine))
    assert unit.manager == "user" and unit.systemctl == "systemctl --user"
    machine.answers = {"systemctl": Done(1, "", "warning\nFailed to connect to bus\n")}
    assert asyncio.run(systemd.look(machine)).unasked == "systemctl says: Failed to connect to bus"


def test_the_clock(tmp_path: Path) -> None:
    machine = Scripted(tmp_path, {"timedatectl": Done(0, "NTPSynchronized=yes\n", "")})
    assert asyncio.run(host.clock(machine)).is_synchronized is None, "without systemd nobody is asked"
    machine.path(systemd.BOOTED).mkdir(parents=True)
    assert asyncio.run(host.clock(machine)).is_synchronized is True
    machine.answers = {"timedatectl": Done(127, "", "")}
    assert asyncio.run(host.clock(machine)).is_synchronized is None
    answered = Part({"date": "Mon, 21 Sep 2026 14:13:20 GMT"})
    assert host.ahead_of(answered, 1_790_000_090.0) == 90.0
    assert host.ahead_of(Part({"date": ""}), 0) is None


# --- paths


def test_a_way_leads_through_links_to_what_they_mean(machine: Machine) -> None:
    put(machine, "/usr/lib/python", "")
    machine.path("/opt/e/bin").mkdir(parents=True)
    machine.path("/opt/e/bin/python").symlink_to("/usr/lib/python")
    machine.path("/opt/now").symlink_to("e")
    way = paths.look(machine, "engine.python", "/opt/now/bin/../bin/python")
    assert [step.path for step in way.steps] == [
        "/", "/opt", "/opt/e", "/opt/e/bin", "/opt/e/bin", "/usr", "/usr/lib", "/usr/lib/python",
    ]  # fmt: skip
    assert stat.S_ISREG(way.steps[-1].mode) and not way.missing and not way.unseen
    machine.path("/loop").symlink_to("loop")
    assert paths.look(machine, "x", "/loop/a").missing
    assert paths.look(machine, "x", "/opt/nothing/at/all").missing == "/opt/nothing"


def test_what_lies_in_the_daemons_folders_counts_too(machine: Machine) -> None:
    put(machine, "/s/models/blobs/sha256-1", "")
    put(machine, "/s/vllamad.lock", "")
    put(machine, "/s/loaded.json", "")
    found = paths.folder_ways(machine, Part({"state": "/s", "models": "/s/models", "cache": "/c"}))
    assert {(way.path, rights) for way, rights in found} == {
        ("/s", "wx"), ("/s/models", "wx"), ("/s/vllamad.lock", "rw"), ("/s/models/blobs", "wx"), ("/c", "wx"),
    }  # fmt: skip


def test_a_script_needs_its_interpreter_too(machine: Machine) -> None:
    put(machine, "/opt/bin/vllamad", "#!/opt/bin/python -P\nimport x\n")
    put(machine, "/opt/bin/python", b"\x7fELF")
    found = paths.program_ways(machine, ("/opt/bin/vllamad",))
    assert [(way.path, rights) for way, rights in found] == [("/opt/bin/vllamad", "rx"), ("/opt/bin/python", "x")]
    found = paths.program_ways(machine, ("/opt/bin/python", "/opt/bin/vllamad", "--port=1"))
    assert [(way.path, rights) for way, rights in found] == [("/opt/bin/python", "x"), ("/opt/bin/vllamad", "r")]
    assert paths.program_ways(machine, ()) == []


# --- /proc


def process(
    machine: Machine,
    pid: int,
    *,
    name: str = "python3",
    parent: int = 1,
    state: str = "S",
    environ: bytes = b"",
    cmdline: str = "",
) -> None:
    put(machine, f"/proc/{pid}/comm", f"{name}\n")
    put(machine, f"/proc/{pid}/stat", f"{pid} ({name}) {state} {parent} 1 1")
    put(machine, f"/proc/{pid}/environ", environ)
    put(machine, f"/proc/{pid}/cmdline", cmdline.replace(" ", "\0"))


def test_who_listens_is_found_by_the_sockets_number(machine: Machine) -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: {address}:2CAA 00000000:0000 {state} 0:0 0:0 0  {uid} 0 {inode} 1 0\n"
    put(
        machine,
        "/proc/net/tcp",
        head
        + row.format(address="0100007F", state="0A", uid=990, inode=77)
        + row.format(address="0100007F", state="01", uid=0, inode=78),
    )
    put(machine, "/proc/net/tcp6", head + row.format(address="0" * 32, state="0A", uid=0, inode=79))
    process(machine, 700, name="ollama")
    machine.path("/proc/700/fd").mkdir()
    machine.path("/proc/700/fd/3").symlink_to("socket:[77]")
    first, second = processes.listeners(machine, 11434)
    assert (first.address, first.uid, first.pid, first.program) == ("127.0.0.1", 990, 700, "ollama")
    assert (second.address, second.pid, second.program) == ("::", 0, "")
    assert processes.listeners(machine, 80) == []
    assert [one.pid for one in processes.named(machine, "ollama")] == [700]


def test_a_script_is_known_by_its_name(machine: Machine) -> None:
    process(machine, 5, cmdline="/opt/bin/python /opt/bin/vllamad --port 1")
    assert processes.program_name(machine, 5) == "vllamad"
    process(machine, 6, cmdline="/opt/bin/python -P -m vllamad.acceptors 27")
    assert processes.program_name(machine, 6) == "vllamad"


CONFIG = Part({"runtime": "/run/v", "state": "/var/lib/v", "worker_sockets": "/run/v/workers"})


def service(pid: int = 0, stand_in: bool = False) -> Service:
    return Service(("vllamad",), {}, "/", ME, pid, stand_in=stand_in)


def test_leftovers_are_what_carries_the_mark_and_is_not_the_daemons(machine: Machine) -> None:
    mark = b"A=1\0VLLAMA_WORKER=/run/v:abc\0"
    process(machine, 10)
    process(machine, 11, parent=10, environ=mark)
    process(machine, 12, parent=11, environ=mark)
    process(machine, 13, environ=mark, name="VLLM::EngineCor", state="D")
    process(machine, 14, environ=mark, state="Z")
    process(machine, 15, environ=b"VLLAMA_WORKER=/run/v2:abc\0")
    process(machine, 16, environ=b"VLLAMA_WORKER=/run/v#check:abc\0")
    left = processes.leftovers(machine, CONFIG, service(10), Unit())
    assert [(one.pid, one.name, one.state) for one in left.processes] == [(13, "VLLM::EngineCor", "D")]
    assert [one.pid for one in processes.leftovers(machine, CONFIG, service(), Unit()).processes] == [11, 12, 13]


def test_files_folders_and_groups_are_left_only_if_no_daemon_runs(machine: Machine) -> None:
    file = put(machine, "/dev/shm/psm_1", b"x" * 100)
    other = put(machine, "/dev/shm/psm_2", b"x")
    noted = {"/dev/shm/psm_1": file.stat().st_ino, "/dev/shm/psm_2": other.stat().st_ino + 1, "/etc/passwd": 1}
    put(machine, "/var/lib/v/shared-memory.json", json.dumps({"files": noted}))
    machine.path("/run/v/workers/1-1").mkdir(parents=True)
    machine.path("/sys/fs/cgroup/system.slice/vllamad.service/vllama-1-2").mkdir(parents=True)
    unit = Unit("system", "", {"Id": "vllamad.service"})
    left = processes.leftovers(machine, CONFIG, service(), unit)
    running = processes.leftovers(machine, CONFIG, service(10), unit)
    assert (left.shared_files, left.shared_bytes) == (("/dev/shm/psm_1",), 100)
    assert len(left.workers) == 1 and len(left.groups) == 1 and not left.unseen
    assert (running.shared_files, running.workers, running.groups) == ((), (), ())
    put(machine, "/var/lib/v/shared-memory.json", "{")
    assert "shared-memory.json" in processes.leftovers(machine, CONFIG, service(), unit).unseen
    assert processes.leftovers(machine, Part(missing="no"), service(), unit).unseen


def test_limits_of_the_daemon_else_of_the_unit(machine: Machine) -> None:
    put(
        machine,
        "/proc/10/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max locked memory         unlimited            unlimited            bytes     \n"
        "Max open files            1024                 524288               files     \n",
    )
    found = processes.limits(machine, 10, Unit())
    assert (found.source, found.open_files, found.locked_bytes) == ("pid 10", 1024, None)
    unit = Unit("system", "", {"Id": "u", "LimitNOFILESoft": "524288", "LimitMEMLOCKSoft": "18446744073709551615"})
    found = processes.limits(machine, 0, unit)
    assert (found.source, found.open_files, found.locked_bytes) == ("u", 524288, None)
    assert processes.limits(machine, 0, Unit()).source == ""


# --- the machine


def test_memory_and_the_least_limit_of_the_groups_around(machine: Machine) -> None:
    put(machine, "/proc/meminfo", "MemTotal: 2048 kB\nMemAvailable: 1024 kB\nSwapTotal: 0 kB\n")
    put(machine, "/proc/sys/vm/overcommit_memory", "2\n")
    put(machine, "/proc/10/cgroup", "4:memory:/a\n0::/system.slice/v.service\n")
    put(machine, "/sys/fs/cgroup/system.slice/memory.max", "4096\n")
    put(machine, "/sys/fs/cgroup/system.slice/v.service/memory.max", "max\n")
    put(machine, "/sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    found = host.memory(machine, 10)
    assert (found.total_bytes, found.available_bytes, found.group_limit_bytes) == (2 << 20, 1 << 20, 4096)
    assert found.overcommit == 2 and found.shm_bytes == 0


def test_gpus_as_the_kernel_shows_them(machine: Machine) -> None:
    assert host.gpus(machine, ME).pci == 0
    for name, vendor, kind in (("0", "0x10de", "0x030200"), ("1", "0x10de", "0x0403"), ("2", "0x8086", "0x030000")):
        put(machine, f"/sys/bus/pci/devices/{name}/vendor", f"{vendor}\n")
        put(machine, f"/sys/bus/pci/devices/{name}/class", f"{kind}\n")
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\nGCC version:\n"
    put(machine, "/proc/driver/nvidia/version", version)
    put(machine, "/dev/nvidia0", "").chmod(0o660)
    machine.path("/sys/module/nvidia_uvm").mkdir(parents=True)
    found = host.gpus(machine, ME)
    assert (found.pci, found.kernel_version, found.has_uvm) == (1, "570.86.15", True)
    assert found.nodes == {"/dev/nvidia0": True}
    stranger = Identity("x", 4_000_000, 4_000_000)
    assert host.gpus(machine, stranger).nodes == {"/dev/nvidia0": False}


def test_the_disk_of_a_folder_that_is_not_made_yet(machine: Machine) -> None:
    machine.path("/").mkdir()
    found = host.disk(machine, "state", "/not/there/yet")
    assert found.total_bytes >= found.free_bytes > 0


# --- the daemon


def test_the_socket_tells_who_listens(machine: Machine, short_folder: Path) -> None:
    path = str(short_folder / "d.sock")
    assert daemon.knock(machine, path).errno == errno.ENOENT
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        assert daemon.knock(machine, path).errno == errno.ECONNREFUSED
        listening.listen()
        found = daemon.knock(machine, path)
    assert (found.errno, found.pid, found.uid) == (0, os.getpid(), os.getuid())


def test_the_service_is_the_daemon_that_runs(machine: Machine) -> None:
    process(machine, 10, cmdline="/opt/bin/python /opt/bin/vllamad --port 1 ", environ=b"HOME=/h\0NOTIFY_SOCKET=/n\0")
    put(machine, "/proc/10/status", f"Uid:\t{ME.uid} {ME.uid}\nGid:\t{ME.gid} {ME.gid}\nGroups:\t7 8\n")
    machine.path("/proc/10/cwd").symlink_to("/srv")
    found = daemon.find_service(machine, Unit(), [Knock("/s", 0, 10, ME.uid)], ME)
    assert found.command[:4] == ("/opt/bin/python", "/opt/bin/vllamad", "--port", "1")
    assert (found.pid, found.folder, found.environ, found.unseen) == (10, "/srv", {"HOME": "/h"}, "")
    assert found.who.groups == {7, 8} and not found.stand_in


def test_a_strangers_command_line_is_not_run(machine: Machine) -> None:
    process(machine, 10, cmdline="/tmp/evil/vllamad")
    put(machine, "/proc/10/status", "Uid:\t1001 1001\nGid:\t1001 1001\nGroups:\t\n")
    me = Identity("ann", 1000, 1000)
    found = daemon.find_service(machine, Unit(), [Knock("/s", 0, 10, 1001)], me)
    assert found.stand_in and found.command[0] == sys.executable
    # Root runs it, but as the stranger.
    assert daemon.find_service(machine, Unit(), [Knock("/s", 0, 10, 1001)], Identity("root", 0, 0)).who.uid == 1001


def test_without_a_daemon_it_is_the_units_or_ones_own(machine: Machine) -> None:
    own = daemon.find_service(machine, Unit(), [], ME)
    assert own.command[0] == sys.executable and own.who is ME and not own.is_system
    unit = systemd.read("system", SHOWN.replace("User=vllama", "User=root").replace("812", "0"))
    found = daemon.find_service(machine, unit, [], Identity("ann", 1000, 1000))
    assert found.is_system and found.stand_in and found.who.uid == 0
    assert found.environ["STATE_DIRECTORY"] == "/var/lib/vllama" and "secrets" in found.unseen
    nobody = systemd.read("system", SHOWN.replace("User=vllama", "User=no-such-user"))
    assert daemon.find_service(machine, nobody, [], ME).who.uid == -1


def test_secrets_that_systemd_shows_to_the_daemon_alone_are_not_called_missing(machine: Machine) -> None:
    process(machine, 812, cmdline="/usr/bin/vllamad", environ=b"CREDENTIALS_DIRECTORY=/run/credentials/v\0A=1\0")
    put(machine, "/proc/812/status", f"Uid:\t{ME.uid} {ME.uid}\nGid:\t{ME.gid} {ME.gid}\nGroups:\t\n")
    machine.path("/proc/812/cwd").symlink_to("/")
    running = systemd.read("system", SHOWN)
    assert "secrets" in daemon.find_service(machine, running, [], ME).unseen
    machine.path("/run/credentials/v").mkdir(parents=True)
    found = daemon.find_service(machine, running, [], ME)
    assert (found.unseen, found.pid, found.environ["A"]) == ("", 812, "1")


# --- the program


def told(tmp_path: Path, script: str) -> dict[str, Part]:
    """What is heard of a program."""
    program = tmp_path / "vllamad"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return _told(Service((str(program),), os.environ, "/", ME))


def _told(service: Service) -> dict[str, Part]:
    async def run() -> dict[str, Part]:
        program = Program()
        await program.run(service, ME)
        return {name: await program.part(name) for name in ("config", "engine", "devices", "hub")}

    return asyncio.run(run())


def test_parts_are_heard_as_they_come(tmp_path: Path) -> None:
    parts = told(tmp_path, """echo noise; echo '{"part": "config", "port": 1}'; echo '{"part": "hub"}'; exit 3""")
    assert parts["config"].told["port"] == 1 and not parts["hub"].missing
    assert "ended with status 3" in parts["engine"].missing


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 2", "too old"),
        ("echo oh no >&2; exit 1", "said: oh no"),
        ("""echo '{"part": "config", "problem": "x"}'; exit 78""", "while the configuration is wrong"),
    ],
)
def test_a_program_that_does_not_tell(tmp_path: Path, script: str, says: str) -> None:
    assert says in told(tmp_path, script)["engine"].missing


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_looks_as_the_daemons_user_with_its_environment(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_folder.chmod(0o755)
    program = short_folder / "vllamad"
    program.write_text(
        """#!/bin/sh\necho "{\\"part\\": \\"config\\", \\"uid\\": $(id -u), \\"in\\": \\"$PWD $A\\"}"\n"""
    )
    program.chmod(0o755)
    nobody = Identity("nobody", 65534, 65534)
    begun: list[tuple[object, ...]] = []
    execute = asyncio.create_subprocess_exec

    async def spy(*words: str, **more: Any) -> Any:
        begun.append((words, more["env"]))
        return await execute(*words, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spy)
    environ = {"PATH": "/usr/bin:/bin", "A": "another's"}
    config = _told(Service((str(program),), environ, str(short_folder), nobody))["config"]
    assert (config.told["uid"], config.told["in"]) == (65534, f"{short_folder} another's")
    assert "another's" not in repr(begun), "as root nothing of it counts, and nobody else sees it"


def test_a_program_that_cannot_be_run() -> None:
    assert "cannot run /no/such" in _told(Service(("/no/such",), {}, "/", ME))["config"].missing
    assert "no user" in _told(Service(("/x",), {}, "/", Identity("x", -1, -1)))["config"].missing


# --- all together


def test_a_check_that_hangs_says_so_and_holds_nobody_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_self: Examination) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/secret")

    async def denied(self: Examination) -> object:
        return unreadable(self)

    async def hanging(_self: Examination) -> object:
        return await in_thread(lambda: time.sleep(60))

    async def well(_self: Examination) -> object:
        return ok("well", "it is")

    def checks(self: Examination) -> list[tuple[str, Callable[[], object]]]:
        return [(name, lambda check=check: check(self)) for name, check in (("a", hanging), ("b", well), ("c", denied))]

    monkeypatch.setattr(Examination, "checks", checks)
    hung, fine, closed = asyncio.run(examine(machine, [str(machine.path("/no.sock"))], 0.2))
    assert hung.state is State.WARN and "did not come back within 0.2 s" in hung.text
    assert fine.state is State.OK
    assert closed.state is State.SKIPPED and "/secret Permission denied" in closed.text


def test_every_check_reports_under_its_own_name(machine: Machine) -> None:
    machine.path("/").mkdir()

    async def names() -> list[str]:
        examination = Examination(machine, [], 60)
        try:
            return [name for name, _check in examination.checks()]
        finally:
            await examination.close()

    findings = asyncio.run(examine(machine, [str(machine.path("/no.sock"))], 60))
    assert [one.check for one in findings] == asyncio.run(names())
