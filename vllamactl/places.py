"""Where the daemon's control socket and its state may be (floor 3). The daemon's side of this is its configuration."""

import os
from collections.abc import Mapping

SYSTEM_SOCKET = "/run/vllama/vllamad.sock"
SYSTEM_STATE = "/var/lib/vllama"


def socket_candidates(given: str | None, env: Mapping[str, str] = os.environ) -> list[str]:
    """Return the sockets to try, the likeliest first: the one that was named (option or VLLAMA_SOCKET), else the
    user's own daemon's, else the system service's."""
    named = given or env.get("VLLAMA_SOCKET")
    if named:
        return [os.path.abspath(os.path.expanduser(named))]  # noqa: PTH100, PTH111 - pathlib costs 10 ms at start
    places: list[str] = []
    if runtime := env.get("XDG_RUNTIME_DIR"):
        places.append(f"{runtime}/vllama/vllamad.sock")
    state = env.get("VLLAMA_STATE_DIR") or f"{_data_home(env)}/vllama"
    places += [f"{state}/run/vllamad.sock", SYSTEM_SOCKET]
    return places


def state_folder(given: str = "", env: Mapping[str, str] = os.environ, *, is_root: bool | None = None) -> str:
    """Return the state folder of the daemon that is meant: the one that was named (option or VLLAMA_STATE_DIR); else
    the service's, for root and where the user has none of its own."""
    named = given or env.get("VLLAMA_STATE_DIR")
    if named:
        return os.path.abspath(os.path.expanduser(named))  # noqa: PTH100, PTH111 - as above
    if os.geteuid() == 0 if is_root is None else is_root:
        return SYSTEM_STATE
    own = f"{_data_home(env)}/vllama"
    return SYSTEM_STATE if os.path.isdir(SYSTEM_STATE) and not os.path.isdir(own) else own  # noqa: PTH112


def history_file(env: Mapping[str, str] = os.environ) -> str:
    """Return where `run` keeps what was typed."""
    state = env.get("XDG_STATE_HOME") or f"{_home(env)}/.local/state"
    return f"{state}/vllama/history"


def _data_home(env: Mapping[str, str]) -> str:
    return env.get("XDG_DATA_HOME") or f"{_home(env)}/.local/share"


def _home(env: Mapping[str, str]) -> str:
    return env.get("HOME") or "/"
