"""What /proc tells of others (floor 4): who listens, who else is here, what an earlier daemon left, and limits."""

import contextlib
import ipaddress
import json
import os
from collections.abc import Iterator
from typing import Any, cast

from vllamactl.doctor.facts import Leftovers, Limits, Listener, Part, Process, Service, Unit
from vllamactl.doctor.machine import Machine

LISTEN = "0A"
MARKER = b"VLLAMA_WORKER="
"""The variable by which every process of a worker is known; its value begins with the daemon's runtime folder."""
LEAF = "vllama-"
"""How the names of workers' control groups begin."""
GROUPS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
SHM = "/dev/shm/"
NO_LIMIT = 2**60
"""Systemd and the kernel write "no limit" as words, or as numbers near 2^64."""


def pids(machine: Machine) -> Iterator[int]:
    yield from (int(name) for name in machine.names("/proc") if name.isdecimal())


# --- who listens -----------------------------------------------------------------------------------------------------


def listeners(machine: Machine, port: int) -> list[Listener]:
    """Everyone who listens on a TCP port. Whose it is everybody may see, which process it is only its user and root."""
    found: list[tuple[str, int, str]] = []
    for table in ("tcp", "tcp6"):
        for row in machine.read(f"/proc/net/{table}").splitlines()[1:]:
            columns = row.split()
            address, _, number = columns[1].rpartition(":")
            if columns[3] == LISTEN and int(number, 16) == port:
                found.append((_address(address), int(columns[7]), columns[9]))
    if not found:
        return []
    holders = _holders(machine, {inode for _, _, inode in found})
    return [
        Listener(address, port, uid, machine.user_name(uid), *holders.get(inode, (0, "")))
        for address, uid, inode in found
    ]


def _address(text: str) -> str:
    """The kernel writes addresses in words of 32 bits, each in the machine's order."""
    raw = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    address = ipaddress.ip_address(raw)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _holders(machine: Machine, inodes: set[str]) -> dict[str, tuple[int, str]]:
    """The process of each socket. Of several the one that was not there first: pid 1 keeps what it handed over."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, tuple[int, str]] = {}
    for pid in pids(machine):
        try:
            for descriptor in machine.path(f"/proc/{pid}/fd").iterdir():
                inode = wanted.get(os.readlink(descriptor))  # noqa: PTH115
                if inode is not None:
                    found[inode] = (pid, program_name(machine, pid))
        except OSError:
            continue  # gone meanwhile, or not ours to look into
    return found


_OURS = frozenset({"vllamad", "vllamad.acceptors"})


def program_name(machine: Machine, pid: int) -> str:
    """``vllamad`` also for a script that an interpreter runs, and for the daemon's HTTP processes; else what the kernel
    calls it."""
    words = machine.read(f"/proc/{pid}/cmdline").split("\0")[:4]
    if any(word.rpartition("/")[2] in _OURS for word in words):
        return "vllamad"
    return machine.read(f"/proc/{pid}/comm").strip()


def named(machine: Machine, name: str) -> list[Process]:
    """The processes that the kernel calls so."""
    return [Process(pid, name) for pid in pids(machine) if machine.read(f"/proc/{pid}/comm").strip() == name]


# --- what is left of an earlier daemon -------------------------------------------------------------------------------


def leftovers(machine: Machine, config: Part, service: Service, unit: Unit) -> Leftovers:
    """What carries this daemon's mark and is not the running daemon's. If none runs, nothing that is there is
    anybody's."""
    if config.missing or not config.text("runtime"):
        return Leftovers(unseen="where to look is not known without the configuration")
    orphans, hidden = _orphans(machine, config.text("runtime"), service)
    unseen = f"{hidden} processes of {service.who.name} cannot be looked into" if hidden else ""
    if service.pid:
        return Leftovers(orphans, unseen=unseen)
    files, files_unseen = _shared_files(machine, f"{config.text('state')}/shared-memory.json")
    folder = machine.path(config.text("worker_sockets"))
    try:
        workers = tuple(sorted(str(path) for path in folder.iterdir()))
    except FileNotFoundError:
        workers = ()
    except OSError:
        workers, unseen = (), f"{folder} cannot be looked into"
    groups = tuple(path for top in GROUPS for path in _leaves(machine, f"{top}/system.slice/{unit.get('Id')}"))
    sizes = sum(machine.path(path).stat().st_size for path in files if machine.path(path).exists())
    return Leftovers(orphans, files, sizes, workers, groups, unseen or files_unseen)


def _orphans(machine: Machine, runtime: str, service: Service) -> tuple[tuple[Process, ...], int]:
    """The processes, and how many of the daemon's user could not be looked into."""
    mark = MARKER + os.fsencode(runtime) + b":"
    found: list[Process] = []
    hidden = 0
    for pid in pids(machine):
        try:
            environ = machine.path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:
            hidden += service.stand_in and _owner(machine, pid) == service.who.uid
            continue
        except OSError:
            continue
        if mark in b"\0" + environ and not _descends(machine, pid, service.pid):
            name, state, _parent = _stat(machine, pid)
            if state not in {"", "Z", "X"}:
                found.append(Process(pid, name, state))
    return tuple(found), hidden


def _owner(machine: Machine, pid: int) -> int:
    try:
        return machine.path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return -1


def _descends(machine: Machine, pid: int, ancestor: int) -> bool:
    while ancestor and pid > 1:
        if pid == ancestor:
            return True
        pid = _stat(machine, pid)[2]
    return False


def _stat(machine: Machine, pid: int) -> tuple[str, str, int]:
    """Name, state and parent; "" and 0 for a process that is gone."""
    head, _, rest = machine.read(f"/proc/{pid}/stat").rpartition(")")
    fields = rest.split()
    return (head.partition("(")[2], fields[0], int(fields[1])) if len(fields) > 1 else ("", "", 0)


def _shared_files(machine: Machine, note: str) -> tuple[tuple[str, ...], str]:
    """Files in /dev/shm that the daemon noted as its engines', and that are still the same; and why not."""
    try:
        document = cast(dict[str, Any], json.loads(machine.path(note).read_bytes()))
        noted = {str(path): int(inode) for path, inode in document["files"].items() if str(path).startswith(SHM)}
    except FileNotFoundError:
        return (), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (), f"{note} cannot be read"
    there: list[str] = []
    for path, inode in noted.items():
        with contextlib.suppress(OSError):
            if machine.path(path).lstat().st_ino == inode:
                there.append(path)
    return tuple(there), ""


def _leaves(machine: Machine, group: str) -> list[str]:
    return [f"{group}/{name}" for name in machine.names(group) if name.startswith(LEAF)]


# --- limits ----------------------------------------------------------------------------------------------------------


def limits(machine: Machine, pid: int, unit: Unit) -> Limits:
    """Those of the running daemon, else those that the unit gives."""
    rows = machine.read(f"/proc/{pid}/limits").splitlines() if pid else []
    # "Max open files            1024                 524288               files"
    values = {row[:26].strip(): row[26:].split()[0] for row in rows[1:] if row[26:].split()}
    if values:
        return Limits(f"pid {pid}", _limit(values.get("Max open files")), _limit(values.get("Max locked memory")))
    if unit.is_installed and unit.get("LimitNOFILESoft"):
        return Limits(unit.get("Id"), _limit(unit.get("LimitNOFILESoft")), _limit(unit.get("LimitMEMLOCKSoft")))
    return Limits()


def _limit(text: str | None) -> int | None:
    if text is None or not text.isdecimal():
        return None
    return int(text) if int(text) < NO_LIMIT else None
