"""Real children: what a launcher promises, and that nothing is left of any tree."""

import asyncio
import json
import mmap
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.stage import DEADLINE_S, ENVIRONMENT, Play, Stage, stage_at
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Command
from vllamad.process import tree
from vllamad.process.child import PosixChild, PosixLauncher


@pytest.fixture(params=["searched", "leaf"])
def play(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Play]:
    """Every scene twice: where trees are only searched for, and where each has a control group."""
    leaves = request.getfixturevalue("leaves") if request.param == "leaf" else None
    with stage_at(tmp_path, leaves) as run:
        yield run


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


HANGING_KEEPER = """
import signal, subprocess, sys
hangs = "import signal; print('up', flush=True); signal.pause()"
subprocess.Popen([sys.executable, "-c", hangs, "multiprocessing." + "resource_tracker"])
signal.pause()
"""
"""Has a keeper of names that says "up" and never ends by itself."""

MAPS_FILE = """
import mmap, os
with open(f"/dev/shm/vllama-test-{os.getpid()}", "wb+") as file:
    file.truncate(4096)
    held = mmap.mmap(file.fileno(), 4096)
"""


async def holder(stage: Stage) -> tuple[PosixChild, Path]:
    """A child that has mapped a file in /dev/shm, by the library whose keeper of names would remove it."""
    child = stage.spawn(
        """
        import multiprocessing.shared_memory, signal
        held = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
        print('up', held._name.lstrip('/'))
        signal.pause()
        """
    )
    return child, Path("/dev/shm") / await stage.line("up")


async def keeper_of(leader: int, stage: Stage) -> int:
    """The process that keeps the names of shared memory: it is known when it has come to be executed, which may be
    after its user has said that it is up."""
    async with asyncio.timeout(DEADLINE_S):
        while not (found := tree.tidiers(tree.members(leader, str(stage.folder)))):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    (keeper,) = found
    return keeper


def is_alive(pid: int) -> bool:
    process = tree.read(pid)
    return process is not None and not process.is_zombie


FAMILY = """
    import os, signal, sys
    if os.fork() == 0:
        if 'setsid' in sys.argv: os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(1, f'core {os.getpid()}\\n'.encode())
            signal.pause()
        if 'orphan' in sys.argv: os._exit(0)
        signal.pause()
    os.write(1, f'up {os.getpid()}\\n'.encode())
    signal.pause()
"""


def test_output_environment_and_status_arrive(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn("import os, sys; print(sorted(os.environ)); sys.stderr.write('no end'); sys.exit(7)", A="1")
        assert await child.wait() == 7
        assert stage.lines == ["['A', 'LC_CTYPE', 'PATH', 'PYTHONUNBUFFERED', 'VLLAMA_WORKER']", "no end"] or (
            stage.lines == ["['A', 'PATH', 'PYTHONUNBUFFERED', 'VLLAMA_WORKER']", "no end"]
        )
        await child.kill_tree()
        assert await child.wait() == 7

    play(scene)


def test_child_leads_a_session_reads_nothing_and_dies_first_under_memory_pressure(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(
            """
            import ctypes, os, sys
            signal = ctypes.c_int()
            ctypes.CDLL(None).prctl(2, ctypes.byref(signal))
            print('sid', os.getsid(0) == os.getpgid(0) == os.getpid(), 'stdin', repr(sys.stdin.read()))
            print('death', signal.value, 'oom', open('/proc/self/oom_score_adj').read().strip())
            print('descriptors', sorted(os.listdir('/proc/self/fd'))[:4])
            """
        )
        assert await child.wait() == 0
        assert stage.lines[0] == "sid True stdin ''"
        assert stage.lines[1] == "death 15 oom 500"
        # 0 to 2, and the listing itself.
        assert stage.lines[2] == "descriptors ['0', '1', '2', '3']"
        await child.kill_tree()

    play(scene)


def test_exit_is_seen_but_not_reaped_until_the_tree_is_killed(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn("raise SystemExit(0)")
        statuses = await asyncio.gather(child.wait(), child.wait())
        assert statuses == [0, 0]
        leader = tree.read(child.pid)
        assert leader is not None and leader.is_zombie
        await child.kill_tree()
        assert tree.read(child.pid) is None
        await child.kill_tree()
        child.terminate()
        assert child.memory_bytes() == 0

    play(scene)


def test_terminate_reaches_the_whole_group(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(FAMILY)
        core = int(await stage.line("core"))
        await stage.line("up")
        child.terminate()
        assert await child.wait() == -signal.SIGTERM
        # The one that ignores SIGTERM outlives its leader, until the tree is killed.
        assert is_alive(core)
        await child.kill_tree()
        assert not is_alive(core)

    play(scene)


@pytest.mark.parametrize("how", ["plain", "setsid", "setsid orphan", "orphan"])
def test_kill_tree_ends_everyone_whatever_they_tried(play, how: str) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(FAMILY, *how.split())
        core = int(await stage.line("core"))
        await stage.line("up")
        await asyncio.gather(child.kill_tree(), child.kill_tree())
        assert tree.read(core) is None
        assert tree.read(child.pid) is None
        assert await child.wait() == -signal.SIGKILL

    play(scene)


def test_kill_tree_ends_a_group_without_its_leader(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(FAMILY)
        core = int(await stage.line("core"))
        await stage.line("up")
        os.kill(child.pid, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
        assert is_alive(core)
        await child.kill_tree()
        assert tree.read(core) is None

    play(scene)


def test_cancelled_kill_can_be_finished_by_another(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(FAMILY, "setsid")
        await stage.line("core")
        task = asyncio.create_task(child.kill_tree())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await child.kill_tree()
        assert task.cancelled()

    play(scene)


def test_shared_memory_of_killed_processes_is_removed(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(MAPS_FILE + HANGING_KEEPER)
        await stage.line("up")
        path = Path(f"/dev/shm/vllama-test-{child.pid}")
        assert path in shared_memory()
        keeper = await keeper_of(child.pid, stage)
        await child.kill_tree()
        assert tree.read(keeper) is None
        assert path not in shared_memory()  # it was mapped when the tree was searched

    play(scene)


def test_a_keeper_of_names_that_was_stopped_goes_on(play, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when somebody stops a whole engine and kills its users, and nobody has seen yet what they had mapped."""

    async def scene(stage: Stage) -> None:
        monkeypatch.setattr(tree, "TIDYING_S", 0.2)
        child, path = await holder(stage)
        keeper = await keeper_of(child.pid, stage)
        os.kill(keeper, signal.SIGSTOP)
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        await child.kill_tree()
        assert tree.read(keeper) is None
        assert path not in shared_memory()

    play(scene)


def test_shared_memory_that_was_seen_once_is_removed_though_everyone_died_at_once(play) -> None:
    async def scene(stage: Stage) -> None:
        child, path = await holder(stage)
        await asyncio.to_thread(child.memory_bytes)
        os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
        await child.kill_tree()
        assert path not in shared_memory()

    play(scene)


def test_memory_counts_the_whole_tree(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(
            """
            import os, signal
            held = os.urandom(2**20) * 32
            if os.fork() == 0:
                mine = os.urandom(2**20) * 16
                print('up')
            signal.pause()
            """
        )
        await stage.line("up")
        memory = child.memory_bytes()
        # 32 MiB shared by two and counted once, 16 MiB of the second, and two interpreters.
        assert 48 * 2**20 < memory < 78 * 2**20
        await child.kill_tree()

    play(scene)


def test_a_shouting_child_neither_blocks_the_loop_nor_itself(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn("for i in range(100_000): print('line', i)")
        longest = 0.0
        waiting = asyncio.create_task(child.wait())
        while not waiting.done():
            before = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - before)
        await child.kill_tree()
        assert len(stage.lines) == 100_000
        assert stage.lines[-1] == "line 99999"
        assert longest < 0.5

    play(scene)


def test_missing_program_is_refused_at_once(play) -> None:
    async def scene(stage: Stage) -> None:
        command = Command(["/no/such/python"], ENVIRONMENT, stage.folder, "tiny")
        with pytest.raises(VllamaError) as caught:
            stage.launcher.spawn(command, stage.take)
        assert caught.value.reason is Reason.ENGINE_START_FAILED
        assert str(caught.value) == "cannot start tiny: cannot execute /no/such/python: no such file"
        assert caught.value.hint
        (stage.folder / "text").write_text("not a program")
        with pytest.raises(VllamaError, match="not executable"):
            stage.launcher.spawn(Command([str(stage.folder / "text")], ENVIRONMENT, stage.folder, "tiny"), stage.take)
        with pytest.raises(VllamaError, match="No such file"):
            stage.launcher.spawn(Command([sys.executable], ENVIRONMENT, stage.folder / "no", "tiny"), stage.take)

    play(scene)


def test_program_of_a_wrong_format_says_so_in_its_output(play) -> None:
    async def scene(stage: Stage) -> None:
        program = stage.folder / "program"
        program.write_bytes(b"\x7fELF nonsense")
        program.chmod(0o755)
        child = stage.launcher.spawn(Command([str(program)], ENVIRONMENT, stage.folder, "tiny"), stage.take)
        assert await child.wait() == 126
        assert stage.lines == [f"launch: cannot execute {program}: Exec format error"]
        await child.kill_tree()

    play(scene)


DAEMON = """
    import asyncio, sys
    from pathlib import Path
    from vllamad.domain.ports import Command
    from vllamad.process.child import PosixLauncher

    async def main():
        launcher = PosixLauncher(sys.argv[1], notes=Path(sys.argv[3]) if len(sys.argv) > 3 else None)
        command = Command([sys.executable, "-S", "-c", sys.argv[2]], {"PYTHONUNBUFFERED": "1"}, Path("/"), "test")
        spoke = asyncio.Event()
        child = launcher.spawn(command, lambda line: (print(line, flush=True), spoke.set()))
        await spoke.wait()
        child.memory_bytes()
        print("noted", flush=True)
        await child.wait()
        print("child ended", flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
"""


def test_children_get_sigterm_when_the_daemon_is_killed(play) -> None:
    async def scene(stage: Stage) -> None:
        grandchild = (
            "import os, signal; signal.signal(15, lambda *_: os._exit(0)); print('up', os.getpid()); signal.pause()"
        )
        daemon = stage.launcher.spawn(_daemon(stage, "inner", grandchild), stage.take)
        pid = int(await stage.line("up"))
        ending = tree.Dying(pid)
        os.kill(daemon.pid, signal.SIGKILL)
        await tree.exits([ending])
        assert not is_alive(pid)
        await daemon.kill_tree()
        await _reap(stage)

    play(scene)


def test_successor_kills_what_ignored_the_death_signal(play) -> None:
    async def scene(stage: Stage) -> None:
        deaf = "import os, signal; signal.signal(15, signal.SIG_IGN); print('up', os.getpid()); signal.pause()"
        daemon = stage.launcher.spawn(_daemon(stage, "inner", deaf), stage.take)
        pid = int(await stage.line("up"))
        os.kill(daemon.pid, signal.SIGKILL)
        await daemon.wait()
        assert is_alive(pid)
        successor = PosixLauncher(str(stage.folder / "inner"))
        assert await successor.kill_leftovers() == 1
        assert not is_alive(pid)
        assert await successor.kill_leftovers() == 0
        await daemon.kill_tree()
        await _reap(stage)

    play(scene)


HOLDS_SHARED_MEMORY = """
    import mmap, os, signal
    path = f'/dev/shm/vllama-test-{os.getpid()}'
    with open(path, 'wb+') as file:
        file.truncate(4096)
        held = mmap.mmap(file.fileno(), 4096)
    print('up', path)
    signal.pause()
"""


async def _left_by_the_dead(stage: Stage, notes: Path) -> Path:
    """A daemon and its child end without a word; returns what the child leaves in shared memory."""
    argv = [sys.executable, "-c", textwrap.dedent(DAEMON), str(stage.folder / "dead")]
    argv += [textwrap.dedent(HOLDS_SHARED_MEMORY), str(notes)]
    daemon = stage.launcher.spawn(Command(argv, ENVIRONMENT, stage.folder, "daemon"), stage.take)
    path = Path(await stage.line("up"))
    await stage.line("noted")
    ending = tree.Dying(int(path.name.rpartition("-")[2]))
    os.kill(daemon.pid, signal.SIGKILL)
    ending.kill()
    await tree.exits([ending])
    await daemon.kill_tree()
    await _reap(stage)
    assert path in shared_memory()
    return path


def test_successor_removes_shared_memory_of_which_no_process_is_left(play, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        notes = tmp_path / "notes.json"
        path = await _left_by_the_dead(stage, notes)
        successor = PosixLauncher(str(stage.folder / "dead"), notes=notes)
        assert await successor.kill_leftovers() == 0
        assert path not in shared_memory()
        notes.write_text("damaged")
        assert await successor.kill_leftovers() == 0

    play(scene)


def test_successor_leaves_shared_memory_that_lives_or_is_somebody_elses(play, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        notes = tmp_path / "notes.json"
        path = await _left_by_the_dead(stage, notes)
        left = notes.read_bytes()
        successor = PosixLauncher(str(stage.folder / "dead"), notes=notes)
        with path.open("rb+") as file, mmap.mmap(file.fileno(), 4096):
            await successor.kill_leftovers()
            assert path in shared_memory(), "somebody uses it"
        path.rename(path.with_suffix(".old"))
        path.write_bytes(b"another one of that name")
        notes.write_bytes(left)
        await successor.kill_leftovers()
        assert path in shared_memory()
        path.unlink()
        path.with_suffix(".old").unlink()
        outside = tmp_path / "precious"
        outside.touch()
        notes.write_text(json.dumps({"files": {str(outside): outside.stat().st_ino}}))
        await successor.kill_leftovers()
        assert outside.exists()

    play(scene)


def test_shared_memory_that_was_noted_is_removed_though_everybody_died_before_the_kill(play, tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(HOLDS_SHARED_MEMORY)
        path = Path(await stage.line("up"))
        child.memory_bytes()
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        await child.kill_tree()
        assert path not in shared_memory()

    play(scene)


def _daemon(stage: Stage, owner: str, script: str) -> Command:
    argv = [sys.executable, "-c", textwrap.dedent(DAEMON), str(stage.folder / owner), script]
    return Command(argv, ENVIRONMENT, stage.folder, "daemon")


async def _reap(stage: Stage) -> None:
    """Adopted orphans are taken at the second look."""
    await stage.launcher.reap_orphans()
    await stage.launcher.reap_orphans()


def test_orphans_are_reaped_and_leaders_are_not(play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn("""
            import os
            read, write = os.pipe()
            if os.fork() == 0:
                if os.fork():
                    os._exit(0)
                os.read(read, 1)
                os._exit(0)
            os.wait()
            os.write(write, b'go')
            print('done')
            """)
        assert await child.wait() == 0
        await stage.line("done")
        leader = tree.read(child.pid)
        assert leader is not None and leader.is_zombie
        assert await stage.launcher.reap_orphans() == 0
        await stage.launcher.reap_orphans()
        leader = tree.read(child.pid)
        assert leader is not None and leader.is_zombie
        await child.kill_tree()

    play(scene)


def test_uvloop_sees_exits_and_output(play, tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scene() -> None:
        stage = Stage(tmp_path)
        child = stage.spawn(FAMILY, "setsid")
        await stage.line("core")
        os.kill(child.pid, signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            assert await child.wait() == -signal.SIGTERM
            await child.kill_tree()

    uvloop.run(scene())


def test_successor_kills_a_keeper_of_names_that_hangs_alone(play, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is spared once, not for ever: the start of the next daemon waits for it."""

    async def scene(stage: Stage) -> None:
        monkeypatch.setattr(tree, "TIDYING_S", 0.05)
        child = stage.spawn(HANGING_KEEPER)
        await stage.line("up")
        keeper = await keeper_of(child.pid, stage)
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        async with asyncio.timeout(DEADLINE_S):
            assert await PosixLauncher(str(stage.folder)).kill_leftovers() == 1
        assert tree.read(keeper) is None
        await child.kill_tree()

    play(scene)


SPEAKS_ON_SIGNAL = (
    MAPS_FILE
    + """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("a line", flush=True))
print("up", flush=True)
sys.stdout.write("half ")
sys.stdout.flush()
while True:
    signal.pause()
"""
)
"""Ends a line that it has begun when it is told to."""
WAITS = "import signal; print('waits', flush=True); signal.pause()"


def test_a_successor_goes_on_with_what_it_was_handed_and_kills_the_rest(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        goes_on, left = stage.spawn(SPEAKS_ON_SIGNAL), stage.spawn(WAITS)
        await stage.line("up")
        await stage.line("waits")
        file = Path(f"/dev/shm/vllama-test-{goes_on.pid}")
        assert await asyncio.to_thread(goes_on.memory_bytes) > 0
        handed = goes_on.hand_over()
        assert handed is not None and str(file) in handed.shared_memory
        successor = PosixLauncher(str(stage.folder), stage.leaves, handed=[handed])
        assert await successor.kill_leftovers() == 1
        with pytest.raises(ProcessLookupError):
            os.kill(left.pid, 0)
        assert file in shared_memory(), "it is in use"
        adopted = successor.adopt(handed, stage.take)
        os.kill(adopted.pid, signal.SIGUSR1)
        await stage.line("half a line")
        assert adopted.pids() == {goes_on.pid}
        os.kill(adopted.pid, signal.SIGKILL)
        assert await adopted.wait() == -signal.SIGKILL
        await adopted.kill_tree()
        assert file not in shared_memory(), (
            "what it had in shared memory goes with it, also when the predecessor saw it"
        )

    play(scene)


HAS_HELPERS = """
import subprocess
print("up", flush=True)
while True:
    status = subprocess.run(["sleep", "0.001"]).returncode
    if status:
        print("a helper was killed", flush=True)
"""


def test_what_is_born_in_a_tree_that_was_handed_over_is_not_left_behind(play: Play) -> None:
    """An engine that loads starts helpers all the time, also while it is searched for what is to be killed."""

    async def scene(stage: Stage) -> None:
        child = stage.spawn(HAS_HELPERS)
        await stage.line("up")
        handed = child.hand_over()
        assert handed is not None
        successor = PosixLauncher(str(stage.folder), stage.leaves, handed=[handed])
        for _ in range(20):
            await successor.kill_leftovers()
        adopted = successor.adopt(handed, stage.take)
        await asyncio.sleep(0)
        await adopted.kill_tree()
        assert stage.lines == ["up"]

    play(scene)


def test_a_child_that_ended_in_between_is_told_and_one_that_is_none_is_refused(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        child = stage.spawn(WAITS)
        await stage.line("waits")
        handed = child.hand_over()
        assert handed is not None
        os.kill(handed.pid, signal.SIGKILL)
        successor = PosixLauncher(str(stage.folder), stage.leaves, handed=[handed])
        await successor.kill_leftovers()
        adopted = successor.adopt(handed, stage.take)
        assert await adopted.wait() == -signal.SIGKILL
        await adopted.kill_tree()
        assert child.pid and adopted.hand_over() is None
        with pytest.raises(VllamaError, match=f"process {handed.pid} is gone"):
            PosixLauncher(str(stage.folder), stage.leaves, handed=[handed]).adopt(handed, stage.take)

    play(scene)
