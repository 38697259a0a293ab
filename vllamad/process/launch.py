"""What runs between the fork and the program: tie the child to its parent's life, then exec (floor 2).

Executed as ``python -I -S launch.py PARENT_PID LEAF PROGRAM ARGUMENT...`` by ``child.py`` (LEAF is the folder of the
child's control group, or empty), never imported by the daemon, and without third party: it starts in some 20 ms and
leaves nothing behind. It exists because a ``preexec_fn`` runs Python between fork and exec of a process with threads,
which may deadlock. Children that a zygote forks settle the same way (``zygote.py``).
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
OOM_SCORE_ADJ = 500
"""The kernel ends a worker before the daemon: one model's appetite is not everyone's end. (Raising needs no right.)"""

EXIT_ORPHAN = 125
EXIT_CANNOT_EXECUTE = 126
EXIT_NOT_FOUND = 127
"""As a shell reports them."""


def main(arguments: list[str]) -> int:
    """Never returns if the program can be executed."""
    parent, leaf, program = int(arguments[0]), arguments[1], arguments[2:]
    if leaf:
        enter(leaf)
    if not settle(parent):
        return EXIT_ORPHAN
    try:
        os.execve(program[0], program, os.environ)
    except OSError as error:
        say(f"cannot execute {program[0]}: {error.strerror}")
        return EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_CANNOT_EXECUTE


def settle(parent: int) -> bool:
    """Make this process a child of the daemon like any other: ended with it, before it where memory is short, with
    signals as a program expects them. False if the daemon is gone already."""
    # SIGTERM, not SIGKILL: vLLM's API server takes its engine core along on TERM and leaves it behind on KILL.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        say(f"cannot set the parent-death signal: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        # It ended before the signal was set, so the signal will not come.
        say("the daemon is gone; not starting")
        return False
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except OSError as error:
        say(f"cannot raise oom_score_adj: {error.strerror}")
    # Ignored signals and the mask outlive an exec (nohup, a blocked SIGTERM in the thread that forked).
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return True


def enter(leaf: str) -> bool:
    """Go into a control group, before there is anyone who could stay outside; False if the kernel refuses."""
    try:
        descriptor = os.open(f"{leaf}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, b"0")
        os.close(descriptor)
    except OSError as error:
        say(f"cannot enter {leaf}: {error.strerror}")
        return False
    return True


def say(text: str) -> None:
    """Tell the reader of the child's output."""
    sys.stderr.write(f"launch: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
