"""What the daemon asks of the system: notify socket, signals, lock, folders, clock."""

import asyncio
import grp
import math
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from tests.fakes.clock import FakeClock
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.host.clock import RealClock
from vllamad.host.folders import PRIVATE_MODE, RUNTIME_MODE, make_folder, make_private_folder, share_with_group
from vllamad.host.lock import FolderLock
from vllamad.host.notify import SystemdNotifier, watchdog_interval_s
from vllamad.host.open_files import raise_open_files
from vllamad.host.signals import Signals

# --- notify ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's end of the notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


def test_the_service_manager_hears_everything(manager: socket.socket) -> None:
    notifier = SystemdNotifier(os.environ)
    assert notifier.is_connected
    notifier.ready("serving\non 127.0.0.1")
    notifier.status("loading qwen3:0.6b → 40 %")
    notifier.extend(12.5)
    notifier.extend(math.inf)
    notifier.watchdog()
    notifier.stopping()
    assert [manager.recv(4096).decode() for _ in range(6)] == [
        "READY=1\nSTATUS=serving on 127.0.0.1",
        "STATUS=loading qwen3:0.6b → 40 %",
        "EXTEND_TIMEOUT_USEC=12500000",
        "EXTEND_TIMEOUT_USEC=86400000000",
        "WATCHDOG=1",
        "STOPPING=1",
    ]
    notifier.close()
    notifier.status("nobody hears this")
    assert not notifier.is_connected


def test_the_service_manager_is_told_of_a_reload_and_of_its_instant(manager: socket.socket) -> None:
    notifier = SystemdNotifier(os.environ)
    before = time.monotonic()
    notifier.reloading()
    first, micros = manager.recv(4096).decode().split("\nMONOTONIC_USEC=")
    assert first == "RELOADING=1"
    assert before <= int(micros) / 1e6 + 1e-3 and int(micros) / 1e6 <= time.monotonic()
    notifier.close()


def test_a_service_manager_that_does_not_listen_holds_nobody_up(manager: socket.socket) -> None:
    """The kernel queues about ten messages and then makes the sender wait, which would stop the whole daemon."""
    notifier = SystemdNotifier(os.environ)
    notifier.ready("serving")
    for number in range(1000):
        notifier.status(f"{number} models loaded")
    assert manager.recv(4096) == b"READY=1\nSTATUS=serving"
    notifier.close()


def test_without_a_service_manager_nothing_happens() -> None:
    notifier = SystemdNotifier({})
    for call in (notifier.stopping, notifier.watchdog, lambda: notifier.ready("x"), lambda: notifier.extend(1)):
        call()
    assert not notifier.is_connected


def test_a_service_manager_that_went_away_does_no_harm(manager: socket.socket, tmp_path: Path) -> None:
    notifier = SystemdNotifier(os.environ)
    manager.close()
    (tmp_path / "notify").unlink()
    notifier.status("still here")
    assert notifier.is_connected
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval_is_half_of_what_is_allowed(environ: dict[str, str], interval_s: float | None) -> None:
    assert watchdog_interval_s(environ, pid=7) == interval_s


# --- signals ---------------------------------------------------------------------------------------------------------


def test_the_first_signal_stops_and_every_further_one_hurries(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def note(what: str, name: str) -> None:
            heard.append(f"{what} {name}")
            changed.set()

        signals = Signals(lambda name: note("stop", name), lambda name: note("hurry", name), lambda: None)
        signals.install(loop)
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                changed.clear()
                os.kill(os.getpid(), number)
                await asyncio.wait_for(changed.wait(), 5)
        finally:
            signals.remove(loop)

    with caplog.at_level("INFO", "vllamad"):
        asyncio.run(run())
    assert heard == ["stop SIGTERM", "hurry SIGINT", "hurry SIGTERM"]
    assert [record.getMessage() for record in caplog.records] == ["daemon.stop", "daemon.hurry", "daemon.hurry"]


def test_sighup_asks_for_a_reload_and_stops_nothing() -> None:
    heard: list[str] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def note(what: str) -> None:
            heard.append(what)
            changed.set()

        signals = Signals(note, note, lambda: note("reload"))
        signals.install(loop)
        try:
            for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGINT):
                changed.clear()
                os.kill(os.getpid(), number)
                await asyncio.wait_for(changed.wait(), 5)
        finally:
            signals.remove(loop)

    asyncio.run(run())
    assert heard == ["reload", "reload", "SIGINT"]


# --- lock ------------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from vllamad.host.lock import FolderLock
lock = FolderLock.take(Path(sys.argv[1]), "--state-dir")
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """A second process that holds the lock until its standard input ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    ready, _, _ = select.select([holder.stdout], [], [], 20)
    assert ready, "the holder said nothing within 20 s"
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_daemon_is_told_who_holds_the_folder_until_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "vllamad.lock"
    with hold(path) as holder:
        try:
            with pytest.raises(VllamaError) as caught:
                FolderLock.take(path, "--state-dir")
        finally:
            holder.kill()
            holder.wait()
    assert caught.value.reason is Reason.ALREADY_RUNNING
    assert caught.value.message == f"cannot start: vllamad runs already as process {holder.pid} on {tmp_path}"
    assert caught.value.hint == "stop that one, or choose another folder with --state-dir"
    assert caught.value.facts == {"pid": holder.pid}

    lock = FolderLock.take(path, "--state-dir")
    assert path.read_text() == f"{os.getpid()}\n"
    lock.release()
    lock.release()
    FolderLock.take(path, "--state-dir").release()


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "vllamad.lock"
    lock = FolderLock.take(path, "--state-dir")
    program = "import os; print([os.path.realpath(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')])"
    child = subprocess.run(
        [sys.executable, "-c", program], close_fds=False, capture_output=True, text=True, timeout=30, check=True
    )
    lock.release()
    assert "/proc" in child.stdout
    assert str(path) not in child.stdout


def test_a_lock_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(VllamaError, match=r"cannot lock .*nowhere/vllamad\.lock: No such file or directory") as caught:
        FolderLock.take(tmp_path / "nowhere/vllamad.lock", "--state-dir")
    assert caught.value.reason is Reason.STORAGE_FAILED


# --- folders ---------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_made_with_their_modes(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b/run", RUNTIME_MODE, "runtime folder", "--runtime-dir")
    assert mode(tmp_path / "a/b/run") == RUNTIME_MODE
    make_folder(tmp_path / "a/b/run", PRIVATE_MODE, "runtime folder", "--runtime-dir")
    assert mode(tmp_path / "a/b/run") == RUNTIME_MODE, "the administrator's choice stays"
    make_private_folder(tmp_path / "a/b/run", "folder of worker sockets", "--runtime-dir")
    assert mode(tmp_path / "a/b/run") == PRIVATE_MODE


def test_a_folder_that_cannot_be_made_says_which_flag_helps(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VllamaError, match=r"cannot use .*file/state: /.*file is not a folder") as caught:
        make_folder(tmp_path / "file/state", 0o755, "state folder", "--state-dir")
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert caught.value.hint == "choose another one with --state-dir"
    with pytest.raises(VllamaError, match=r"cannot use the state folder .*file: /.*file is not a folder"):
        make_folder(tmp_path / "file", 0o755, "state folder", "--state-dir")


def test_a_link_is_no_private_folder(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(VllamaError, match="it is a link, or belongs to another user"):
        make_private_folder(tmp_path / "link", "folder of worker sockets", "--runtime-dir")


def test_sharing_with_a_group_happens_or_says_why_not(tmp_path: Path) -> None:
    path = tmp_path / "vllamad.sock"
    path.touch(0o600)
    own = grp.getgrgid(os.getegid()).gr_name
    assert share_with_group(path, own, 0o660) == ""
    assert mode(path) == 0o660
    assert share_with_group(path, "no-such-group", 0o660) == "there is no group no-such-group"
    assert share_with_group(path, "", 0o660) == "control.group is empty"


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_real_clock_calls_back_when_it_is_due_and_not_when_cancelled(new_loop: object) -> None:
    async def run() -> list[str]:
        loop = asyncio.get_running_loop()
        clock = RealClock(loop)
        called: list[str] = []
        done = asyncio.Event()
        assert abs(clock.now() - loop.time()) < 1
        clock.call_at(clock.now() - 1, lambda: called.append("overdue"))
        clock.call_at(clock.now() + 0.001, lambda: called.append("cancelled")).cancel()
        never = clock.call_at(math.inf, lambda: called.append("never"))
        clock.call_at(clock.now() + 0.01, done.set)
        await asyncio.wait_for(done.wait(), 5)
        never.cancel()
        never.cancel()
        return called

    with asyncio.Runner(loop_factory=new_loop) as runner:  # type: ignore[arg-type]
        assert runner.run(run()) == ["overdue"]


def test_the_fake_clock_runs_timers_at_their_instants_also_those_armed_on_the_way() -> None:
    clock = FakeClock(now=100)
    seen: list[tuple[str, float]] = []

    def first() -> None:
        seen.append(("first", clock.now()))
        clock.call_at(clock.now() + 1, lambda: seen.append(("second", clock.now())))

    start = clock.time()
    clock.call_at(110, first)
    clock.call_at(111.5, lambda: seen.append(("third", clock.now())))
    clock.call_at(105, lambda: seen.append(("cancelled", clock.now()))).cancel()
    clock.advance(9)
    assert seen == []
    clock.advance(3)
    assert seen == [("first", 110), ("second", 111), ("third", 111.5)]
    assert (clock.now(), clock.time() - start, clock.pending()) == (112, 12, [])


# --- open files ------------------------------------------------------------------------------------------------------


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard, 512), hard))
    try:
        assert raise_open_files() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert raise_open_files() == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
