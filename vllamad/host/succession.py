"""One program taking the place of another in the same process (floor 2): ``exec``, and what gets across it.

The number of the process, its children and its control group stay by themselves. Files stay open if they are marked so,
a document lies in a file in memory, and signals that come meanwhile wait.
"""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections import deque
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Command, Launcher
from vllamad.host.signals import HANDLED

VARIABLE = "VLLAMA_HANDOVER"
"""``PID:DESCRIPTOR`` of the document: the number tells that it is meant for this process, and was not inherited."""
ANSWER_S = 30.0
"""For its first line: an interpreter and some imports, on a disk that may be cold."""
LAST_LINES = 20
FIRST = 3
"""What is below are standard input, output and error, which stay."""


def own_program() -> list[str]:
    """How this program was started: its interpreter by its path, then what it was given."""
    return [sys.executable, *sys.orig_argv[1:]]


def note_signals() -> list[int]:
    """For the time in which nobody handles them: signals that would end this process are put into the list that is
    returned. Call it in the main thread."""
    noted: list[int] = []
    for number in HANDLED:
        signal.signal(number, lambda one, _frame: noted.append(one))
    return noted


def become(
    program: Sequence[str],
    environ: Mapping[str, str],
    document: bytes,
    descriptors: Collection[int],
    noted: Sequence[int] = (),
) -> None:
    """Become ``program``. Never returns, but raises OSError if it cannot be executed; nothing has changed then, but
    that signals wait.

    ``descriptors`` stay open, all others but the standard ones are closed. ``noted`` are signals that it is to get as
    soon as it can handle them (see ``Signals``). Call it in the main thread: children get their death signal when the
    thread ends that they were made in, and only this one outlives the change."""
    carrier = os.memfd_create("vllama-handover")
    kept = {*descriptors, carrier}
    try:
        os.write(carrier, document)
        os.lseek(carrier, 0, os.SEEK_SET)
        for descriptor in _open_descriptors() - kept:
            with contextlib.suppress(OSError):
                os.set_inheritable(descriptor, False)
        for descriptor in kept:
            os.set_inheritable(descriptor, True)
        # Blocked and pending they survive the change: the successor lets them come when it can handle them.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        for number in noted:
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        os.execve(program[0], list(program), {**environ, VARIABLE: f"{os.getpid()}:{carrier}"})
    except OSError:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        raise
    finally:
        os.close(carrier)


def take_document(environ: MutableMapping[str, str]) -> bytes | None:
    """The document of a predecessor, None if this process was started like any other. Removes the variable: no child
    may take it for its own."""
    pid, _, number = environ.pop(VARIABLE, "").partition(":")
    if pid != str(os.getpid()) or not number.isdecimal():
        return None
    with os.fdopen(int(number), "rb") as carrier:
        return carrier.read()


async def ask_successor(launcher: Launcher, program: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """What the program says of itself that would take our place: the part "config" of its ``--check --json``. Raises
    INTERNAL if it says nothing: it does not start."""
    found: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    said: deque[str] = deque(maxlen=LAST_LINES)

    def take(line: str) -> None:
        said.append(line)
        with contextlib.suppress(ValueError):
            part = json.loads(line)
            if not found.done() and isinstance(part, dict) and part.get("part") == "config":  # pyright: ignore[reportUnknownMemberType]
                found.set_result(part)  # pyright: ignore[reportUnknownArgumentType]

    command = Command([*program, "--check", "--json"], environ, Path.cwd(), "the new vllamad", longest_line_bytes=65536)
    try:
        child = launcher.spawn(command, take)
    except VllamaError as error:
        raise _does_not_start(program, error.message.partition(": ")[2]) from error
    ended = asyncio.ensure_future(child.wait())
    try:
        async with asyncio.timeout(ANSWER_S):
            await asyncio.wait({found, ended}, return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        said.append(f"it did not answer within {ANSWER_S:.0f} s")
    finally:
        ended.cancel()
        await child.kill_tree()
    if found.done():
        return found.result()
    raise _does_not_start(program, said[-1] if said else "it said nothing")


def _does_not_start(program: Sequence[str], why: str) -> VllamaError:
    return VllamaError(
        Reason.INTERNAL,
        f"cannot upgrade: the program that would take over does not start: {why}",
        f"nothing has changed; see for yourself: {shlex.join(program)} --check",
    )


def _open_descriptors() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir() if int(entry.name) >= FIRST}
