"""Trees with a control group: nobody gets out, and what the kernel counts arrives."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.stage import ENVIRONMENT, Play, Stage, stage_at
from vllamad.domain.ports import Command
from vllamad.process import tree
from vllamad.process.cgroup import Leaf, Leaves
from vllamad.process.child import LAUNCH, PosixLauncher

FUGITIVE = """
    import os, signal, sys
    free = "import os, signal; print('free', os.getpid(), flush=True); signal.pause()"
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(sys.executable, [sys.executable, '-S', '-c', free], {})
        os._exit(0)
    os.wait()
    signal.pause()
"""
"""Leaves a process behind in a session of its own, without our variable in its environment and without its parent."""


@pytest.fixture
def play(tmp_path: Path, leaves: Leaves) -> Iterator[Play]:
    with stage_at(tmp_path, leaves) as run:
        yield run


def leaf_of(stage: Stage) -> Leaf:
    """Of the only child."""
    assert stage.leaves is not None
    (leaf,) = stage.leaves.left(str(stage.folder))
    return leaf


def test_a_child_is_in_its_leaf_before_its_program_runs(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn("print('group', open('/proc/self/cgroup').read().replace(chr(10), ' '))")
        leaf = leaf_of(stage)
        assert leaf.folder.name in (await stage.line("group")).replace(" ", "/").split("/")
        assert await child.wait() == 0
        assert leaf.folder.is_dir()
        await child.kill_tree()
        assert not leaf.folder.exists()

    play(scene)


def test_who_leaves_session_and_environment_is_found_and_killed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(FUGITIVE)
        fugitive = int(await stage.line("free"))
        assert tree.search(child.pid, f"{stage.folder}:") == (tree.read(child.pid),)
        assert child.pids() == {child.pid, fugitive}
        child.terminate()
        assert await child.wait() == -signal.SIGTERM
        assert child.pids() == {fugitive}
        await child.kill_tree()
        assert tree.read(fugitive) is None
        assert child.pids() == frozenset()

    play(scene)


def test_a_tree_that_never_stands_still_is_killed(play: Play) -> None:
    """Its only process has ended by the time that a search of /proc has read about it."""

    async def scene(stage: Stage) -> None:
        child = stage.spawn(
            """
            import os, time
            if os.fork() == 0:
                print('runs')
                for _ in range(5000):
                    time.sleep(0.004)
                    if os.fork():
                        os._exit(0)
                    os.setsid()
            """
        )
        await stage.line("runs")
        assert await child.wait() == 0
        await child.kill_tree()

    play(scene)


def test_processor_time_counts_who_has_ended_and_stays_known(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(
            """
            import os, signal, time
            read, write = os.pipe()
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    while time.process_time() < 0.3: pass
                    os.write(write, b'x')
                os._exit(0)
            os.read(read, 1)
            print('spent')
            signal.pause()
            """
        )
        await stage.line("spent")
        before = await asyncio.to_thread(child.cpu_seconds)
        assert 0.25 < before < 5
        await child.kill_tree()
        assert before <= child.cpu_seconds() < 5
        assert child.oom_kills() == 0

    play(scene)


def test_groups_that_a_worker_made_go_with_its_leaf(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        assert stage.leaves is not None
        child = stage.spawn(
            """
            import os, signal, sys
            group = next(line for line in open('/proc/self/cgroup') if line.startswith('0::')).strip()
            inner = sys.argv[1] + '/' + group.rpartition('/')[2] + '/inner'
            os.mkdir(inner)
            with open(inner + '/cgroup.procs', 'w') as file:
                file.write('0')
            print('up')
            signal.pause()
            """,
            str(stage.leaves.folder),
        )
        await stage.line("up")
        assert child.pids() == {child.pid}
        await child.kill_tree()

    play(scene)


def test_memory_beyond_the_limit_ends_the_whole_tree_and_is_counted(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        assert stage.leaves is not None
        if "memory" not in (stage.leaves.folder / "cgroup.subtree_control").read_text().split():
            pytest.skip("the kernel does not count memory by groups of version 2 here")
        child = stage.spawn(
            """
            import os, signal
            if os.fork():
                if os.fork() == 0:
                    os.setsid()
                signal.pause()
            held = []
            while True:
                held.append(bytearray(os.urandom(2**20)))
            """,
            memory_limit_bytes=64 * 2**20,
        )
        assert await child.wait() == -signal.SIGKILL
        assert child.oom_kills() >= 2
        await child.kill_tree()
        assert child.oom_kills() >= 2

    play(scene)


def test_a_limit_that_nobody_enforces_is_logged(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(stage: Stage) -> None:
        assert stage.leaves is not None
        if "memory" in (stage.leaves.folder / "cgroup.subtree_control").read_text().split():
            pytest.skip("the kernel enforces it here")
        child = stage.spawn("print('runs')", memory_limit_bytes=2**30)
        assert await child.wait() == 0
        await child.kill_tree()
        assert "process.unlimited title=test" in caplog.text

    play(scene)


def test_a_program_that_cannot_be_started_leaves_no_group(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        command = Command([sys.executable], ENVIRONMENT, stage.folder / "no", "tiny")
        with pytest.raises(Exception, match="No such file"):
            stage.launcher.spawn(command, stage.take)
        assert stage.leaves is not None
        assert stage.leaves.left(str(stage.folder)) == []

    play(scene)


DAEMON = """
    import asyncio, sys
    from pathlib import Path
    from vllamad.domain.ports import Command
    from vllamad.process.cgroup import Leaves
    from vllamad.process.child import PosixLauncher

    async def main():
        launcher = PosixLauncher(sys.argv[1], Leaves(Path(sys.argv[2])))
        command = Command([sys.executable, "-S", "-c", sys.argv[3]], {"PYTHONUNBUFFERED": "1"}, Path("/"), "test")
        child = launcher.spawn(command, lambda line: print(line, flush=True))
        await child.wait()

    asyncio.run(main())
"""


def test_successor_kills_who_has_fled_and_removes_the_leaves(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        assert stage.leaves is not None
        owner = str(stage.folder / "inner")
        argv = [sys.executable, "-c", textwrap.dedent(DAEMON), owner, str(stage.leaves.folder)]
        command = Command([*argv, textwrap.dedent(FUGITIVE)], ENVIRONMENT, stage.folder, "daemon")
        daemon = stage.launcher.spawn(command, stage.take)
        fugitive = int(await stage.line("free"))
        os.kill(daemon.pid, signal.SIGKILL)
        await daemon.wait()
        assert tree.read(fugitive) is not None
        await PosixLauncher(owner).kill_leftovers()
        assert tree.read(fugitive) is not None
        successor = PosixLauncher(owner, stage.leaves)
        assert len(stage.leaves.left(owner)) == 1
        assert await successor.kill_leftovers() >= 1
        assert tree.read(fugitive) is None
        assert stage.leaves.left(owner) == []
        assert len(stage.leaves.left(str(stage.folder))) == 1
        await daemon.kill_tree()
        await stage.launcher.reap_orphans()
        await stage.launcher.reap_orphans()

    play(scene)


def test_a_leaf_that_cannot_be_entered_is_no_reason_not_to_run(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), str(tmp_path / "no"), "/bin/echo", "runs"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True)
    assert ran.stdout == "runs\n"
    assert ran.stderr == f"launch: cannot enter {tmp_path / 'no'}: No such file or directory\n"


SETTLER = """
    import logging, os, sys
    from vllamad.process import cgroup
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)
    with open(sys.argv[1] + '/cgroup.procs', 'w') as file:
        file.write('0')
    for _ in range(2):
        leaves = cgroup.settle()
        print('leaves', leaves and leaves.folder)
    print('group', cgroup.group_of(cgroup.PROC / 'self').rpartition('/')[2])
"""


@pytest.mark.parametrize("is_delegated", [True, False])
def test_a_daemon_settles_where_that_was_delegated(leaves: Leaves, is_delegated: bool) -> None:
    """As under ``Delegate=yes``, and as under a manager who did not say so. A second time changes nothing."""
    if os.geteuid() != 0:
        pytest.skip("who is not root would have to be given a group by somebody else")
    folder = leaves.folder / f"service-{is_delegated}"
    folder.mkdir()
    try:
        if is_delegated:
            os.setxattr(folder, "user.delegate", b"1")
        argv = [sys.executable, "-c", textwrap.dedent(SETTLER), str(folder)]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True, env=ENVIRONMENT)
        lines = ran.stdout.splitlines()
        if is_delegated:
            assert lines[0].startswith(f"cgroup.delegated path={folder} missing=")
            assert lines[1] == lines[3] == f"leaves {folder}"
            assert lines[4] == "group vllamad"
            (folder / "vllamad").rmdir()
        else:
            assert lines[0].startswith("cgroup.none: ")
            assert "is not delegated to us; trees are found" in lines[0]
            assert lines[1] == "leaves None"
            assert lines[4] == f"group {folder.name}"
    finally:
        folder.rmdir()
