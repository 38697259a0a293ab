"""What was seen (floor 4): plain values that the gatherers fill and the judges read. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SYSTEM = "system"
USER = "user"
UNIT = "vllamad.service"


@dataclass(frozen=True, slots=True)
class Identity:
    """A user as the kernel sees it: with which numbers a process has its rights. ``named`` are the groups that the
    database of users gives it, which a shell that is older than the change does not have yet."""

    name: str
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    named: frozenset[int] = frozenset()

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    @property
    def all_groups(self) -> frozenset[int]:
        return self.groups | {self.gid}


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit as systemd has it, see org.freedesktop.systemd1(5). ``manager`` is whose unit it is (SYSTEM or USER), ""
    if none is installed; ``unasked`` is why systemd could not be asked, "" if it could."""

    manager: str = ""
    unasked: str = ""
    properties: Mapping[str, str] = field(default_factory=dict[str, str])
    socket_state: str = ""
    ollama_state: str = ""
    """ActiveState of vllamad.socket, and of ollama.service; "" if there is none."""
    is_socket_enabled: bool = False

    def get(self, name: str) -> str:
        return self.properties.get(name, "")

    def number(self, name: str) -> int:
        text = self.get(name)
        return int(text) if text.isdecimal() else 0

    @property
    def bound(self) -> tuple[str, ...]:
        """The paths that the unit sees whatever is above them (BindPaths=, BindReadOnlyPaths=): "SOURCE:TARGET:..."."""
        pairs = f"{self.get('BindPaths')} {self.get('BindReadOnlyPaths')}".split()
        return tuple(pair.split(":")[:2][-1] for pair in pairs)

    @property
    def is_installed(self) -> bool:
        return bool(self.manager)

    @property
    def systemctl(self) -> str:
        """How people call systemctl for this unit."""
        return "systemctl --user" if self.manager == USER else "sudo systemctl"


@dataclass(frozen=True, slots=True)
class Account:
    """The names that the service runs by, and whether the machine knows them. ``socket_group`` is the group that the
    control socket is meant for, "" if that is not known."""

    user: str
    group: str
    has_user: bool
    has_group: bool
    socket_group: str = ""
    has_socket_group: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One folder or file on the way to a path, links followed. ``mode`` is st_mode."""

    path: str
    mode: int
    uid: int
    gid: int
    owner: str = ""
    group: str = ""
    has_acl: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """The way from / to a path. ``missing`` is what is not there, ``unseen`` what this user may not look into; the
    steps end before either. ``name`` is what it is for: "state folder"."""

    name: str
    path: str
    steps: tuple[Step, ...]
    missing: str = ""
    unseen: str = ""


@dataclass(frozen=True, slots=True)
class Knock:
    """What a plain connect to a control socket gave: ``errno`` 0 for success, then ``pid`` and ``uid`` are those of who
    listens. ``group`` and ``gid`` are of the nearest thing there that can be seen, the socket or its folder;
    ``is_shared`` is whether that group is meant for others than its owner."""

    path: str
    errno: int
    pid: int = 0
    uid: int = -1
    gid: int = -1
    group: str = ""
    is_shared: bool = True


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether a daemon answers. ``status`` is GetStatus as plain JSON, None without an answer; ``unanswered`` is why a
    daemon that was reached gave none."""

    knocks: tuple[Knock, ...]
    status: Mapping[str, Any] | None = None
    unanswered: str = ""

    @property
    def connected(self) -> Knock | None:
        return next((knock for knock in self.knocks if knock.errno == 0), None)


@dataclass(frozen=True, slots=True)
class Service:
    """How the daemon was started, or would be. ``who`` is whom it runs as. ``unseen`` is what of its environment could
    not be seen, "" if all was; ``pid`` is 0 if it does not run, ``stand_in`` is whether this user had to look in place
    of the daemon's, so that what is refused to it says nothing."""

    command: tuple[str, ...]
    environ: Mapping[str, str]
    folder: str
    who: Identity
    pid: int = 0
    is_system: bool = False
    unseen: str = ""
    stand_in: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One part of what ``vllamad --check --json`` told; ``missing`` is why there is none."""

    told: Mapping[str, Any] = field(default_factory=dict[str, Any])
    missing: str = ""

    def text(self, name: str) -> str:
        return str(self.told.get(name) or "")


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the kernel shows of NVIDIA's GPUs. ``nodes`` are device nodes with the rights of the daemon's user on them:
    path to whether it may read and write, None if that cannot be told."""

    pci: int = 0
    kernel_version: str = ""
    has_uvm: bool = False
    nodes: Mapping[str, bool | None] = field(default_factory=dict[str, bool | None])


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system's room, under ``name`` ("state")."""

    name: str
    path: str
    total_bytes: int
    free_bytes: int
    free_files: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens on a TCP port; ``pid`` 0 and ``program`` "" if that may not be seen."""

    address: str
    port: int
    uid: int
    user: str = ""
    pid: int = 0
    program: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that matters; ``state`` as in /proc (D: it hangs in the kernel)."""

    pid: int
    name: str
    state: str = "S"


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What an earlier daemon left: processes that carry its mark and are not the daemon's, files in shared memory,
    folders of workers, control groups. ``unseen`` is what could not be looked at."""

    processes: tuple[Process, ...] = ()
    shared_files: tuple[str, ...] = ()
    shared_bytes: int = 0
    workers: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    unseen: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the running daemon, or of the unit: open files and locked memory; None: without limit. ``source`` says whose
    they are, "" if nobody's could be seen."""

    source: str = ""
    open_files: int | None = 0
    locked_bytes: int | None = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """The machine's memory in bytes; 0 for what the kernel does not tell. ``group_limit`` is the least limit of the
    control groups around the daemon, or around this process, 0 for none."""

    total_bytes: int = 0
    available_bytes: int = 0
    swap_bytes: int = 0
    shm_bytes: int = 0
    shm_free_bytes: int = 0
    group_limit_bytes: int = 0
    overcommit: int = 0


@dataclass(frozen=True, slots=True)
class Clock:
    """``is_synchronized`` None: nobody tells. ``ahead_s`` is how far this clock is ahead of the hub's, None if there
    was no answer of the hub's."""

    is_synchronized: bool | None = None
    ahead_s: float | None = None
