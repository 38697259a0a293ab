"""A process that has done what every start of a program does, and is forked instead of starting anew (floor 2).

Executed as ``python zygote.py PREPARATION`` by the interpreter of the program that it will become, with one end of a
``SOCK_SEQPACKET`` pair as its standard input; never imported by the daemon, and without third party.
PREPARATION is a file of Python that knows the program: ``warm()`` imports it, ``objection()`` says why it must not be
forked ("" if it may), ``files()`` are the paths by which an upgrade shows, and ``begin(argv)`` is called in each
worker before it runs.

The zygote tells ``{"state": "ready"}`` once, or ``{"state": "refused", "why": ...}`` and ends. For each worker it gets
one order, with three descriptors: a socket to talk to the daemon, standard output, standard input. The worker is forked
twice, so that its parent has ended and the daemon, a child subreaper, becomes its parent: it is watched, signalled and
reaped as if it had been executed. It tells ``{"pid": N}`` over its socket when all that the kernel shows of it is its
own, and begins when it is told to; if the socket closes instead, it ends. An order that is not carried out is answered
``{"refused": why}`` there.

Forking is safe because nothing runs here but this one thread, which is made sure of before each fork.
"""

import array
import contextlib
import ctypes
import gc
import importlib.util
import json
import multiprocessing.resource_tracker
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ORDER_BYTES = 1 << 20
DESCRIPTORS = 3
REPARENT_POLL_S = 0.0005
ENV_START, ENV_END = 49, 50
"""Where the initial environment lies in memory: fields of ``/proc/PID/stat``, counted from 0."""

EXECUTED_WITH = dict(os.environ)

Order = dict[str, Any]
Stamp = list[tuple[int, int, int]]


def main(path: str) -> None:
    """Warm up, then fork until the daemon closes its end. Returns in each worker too, when its program has ended."""
    control = socket.socket(fileno=os.dup(0))
    _replace(os.open(os.devnull, os.O_RDONLY), 0)
    # Whoever serves comes first. Unlike SCHED_IDLE or a nice value, a worker may leave this again without any right.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    preparation = load(path)
    # Before anything is imported: what an upgrade replaces meanwhile is noticed as well.
    stamp = stamp_of(preparation)
    # What is made from here on lives as long as the process: looking through it again and again takes a fifth of the
    # time of the imports. No worker looks through it either, and so its pages stay shared.
    gc.disable()
    preparation.warm()
    gc.collect()
    gc.freeze()
    gc.enable()
    keep_affinity()
    if why := objection(preparation):
        tell(control, state="refused", why=why)
        return
    tell(control, state="ready")
    while received := receive(control):
        order, descriptors = received
        if why := objection(preparation):
            answer(descriptors[0], refused=why)
        elif stamp_of(preparation) != stamp:
            answer(descriptors[0], refused="its files have changed since it was warmed")
            tell(control, state="stale")
            return
        elif middle := fork(descriptors[0]):
            control.close()
            become(order, descriptors, middle, preparation)
            return
        for descriptor in descriptors:
            os.close(descriptor)


def load(path: str) -> ModuleType:
    """A module by its file: the folder that it lies in is not searched for others."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- in the zygote ---------------------------------------------------------------------------------------------------


def objection(preparation: ModuleType) -> str:
    """Why this process must not be forked now; "" if it may."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"{threads} threads run in it: a lock that one of them holds would stay locked in the worker"
    tracker: Any = multiprocessing.resource_tracker
    if tracker._resource_tracker._fd is not None:
        return "multiprocessing's resource tracker runs: all workers would share it"
    return str(preparation.objection())


def stamp_of(preparation: ModuleType) -> Stamp:
    """What changes when one of the files is replaced."""
    try:
        stats = [Path(path).stat() for path in preparation.files()]
    except OSError:
        return []
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


def receive(control: socket.socket) -> tuple[Order, list[int]] | None:
    """The next order and its descriptors; None when the daemon has closed its end."""
    descriptors = array.array("i")
    room = socket.CMSG_SPACE(DESCRIPTORS * descriptors.itemsize)
    data, ancillary, _flags, _address = control.recvmsg(ORDER_BYTES, room)
    if not data:
        return None
    for _level, _kind, content in ancillary:
        descriptors.frombytes(content)
    return json.loads(data), list(descriptors)


def fork(talk: int) -> int:
    """In the worker the pid of its parent, which ends at once; 0 here."""
    try:
        middle = os.fork()
    except OSError as error:
        answer(talk, refused=f"cannot fork: {error.strerror}")
        return 0
    if middle:
        os.waitpid(middle, 0)
        return 0
    middle = os.getpid()
    try:
        is_worker = os.fork() == 0
    except OSError as error:
        answer(talk, refused=f"cannot fork: {error.strerror}")
        is_worker = False
    if not is_worker:
        os._exit(0)
    return middle


def tell(control: socket.socket, **message: object) -> None:
    """Tell the daemon about this process."""
    control.send(json.dumps(message).encode())


def answer(talk: int, **message: object) -> None:
    """Tell the daemon about one worker; if it does not listen any more, nobody waits for it."""
    with contextlib.suppress(OSError):
        os.write(talk, json.dumps(message).encode())


def keep_affinity() -> None:
    """Have every fork, here and in the workers, leave its child on the same cores: Intel's OpenMP takes all but one
    away there."""
    cores: list[set[int]] = [set()]

    def note() -> None:
        cores[0] = os.sched_getaffinity(0)

    os.register_at_fork(before=note, after_in_child=lambda: os.sched_setaffinity(0, cores[0]))


# --- in a worker -----------------------------------------------------------------------------------------------------


def become(order: Order, descriptors: list[int], middle: int, preparation: ModuleType) -> None:
    """Be a child of the daemon as if executed by it, then run the program. ``middle`` is who forked it."""
    talk, output, stdin = descriptors
    os.setsid()
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    _replace(stdin, 0)
    # The kernel gives us another parent as soon as the one in the middle has ended, which it is about to do.
    while os.getppid() == middle:
        time.sleep(REPARENT_POLL_S)
    launch = load(str(Path(__file__).with_name("launch.py")))
    if order["leaf"] and not launch.enter(order["leaf"]):
        # It would be counted, and killed, with the zygote.
        sys.exit(launch.EXIT_CANNOT_EXECUTE)
    if not launch.settle(order["parent"]):
        sys.exit(launch.EXIT_ORPHAN)
    # As an interpreter finds them that was executed with the signals that were just set.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    set_environment(order["env"], order["marker"])
    os.chdir(order["cwd"])
    answer(talk, pid=os.getpid())
    if not os.read(talk, 1):
        launch.say("nobody waits for it any more; not starting")
        sys.exit(launch.EXIT_ORPHAN)
    os.close(talk)
    run(order["argv"], preparation)


def set_environment(wanted: dict[str, str], marker: str) -> None:
    """Give this process its own environment. What imports have set or changed stays as it would have become here too.

    ``/proc`` shows the environment that the zygote was executed with, by which the daemon would take the two for one:
    there the marker (``NAME=value``) is overwritten in place with one of the same length."""
    name, _, own = marker.partition("=")
    overwrite(f"{name}={EXECUTED_WITH[name]}".encode(), marker.encode())
    late = (wanted | {name: own}).items() - EXECUTED_WITH.items()
    os.environ.update(late)


def overwrite(old: bytes, new: bytes) -> None:
    """Replace an entry of the environment where the kernel reads it."""
    assert len(old) == len(new), (old, new)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[ENV_START - 2]), int(fields[ENV_END - 2])
    place = (b"\0" + ctypes.string_at(start, end - start)).find(b"\0" + old + b"\0")
    assert place >= 0, old
    ctypes.memmove(start + place, new, len(new))


def run(argv: list[str], preparation: ModuleType) -> None:
    """As ``python -m MODULE ARGUMENT...`` does it."""
    _python, flag, module, *arguments = argv
    assert flag == "-m", argv
    sys.argv = [module, *arguments]
    preparation.begin(argv)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _replace(descriptor: int, number: int) -> None:
    os.dup2(descriptor, number)
    os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1])
