"""What the engine's log says about the memory that it took (floor 2).

Lines were taken from vLLM 0.32. They are prose and may change: a line that is not known says nothing, and then the
estimate stands.
"""

import re

from vllamad.domain.ports import Taken

_WEIGHTS = re.compile(r"Model loading took (?P<gib>[\d.]+) GiB memory")
"""Of one device; engines on CPU do not say it."""
_CACHE = re.compile(r"KV cache size: (?P<tokens>[\d,]+) tokens")


def read_taken(line: str) -> Taken | None:
    """What a line says about memory that was taken; None for every other line."""
    if match := _CACHE.search(line):
        return Taken(cache_tokens=int(match["tokens"].replace(",", "")))
    if match := _WEIGHTS.search(line):
        return Taken(weights_bytes=int(float(match["gib"]) * (1 << 30)))
    return None
