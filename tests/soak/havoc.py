"""Random things that go wrong at random moments, drawn from a generator with a seed.

A blow hits whatever worker there is, in whatever state it is. Some take a while (a stall ends, somebody unloads what
hangs); they run beside the others, and are over when ``settle`` returns.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc

from tests.soak.control import Shown
from tests.soak.victims import Victim
from tests.soak.world import World

Blow = Callable[[Shown, Victim], Awaitable[bool]]
"""True if it hit."""


class Havoc:
    """What goes wrong in one world."""

    def __init__(self, world: World, seed: int) -> None:
        self.struck: Counter[str] = Counter()
        self.history: list[str] = []
        self.kills = 0
        """Blows that ended processes by SIGKILL."""
        self.spared: set[str] = set()
        """Models that nobody touches for now, and with them the daemon."""
        self._world = world
        self._random = random.Random(f"{seed} havoc")
        self._began_at = time.monotonic()
        self._going_on: set[asyncio.Task[None]] = set()
        self._kills: dict[str, tuple[int, Blow]] = {
            "API server killed": (8, self._kill_server),
            "core killed": (8, self._kill_core),
            "both killed at once": (5, self._kill_both),
            "out of memory": (5, self._out_of_memory),
            "killed twice": (3, self._kill_twice),
            "daemon killed": (2, self._kill_daemon),
            "next loads fail": (2, self._next_loads(die_while_loading=True)),
            "next loads are slow": (1, self._next_loads(load_s=2.0)),
            "next loads hang": (1, self._next_loads(never_ready=True)),
            "next core escapes its group": (2, self._next_loads(leave_grandchild=True)),
        }
        self._others: dict[str, tuple[int, Blow]] = {
            "stalled for a while": (4, self._stall),
            "frozen, unloaded by force": (2, self._freeze),
            "unloaded": (3, self._unload),
            "unloaded by force": (2, self._unload_by_force),
            "dies in mid-stream": (3, self._misbehaving(half_stream=4)),
            "error in mid-stream": (2, self._misbehaving(error_in_stream=5)),
            "falls silent, unloaded by force": (1, self._fall_silent),
            "answers 500 for a while": (2, self._misbehaving(error_500=True)),
            "drops requests": (2, self._misbehaving(drop_requests=2)),
            "closes kept connections": (1, self._misbehaving(close_idle=True)),
            "deaf to SIGTERM, unloaded": (1, self._deaf),
            "daemon stopped": (1, self._stop_daemon),
            "daemon upgraded": (3, self._upgrade_daemon),
        }
        blows = self._kills | self._others
        self._blows = list(blows.items())
        self._weights = [weight for weight, _ in blows.values()]

    @property
    def kill_share(self) -> float:
        """How many of all blows are kills, in the long run."""
        return sum(weight for weight, _ in self._kills.values()) / sum(self._weights)

    async def bout(self, seconds: float, pace_s: float) -> None:
        """Strike about every ``pace_s`` seconds."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            await asyncio.sleep(min(self._random.uniform(0.3, 1.7) * pace_s, until - now))
            ((name, (_, blow)),) = self._random.choices(self._blows, self._weights)
            # The draw is the seed's, whatever there is to hit.
            draw = self._random.random()
            await self._strike(name, blow, draw)

    async def settle(self) -> None:
        """Let everything end that is going on, and let the next lives be sound."""
        while self._going_on:
            await asyncio.wait(self._going_on)
        for model in self._world.models:
            self._world.next_life(model)

    async def freeze_one(self) -> Shown | None:
        """Freeze a worker that is ready, and leave it to the daemon to find out. None if there is none."""
        ready = [shown for shown in await self._alive() if shown.state == "READY"]
        if not ready:
            return None
        shown = self._random.choice(ready)
        self.spared.add(shown.model)
        Victim(shown.pid).freeze()
        self._note("frozen until it is found", shown)
        return shown

    # --- striking ------------------------------------------------------------------------------------------------

    async def _strike(self, name: str, blow: Blow, draw: float) -> None:
        alive = [shown for shown in await self._alive() if shown.model not in self.spared]
        if not alive or (self.spared and name.startswith("daemon")):
            return
        shown = alive[int(draw * len(alive))]
        with contextlib.suppress(grpc.RpcError):
            if await blow(shown, Victim(shown.pid)):
                self._note(name, shown)
                self.kills += name in self._kills

    async def _alive(self) -> list[Shown]:
        try:
            return [shown for shown in await self._world.workers() if shown.pid]
        except grpc.RpcError:
            return []

    def _note(self, name: str, shown: Shown) -> None:
        self.struck[name] += 1
        self.history.append(f"{time.monotonic() - self._began_at:7.1f} s  {name}: {shown.model} in {shown.state}")

    def _later(self, work: Awaitable[object]) -> None:
        async def guarded() -> None:
            # The daemon may be killed, or gone, under whoever asks it for something.
            with contextlib.suppress(grpc.RpcError):
                await work

        task = asyncio.create_task(guarded())
        self._going_on.add(task)
        task.add_done_callback(self._going_on.discard)

    # --- blows ---------------------------------------------------------------------------------------------------

    async def _kill_server(self, shown: Shown, victim: Victim) -> bool:
        return victim.kill_leader()

    async def _kill_core(self, shown: Shown, victim: Victim) -> bool:
        return victim.kill_core()

    async def _kill_both(self, shown: Shown, victim: Victim) -> bool:
        return victim.kill_both()

    async def _out_of_memory(self, shown: Shown, victim: Victim) -> bool:
        return victim.run_out_of_memory()

    async def _kill_twice(self, shown: Shown, victim: Victim) -> bool:
        """Its next life too, as soon as it is seen."""

        async def again() -> None:
            deadline = time.monotonic() + 5.0
            while time.monotonic() < deadline:
                for other in await self._alive():
                    if other.model == shown.model and other.pid != shown.pid:
                        self.kills += Victim(other.pid).kill_both()
                        return
                await asyncio.sleep(0.05)

        self._later(again())
        return victim.kill_leader()

    async def _kill_daemon(self, shown: Shown, victim: Victim) -> bool:
        await self._world.kill()
        await self._world.start()
        return True

    async def _stop_daemon(self, shown: Shown, victim: Victim) -> bool:
        """As a service manager does it, with requests in flight."""
        await self._world.stop()
        await self._world.start()
        return True

    async def _upgrade_daemon(self, shown: Shown, victim: Victim) -> bool:
        """With requests in flight, and workers in whatever state they are."""
        await self._world.upgrade()
        return True

    async def _stall(self, shown: Shown, victim: Victim) -> bool:
        stall_s = self._random.uniform(0.2, 3.0)

        async def go_on() -> None:
            await asyncio.sleep(stall_s)
            victim.thaw()

        self._later(go_on())
        return victim.freeze()

    async def _freeze(self, shown: Shown, victim: Victim) -> bool:
        self._later(self._unload_soon(shown, force=True))
        return victim.freeze()

    async def _unload(self, shown: Shown, victim: Victim) -> bool:
        self._later(self._unload_soon(shown, force=False, seconds=0.0))
        return True

    async def _unload_by_force(self, shown: Shown, victim: Victim) -> bool:
        self._later(self._unload_soon(shown, force=True, seconds=0.0))
        return True

    async def _deaf(self, shown: Shown, victim: Victim) -> bool:
        self._later(self._unload_soon(shown, force=True))
        return await self._world.misbehave(victim, shown.model, ignore_term=True)

    async def _fall_silent(self, shown: Shown, victim: Victim) -> bool:
        self._later(self._unload_soon(shown, force=True))
        return await self._world.misbehave(victim, shown.model, hang_stream=3)

    async def _unload_soon(self, shown: Shown, *, force: bool, seconds: float = 1.5) -> None:
        await asyncio.sleep(seconds)
        await self._world.stop_model(shown.model, force=force)

    def _misbehaving(self, **faults: object) -> Blow:
        """For a second or two."""

        async def blow(shown: Shown, victim: Victim) -> bool:
            async def mend() -> None:
                await asyncio.sleep(1.5)
                await self._world.misbehave(victim, shown.model)

            self._later(mend())
            return await self._world.misbehave(victim, shown.model, **faults)

        return blow

    def _next_loads(self, **faults: object) -> Blow:
        """For a few seconds, of this model; the engine that is there is killed, so that there is a next one."""

        async def blow(shown: Shown, victim: Victim) -> bool:
            async def mend() -> None:
                await asyncio.sleep(3.0)
                self._world.next_life(shown.model)

            self._world.next_life(shown.model, **faults)
            self._later(mend())
            return victim.kill_leader()

        return blow
