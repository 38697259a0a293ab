"""Ends the engine's inner processes with its API server. Runs inside the engine, never inside the daemon.

vLLM's API server starts ``EngineCore`` (and that its workers) by ``multiprocessing``. When the API server is killed,
they live on as orphans and keep the memory (seen with vLLM 0.32). vLLM loads general plugins in each of these
processes; this folder on PYTHONPATH is all the installation that it needs.

The API server itself is left alone: it has the daemon's SIGTERM from its launch, and must stay able to clean up.
"""

import ctypes
import multiprocessing
import multiprocessing.util
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def install() -> None:
    """Have this process, and those that it forks by ``multiprocessing``, follow their parents. vLLM calls it once per
    process, early while it loads, and not again in one that was forked: the signal has to be asked for anew there."""
    follow_parent()
    multiprocessing.util.register_after_fork(follow_parent, lambda follow: follow())


def follow_parent() -> None:
    """Have the kernel kill this process when its parent ends.

    The kernel means the *thread* that spawned us. vLLM spawns from main threads, which end with their process; if
    that ever changes, an engine dies at the end of its load, which no test would miss.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.stderr.write(f"vllama_guard: no death signal: {os.strerror(ctypes.get_errno())}\n")
    # Whoever ended before the call sends no signal. The sentinel is a pipe from that very process: unlike a pid it
    # cannot mean another one.
    if not parent.is_alive():
        sys.stderr.write("vllama_guard: the parent is gone\n")
        os.kill(os.getpid(), signal.SIGKILL)
