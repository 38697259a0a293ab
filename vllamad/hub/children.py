"""A child of ours that speaks NDJSON (floor 2): a request on its standard input, lines on its output, one last line.

It is started through the port ``Launcher``, as workers are. Not by asyncio's subprocess: uvloop forks with gRPC's fork
handlers in between, and while a call is running on the control socket the child then dies before it executes anything
(seen with grpcio 1.85 and uvloop 0.23: its standard input was closed at once).
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Child, Command, Launcher

log = logging.getLogger(__name__)

TERM_S = 3.0  # our children have nothing to tidy up; one that hangs in the kernel (a dead disk) is not waited for

_LONGEST_LINE = 16 << 20  # the list of files of a repository with thousands of shards is one line
_OWN_VARIABLES = frozenset({"HOME", "LANG", "LANGUAGE", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "USER"})
_NETWORK = frozenset(
    {"all_proxy", "http_proxy", "https_proxy", "no_proxy", "ssl_cert_dir", "ssl_cert_file", "requests_ca_bundle"}
)

Line = dict[str, Any]


def child_environment(environ: Mapping[str, str], *, with_network: bool) -> dict[str, str]:
    """What a child may see of the daemon's environment: an allow-list, so that no secret and no ``NOTIFY_SOCKET`` gets
    through; proxies and certificates only for a child that goes to the network."""
    return {
        name: value
        for name, value in environ.items()
        if name in _OWN_VARIABLES or name.startswith("LC_") or (with_network and name.lower() in _NETWORK)
    }


async def run_child(
    launcher: Launcher,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    request: Line,
    doing: str,
    on_line: Callable[[Line], None],
) -> Line:
    """Run a child to its end and return its line ``done``; every line before goes to ``on_line``.

    Raises what its line ``error`` says, INTERNAL if it ends without a last line, and ENGINE_START_FAILED if ``argv[0]``
    cannot be executed. When cancelled, the whole tree is ended and reaped before the cancellation goes on.
    """
    last_words: deque[str] = deque(maxlen=40)
    last: list[Line] = []

    def hear(text: str) -> None:
        line = _parse(text)
        if line is None:
            last_words.append(text)  # a library that prints, or a traceback
        elif line.get("type") in {"done", "error"}:
            last[:] = [line]
        else:
            on_line(line)

    command = Command(argv, env, cwd, doing, json.dumps(request).encode(), _LONGEST_LINE)
    child = launcher.spawn(command, hear)
    try:
        status = await child.wait()
    finally:
        await _end(child)
    if last and last[0]["type"] == "done" and status == 0:
        return last[0]
    if last and last[0]["type"] == "error":
        facts = cast(dict[str, str | int | float], last[0].get("facts") or {})
        raise VllamaError(Reason(last[0]["reason"]), str(last[0]["message"]), last[0].get("hint"), **facts)
    log.error("child.failed argv0=%s status=%s doing=%s output=%s", argv[0], status, doing, "\n".join(last_words))
    raise _ended(doing, status, last_words)


def _parse(text: str) -> Line | None:
    try:
        line: object = json.loads(text)
    except ValueError:
        return None
    return cast(Line, line) if isinstance(line, dict) else None


async def _end(child: Child) -> None:
    """Ask the tree to end, and return when nothing of it is left."""
    try:
        child.terminate()
        async with asyncio.timeout(TERM_S):
            await child.wait()
    except TimeoutError:
        log.warning("child.deaf pid=%d", child.pid)
    finally:
        await child.kill_tree()


def _ended(doing: str, status: int, last_words: deque[str]) -> VllamaError:
    why = f"its helper process was ended by signal {-status}" if status < 0 else f"its helper process failed ({status})"
    detail = next((words for words in reversed(last_words) if words.strip()), "")
    return VllamaError(
        Reason.INTERNAL,
        f"cannot {doing}: {why}" + (f": {detail[:300]}" if detail else ""),
        "try again: finished parts are kept; the daemon's log holds the helper's last lines",
        status=status,
    )
