"""The machine itself (floor 4): disks, memory, GPUs as the kernel shows them, the clock."""

import os
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from vllamactl.doctor.facts import Clock, Disk, Gpus, Identity, Memory, Part, Step
from vllamactl.doctor.judge_access import may
from vllamactl.doctor.machine import Machine, fields
from vllamactl.doctor.systemd import BOOTED

NVIDIA = "0x10de"
DISPLAY = "0x03"
"""The class of display controllers on the PCI bus, which GPUs without a screen belong to as well."""
NODES = "nvidia"
NO_LIMIT = 2**60


def disk(machine: Machine, name: str, path: str) -> Disk:
    """The room of the file system that a path lies on, or will lie on. Blocks as the disk does."""
    place = machine.path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    found = os.statvfs(place)
    files = found.f_favail if found.f_files else 1 << 30  # some file systems have no such limit, and say 0
    return Disk(name, path, found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, files)


def memory(machine: Machine, pid: int) -> Memory:
    """``pid`` is the daemon's, whose control groups count; 0: those of this process."""
    rows = fields(machine.read("/proc/meminfo").splitlines(), ":")
    kib = {name: int(value.split()[0]) for name, value in rows.items() if value.split()}
    try:
        shm = os.statvfs(machine.path("/dev/shm"))
        shm_total, shm_free = shm.f_blocks * shm.f_frsize, shm.f_bavail * shm.f_frsize
    except OSError:
        shm_total = shm_free = 0
    return Memory(
        kib.get("MemTotal", 0) * 1024,
        kib.get("MemAvailable", 0) * 1024,
        kib.get("SwapTotal", 0) * 1024,
        shm_total,
        shm_free,
        min(_group_limits(machine, str(pid or "self")), default=0),
        int(machine.read("/proc/sys/vm/overcommit_memory").strip() or 0),
    )


def _group_limits(machine: Machine, process: str) -> Iterator[int]:
    """Limits of every control group around a process, of either version."""
    for line in machine.read(f"/proc/{process}/cgroup").splitlines():
        _number, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("/sys/fs/cgroup", "memory.max")
        )
        parts = [part for part in group.split("/") if part]
        for depth in range(len(parts) + 1):
            text = machine.read("/".join([top, *parts[:depth], name])).strip()
            if text.isdecimal() and int(text) < NO_LIMIT:
                yield int(text)


def gpus(machine: Machine, who: Identity) -> Gpus:
    """What the kernel shows of NVIDIA's GPUs; ``who`` is the daemon's user."""
    found = 0
    for name in machine.names("/sys/bus/pci/devices"):
        folder = f"/sys/bus/pci/devices/{name}"
        is_display = machine.read(f"{folder}/class").startswith(DISPLAY)
        found += is_display and machine.read(f"{folder}/vendor").strip() == NVIDIA
    first = machine.read("/proc/driver/nvidia/version").partition("\n")[0]
    # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan ..."
    version = next((word for word in first.split() if word[:1].isdigit() and "." in word), "")
    nodes: dict[str, bool | None] = {}
    for name in machine.names("/dev"):
        if name.startswith(NODES) and not name.startswith("nvidia-caps"):
            nodes[f"/dev/{name}"] = _may_use(machine, f"/dev/{name}", who)
    return Gpus(found, version, machine.path("/sys/module/nvidia_uvm").exists(), nodes)


def _may_use(machine: Machine, path: str, who: Identity) -> bool | None:
    try:
        found = machine.path(path).stat()
    except OSError:
        return None
    step = Step(path, found.st_mode, found.st_uid, found.st_gid)
    return may(who, step, "r") and may(who, step, "w")


async def clock(machine: Machine) -> Clock:
    """What systemd knows about this machine's clock."""
    if not machine.path(BOOTED).exists():
        return Clock()
    done = await machine.run("timedatectl", "show", "--property=NTPSynchronized")
    told = fields(done.out.splitlines(), "=")
    if done.status != 0 or "NTPSynchronized" not in told:
        return Clock()
    return Clock(told["NTPSynchronized"] == "yes")


def ahead_of(hub: Part, now: float) -> float | None:
    """How far this clock was ahead of the hub's when its answer came; None if it said no time."""
    try:
        return now - parsedate_to_datetime(hub.text("date")).timestamp()
    except ValueError:
        return None
