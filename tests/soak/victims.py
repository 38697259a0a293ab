"""The processes of a worker as anyone sees them in /proc, and what can be done to them from outside."""

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.soak.asking import fetch

CORE = "VLLM::EngineCor"
"""The kernel keeps 15 letters of a name."""
TIDIER = b"multiprocessing.resource_tracker"


@dataclass(frozen=True)
class Seen:
    """One living process."""

    pid: int
    name: str
    parent: int
    command: bytes
    marker: bytes


def look(pid: int) -> Seen | None:
    """None if it is gone, a zombie, or not ours to look into."""
    folder = Path(f"/proc/{pid}")
    try:
        name, _, rest = (folder / "stat").read_text(errors="replace").rpartition(")")
        state, parent, *_ = rest.split()
        if state in "ZX":
            return None
        environment = (folder / "environ").read_bytes().split(b"\0")
        marker = next((each for each in environment if each.startswith(b"VLLAMA_WORKER=")), b"")
        return Seen(pid, name.partition("(")[2], int(parent), (folder / "cmdline").read_bytes(), marker)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def everyone() -> list[Seen]:
    """Every living process that we may look into."""
    return [seen for entry in os.scandir("/proc") if entry.name.isdigit() and (seen := look(int(entry.name)))]


class Victim:
    """The tree of one life of a worker, found by the leader that the daemon shows.

    Only processes with its marker are ever touched. Between fork and exec a leader has none yet: such a one has no
    tree, rather than everyone who has none either.
    """

    def __init__(self, leader: int) -> None:
        self.leader = leader
        first = look(leader)
        self.marker = first.marker if first is not None else b""

    def members(self) -> list[Seen]:
        return [seen for seen in everyone() if self.marker and seen.marker == self.marker]

    def core(self) -> int:
        """The engine core's pid; 0 if there is none (yet, or any more)."""
        return next((seen.pid for seen in self.members() if seen.name == CORE), 0)

    def tidier(self) -> int:
        """The process that unlinks shared memory; 0 if there is none."""
        return next((seen.pid for seen in self.members() if TIDIER in seen.command), 0)

    def socket(self) -> Path:
        """Where its API server listens, by the way of its own root: it may live in a mount namespace of its own."""
        seen = look(self.leader)
        words = seen.command.split(b"\0") if seen is not None else []
        path = os.fsdecode(words[words.index(b"--uds") + 1]) if b"--uds" in words else "/nowhere"
        return Path(f"/proc/{self.leader}/root{path}")

    def kill_leader(self) -> bool:
        return self._send(signal.SIGKILL, self.leader)

    def kill_core(self) -> bool:
        return self._send(signal.SIGKILL, self.core())

    def kill_both(self) -> bool:
        """API server and core; who tidies up after them stays."""
        return self._send(signal.SIGKILL, *(seen.pid for seen in self.members() if TIDIER not in seen.command))

    def kill_everyone(self) -> bool:
        """All at once, as the OOM killer does with a cgroup that is to die as one."""
        return self._send(signal.SIGKILL, *(seen.pid for seen in self.members()))

    def run_out_of_memory(self) -> bool:
        """An allocation that fails: the core says so and is gone by SIGKILL."""
        return self._send(signal.SIGUSR1, self.core())

    def freeze(self) -> bool:
        """SIGSTOP to all of it."""
        return self._send(signal.SIGSTOP, *(seen.pid for seen in self.members()))

    def freeze_tidier(self) -> bool:
        return self._send(signal.SIGSTOP, self.tidier())

    def thaw(self) -> bool:
        return self._send(signal.SIGCONT, *(seen.pid for seen in self.members()))

    def _send(self, number: int, *pids: int) -> bool:
        """True if there was someone to send it to."""
        return sum([self._send_one(number, pid) for pid in pids if pid > 1]) > 0

    def _send_one(self, number: int, pid: int) -> bool:
        """The number may mean someone else by now: the descriptor pins it while it is looked at once more."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            now = look(pid)
            if not self.marker or now is None or now.marker != self.marker:
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    async def misbehave(self, faults: bytes) -> bool:
        """Replace the faults of the running engine; False if it does not answer."""
        return await self._ask("POST", "/_fake/faults", faults) is not None

    async def rests(self) -> bool:
        """True if it works on no request; one that does not answer works on none either."""
        told = await self._ask("GET", "/_fake/state")
        return told is None or json.loads(told)["running"] == 0

    async def _ask(self, method: str, path: str, body: bytes = b"") -> bytes | None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(2.0):
                status, answer = await fetch(await asyncio.open_unix_connection(self.socket()), method, path, body)
                return answer if status == 200 else None
        return None
