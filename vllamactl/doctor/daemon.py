"""The daemon from outside (floor 4): who holds its socket, whether it answers, and how it was started."""

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence

from vllamactl.doctor import systemd
from vllamactl.doctor.facts import SYSTEM, Account, Identity, Knock, Reach, Service, Unit
from vllamactl.doctor.machine import Machine, fields, in_thread
from vllamactl.exits import CtlError

GROUP = "vllama"
KNOCK_S = 1.0
SECRETS = "secrets, which only the daemon gets"
PEER = struct.Struct("3i")
"""struct ucred: pid, uid, gid of whoever called listen(), see unix(7)."""

NOT_FOR_OTHERS = ("NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_", "JOURNAL_STREAM", "INVOCATION_ID", "SYSTEMD_EXEC_PID")
"""What systemd gave to the daemon alone."""


# --- does it answer --------------------------------------------------------------------------------------------------


def knock(machine: Machine, path: str) -> Knock:
    """Connect to a control socket and leave again. Blocks for a second at most."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(KNOCK_S)
        try:
            probe.connect(path)
        except OSError as error:
            # Without a number: it did not accept in time.
            return _refused(machine, path, error.errno or errno.ETIMEDOUT)
        pid, uid, _gid_of_peer = PEER.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    return Knock(path, 0, pid, uid)


def _refused(machine: Machine, path: str, number: int) -> Knock:
    for place in (path, os.path.dirname(path)):  # noqa: PTH120 - text is enough
        try:
            found = os.stat(place)  # noqa: PTH116
        except OSError:
            continue
        group, owner = machine.group_name(found.st_gid), machine.user(str(found.st_uid))
        # Root's group, or a person's own, is not one to join.
        is_shared = group == GROUP or owner is None or owner.pw_gid != found.st_gid
        return Knock(path, number, gid=found.st_gid, group=group, is_shared=is_shared)
    return Knock(path, number)


async def ask(knocks: Sequence[Knock], deadline_s: float) -> Reach:
    """Ask the daemon that was reached for its status."""
    reached = next((one for one in knocks if one.errno == 0), None)
    if reached is None:
        return Reach(tuple(knocks))
    from vllamactl.client import connect
    from vllamactl.plain import plain

    try:
        async with asyncio.timeout(deadline_s), connect([reached.path], 0) as client:
            return Reach(tuple(knocks), plain(await client.get_status()))
    except TimeoutError:
        return Reach(tuple(knocks), unanswered=f"nothing within {deadline_s:g} s")
    except CtlError as error:
        return Reach(tuple(knocks), unanswered=error.message)


# --- how it was started ----------------------------------------------------------------------------------------------


def find_service(machine: Machine, unit: Unit, knocks: Sequence[Knock], me: Identity) -> Service:
    """The daemon that runs, else the one that the unit would start, else one that this user would."""
    reached = next((one for one in knocks if one.errno == 0), None)
    main_pid = unit.number("MainPID")
    pid = reached.pid if reached else main_pid
    is_unit = unit.is_installed and pid in {0, main_pid}
    running = _running(machine, pid, me) if pid else None
    if running is not None and not is_unit:
        return running
    if is_unit:
        return _of_unit(machine, unit, running, me)
    command = (sys.executable, "-P", "-m", "vllamad")
    return Service(command, machine.environ, os.getcwd(), me)  # noqa: PTH109


def _of_unit(machine: Machine, unit: Unit, running: Service | None, me: Identity) -> Service:
    is_system = unit.manager == SYSTEM
    unseen = ""
    if running is not None and not running.unseen:
        environ = running.environ
        secrets = environ.get("CREDENTIALS_DIRECTORY")
        if secrets and not machine.path(secrets).is_dir():
            unseen = SECRETS
    else:
        account = machine.user(unit.get("User")) if is_system else None
        home = account.pw_dir if account else machine.environ.get("HOME", "/")
        base = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home} if is_system else dict(machine.environ)
        environ = base | systemd.environment(unit)
        unseen = "its EnvironmentFile=" if unit.get("EnvironmentFiles") else SECRETS if is_system else ""
    who = running.who if running is not None else _user_of(machine, unit, me)
    command = systemd.command(unit) or (running.command if running is not None else ())
    stand_in = not me.is_root and who.uid != me.uid
    pid = running.pid if running is not None else 0
    return Service(command, environ, "/", who, pid, is_system, unseen, stand_in)


def _user_of(machine: Machine, unit: Unit, me: Identity) -> Identity:
    if unit.manager != SYSTEM:
        return me
    name = unit.get("User") or "root"
    account = machine.user(name)
    if account is None:
        return Identity(name, -1, -1)
    gid = machine.group_number(unit.get("Group")) if unit.get("Group") else None
    more = {machine.group_number(group) for group in unit.get("SupplementaryGroups").split()}
    who = machine.identity(account.pw_uid, account.pw_gid if gid is None else gid)
    return Identity(who.name, who.uid, who.gid, who.groups | {one for one in more if one is not None}, who.named)


def _running(machine: Machine, pid: int, me: Identity) -> Service | None:
    """How a process was started, as far as /proc tells; None if it is no vllamad, or gone."""
    words = machine.read(f"/proc/{pid}/cmdline").rstrip("\0").split("\0")
    end = next((n for n, word in enumerate(words[:4]) if word.rpartition("/")[2] == "vllamad"), None)
    numbers = _numbers(machine.read(f"/proc/{pid}/status"))
    if end is None or numbers is None:
        return None
    who = machine.identity(*numbers)
    try:
        folder = str(machine.path(f"/proc/{pid}/cwd").readlink())
        environ: Mapping[str, str] | None = _environ(machine.path(f"/proc/{pid}/environ").read_bytes())
    except OSError:
        folder, environ = "/", None
    stand_in = not me.is_root and who.uid != me.uid
    # A stranger's command line is not run in our name, unless it is root's.
    is_trusted = not stand_in or who.is_root
    command = tuple(words) if is_trusted else (sys.executable, "-P", "-m", "vllamad")
    if command[0].startswith((".", "..")) and environ is not None:
        command = (os.path.normpath(f"{folder}/{command[0]}"), *command[1:])
    unseen = "" if environ is not None else f"the environment of {who.name}'s process"
    return Service(command, machine.environ if environ is None else environ, folder, who, pid, False, unseen, stand_in)


def _numbers(status: str) -> tuple[int, int, frozenset[int]] | None:
    rows = fields(status.splitlines(), ":")
    try:
        uid, gid = (int(rows[name].split()[1]) for name in ("Uid", "Gid"))
        return uid, gid, frozenset(int(group) for group in rows["Groups"].split())
    except (KeyError, IndexError, ValueError):
        return None


def _environ(raw: bytes) -> dict[str, str]:
    found = fields(map(os.fsdecode, raw.split(b"\0")), "=")
    return {name: value for name, value in found.items() if not name.startswith(NOT_FOR_OTHERS)}


def find_account(machine: Machine, unit: Unit, socket_group: str) -> Account | None:
    """The names that a service of the system runs by; None if the daemon is somebody's own."""
    if unit.manager != SYSTEM:
        return None
    user, group = unit.get("User") or "root", unit.get("Group") or unit.get("User") or "root"
    return Account(
        user,
        group,
        machine.user(user) is not None,
        machine.group_number(group) is not None,
        socket_group,
        not socket_group or machine.group_number(socket_group) is not None,
    )


async def knock_all(machine: Machine, sockets: Sequence[str]) -> tuple[Knock, ...]:
    """Connect to every candidate, in turn; the first that answers is the daemon."""

    def work() -> tuple[Knock, ...]:
        found: list[Knock] = []
        for path in sockets:
            found.append(knock(machine, path))
            if found[-1].errno == 0:
                break
        return tuple(found)

    return await in_thread(work)
