"""Server-sent events, incrementally (floor 1): bytes in any cut, payloads out.

The engine writes whole ``data: {...}`` events, nearly always one or a few per read, so that case is a split. Everything
that the standard allows beside it (CR and CRLF ends, comments, several data lines per event) takes the slower way.
An event counts when its blank line has arrived; what is left without one is never delivered.
"""

import re

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""An event larger than this is a fault of the engine; the largest real ones (token ids of a million-token prompt) are
an eighth of it."""

# Atomic, so that a CRLF is never read as two ends of line.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_END_OF_LINE = re.compile(rb"\r\n|\n|\r")


class EventParser:
    """Collects the bytes of one stream. Payloads of several data lines are joined by a line feed."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the payloads of the events that ``chunk`` completes, in order; comments and other fields are dropped.

        Raises INTERNAL if an event outgrows ``MAX_EVENT_BYTES``.
        """
        data = self._tail + chunk if self._tail else chunk
        if b"\r" in data:
            return self._feed_any_ends(data)
        whole, blank, self._tail = data.rpartition(b"\n\n")
        if not blank:
            self._check_tail()
            return []
        payloads: list[bytes] = []
        for event in whole.split(b"\n\n"):
            if event.startswith(b"data: ") and b"\n" not in event:
                payloads.append(event[6:])
            else:
                _collect(event.split(b"\n"), payloads)
        return payloads

    @property
    def has_rest(self) -> bool:
        """True if the stream stands inside an event: an end here is a break."""
        return bool(self._tail.strip(b"\r\n"))

    def _feed_any_ends(self, data: bytes) -> list[bytes]:
        payloads: list[bytes] = []
        start = 0
        for blank in _BLANK_LINE.finditer(data):
            _collect(_END_OF_LINE.split(data[start : blank.start()]), payloads)
            start = blank.end()
        self._tail = data[start:]
        self._check_tail()
        return payloads

    def _check_tail(self) -> None:
        if len(self._tail) > MAX_EVENT_BYTES:
            raise VllamaError(
                Reason.INTERNAL,
                f"cannot read the engine's answer: an event is larger than {MAX_EVENT_BYTES} bytes",
                "report it with the log of the worker",
            )


def _collect(lines: list[bytes], payloads: list[bytes]) -> None:
    parts: list[bytes] = []
    for line in lines:
        if line.startswith(b"data:"):
            parts.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            parts.append(b"")
    if parts:
        payloads.append(b"\n".join(parts))
