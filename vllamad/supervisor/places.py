"""A placement as others need it (floor 3): for the engine, and for people."""

from vllamad.domain.budget import Ledger
from vllamad.domain.placement import Placement
from vllamad.domain.ports import EnginePlace
from vllamad.supervisor.memory import DeviceMemory

MEMORY_LIMIT_PART = 4
MEMORY_LIMIT_SLACK_BYTES = 512 << 20
"""A worker on CPU that takes a quarter and half a GiB more than was reserved for it is out of bounds: the kernel ends
it then, where it has a control group, before the machine has no memory left for anyone."""


def engine_place(memory: DeviceMemory, placement: Placement) -> EnginePlace:
    """What the engine may use there."""
    devices = [memory.ledger.devices[index] for index in placement.devices]
    if any(device.is_cpu for device in devices):
        limit = placement.device_bytes + placement.device_bytes // MEMORY_LIMIT_PART + MEMORY_LIMIT_SLACK_BYTES
        return EnginePlace(cache_bytes=placement.cache_bytes, host_limit_bytes=limit)
    share = placement.device_bytes / max(device.total_bytes for device in devices)
    return EnginePlace(tuple(memory.key(device.index) for device in devices), share, placement.cache_bytes)


def names_of(ledger: Ledger, placement: Placement) -> str:
    """``cpu``, or ``gpu 0,1``: the ledger's names of its devices in small letters, their kind once."""
    names = [ledger.devices[index].name.lower() for index in placement.devices]
    kind = names[0].partition(" ")[0]
    numbers = ",".join(name.partition(" ")[2] for name in names)
    return f"{kind} {numbers}".strip()
