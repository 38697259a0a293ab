"""A stage for real children: a launcher, what its children wrote, and a look around when the play is over."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vllamad.domain.ports import Command
from vllamad.process import tree
from vllamad.process.cgroup import Leaves
from vllamad.process.child import PosixChild, PosixLauncher

DEADLINE_S = 10
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}


class Stage:
    """A launcher, the lines that its children wrote, and their trees."""

    def __init__(self, folder: Path, leaves: Leaves | None = None) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.leaves = leaves
        self.launcher = PosixLauncher(str(folder), leaves)
        self._line_came = asyncio.Event()

    def spawn(self, script: str, *arguments: str, memory_limit_bytes: int = 0, **environment: str) -> PosixChild:
        argv = [sys.executable, "-S", "-c", textwrap.dedent(script), *arguments]
        environ = ENVIRONMENT | environment
        command = Command(argv, environ, self.folder, "test", memory_limit_bytes=memory_limit_bytes)
        return self.launcher.spawn(command, self.take)

    def take(self, line: str) -> None:
        self.lines.append(line)
        self._line_came.set()

    async def line(self, start: str) -> str:
        """The first line that begins so."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    for line in self.lines:
                        if line.startswith(start):
                            return line.removeprefix(start).strip()
                    self._line_came.clear()
                    await self._line_came.wait()
        except TimeoutError:
            pytest.fail(f"no line {start!r} within {DEADLINE_S} s; seen: {self.lines}")


Scene = Callable[[Stage], Awaitable[None]]
Play = Callable[[Scene], None]


@contextmanager
def stage_at(folder: Path, leaves: Leaves | None = None) -> Iterator[Play]:
    """Runs a scene on a fresh stage; afterwards no process, no child and no control group of ours may be left."""

    async def on_stage(scene: Scene) -> None:
        stage = Stage(folder, leaves)
        async with asyncio.timeout(3 * DEADLINE_S):
            await scene(stage)

    # A launcher makes this process adopt orphans, those of daemons that other tests have killed as well.
    before = {p.pid for p in _zombies()}
    yield lambda scene: asyncio.run(on_stage(scene), debug=True)
    groups = leaves.left(str(folder)) if leaves else []
    lost = {pid for group in groups for pid in group.pids()}
    left = [p for p in tree.processes() if not p.is_zombie and (p.pid in lost or tree.carries(p.pid, str(folder)))]
    zombies = [p for p in _zombies() if p.pid not in before]
    for process in left:
        os.kill(process.pid, signal.SIGKILL)
    for process in zombies:
        os.waitpid(process.pid, 0)
    for group in groups:
        group.remove()
    assert not left and not zombies and not groups


def _zombies() -> list[tree.Process]:
    return [p for p in tree.processes() if p.is_zombie and p.parent == os.getpid()]
