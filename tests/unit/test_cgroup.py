"""When a control group is ours to divide, and what is read from and written to its files: over a folder that looks so.

What only the kernel can show (nobody gets out, everyone dies) is in ``tests/integration/test_process_groups.py``."""

import asyncio
import os
from pathlib import Path

import pytest

from vllamad.process import cgroup
from vllamad.process.cgroup import Leaf, Leaves, settle

GROUP = "/system.slice/vllama.service"
FILES = ("cgroup.type", "cgroup.procs", "cgroup.subtree_control")


class Machine:
    """``proc`` and ``groups`` with the group of a service, ours to divide unless a test takes something away."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.groups = folder / "groups"
        (self.proc / "self").mkdir(parents=True)
        self.is_in(GROUP)
        self.mount("/")
        self.service = self.make(GROUP)

    def is_in(self, group: str) -> None:
        (self.proc / "self/cgroup").write_text(f"1:name=systemd:/x\n0::{group}\n")

    def mount(self, root: str, kind: str = "cgroup2") -> None:
        lines = ["22 1 8:1 / / rw - ext4 /dev/sda1 rw", f"31 22 0:27 {root} {self.groups} rw - {kind} {kind} rw"]
        (self.proc / "self/mountinfo").write_text("\n".join(lines) + "\n")

    def make(self, group: str) -> Path:
        folder = self.groups / group.lstrip("/")
        (folder / "vllamad").mkdir(parents=True)
        for name in FILES:
            (folder / name).touch()
        (folder / "vllamad/cgroup.procs").touch()
        return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    mark(monkeypatch, {made.service: "user.delegate"})
    return made


def mark(monkeypatch: pytest.MonkeyPatch, marked: dict[Path, str]) -> None:
    """Have these groups, and no others, carry an attribute."""

    def getxattr(path: Path, name: str) -> bytes:
        if marked.get(path) == name:
            return b"1"
        raise OSError

    monkeypatch.setattr(os, "getxattr", getxattr)
    # Otherwise whoever is not root and runs this has been given his own folder in a folder of his own.
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def said(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    return record.getMessage()


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vllamad.process.cgroup")


@pytest.mark.parametrize("name", ["user.delegate", "trusted.delegate"])
def test_a_delegated_group_is_settled(machine: Machine, monkeypatch, caplog, name: str) -> None:
    mark(monkeypatch, {machine.service: name})
    leaves = settle(machine.proc)
    assert leaves is not None and leaves.folder == machine.service
    assert (machine.service / "vllamad/cgroup.procs").read_text() == "0"
    assert said(caplog) == f"cgroup.delegated path={machine.service} missing=none"


def test_who_starts_in_the_inner_group_divides_the_outer(machine: Machine) -> None:
    machine.is_in(f"{GROUP}/vllamad")
    leaves = settle(machine.proc)
    assert leaves is not None and leaves.folder == machine.service


def test_controllers_that_the_kernel_refuses_are_named(machine: Machine, monkeypatch, caplog) -> None:
    write = os.write

    def refuse_memory(descriptor: int, data: bytes) -> int:
        if data == b"+memory":
            raise OSError(16, "Device or resource busy")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", refuse_memory)
    assert settle(machine.proc) is not None
    assert said(caplog).endswith("missing=memory (Device or resource busy)")


def test_the_top_of_a_containers_view_is_its_own(machine: Machine, monkeypatch) -> None:
    mark(monkeypatch, {})
    top = machine.make("/")
    for group, root in (("/", "/"), ("/docker/1", "/docker/1")):
        machine.is_in(group)
        machine.mount(root)
        leaves = settle(machine.proc)
        assert leaves is not None and leaves.folder == top


def test_a_group_that_its_user_was_given_is_his(machine: Machine, monkeypatch) -> None:
    mark(monkeypatch, {})
    me, stat = 1000, Path.stat
    his = {machine.service}

    def owned(path: Path, **how: bool) -> os.stat_result:
        found = list(stat(path, **how))
        found[4] = me if path in his else 0
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", owned)
    monkeypatch.setattr(os, "geteuid", lambda: me)
    assert settle(machine.proc) is not None
    # In a session everything is his, and another program rules it.
    his.add(machine.service.parent)
    assert settle(machine.proc) is None


def test_what_is_not_delegated_is_left_alone_and_says_why(machine: Machine, monkeypatch, caplog) -> None:
    def refusal() -> str:
        caplog.clear()
        assert settle(machine.proc) is None
        assert (machine.service / "vllamad/cgroup.procs").read_text() == ""
        told = said(caplog)
        assert told.startswith("cgroup.none: ") and told.endswith("; trees are found by their group and environment")
        return told.removeprefix("cgroup.none: ").partition(";")[0]

    mark(monkeypatch, {})
    assert refusal() == f"{GROUP} is not delegated to us"
    machine.is_in("/../elsewhere")
    assert refusal() == "the group /../elsewhere cannot be seen here"
    machine.is_in("/")
    assert refusal() == "it would be the kernel's root group"
    machine.is_in(GROUP)
    machine.mount("/", "cgroup")
    assert refusal() == f"the group {GROUP} cannot be seen here"
    (machine.proc / "self/cgroup").write_text("4:memory:/x\n")
    assert refusal() == "the kernel has no control groups of version 2"
    (machine.proc / "self/cgroup").unlink()
    assert "No such file" in refusal()


def test_a_read_only_view_is_not_ours(machine: Machine, monkeypatch, caplog) -> None:
    """As under ``ProtectControlGroups=``."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "cgroup.procs")
    assert settle(machine.proc) is None
    assert f"cannot write to {machine.service / 'cgroup.procs'}" in said(caplog)


def test_a_leaf_is_known_by_its_owner(tmp_path: Path) -> None:
    leaves = Leaves(tmp_path)
    mine, other = leaves.make("/run/vllama", "0123456789abcdef"), leaves.make("/run/other", "0123456789abcdef")
    assert mine is not None and other is not None
    assert mine.folder.name.startswith("vllama-") and mine.folder.name.endswith("-0123456789abcdef")
    assert len(mine.folder.name) == 32
    assert [leaf.folder for leaf in leaves.left("/run/vllama")] == [mine.folder]
    assert [leaf.folder for leaf in leaves.left("/run/other")] == [other.folder]
    assert mine.remove() and mine.remove()
    assert leaves.left("/run/vllama") == []


def test_a_refused_leaf_is_logged_and_missing(tmp_path: Path, caplog) -> None:
    assert Leaves(tmp_path / "no").make("owner", "name") is None
    assert said(caplog).endswith("No such file or directory")


def test_what_the_kernel_counts_is_read(tmp_path: Path) -> None:
    leaf = Leaf(tmp_path)
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 31\noom 1\noom_kill 3\noom_group_kill 1\n")
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "cgroup.procs").write_text("12\n0\n13\n")
    (tmp_path / "inner/cgroup.procs").write_text("14\n")
    assert (leaf.cpu_seconds(), leaf.oom_kills(), leaf.is_populated()) == (2.5, 3, True)
    assert leaf.pids() == {12, 13, 14}


def test_a_leaf_that_is_gone_counts_nothing(tmp_path: Path) -> None:
    leaf = Leaf(tmp_path / "gone")
    assert (leaf.cpu_seconds(), leaf.oom_kills(), leaf.is_populated(), leaf.pids()) == (0.0, 0, False, frozenset())
    leaf.kill()
    assert not leaf.limit(1)
    assert leaf.remove()


def test_orders_are_written_and_never_make_a_file(tmp_path: Path) -> None:
    leaf = Leaf(tmp_path)
    leaf.kill()
    assert not leaf.limit(2**30)
    assert list(tmp_path.iterdir()) == []
    for name in ("cgroup.kill", "memory.max"):
        (tmp_path / name).touch()
    leaf.kill()
    assert leaf.limit(2**30)
    assert (tmp_path / "cgroup.kill").read_text() == "1"
    assert (tmp_path / "memory.max").read_text() == "1073741824"


def test_a_process_is_placed_by_what_proc_tells_of_it(tmp_path: Path) -> None:
    leaf = Leaf(Path("/sys/fs/cgroup/x/vllama-1-2"))
    for pid, group in ((1, "/x/vllama-1-2"), (2, "/x/vllama-1-2/inner"), (3, "/x/vllama-1-22"), (4, "/x")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"3:cpu:/x/vllama-1-2\n0::{group}\n")
    assert [leaf.holds(pid, tmp_path) for pid in range(1, 6)] == [True, True, False, False, False]


def test_a_busy_leaf_is_tried_again_and_then_logged(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(cgroup, "PAUSE_S", 0)
    monkeypatch.setattr(cgroup, "MAX_TRIES", 3)
    leaf = Leaf(tmp_path / "leaf")
    leaf.folder.mkdir()
    answers = [OSError(16, "busy"), OSError(16, "busy"), None]

    def rmdir(path: Path) -> None:
        if answer := answers.pop(0):
            raise answer

    monkeypatch.setattr(Path, "rmdir", rmdir)
    asyncio.run(leaf.discard())
    assert answers == [] and not caplog.records
    answers += [OSError(16, "busy")] * 3
    asyncio.run(leaf.discard())
    assert said(caplog) == f"cgroup.busy path={leaf.folder}: not removed"
