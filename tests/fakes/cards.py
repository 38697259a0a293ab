"""GPUs for the real daemon: its own NVML adapter over our library, and cards that show the memory of its engines."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.fakes.daemon import MARKER, Daemon
from tests.fakes.devices import GIB, Card, cards
from tests.fakes.nvml.library import VARIABLE, ScriptedGpus, build

LOOK_S = 0.05
FOREIGN = 10_000_000
"""Processes from here on are others'."""
TAKEN = 0.9
"""Of its share."""
LEFT = 0.1
"""Of that, what an engine keeps asleep: its context, and what the driver has loaded for it."""


def small(count: int = 2) -> list[Card]:
    """Cards of 3 GiB: one of the fake's models fits on each, 1.8 GiB with what engines need on GPUs."""
    made = cards(count)
    for card in made:
        card.total_bytes, card.reserved_bytes = 3 * GIB, GIB // 4
    return made


class Machine:
    """Cards whose memory follows the engines of a daemon: each takes, on the cards that it can see, the share that its
    command line says, less while it sleeps, until it has ended, or ``keeps`` it. Made before the daemon is started:
    it is told to look for GPUs, and where."""

    def __init__(self, daemon: Daemon, gpus: list[Card]) -> None:
        script = daemon.root / "nvml.txt"
        daemon.environment |= {
            "VLLAMA_ENGINE_DEVICE": "cuda",
            "FAKE_ENGINE_VERSION": "vllm==0.32.0",
            "VLLAMA_ENGINE_ENV": "FAKE_ENGINE_VERSION",
            "LD_LIBRARY_PATH": str(build().parent),
            VARIABLE: str(script),
        }
        self.rack = ScriptedGpus(script, gpus, 10.0, None)
        self.keeps = False
        self.lag_s = 0.0
        """How long a card keeps the memory of a process that has ended."""
        self._marker = MARKER + os.fsencode(daemon.runtime)
        self._notes = daemon.runtime / "workers"
        self._known: dict[int, tuple[list[str], float]] = {}
        self._gone: dict[int, float] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._follow)
        self.rack.write()

    def __enter__(self) -> "Machine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def change(self, change: Callable[[ScriptedGpus], object]) -> None:
        with self._lock:
            change(self.rack)

    def held(self) -> dict[str, dict[int, int]]:
        """What is on the cards, by process."""
        with self._lock:
            return {
                card.uuid: {pid: used or 0 for pid, used in card.processes.items()}
                for card in self.rack.cards
                if card.processes
            }

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_S):
            with self._lock:
                self._find()
                living = {pid: share for pid, share in self._known.items() if self._is_core(pid)}
                for card in self.rack.cards:
                    for pid, (uuids, share) in living.items():
                        if card.uuid in uuids:
                            usable = card.total_bytes - (card.reserved_bytes or 0)
                            card.processes[pid] = int(TAKEN * share * usable)
                    for pid in set(card.processes) - set(living):
                        gone_at = self._gone.setdefault(pid, time.monotonic())
                        if not self.keeps and pid < FOREIGN and time.monotonic() - gone_at >= self.lag_s:
                            del card.processes[pid], self._gone[pid]
                self.rack.write()
                self._known = living

    def _find(self) -> None:
        """Cores by the notes that engines keep beside their sockets. Those that are known stay so without theirs: the
        next daemon clears its folder before all of them are dead."""
        for note in self._notes.glob("*/*.memory"):
            with contextlib.suppress(OSError):
                pid, awake = note.read_text().split()
                if self._is_core(int(pid)):
                    self._known[int(pid)] = _share(int(pid), float(awake))

    def _is_core(self, pid: int) -> bool:
        """True as long as this is the core of one of the daemon's engines; a zombie has no environment."""
        try:
            is_core = "EngineCor" in Path(f"/proc/{pid}/comm").read_text()
            return is_core and self._marker in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


def _share(pid: int, awake: float) -> tuple[list[str], float]:
    """The cards that a core sees, and the share that it takes."""
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    visible = next((each for each in environ if each.startswith(b"CUDA_VISIBLE_DEVICES=")), b"").partition(b"=")[2]
    share = float(argv[argv.index(b"--gpu-memory-utilization") + 1]) if len(argv) > 1 else 0.0
    return visible.decode().split(","), share * max(LEFT, awake)
