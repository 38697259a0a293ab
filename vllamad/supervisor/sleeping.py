"""Who sleeps instead of being stopped (floor 3): what models have been through, and the ladder's answer for each.

The rules are in ``domain/ladder.py``; here is what they are asked with. Costs and failures are remembered for models,
over the ends of their workers.
"""

from collections.abc import Collection, Mapping, Sequence

from vllamad.domain.ladder import (
    Choice,
    Costs,
    Life,
    Rules,
    Rung,
    Sleeper,
    descend,
    estimated_costs,
    host_needs,
    relieve,
)
from vllamad.domain.placement import Placement
from vllamad.domain.workload import Wanted
from vllamad.supervisor.memory import HOST, DeviceMemory


class Ladder:
    """Keeps costs and lives by the keys of models."""

    def __init__(self, memory: DeviceMemory, rules: Rules) -> None:
        self.rules = rules
        self._memory = memory
        self._costs: dict[str, Costs] = {}
        self._lives: dict[str, Life] = {}

    def choose(self, sleeper: Sleeper) -> Choice:
        """Where an idle worker goes that has to give up its devices."""
        host_free = self._memory.ledger.free(HOST) if HOST in self._memory.ledger.devices else 0
        return descend(sleeper, host_free, self.rules)

    def sleeper(self, holder: str, wanted: Wanted, devices: int, rung: Rung, idle_s: float) -> Sleeper:
        """The picture of a worker that is on a rung, or resident."""
        return Sleeper(
            holder,
            wanted.name,
            self._cost_of(wanted, devices),
            self._host_bytes(wanted),
            rung=rung,
            life=self._lives.get(wanted.key, Life()),
            devices=devices,
            can_reload=wanted.can_reload,
            idle_s=idle_s,
        )

    def relieve(self, sleepers: Sequence[Sleeper], leaving: Collection[str]) -> tuple[Choice, ...]:
        """Who is stopped because others took of the host what is held for those who sleep. ``leaving`` are holders that
        give back what they hold anyway."""
        excess = self._memory.ledger.without(leaving).excess(HOST)
        return relieve(sleepers, excess) if excess else ()

    def small_on(self, wanted: Wanted, rung: Rung, placement: Placement, seen: Mapping[int, int]) -> dict[int, int]:
        """What it holds asleep: as it was ``seen`` on its devices, else as it was estimated; reckoned in the host."""
        on_devices = {index: seen.get(index, wanted.left_bytes) for index in placement.devices}
        return on_devices | {HOST: self._host_bytes(wanted)[rung]}

    def woke(self, wanted: Wanted, devices: int, rung: Rung, seconds: float) -> None:
        """It came back from a rung, after so long."""
        self._costs[wanted.key] = self._cost_of(wanted, devices).after(rung, seconds)
        self._lives[wanted.key] = self._lives.get(wanted.key, Life()).woken()

    def failed(self, wanted: Wanted, rung: Rung) -> None:
        """It did not fall asleep, or did not come back as it was."""
        self._lives[wanted.key] = self._lives.get(wanted.key, Life()).failed(rung)

    def loaded(self, wanted: Wanted, devices: int, seconds: float) -> None:
        """It came up by a whole start: a process that has not slept yet."""
        if self.rules.is_on:
            self._costs[wanted.key] = self._cost_of(wanted, devices).after(Rung.STOPPED, seconds)
            self._lives[wanted.key] = self._lives.get(wanted.key, Life()).restarted()

    def _host_bytes(self, wanted: Wanted) -> Mapping[Rung, int]:
        return host_needs(wanted.weights_bytes, wanted.host_bytes)

    def _cost_of(self, wanted: Wanted, devices: int) -> Costs:
        return self._costs.get(wanted.key) or estimated_costs(wanted.weights_bytes, devices)
