"""What one daemon writes down for the next, and how a process becomes another program."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vllamad.domain.handover import FORMAT, HandedChild, HandedWorker, Handover, decode
from vllamad.domain.ladder import Rung
from vllamad.domain.worker import Goal, Held, State, taken_over
from vllamad.host.succession import VARIABLE, take_document

CHILD = HandedChild(4711, "/run/vllama:ab", "/sys/fs/cgroup/x", "tiny", 9, "half a \xe9", 8192, {"/dev/shm/psm_1": 42})
WORKER = HandedWorker(
    name="workers/tiny-1",
    holder="tiny:latest",
    number=1,
    key="/models/tiny",
    model="tiny:latest",
    state=State.SUSPENDED,
    incarnation=3,
    attempts=1,
    devices=("GPU-1", "GPU-2"),
    device_bytes=1 << 30,
    cache_bytes=1 << 20,
    tokens=4096,
    full_on={"GPU-1": 1 << 30, "GPU-2": 1 << 30},
    small_on={"GPU-1": 5, "": 7},
    rung=Rung.LEVEL_1,
    keep_alive_s=math.inf,
    expires_at=math.inf,
    idle_since=12.5,
    spawned_at=1.25,
    ready_since=2.5,
    start_time=1e9,
    load_s=3.5,
    load_cost_s=3.25,
    load_phase="ready",
    load_fraction=1.0,
    context_length=2048,
    weights_bytes=10,
    cache_tokens=20,
    is_outdated=False,
    lines=((1, 1.5, "one"), (2, 2.5, "zwei ✓")),
    child=CHILD,
)
HANDOVER = Handover("1.2", 2, 99.5, (5, 6), "", {"/var/lib/vllama/vllamad.lock": 7}, (WORKER,), ("org/tiny",))


def test_what_is_written_is_what_is_read() -> None:
    assert decode(HANDOVER.encoded()) == HANDOVER
    assert decode(Handover("1", 1, 0.0, (), "127.0.0.1:11434", {}).encoded()).workers == ()
    assert HANDOVER.descriptors == (5, 6, 7, 9)


@pytest.mark.parametrize(
    "change", [{"format": FORMAT + 1}, {"more": 1}, {"http": None}, {"workers": [{"name": "x"}]}, {"locks": ...}]
)
def test_what_another_version_wrote_is_refused(change: dict[str, object]) -> None:
    document = json.loads(HANDOVER.encoded()) | change
    document = {key: value for key, value in document.items() if value is not ...}
    with pytest.raises(ValueError, match=r"."):
        decode(json.dumps(document).encode())
    with pytest.raises(ValueError, match=r"."):
        decode(b"not even JSON")


def test_records_of_workers_that_were_taken_over() -> None:
    ready, asleep = taken_over(State.READY, 2, 1), taken_over(State.SUSPENDED, 2, 0)
    assert (ready.goal, ready.held, ready.leases, ready.attempts) == (Goal.RUN, Held.FULL, 0, 1)
    assert (asleep.goal, asleep.held) == (Goal.SUSPEND, Held.SMALL)
    assert taken_over(State.STARTING, 1, 0).will_serve


def test_a_document_for_another_process_is_not_taken() -> None:
    environ = {VARIABLE: f"{os.getpid() + 1}:3"}
    assert take_document(environ) is None and environ == {}
    assert take_document({}) is None


SUCCESSION = """
import os, signal, sys, time
from vllamad.host.succession import become, note_signals, take_document
found = take_document(os.environ)
if found is None:
    kept, lost = os.pipe()
    os.write(lost, b"through the pipe")
    os.set_inheritable(lost, True)
    noted = note_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    while not noted:
        time.sleep(0.001)
    try:
        become(["/nowhere/at/all"], os.environ, b"x", [kept])
    except FileNotFoundError:
        print("still here", flush=True)
    become([sys.executable, *sys.orig_argv[1:]], os.environ, f"{os.getpid()} {kept} {lost}".encode(), [kept], noted)
pid, kept, lost = found.decode().split()
print(int(pid) == os.getpid(), os.read(int(kept), 100).decode(), flush=True)
try:
    os.fstat(int(lost))
except OSError:
    print("what was not kept is closed", flush=True)
got = []
signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
print(got, flush=True)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print(got == [signal.SIGTERM], flush=True)
"""


def test_a_process_becomes_another_program_with_its_files_and_its_signals(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SUCCESSION))
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "still here",
        "True through the pipe",
        "what was not kept is closed",
        "[]",
        "True",
    ]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
