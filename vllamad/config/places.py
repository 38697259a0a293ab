"""Where the daemon keeps its things (floor 2): decided by who started it, the environment and the command line."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SYSTEM_STATE = Path("/var/lib/vllama")
SYSTEM_RUNTIME = Path("/run/vllama")
SYSTEM_CONFIG = Path("/etc/vllama")
SOCKET_NAME = "vllamad.sock"

MAX_SOCKET_BYTES = 107
"""What the kernel takes as the path of a Unix socket (sun_path is 108 with its end)."""

WORKER_SOCKET_BYTES = 48
"""Room for a worker's own part of its socket path, below the folder of worker sockets."""


@dataclass(frozen=True, slots=True)
class Places:
    """Absolute paths; nothing is made here. ``worker_sockets`` is ``runtime/workers`` unless that is too long for the
    kernel, then a folder of this user's in /tmp."""

    state: Path
    runtime: Path
    socket: Path
    worker_sockets: Path
    cache: Path
    """Caches of engines (compiled code), which may be deleted at any time."""

    @property
    def models(self) -> Path:
        """The model store."""
        return self.state / "models"

    @property
    def engines(self) -> Path:
        """Where `vllamactl engine` installs engines. The daemon only reads there."""
        return self.state / "engines"

    @property
    def lock(self) -> Path:
        """The file whose lock says that a daemon owns the state folder."""
        return self.state / "vllamad.lock"


def detect_system_service(environ: Mapping[str, str], uid: int, pid: int) -> bool:
    """True if systemd runs this process as a service of the system, not of a user.

    A system's user (root, below 1000, or a dynamic one of systemd) that was given folders by systemd, or is the very
    process that systemd executed: INVOCATION_ID alone is inherited by every shell below a service.
    """
    is_system_user = uid < 1000 or 61184 <= uid <= 65519
    has_folders = bool(environ.get("STATE_DIRECTORY") or environ.get("RUNTIME_DIRECTORY"))
    is_executed = bool(environ.get("INVOCATION_ID")) and environ.get("SYSTEMD_EXEC_PID", str(pid)) == str(pid)
    return is_system_user and (has_folders or is_executed)


def resolve_places(
    environ: Mapping[str, str],
    *,
    uid: int,
    home: Path,
    is_system: bool,
    state_dir: str = "",
    runtime_dir: str = "",
    socket: str = "",
) -> Places:
    """Pick every path. What was said explicitly wins over systemd's folders, those over the usual ones."""
    state = _first(state_dir, environ.get("STATE_DIRECTORY", "").partition(":")[0])
    if state is None:
        state = SYSTEM_STATE if is_system else _xdg(environ, "XDG_DATA_HOME", home / ".local/share") / "vllama"
    runtime = _first(runtime_dir, environ.get("RUNTIME_DIRECTORY", "").partition(":")[0])
    if runtime is None:
        if is_system:
            runtime = SYSTEM_RUNTIME
        elif environ.get("XDG_RUNTIME_DIR", "").startswith("/"):
            runtime = Path(environ["XDG_RUNTIME_DIR"]) / "vllama"
        else:
            runtime = state / "run"
    workers = runtime / "workers"
    if _length(workers) + 1 + WORKER_SOCKET_BYTES > MAX_SOCKET_BYTES:
        workers = Path("/tmp") / f"vllama-{uid}-{zlib.crc32(bytes(runtime)):08x}"
    # Whoever named a state folder wants everything there.
    given = "" if state_dir else environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    cache = _first(given) or state / "cache"
    return Places(state, runtime, _first(socket) or runtime / SOCKET_NAME, workers, cache)


def places_problems(places: Places, socket_source: str) -> list[str]:
    """What the kernel would refuse. ``socket_source`` names the setting that has to change."""
    if _length(places.socket) <= MAX_SOCKET_BYTES:
        return []
    return [
        f"{socket_source}: the control socket {places.socket} has a path of {_length(places.socket)} bytes; "
        f"allowed: at most {MAX_SOCKET_BYTES}, choose a shorter one with --socket or --runtime-dir"
    ]


def user_config(environ: Mapping[str, str], home: Path) -> Path:
    """The user's configuration file."""
    return _xdg(environ, "XDG_CONFIG_HOME", home / ".config") / "vllama" / "config.toml"


def _first(*texts: str) -> Path | None:
    return next((Path(text) for text in texts if text), None)


def _xdg(environ: Mapping[str, str], name: str, default: Path) -> Path:
    # The XDG specification: a relative path is to be ignored.
    text = environ.get(name, "")
    return Path(text) if text.startswith("/") else default


def _length(path: Path) -> int:
    return len(bytes(path))
