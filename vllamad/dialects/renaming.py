"""The model's name in the bytes of an answer (floor 1): the engine shows the first name that it was started with, the
caller is to see the one that it asked for.

Nothing is parsed. ``"model":"..."`` with bare quotes cannot stand inside a JSON string, where quotes are escaped, so
it is replaced wherever it stands; the names are all that changes.
"""

import orjson


class Renamer:
    """Puts ``asked`` in the place of ``served``, over any cut of the bytes. What could be the beginning of the place,
    at the end of a chunk, waits for the next one: never a whole event, and never more than the place is long."""

    __slots__ = ("_alphabet", "_held", "_new", "_old")

    def __init__(self, served: str, asked: str) -> None:
        self._old = b'"model":' + orjson.dumps(served)
        self._new = b'"model":' + orjson.dumps(asked)
        self._alphabet = frozenset(self._old)
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What of the answer may go on by now."""
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if chunk and chunk[-1] in self._alphabet:  # an event ends in a line feed, an object in a brace
            return self._feed_cut(chunk)
        return chunk.replace(self._old, self._new)

    def flush(self) -> bytes:
        """What waited at the end of the answer."""
        held, self._held = self._held, b""
        return held

    def _feed_cut(self, chunk: bytes) -> bytes:
        *whole, rest = chunk.split(self._old)
        longest = min(len(self._old) - 1, len(rest))
        size = next((size for size in range(longest, 0, -1) if rest.endswith(self._old[:size])), 0)
        if size:
            rest, self._held = rest[:-size], rest[-size:]
        return self._new.join((*whole, rest))
