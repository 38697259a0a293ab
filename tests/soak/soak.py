"""The soak: clients ask, and things go wrong at random, for minutes; then it is quiet, and everything must be as if
nothing had been. ``python -m tests.soak.soak --seconds 600 --seed 1 --kills 200``.

The seed draws what is asked and what goes wrong, in the same order each time; when exactly a blow lands is the
machine's. So a violation comes again with its seed more often than not, and not always in the same second.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path

from tests.soak.checks import Checks
from tests.soak.havoc import Havoc
from tests.soak.load import Load
from tests.soak.questions import Kind, Wire
from tests.soak.watch import Watch
from tests.soak.world import Character, World, play, until

ENVIRONMENT = {
    "VLLAMA_SCHEDULER_MAX_LOADED_MODELS": "3",
    "VLLAMA_ENGINE_START_TIMEOUT": "6s",
    "VLLAMA_ENGINE_TERM_GRACE": "1s",
    "VLLAMA_ENGINE_BACKOFF": "200ms",
    "VLLAMA_SERVER_DRAIN": "2s",
}
MODELS = (
    Character("quick", tokens=12, delay_s=0.01),
    Character("steady", tokens=30, delay_s=0.02),
    Character("slow", tokens=40, delay_s=0.04, load_s=0.5),
    Character("rare", tokens=8, delay_s=0.02),
)
CLIENTS = 6
BOUT_S = (8.0, 18.0)
BUSY_SHARE = 0.7
"""About how much of the time there is load; the rest is quiet, and checked."""
PACE_S = (0.3, 3.0)
LONG_HANG = 1 / 14
"""How many bouts have an engine that hangs until the health checks find it; they take a minute."""
PATIENCE_S = 90.0
DESCRIPTORS = 12
"""How many more a daemon may have open when it is quiet than when it was quiet first."""
SHOWN_VIOLATIONS = 10


class Soak:
    """One run. ``checks`` has everything that did not hold."""

    def __init__(self, world: World, seconds: float, seed: int, kills: int, *, is_patient: bool) -> None:
        self.checks = Checks()
        self.world = world
        self.havoc = Havoc(world, seed)
        self.load = Load(world, self.checks, seed, CLIENTS, self._told)
        self.quiet_moments = 0
        self.spent_s = 0.0
        self._seconds = seconds
        self._kills = kills
        self._is_patient = is_patient
        self._random = random.Random(f"{seed} bouts")
        self._descriptors: dict[int, int] = {}
        self._shown = 0

    async def run(self) -> None:
        """Bout after bout, until the time is over and there were kills enough."""
        began = time.monotonic()
        await self.world.start()
        watching = asyncio.create_task(Watch(self.world, self.checks).run())
        try:
            while self.spent_s < self._seconds or self.havoc.kills < self._kills:
                seconds = min(self._random.uniform(*BOUT_S), max(BOUT_S[0], self._seconds - self.spent_s))
                pace_s = self._pace_s()
                hangs = self._is_patient and self._random.random() < LONG_HANG
                self.load.resume()
                await (self._long_hang(pace_s) if hangs else self.havoc.bout(seconds, pace_s))
                await self.havoc.settle()
                await self.load.pause()
                await self._be_quiet()
                self.spent_s = time.monotonic() - began
                self._progress()
                if watching.done():
                    watching.result()
                if self.spent_s > 2 * self._seconds + 60:
                    self.checks.that(False, "enough kills in twice the time", self.havoc.kills)
                    break
        finally:
            await self.load.close()
            watching.cancel()

    def _pace_s(self) -> float:
        """How often to strike, so that there are kills enough in the time that is left."""
        left_s, left = self._seconds - self.spent_s, self._kills - self.havoc.kills
        return min(PACE_S[1], max(PACE_S[0], BUSY_SHARE * left_s * self.havoc.kill_share / max(1, left)))

    async def _long_hang(self, pace_s: float) -> None:
        """Everything goes on around an engine that hangs, until the daemon has found it."""
        await asyncio.sleep(2.0)
        frozen = await self.havoc.freeze_one()
        if frozen is None:
            return
        await asyncio.sleep(1.0)
        self.load.avoided = frozen.model
        going_on = asyncio.create_task(self.havoc.bout(PATIENCE_S, pace_s))

        async def is_found() -> bool:
            shown = await self.world.worker(frozen.model)
            return shown is None or shown.pid != frozen.pid

        found = await until(is_found, PATIENCE_S)
        going_on.cancel()
        await asyncio.wait([going_on])
        self.havoc.spared.clear()
        self.load.avoided = ""
        self.checks.that(found, "health checks find a hung engine", frozen)

    async def _be_quiet(self) -> None:
        """Nobody asks, nothing is broken: everything has to be in order."""
        before = len(self.checks.violations)
        await self.world.check_idle(self.checks)
        await self.world.check_nothing_left(self.checks)
        wires = {model: self._random.choice(list(Wire)) for model in self.world.models}
        await asyncio.gather(*(self.world.check_serves(self.checks, *each) for each in wires.items()))
        pid = self.world.daemon.child.pid if self.world.daemon.child is not None else 0
        opened = open_descriptors(pid)
        least = self._descriptors.setdefault(pid, opened)
        self.checks.that(opened <= least + DESCRIPTORS, "no descriptors leak", f"{least}, now {opened}")
        self.quiet_moments += 1
        for text in self.checks.violations[before:]:
            await self._told(text)

    async def _told(self, text: str) -> None:
        """Say it now, with what is going on."""
        self._shown += 1
        if self._shown > SHOWN_VIOLATIONS:
            return
        print(f"\n✗ {text}\n  lately:", flush=True)
        for line in self.havoc.history[-6:]:
            print(f"  {line}")
        print(f"  {await self.world.describe()}\n", flush=True)

    def _progress(self) -> None:
        print(
            f"{self.spent_s:6.0f} s  {self.havoc.kills} kills, {self.havoc.struck.total()} faults, "
            f"{self.load.requests} requests ({self.load.count(Kind.WHOLE)} whole, {self.load.count(Kind.ERROR)} told), "
            f"{self.checks.total} checks, {len(self.checks.violations)} violations",
            flush=True,
        )


def open_descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def report(soak: Soak) -> str:
    """The numbers of a run."""
    kinds = [kind for kind in Kind if soak.load.count(kind)]
    lines = ["", "requests".ljust(34) + "".join(kind.value.rjust(20) for kind in kinds)]
    for wire in Wire:
        title = f"  {wire.path} {'streamed' if wire.is_stream else 'whole'}"
        counts = "".join(str(soak.load.outcomes[wire.name, kind.value]).rjust(20) for kind in kinds)
        lines.append(title.ljust(34) + counts)
    lines += ["", *_column("faults", soak.havoc.struck), "", *_column("checks", soak.checks.counts), ""]
    lines.append(
        f"{soak.spent_s:.0f} s, {soak.havoc.kills} kills, {soak.havoc.struck.total()} faults, "
        f"{soak.load.requests} requests (the longest {soak.load.longest_s:.1f} s), {len(soak.world.away)} restarts of "
        f"the daemon, {soak.quiet_moments} quiet moments, {soak.checks.total} checks, "
        f"{len(soak.checks.violations)} violations"
    )
    return "\n".join(lines)


def _column(title: str, counts: Counter[str]) -> list[str]:
    return [title, *(f"  {name}".ljust(48) + str(number).rjust(6) for name, number in counts.most_common())]


async def soak_for(seconds: float, seed: int, kills: int, *, is_patient: bool) -> Soak:
    """One run, in a world of its own, which is gone afterwards."""
    world = World(MODELS, ENVIRONMENT)
    soak = Soak(world, seconds, seed, kills, is_patient=is_patient)
    try:
        await soak.run()
    finally:
        await world.close()
    return soak


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--kills", type=int, default=200, help="go on until there were so many")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    again = f"python -m tests.soak.soak --seconds {options.seconds:g} --seed {options.seed} --kills {options.kills}"
    try:
        soak = play(soak_for(options.seconds, options.seed, options.kills, is_patient=options.seconds > 120))
    except BaseException:
        print(f"\nto repeat: {again}", flush=True)
        raise
    print(report(soak))
    print(f"seed {options.seed}")
    if not soak.checks.violations:
        return 0
    for text in soak.checks.violations:
        print(f"✗ {text[:1000]}")
    print(f"to repeat: {again}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
