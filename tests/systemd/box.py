"""A throwaway machine with a real systemd as PID 1, in namespaces of its own.

Its root is a copy-on-write view of this machine's, so the checkout and its virtual environment are there at the same
paths; what is written inside lies in memory and is gone afterwards. Network (loopback only), processes, control groups
and journal are its own. Needs root, util-linux and systemd.

This file is also what runs inside on the way: ``enter`` makes the control groups, ``become`` the mounts, and ends as
systemd. That part uses the standard library alone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "findmnt", "pivot_root", "ip", "systemctl", "journalctl")
BOOT_S = 60.0
SPACES = ("--mount", "--pid", "--ipc", "--uts", "--net")
MASKED = (
    "getty.target",
    "systemd-logind.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-journald-audit.socket",
    "systemd-firstboot.service",
    "systemd-machine-id-commit.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-tmpfiles-clean.timer",
    "dev-hugepages.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
)
"""What needs hardware, or belongs to the machine around."""
KEPT_BACK = "-sys_module,-sys_rawio,-sys_time,-mac_admin,-mac_override,-wake_alarm,-block_suspend,-syslog"
"""Capabilities over the machine itself."""


def why_not() -> str:
    """Why this machine cannot have a box; "" if it can."""
    if os.geteuid() != 0:
        return "a box with systemd needs root"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=path) is None]:
        return f"not installed: {', '.join(missing)}"
    return ""


class BoxFailed(AssertionError):
    """The box did not boot."""


class Box:
    """A running box. Commands run in it as root, outside of its units."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "log"
        self._pid = 0
        with self._log.open("wb") as log:
            self._outer = subprocess.Popen(
                ["unshare", *SPACES, "--fork", "--kill-child", sys.executable, "-I", __file__, "enter", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
                start_new_session=True,
            )

    def boot(self) -> None:
        """Return when systemd says that it is up."""
        deadline = time.monotonic() + BOOT_S
        while True:
            if self._outer.poll() is not None or time.monotonic() > deadline:
                raise BoxFailed(f"the box did not boot:\n{self._log.read_text(errors='replace')}")
            children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
            self._pid = int(children[0]) if children else 0
            if self._pid and Path(f"/proc/{self._pid}/comm").read_text().strip() == "systemd":
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in {"running", "degraded"}:
                    return
            time.sleep(0.05)

    def command(self, *words: str) -> list[str]:
        """The command that runs ``words`` inside."""
        return ["nsenter", "--target", str(self._pid), *SPACES, "--cgroup", f"--wdns={Path.cwd()}", "--", *words]

    def run(
        self, *words: str, check: bool = True, timeout: float = 60.0, stdin: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command inside; with ``check`` it must succeed."""
        done = subprocess.run(
            self.command(*words), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Write a file inside, and the folders above it."""
        self.run("install", "-D", f"-m{mode}", "/dev/stdin", path, stdin=text)

    def close(self) -> None:
        """End it, and remove what it left outside."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGRTMIN + 4)  # poweroff.target
        try:
            self._outer.wait(15)
        except subprocess.TimeoutExpired:
            self._outer.kill()  # takes everything inside along
            self._outer.wait()
        groups = self._folder / "cgroups"
        for group in groups.read_text().splitlines() if groups.exists() else []:
            _remove_group(Path(group))


@contextlib.contextmanager
def booted() -> Iterator[Box]:
    """A box for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="vllama-box-") as folder:
        box = Box(Path(folder))
        try:
            box.boot()
            yield box
        finally:
            box.close()


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + 5
    while group.exists():
        try:
            for folder, _below, _files in os.walk(group, topdown=False):
                Path(folder).rmdir()
        except OSError:
            if time.monotonic() > deadline:
                print(f"cannot remove {group}")
                return
            time.sleep(0.05)  # its last processes may still be going


# --- inside, on the way to systemd -----------------------------------------------------------------------------------


def enter(folder: Path) -> None:
    """Move into control groups of the box's own, one for each hierarchy, so that they are the top of what it sees."""
    name = folder.name
    groups = [Path(point) / path / name for _kind, point, path in _hierarchies()]
    for group in groups:
        group.mkdir()
        (group / "cgroup.procs").write_text("0")
    (folder / "cgroups").write_text("\n".join(map(str, groups)))
    os.execvp("unshare", ["unshare", "--cgroup", sys.executable, "-I", __file__, "become", str(folder)])


def _hierarchies() -> list[tuple[str, str, str]]:
    """Type, mount point and our own path below it."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, names, path = line.split(":", 2)
        own[names] = path.lstrip("/")
    found: list[tuple[str, str, str]] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point, kind = left.split()[4], right.split()[0]
        base = Path(point).name
        if kind == "cgroup2":
            # At the top: below another group with processes in it there would be no controllers.
            found.append((kind, point, ""))
        elif kind == "cgroup" and base != "cpuset":
            path = own.get("name=systemd" if base == "systemd" else base, "")
            found.append((kind, point, path if (Path(point) / path).is_dir() and ".." not in path else ""))
    return found


def become(folder: Path) -> None:
    """Put the root together, and become systemd."""
    disks = "ext2,ext3,ext4,xfs,btrfs,overlay,zfs,tmpfs"
    points = _output("findmnt", "-rn", "-t", disks, "-o", "TARGET").splitlines()
    layers = folder / "layers"
    layers.mkdir()
    # A limit, not a need: an engine is not installed where there is no room for a real one.
    _mount("-t", "tmpfs", "-o", "mode=755,size=8G", "box", layers)
    root = layers / "root"
    root.mkdir()
    skipped = ("/proc", "/sys", "/dev", "/run")
    for number, point in enumerate(["/", *(point for point in points if not (f"{point}/").startswith(skipped))]):
        if (point == "/" and number) or not Path(point).is_dir():
            continue
        upper, work = layers / f"upper{number}", layers / f"work{number}"
        upper.mkdir()
        work.mkdir()
        target = root / point.lstrip("/")
        _mount("-t", "overlay", "-o", f"lowerdir={point},upperdir={upper},workdir={work}", "overlay", target)
    _mount_kernel(root)
    _configure(root)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.chdir(root)
    (root / "run/old").mkdir()
    subprocess.run(["pivot_root", ".", "run/old"], check=True)
    os.chdir("/")
    subprocess.run(["umount", "-l", "/run/old"], check=True)
    Path("/run/old").rmdir()
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "container": "box"}
    words = ["setpriv", "--bounding-set", KEPT_BACK, str(SYSTEMD), "--system", "--show-status=no"]
    os.execvpe("setpriv", [*words, "--log-target=journal"], environ)


def _mount_kernel(root: Path) -> None:
    _mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", root / "proc")
    for name in ("sys", "sysrq-trigger", "irq", "bus"):
        if (root / "proc" / name).exists():
            _mount("--bind", root / "proc" / name, root / "proc" / name)
            _mount("-o", "remount,bind,ro", root / "proc" / name)
    _mount("-t", "sysfs", "-o", "ro,nosuid,nodev,noexec", "sysfs", root / "sys")
    groups = root / "sys/fs/cgroup"
    kinds = _hierarchies()
    if all(kind == "cgroup2" for kind, _point, _path in kinds):
        _mount("-t", "cgroup2", "-o", "nosuid,nodev,noexec", "cgroup2", groups)
    else:
        # As around it: controllers in version 1, processes followed in version 2.
        _mount("-t", "tmpfs", "-o", "nosuid,nodev,noexec,mode=755", "tmpfs", groups)
        for kind, point, _path in kinds:
            name = "unified" if kind == "cgroup2" else Path(point).name
            (groups / name).mkdir()
            options = "none,name=systemd" if name == "systemd" else name
            given = ["-o", "nosuid,nodev,noexec" + (f",{options}" if kind == "cgroup" else "")]
            _mount("-t", kind, *given, kind, groups / name)
        _mount("-o", "remount,ro", groups)
    dev = root / "dev"
    _mount("-t", "tmpfs", "-o", "nosuid,mode=755,size=4m", "tmpfs", dev)
    nodes = [*(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")), dev]
    subprocess.run(["cp", "-a", *map(str, nodes)], check=True)
    for name in ("pts", "shm", "mqueue"):
        (dev / name).mkdir()
    _mount("-t", "devpts", "-o", "newinstance,mode=620,gid=5,ptmxmode=666", "devpts", dev / "pts")
    _mount("-t", "tmpfs", "-o", "nosuid,nodev,mode=1777", "tmpfs", dev / "shm")
    (dev / "ptmx").symlink_to("pts/ptmx")
    (dev / "fd").symlink_to("/proc/self/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (dev / name).symlink_to(f"fd/{number}")
    _mount("-t", "tmpfs", "-o", "nosuid,nodev,mode=755", "tmpfs", root / "run")


def _configure(root: Path) -> None:
    etc = root / "etc"
    (etc / "machine-id").write_text(_output("systemd-id128", "new"))
    (etc / "fstab").write_text("")
    for name in ("system", "system.conf.d", "journald.conf.d", "system-generators"):
        shutil.rmtree(etc / "systemd" / name, ignore_errors=True)
        (etc / "systemd" / name).mkdir(parents=True)
    units = etc / "systemd/system"
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for unit in MASKED:
        (units / unit).symlink_to("/dev/null")
    for generator in Path("/lib/systemd/system-generators").iterdir():
        (etc / "systemd/system-generators" / generator.name).symlink_to("/dev/null")
    # The boot would empty /tmp otherwise.
    override = units / "systemd-tmpfiles-setup.service.d/box.conf"
    override.parent.mkdir()
    override.write_text("[Service]\nExecStart=\nExecStart=systemd-tmpfiles --create --exclude-prefix=/dev\n")
    (etc / "systemd/journald.conf.d/box.conf").write_text("[Journal]\nStorage=volatile\n")


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    {"enter": enter, "become": become}[sys.argv[1]](Path(sys.argv[2]))
