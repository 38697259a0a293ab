"""Which GPUs workers can see (floor 2): ``CUDA_VISIBLE_DEVICES`` as CUDA reads it.

The rule of this house: GPUs are numbered by PCI bus, as NVML numbers them, and a number in the variable means that
number. CUDA numbers so only if a worker has ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` in its environment; by default it begins
with the fastest, which is another order where GPUs differ.
"""

import re
from collections.abc import Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"

_NUMBER = re.compile(r"\+?(\d+)")


def visible_positions(value: str | None, uuids: Sequence[str]) -> list[int]:
    """Positions in ``uuids`` (all GPUs, by PCI bus) that ``value`` lets a worker see, in its order; all if it is None.

    As CUDA does (what PyTorch found by trying, ``_parse_visible_devices`` of torch 2.5): the list ends at the first
    entry that means no GPU, so "" and "-1" hide all; the same GPU twice hides all; the first entry decides whether all
    are numbers or identifiers; an identifier may be cut short while it means one GPU. Slices ("MIG-...") mean none of
    these: they are no whole GPUs.
    """
    if value is None:
        return list(range(len(uuids)))
    entries = [entry.strip() for entry in value.split(",")]
    meaning = _by_uuid if entries[0].startswith("GPU-") else _by_number
    found: list[int] = []
    for entry in entries:
        position = meaning(entry, uuids)
        if position is None:
            break
        found.append(position)
    return found if len(set(found)) == len(found) else []


def _by_uuid(entry: str, uuids: Sequence[str]) -> int | None:
    fitting = [position for position, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
    return fitting[0] if len(fitting) == 1 else None


def _by_number(entry: str, uuids: Sequence[str]) -> int | None:
    # CUDA reads numbers as C does: what follows the digits does not matter.
    number = _NUMBER.match(entry)
    return int(number[1]) if number and int(number[1]) < len(uuids) else None
