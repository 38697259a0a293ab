"""What is looked at all the time, not only when it is quiet: the daemon answers, no engine is without its worker, no
model has two."""

import asyncio
import time
from collections import defaultdict

import grpc

from tests.soak.checks import Checks
from tests.soak.victims import Seen
from tests.soak.world import World

INTERVAL_S = 1.0
ORPHAN_S = 8.0
"""How long a tree may be seen that no worker claims: one that has just ended, or that is about to be shown."""


class Watch:
    """Runs until cancelled."""

    def __init__(self, world: World, checks: Checks) -> None:
        self._world = world
        self._checks = checks
        self._unclaimed: dict[bytes, float] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self._look()

    async def _look(self) -> None:
        began = time.monotonic()
        status, text = await self._world.health()
        try:
            claimed = {shown.pid for shown in await self._world.workers()}
        except grpc.RpcError as error:
            claimed = None
            text = f"{text}, control: {error!r}"
        if self._world.was_away_between(began, time.monotonic()):
            self._unclaimed.clear()
            return
        is_there = status in {200, 503} and claimed is not None
        self._checks.that(is_there, "the daemon answers within 5 s", f"{status} {text}")
        trees: dict[bytes, list[Seen]] = defaultdict(list)
        for seen in await asyncio.to_thread(self._world.processes):
            trees[seen.marker].append(seen)
        if self._world.was_away_between(began, time.monotonic()):
            return
        self._check_twins(trees)
        self._check_orphans(trees, claimed or set())

    def _check_twins(self, trees: dict[bytes, list[Seen]]) -> None:
        models: dict[bytes, set[bytes]] = defaultdict(set)
        for marker, members in trees.items():
            for seen in members:
                words = seen.command.split(b"\0")
                if b"--uds" in words:
                    models[words[words.index(b"--model") + 1]].add(marker)
        twins = {model: markers for model, markers in models.items() if len(markers) > 1}
        self._checks.that(not twins, "no model has two engines", twins)

    def _check_orphans(self, trees: dict[bytes, list[Seen]], claimed: set[int]) -> None:
        now = time.monotonic()
        unclaimed = [marker for marker, members in trees.items() if not claimed & {seen.pid for seen in members}]
        self._unclaimed = {marker: self._unclaimed.get(marker, now) for marker in unclaimed}
        old = [trees[marker] for marker, since in self._unclaimed.items() if now - since > ORPHAN_S]
        self._checks.that(not old, "no orphans", old)
