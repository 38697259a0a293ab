"""Which way of reading weights to take (floor 1): each one once, then whichever was quickest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loader:
    """A way in which the engine can read a model's weights. ``name`` is the engine's own, "" for what it does when it
    is told nothing; ``version`` is of all that it was made of: what was seen of it holds for that."""

    name: str
    version: str

    @property
    def key(self) -> str:
        """What it is remembered by."""
        return f"{self.name or 'default'} {self.version}"


Seen = Mapping[str, float | None]
"""By ``Loader.key``: the seconds that it took the last time, None if the engine did not start with it."""


def choose(loaders: Sequence[Loader], seen: Seen) -> Loader:
    """The one to load with. ``loaders`` has the engine's own first: it is the one that is known to work, and the last
    one left. By the newest time and not the least: one that became slow gives way to another, and takes its turn again
    when that one does."""
    for loader in loaders:
        if loader.key not in seen:
            return loader
    times = [(seconds, place) for place, one in enumerate(loaders) if (seconds := seen[one.key]) is not None]
    return loaders[min(times)[1]] if times else loaders[0]
