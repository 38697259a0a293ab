"""The machine as the gatherers see it (floor 4): its files, its users, its commands. Tests give it another root."""

import asyncio
import contextlib
import grp
import json
import os
import pwd
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vllamactl.doctor.facts import Identity

T = TypeVar("T")

LONGEST_LINE = 1 << 20
END_S = 1.0

BECOME = """
import json, os, sys
uid, gid, groups, folder, program = sys.argv[1:6]
environ = json.load(sys.stdin)
os.setgroups([int(one) for one in groups.split(",") if one])
os.setgid(int(gid))
os.setuid(int(uid))
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
try:
    os.chdir(folder)
except OSError:
    pass
os.execvpe(program, sys.argv[5:], environ)
"""
"""Run by an interpreter of its own, not by Popen's ``user``: that would fork with gRPC's handlers, and a child then may
die before it executes anything. The environment of the other user comes by a pipe and counts only afterwards: what is
in it (LD_PRELOAD) must not run as root, nor be seen by others in a command line."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended; ``status`` 127 if it could not be executed."""

    status: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else f"status {self.status}"


class Machine:
    """``root`` is where its files are; ``environ`` is that of whoever asks."""

    def __init__(self, root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> None:
        self.root = root
        self.environ = environ

    # --- files: what cannot be read is "", the reason does not matter to any check that uses these

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    def read(self, absolute: str) -> str:
        try:
            return self.path(absolute).read_text("utf-8", "replace")
        except OSError:
            return ""

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in self.path(folder).iterdir())
        except OSError:
            return []

    # --- users

    def me(self) -> Identity:
        uid, gid = os.geteuid(), os.getegid()
        return self.identity(uid, gid, frozenset(os.getgroups()))

    def identity(self, uid: int, gid: int, groups: frozenset[int] | None = None) -> Identity:
        """A user by number; without ``groups`` it has those that the database gives it."""
        name = self.user_name(uid)
        try:
            named = frozenset(os.getgrouplist(name, gid))
        except OSError:
            named = frozenset[int]()
        return Identity(name, uid, gid, named if groups is None else groups, named)

    def user_name(self, uid: int) -> str:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(uid).pw_name
        return str(uid)

    def group_name(self, gid: int) -> str:
        with contextlib.suppress(KeyError):
            return grp.getgrgid(gid).gr_name
        return str(gid)

    def user(self, name: str) -> pwd.struct_passwd | None:
        """A user by name or number, as units name them."""
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        return None

    def group_number(self, name: str) -> int | None:
        with contextlib.suppress(KeyError):
            return grp.getgrgid(int(name)).gr_gid if name.isdecimal() else grp.getgrnam(name).gr_gid
        return None

    # --- commands

    async def run(self, *words: str) -> Done:
        """Run a command to its end; it is killed when the caller is cancelled."""
        try:
            child = await start(words, self.environ)
        except OSError as error:
            return Done(127, "", f"{words[0]}: {error.strerror}")
        try:
            out, err = await child.communicate()
        finally:
            await end(child)
        return Done(child.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


async def start(
    words: Sequence[str], environ: Mapping[str, str], folder: str | None = None, become: Identity | None = None
) -> asyncio.subprocess.Process:
    """Start a command in a session of its own, with pipes; as ``become`` if that is given, which only root can."""
    if become is None:
        return await _spawn(words, environ, folder, asyncio.subprocess.DEVNULL)
    groups = ",".join(map(str, sorted(become.all_groups)))
    stub = [sys.executable, "-I", "-S", "-c", BECOME, str(become.uid), str(become.gid), groups, folder or "/", *words]
    child = await _spawn(stub, {"PATH": os.defpath}, "/", asyncio.subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(json.dumps(dict(environ)).encode())
    child.stdin.close()
    return child


async def _spawn(
    words: Sequence[str], environ: Mapping[str, str], folder: str | None, stdin: int
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *words,
        env=dict(environ),
        cwd=folder,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LONGEST_LINE,
        start_new_session=True,
    )


async def end(child: asyncio.subprocess.Process) -> None:
    """Kill a command that still runs, with all that it started in its session. One that hangs in the kernel is not
    waited for."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await child.wait()


def fields(lines: Iterable[str], separator: str) -> dict[str, str]:
    """Lines of a name, a separator and a value; others are left out."""
    return {name: value for name, found, value in (line.partition(separator) for line in lines) if found}


async def in_thread(work: Callable[[], T]) -> T:
    """Do something that may hang (a dead disk, a directory of users that does not answer) in a thread that nobody waits
    for, not even the end of the program."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # pyright: ignore[reportArgumentType] - there is a value where is no error

    def body() -> None:
        value, problem = None, None
        try:
            value = work()
        except Exception as error:  # noqa: BLE001 - handed over to whoever waits
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(settle, value, problem)

    threading.Thread(target=body, daemon=True).start()
    return await answer
