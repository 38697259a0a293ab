"""Children that are forked from a zygote: nobody can tell them from those that were executed, and nothing that happens
to the zygote happens to them."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.stage import DEADLINE_S, ENVIRONMENT, Play, Stage, stage_at
from vllamad.domain.ports import Command
from vllamad.domain.view import ZygoteState
from vllamad.process import cgroup, tree, zygotes
from vllamad.process.child import ComingChild
from vllamad.process.zygotes import Zygote

FAKES = Path(__file__).parents[1] / "fakes" / "zygote"

REPORT = """
    import ctypes, json, os, resource, signal, sys, tempfile, threading
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
    death = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(death), 0, 0, 0)
    descriptors = sorted(os.listdir("/proc/self/fd"), key=int)
    print("report", json.dumps({
        "environment": {name: value for name, value in os.environ.items() if name != "VLLAMA_WORKER"},
        "folder": os.getcwd(),
        "arguments": sys.argv[2:],
        "name": __name__,
        "module": sys.modules["__main__"].__spec__.name,
        "path": sys.path,
        "stdin": sys.stdin.read(),
        "is_leader": os.getpid() == os.getpgid(0) == os.getsid(0),
        "parent": os.getppid(),
        "death_signal": death.value,
        "signals": [status[name] for name in ("SigBlk", "SigIgn", "SigCgt")],
        "interrupt": str(signal.getsignal(signal.SIGINT)),
        "oom": open("/proc/self/oom_score_adj").read(),
        "scheduling": [os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0))],
        "limits": [resource.getrlimit(number) for number in range(16)],
        "mask": os.umask(0),
        "threads": threading.active_count(),
        "open": [number for number in descriptors if os.path.exists(f"/proc/self/fd/{number}")],
        "has_group": "vllama-" in open("/proc/self/cgroup").read(),
    }), flush=True)
    signal.pause()
"""


@pytest.fixture
def play(short_folder: Path) -> Play:
    with stage_at(short_folder) as play:
        yield play


class House:
    """A stage with zygotes."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.environment = ENVIRONMENT | {"HOME": str(stage.folder), "PYTHONSAFEPATH": "1"}
        (stage.folder / "upgraded").write_text("no")

    def command(self, script: str, *arguments: str, is_forked: bool = True, stdin: bytes = b"") -> Command:
        argv = [sys.executable, "-m", "program", textwrap.dedent(script), *arguments]
        early = {**self.environment, "PYTHONPATH": str(FAKES)}
        zygote = Command([sys.executable, str(FAKES / "preparation.py")], early, Path("/"), "the zygote")
        own = {**early, "LATE": "set after the fork"}
        return Command(argv, own, self.stage.folder, "test", stdin=stdin, zygote=zygote if is_forked else None)

    def spawn(self, script: str) -> ComingChild:
        child = self.stage.launcher.spawn(self.command(script), self.stage.take)
        assert isinstance(child, ComingChild)
        return child

    def fail(self, fault: str) -> None:
        (self.stage.folder / "fault").write_text(fault)

    def keep(self) -> Zygote:
        command = self.command("").zygote
        assert command is not None
        zygote = self.stage.launcher.zygotes.keep(command)
        assert zygote is not None
        return zygote

    async def warm(self) -> Zygote:
        zygote = self.keep()
        await zygote.warm()
        assert zygote.state is ZygoteState.READY, zygote.problem
        return zygote


@contextlib.asynccontextmanager
async def opened(stage: Stage) -> AsyncIterator[House]:
    started = asyncio.Event()
    running = asyncio.create_task(stage.launcher.zygotes.run(started))
    await started.wait()
    try:
        yield House(stage)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def until(zygote: Zygote, state: ZygoteState, but: int = 0) -> None:
    """Wait for a state, of another process than ``but``."""
    async with asyncio.timeout(DEADLINE_S):
        while zygote.state is not state or (but and pid_of(zygote) == but):  # noqa: ASYNC110 - nobody tells a test
            await asyncio.sleep(0.01)


def pid_of(zygote: Zygote) -> int:
    assert zygote.child is not None
    return zygote.child.pid


async def told(stage: Stage, command: Command) -> dict[str, object]:
    child = stage.launcher.spawn(command, stage.take)
    report = json.loads(await stage.line("report"))
    stage.lines.clear()
    assert child.pid
    await child.kill_tree()
    return report


def test_a_forked_child_is_like_one_that_was_executed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            zygote = await house.warm()
            more = ("one", "two"), b"a secret"
            executed = await told(stage, house.command(REPORT, *more[0], is_forked=False, stdin=more[1]))
            forked = await told(stage, house.command(REPORT, *more[0], stdin=more[1]))
            # Where its modules are is found by the preparation as well, beside PYTHONPATH.
            assert forked.pop("path")[1:] == executed.pop("path")
            assert forked == executed
            assert forked["parent"] == os.getpid() and forked["death_signal"] == signal.SIGTERM
            assert forked["environment"]["LATE"] == "set after the fork" and forked["stdin"] == "a secret"
            assert zygote.forked == 1

    play(scene)


def test_it_has_a_control_group_of_its_own(short_folder: Path, leaves: cgroup.Leaves) -> None:
    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            zygote = await house.warm()
            child = house.spawn("print('up', flush=True); import time; time.sleep(60)")
            await stage.line("up")
            assert child.pids() == {child.pid}
            os.kill(pid_of(zygote), signal.SIGKILL)
            await until(zygote, ZygoteState.ENDED)
            assert child.pids() == {child.pid}
            await child.kill_tree()

    with stage_at(short_folder, leaves) as play:
        play(scene)


def test_neither_dies_with_the_other(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            zygote = await house.warm()
            child = house.spawn("import os, time; print('up', os.environ['VLLAMA_WORKER'], flush=True); time.sleep(60)")
            marker = await stage.line("up")
            # By it the kernel's view of the environment tells the two apart.
            assert tree.carries(child.pid, marker) and not tree.carries(pid_of(zygote), marker)
            assert {p.pid for p in tree.members(pid_of(zygote), "nobody").processes} == {pid_of(zygote)}
            other = house.spawn("import time; print('also', flush=True); time.sleep(60)")
            await stage.line("also")
            await child.kill_tree()
            assert zygote.state is ZygoteState.READY and tree.read(other.pid)
            before = pid_of(zygote)
            os.kill(before, signal.SIGKILL)
            await until(zygote, ZygoteState.ENDED)
            assert tree.read(other.pid) and "ended" in zygote.problem
            await until(zygote, ZygoteState.READY, but=before)
            other.terminate()
            assert await other.wait() == -signal.SIGTERM
            await other.kill_tree()

    play(scene)


def test_a_load_waits_for_a_zygote_that_warms(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            house.fail("slow to warm")
            zygote = house.keep()
            child = house.spawn("print('up', flush=True); import time; time.sleep(60)")
            assert child.pid == 0 and child.pids() == frozenset() and child.memory_bytes() == 0
            house.fail("")
            await stage.line("up")
            assert zygote.forked == 1 and child.pid
            await child.kill_tree()

    play(scene)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_can_be_ended_before_it_is_there(play: Play, number: signal.Signals) -> None:
    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            house.fail("slow to warm")
            early = house.spawn("print('never')")
            if number == signal.SIGTERM:
                early.terminate()
            else:
                await early.kill_tree()
            assert await early.wait() == -number
            await early.kill_tree()
            house.fail("")
            zygote = await house.warm()
            # The order is out, and nobody has read it yet.
            os.kill(pid_of(zygote), signal.SIGSTOP)
            late = house.spawn("print('never')")
            await asyncio.sleep(0.05)
            ending = asyncio.create_task(late.kill_tree())
            if number == signal.SIGTERM:
                late.terminate()
            await asyncio.sleep(0.05)
            os.kill(pid_of(zygote), signal.SIGCONT)
            await ending
            assert await late.wait() in {-signal.SIGTERM, -signal.SIGKILL}
            assert not stage.lines and zygote.state is ZygoteState.READY

    play(scene)


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_zygote_that_fails_while_it_is_asked_is_done_without(
    play: Play, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(zygotes, "FORK_S", 0.3 if how == "hangs" else 60.0)

    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            zygote = await house.warm()
            os.kill(pid_of(zygote), signal.SIGSTOP)
            child = house.spawn("print('up', flush=True); import time; time.sleep(60)")
            await asyncio.sleep(0.05)
            if how == "killed":
                os.kill(pid_of(zygote), signal.SIGKILL)
            await stage.line("up")
            assert zygote.forked == 0 and tree.read(child.pid)
            (line,) = [record for record in caplog.records if "process.unforked" in record.message]
            assert "it is executed" in line.message
            await child.kill_tree()

    play(scene)


@pytest.mark.parametrize(("fault", "why"), [("has threads", "2 threads"), ("objects", "it has seen a GPU")])
def test_one_that_must_not_be_forked_is_given_up_at_once(
    play: Play, fault: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            house.fail(fault)
            zygote = house.keep()
            waiting = house.spawn("print('up', flush=True)")
            await stage.line("up")
            await waiting.kill_tree()
            assert zygote.state is ZygoteState.OFF and why in zygote.problem and zygote.view().pid == 0
            later = stage.launcher.spawn(house.command("print('later', flush=True)"), stage.take)
            assert later.pid
            await stage.line("later")
            await later.kill_tree()
            assert len([record for record in caplog.records if "zygote.off" in record.message]) == 1

    play(scene)


def test_one_that_objects_later_is_done_without(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            zygote = await house.warm()
            house.fail("objects")
            child = house.spawn("print('up', flush=True)")
            await stage.line("up")
            await child.kill_tree()
            assert zygote.forked == 0 and zygote.state is ZygoteState.READY

    play(scene)


def test_one_that_always_ends_is_given_up(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygotes, "BACKOFF_S", (0.0, 0.0))

    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            house.fail("ends")
            zygote = house.keep()
            await until(zygote, ZygoteState.OFF)
            assert zygote.problem == "it ended while it warmed, and said last: the imports failed"

    play(scene)


def test_other_settings_make_another_in_its_place(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            before = await house.warm()
            gone = pid_of(before)
            house.environment["OTHER"] = "as it was reloaded"
            child = house.spawn("import os; print('up', os.environ['OTHER'])")
            assert await stage.line("up") == "as it was reloaded"
            await until(before, ZygoteState.OFF)
            assert tree.read(gone) is None and house.keep().forked == 1
            await child.kill_tree()

    play(scene)


def test_an_upgrade_makes_a_new_one(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygotes, "BACKOFF_S", (0.0,) * 4)

    async def scene(stage: Stage) -> None:
        async with opened(stage) as house:
            zygote = await house.warm()
            before = pid_of(zygote)
            (stage.folder / "upgraded").write_text("yes!")
            child = house.spawn("print('up', flush=True)")
            await stage.line("up")
            await child.kill_tree()
            assert zygote.forked == 0
            await until(zygote, ZygoteState.READY, but=before)

    play(scene)
