"""A real daemon with models of known voices, what tests do to it, and what has to be true of it afterwards.

Everything is asked through what anyone can reach: HTTP, the control socket, signals, /proc, /dev/shm and the folders.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.fakes.daemon import FAKE_PYTHON, Daemon
from tests.soak.asking import Asking, fetch
from tests.soak.checks import Checks
from tests.soak.control import Control, Shown
from tests.soak.questions import Kind, Outcome, Question, Wire
from tests.soak.victims import Seen, Victim, everyone

ACCEPTOR = b"vllamad.acceptors"
SHARED_MEMORY = Path("/dev/shm")
TRACE_LINES = 16
BUGS = re.compile(
    r"Traceback|worker\.bug|http\.bug|worker\.illegal|memory\.leaked|never retrieved|never awaited"
    r"|ResourceWarning(?!.*/notify>)"
)
"""Lines that a daemon never has reason to write. (The socket to the service manager is closed by the end of the
process.)"""
GONE_S = 5.0
WAITING_S = 40.0
"""Loads that hang are given up after the start timeout, and there may be several one after the other."""
"""How long the last processes of a worker that is called stopped may still be seen: none at all, but for a busy
machine."""
POLL_S = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class Character:
    """A model: how its answers begin, how far they count, how fast, and how long it loads."""

    name: str
    tokens: int = 20
    delay_s: float = 0.02
    load_s: float = 0.0

    @property
    def voice(self) -> str:
        return f"{self.name}-speaking"

    def asked(self, text: str, wire: Wire = Wire.CHAT, limit: int | None = None) -> Question:
        return Question(self.name, self.voice, self.tokens, text, wire, limit)


class World:
    """One daemon, over all its lives. ``environment`` is the daemon's configuration."""

    def __init__(self, models: Sequence[Character], environment: Mapping[str, str]) -> None:
        # The port is chosen at the first start and kept, so that clients find the next daemon.
        self.daemon = Daemon(FAKE_PYTHON, {"VLLAMA_ENGINE_CPU_KV_BYTES": "64MiB", **environment})
        self.models = {one.name: one for one in models}
        self.control = Control(self.daemon.socket)
        self.away: list[tuple[float, float]] = []
        """When the daemon was not there, or about to leave."""
        self.shared_memory = f"{self.daemon.root.name}."
        self._log_seen = 0
        self._faults = self.daemon.root / "faults"
        self._faults.mkdir()
        for one in models:
            self.daemon.add_model(one.name, **self.traits(one.name), more=str(self._faults / one.name))

    def traits(self, model: str) -> dict[str, object]:
        """What the model's engine is, when nothing is wrong with it."""
        one = self.models[model]
        return {
            "voice": one.voice,
            "tokens": one.tokens,
            "token_delay_s": one.delay_s,
            "load_s": one.load_s,
            "tracked_memory": self.shared_memory,
        }

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await asyncio.to_thread(self.daemon.start)
        if self.away and self.away[-1][1] == float("inf"):
            # Clients that asked in the same moment may still have met nobody.
            self.away[-1] = (self.away[-1][0], time.monotonic() + 0.5)

    async def kill(self) -> None:
        """SIGKILL to the daemon, and to it alone."""
        self.leaves()
        await asyncio.to_thread(self.daemon.kill)

    async def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.leaves()
        return await asyncio.to_thread(self.daemon.stop, signal.SIGTERM)

    async def upgrade(self) -> None:
        """Another daemon takes over in the same process; requests that take longer than a moment are told so."""
        self.leaves()
        done = await asyncio.to_thread(self.daemon.ctl, "upgrade", "--drain=1s", check=False)
        assert done.returncode == 0, f"vllamactl upgrade: {done.stderr}\n{self.daemon.log_text()[-4000:]}"
        self.away[-1] = (self.away[-1][0], time.monotonic() + 0.5)

    def leaves(self) -> None:
        self.away.append((time.monotonic(), float("inf")))

    def was_away(self, outcome: Outcome) -> bool:
        """True if the daemon was not there for all of the time of a request."""
        return self.was_away_between(outcome.began_at, outcome.ended_at)

    def was_away_between(self, start: float, end: float) -> bool:
        return any(gone < end and start < back for gone, back in self.away)

    async def close(self) -> None:
        """End it all; raises if something is left that should not be."""
        await asyncio.to_thread(self.daemon.close)

    # --- models --------------------------------------------------------------------------------------------------

    def next_life(self, model: str, **faults: object) -> None:
        """What is wrong with the model's engines from their next start on; nothing, if nothing is named."""
        file = self._faults / model
        file.with_suffix(".new").write_text(json.dumps(faults))
        file.with_suffix(".new").replace(file)

    async def misbehave(self, victim: Victim, model: str, **faults: object) -> bool:
        """What is wrong with the model's running engine from now on."""
        return await victim.misbehave(json.dumps(self.traits(model) | faults).encode())

    def ask(self, question: Question, deadline_s: float = 30.0, leave_after: int | None = None) -> Asking:
        return Asking(self.daemon.port, question, deadline_s, leave_after)

    async def workers(self) -> list[Shown]:
        return await asyncio.to_thread(self.control.workers)

    async def worker(self, model: str) -> Shown | None:
        return next((one for one in await self.workers() if one.model == model), None)

    async def stop_model(self, model: str, *, force: bool = False) -> str:
        return await asyncio.to_thread(self.control.stop, model, force=force)

    async def in_state(self, model: str, state: str, seconds: float = 15.0) -> Shown:
        """Wait until the model's worker is in a state; raises TimeoutError with what it was in last."""
        last: Shown | None = None

        async def found() -> bool:
            nonlocal last
            last = await self.worker(model)
            return (last.state if last is not None else "STOPPED") == state

        if not await until(found, seconds):
            raise TimeoutError(f"{model} is not {state} after {seconds:g} s but {last}")
        return last or Shown(model, "STOPPED", 0, 0, 0, 0, "")

    # --- what has to be true -------------------------------------------------------------------------------------

    async def health(self) -> tuple[int, str]:
        """What /health says; status 0 if it says nothing within 5 s."""
        try:
            async with asyncio.timeout(5.0):
                connected = await asyncio.open_connection("127.0.0.1", self.daemon.port)
                status, body = await fetch(connected, "GET", "/health")
                return status, json.loads(body)["status"]
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            return 0, repr(error)

    def judge(self, checks: Checks, question: Question, outcome: Outcome) -> None:
        """What holds for every request at any time: right, or told."""
        seen = f"{question}: {outcome}"
        checks.that(outcome.kind is not Kind.HUNG, "nobody hangs", seen)
        checks.that(outcome.kind not in {Kind.WRONG, Kind.DENIED}, "no wrong answer", seen)
        is_told = outcome.kind not in {Kind.BROKEN, Kind.REFUSED} or self.was_away(outcome)
        checks.that(is_told, "no client is lost silently", seen)

    async def check_serves(self, checks: Checks, model: str, wire: Wire = Wire.CHAT) -> None:
        """A new request is answered correctly, also by a model that was given up for a while: somebody asks for it."""
        await asyncio.to_thread(self.control.insist, model)
        question = self.models[model].asked(f"again-{os.urandom(3).hex()}", wire, limit=8)
        outcome = await self.ask(question).outcome()
        checks.that(outcome.kind is Kind.WHOLE, "a new request is answered", f"{question}: {outcome}")

    async def check_idle(self, checks: Checks) -> None:
        """No engine works for a client that is gone."""
        for shown in await self.workers():
            if shown.state != "READY":
                continue
            checks.that(await until(Victim(shown.pid).rests, 3.0), "no engine works for nobody", shown)
            checks.that(shown.leases == 0 and shown.waiting == 0, "no lease without a request", shown)

    async def check_nothing_left(self, checks: Checks) -> None:
        """Unload everything; then nothing of any worker is anywhere. A daemon that was started a moment ago may still
        be loading again what the last one had loaded: it is let finish."""

        async def is_done() -> bool:
            return await asyncio.to_thread(self.control.waiting) == 0

        checks.that(await until(is_done, WAITING_S), "nobody waits for ever when nobody asks")
        for shown in await self.workers():
            reason = await self.stop_model(shown.model)
            # What failed is forgotten when it is stopped, and says once more what it had failed of.
            checks.that(not reason or shown.state == "FAILED", "what is stopped stops", f"{shown}: {reason}")
        workers = await self.workers()
        checks.that(workers == [], "no worker after unloading", workers)

        async def alone() -> bool:
            return not self.processes()

        checks.that(await until(alone, GONE_S), "no process left", [(one.pid, one.name) for one in self.processes()])
        checks.that(not self.leftovers(), "nothing left in the runtime folder", self.leftovers())
        checks.that(
            not (files := self.shared_files()), "nothing left in /dev/shm", self._history_of(files) if files else ""
        )
        status, text = await self.health()
        checks.that(status == 200, "/health is 200", f"{status} {text}")
        checks.that(not (bugs := self.bugs()), "no bug in the log", "\n".join(bugs[:5]))

    def processes(self) -> list[Seen]:
        """Who carries the daemon's marker, or runs the fake engine for it; but for acceptors, which it keeps."""
        owner = os.fsencode(f"VLLAMA_WORKER={self.daemon.runtime}:")
        uds = os.fsencode(self.daemon.runtime / "workers")
        mine = [seen for seen in everyone() if seen.marker.startswith(owner) or uds in seen.command]
        return [seen for seen in mine if ACCEPTOR not in seen.command]

    def leftovers(self) -> list[Path]:
        return [path for path in self.daemon.leftovers() if path != self.daemon.socket]

    def shared_files(self) -> list[str]:
        return [path.name for path in SHARED_MEMORY.glob(f"{self.shared_memory}*")]

    def bugs(self) -> list[str]:
        """New lines of the log that tell of a bug, but for what engines said."""
        with self.daemon.log.open(errors="replace") as log:
            log.seek(self._log_seen)
            lines = log.read().splitlines()
            self._log_seen = log.tell()
        found = [number for number, line in enumerate(lines) if BUGS.search(line) and "engine.line" not in line]
        return ["\n    ".join(lines[max(0, number - 1) : number + TRACE_LINES]) for number in found]

    def _history_of(self, files: Sequence[str]) -> str:
        """What the daemon's log says of the leaders that files in shared memory are named after, and of the workers
        that they led, between their first line and their last."""
        pids = {name.rpartition(".")[2] for name in files}
        log = self.daemon.log_text().splitlines()
        told = [number for number, line in enumerate(log) if any(re.search(rf"\bpid={pid}\b", line) for pid in pids)]
        titles = {match[1] for number in told if (match := re.search(r"process.spawn title=(\S+)", log[number]))}
        life = log[told[0] : told[-1] + TRACE_LINES] if told else []
        marks = [f"model={title} " for title in titles] + [f"title={title} " for title in titles]
        return "\n    ".join([str(files), *(line for line in life if any(mark in line for mark in marks))])

    async def describe(self) -> str:
        """The daemon's state, for whoever has to find out what went wrong."""
        try:
            workers = "\n  ".join(str(one) for one in await self.workers())
        except Exception as error:  # noqa: BLE001 - it is a report on something broken
            workers = repr(error)
        tail = "\n  ".join(self.daemon.log_text().splitlines()[-30:])
        return f"health {await self.health()}\n  {workers}\n  {self.processes()}\n  {tail}"


def play(scene: Coroutine[object, object, T]) -> T:
    """Run it with as many threads as daemons may be waited for at once. SIGTERM ends it as Ctrl-C does: nothing stays
    behind."""

    async def with_threads() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        loop.set_default_executor(ThreadPoolExecutor(64))
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        return await scene

    return asyncio.run(with_threads())


async def until(is_true: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Ask again and again, as a stranger has to; False if it is not so in time."""
    deadline = time.monotonic() + seconds
    while not await is_true():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True
