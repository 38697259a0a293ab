"""How the fake engine sleeps: vLLM 0.32's development routes, with what they really do.

Asleep it takes requests and answers none of them, says 200 to /health, and believes a second call. What is not read
again after level 2 is nonsense. Unlike vLLM it lets answers that have begun come to their end.
"""

import asyncio
from typing import Any
from urllib.parse import parse_qs

from engine_answers import Refused

TAGS = frozenset({"weights", "kv_cache"})
NONSENSE = "!"
"""What vLLM makes of weights that are all zero: token 0 of most vocabularies."""


class Sleep:
    """The switch. ``is_nonsense`` tells whether there is anything in the weights' memory but what lay there."""

    def __init__(self) -> None:
        self.level = 0
        self.asleep: set[str] = set()
        self.awake = asyncio.Event()
        self.awake.set()
        self.is_nonsense = False

    @property
    def awake_share(self) -> float:
        """The part of its memory that it has not given up."""
        return 1 - len(self.asleep) / len(TAGS)

    def fall_asleep(self, query: str, *, fails: bool) -> dict[str, Any]:
        level = _level(parse_qs(query).get("level", ["1"])[-1])
        self.awake.clear()  # first of all, so that it takes no requests either when the rest fails
        if fails:
            raise failed("sleep", "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:163")
        if level and not self.asleep:
            self.level, self.asleep = level, set(TAGS)
            self.is_nonsense = self.is_nonsense or level == 2
        return {"status": "sleeping", "level": level}

    def wake(self, query: str, *, fails: bool) -> dict[str, Any]:
        tags = parse_qs(query).get("tags")
        if fails and self.asleep:
            raise failed("wake_up", "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:163")
        if tags is None or set(tags) <= self.asleep:
            self.asleep -= set(tags or TAGS)
        if not self.asleep:
            self.level = 0
            self.awake.set()
        return {"status": "sleeping" if self.asleep else "awake", "tags": tags}

    def collective(self, body: dict[str, Any], *, spoils: bool) -> dict[str, Any]:
        method = body.get("method")
        if method is None:
            raise Refused(400, "Missing 'method' in request body", "Bad Request")
        if method != "reload_weights":
            raise failed("collective_rpc", f"Method {method!r} is not implemented.")
        if "weights" in self.asleep:
            raise failed("collective_rpc", "CUDA error: an illegal memory access was encountered")
        self.is_nonsense = spoils
        return {"results": [None]}


def _level(text: str) -> int:
    if text not in {"0", "1", "2"}:
        detail = f"1 validation error:\n  {{'type': 'less_than_equal', 'loc': 'query.level', 'input': {text!r}}}"
        raise Refused(400, detail, "Bad Request", "query.level")
    return int(text)


def failed(method: str, why: str) -> Refused:
    """What its core could not do."""
    return Refused(500, f"Call to {method} method failed: {why}", "InternalServerError")
