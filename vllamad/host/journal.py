"""Records for systemd's journal, with fields of their own (floor 2).

The protocol is the journal's native one (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/): one datagram a record, a field a
line. Nothing here waits: a journal that does not keep up costs lines, whose number is told, and no answer of a model.
"""

import logging
import re
import socket
import struct
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

from vllamad.host.fields import Fields

SOCKET = Path("/run/systemd/journal/socket")

IDENTIFIER = "vllamad"
ENGINE_IDENTIFIER = "vllama-engine"
"""What the engine wrote is told from what we say: ``journalctl -t vllama-engine``."""

ENGINE_EVENT = "engine.line"

MOST_BYTES = 64 << 10
"""A message is cut here. Larger datagrams than some 200 kB would have to go by a file in memory; no line of ours is
meant to be that long, and a trace that is says what it has to say before."""

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

_NAMES: Mapping[str, str] = {"model": "MODEL", "worker": "WORKER", "id": "REQUEST_ID"}
"""Fields that people look for. Every field is there as ``VLLAMA_...`` as well, which nobody else writes."""

_DURATIONS: Mapping[str, float] = {"total_ms": 1.0, "duration_ms": 1.0, "load_s": 1000.0}
"""Fields that say how long the event took, and what makes milliseconds of them."""

_EVENT = re.compile(r"[a-z_]+\.[a-z_]+(?![^\s:])")


def priority(level: int) -> int:
    """The syslog priority of a level of ``logging``."""
    return next((number for least, number in _PRIORITIES if level >= least), 7)


def entry(event: str, text: str, level: int, logger: str, fields: Fields) -> bytes:
    """The datagram of one record. ``text`` is what people read; of the engine's lines it is the line alone."""
    is_engine = event == ENGINE_EVENT
    message = str(fields.get("text", "")) if is_engine else text
    named: list[tuple[str, str]] = [
        ("MESSAGE", message),
        ("PRIORITY", str(priority(level))),
        ("SYSLOG_IDENTIFIER", ENGINE_IDENTIFIER if is_engine else IDENTIFIER),
        ("LOGGER", logger),
    ]
    if event:
        named.append(("EVENT", event))
    for key, value in fields.items():
        if value is None or (is_engine and key == "text"):
            continue
        shown = str(value.value if isinstance(value, Enum) else value)
        named.append((f"VLLAMA_{key.upper()}", shown))
        if key in _NAMES:
            named.append((_NAMES[key], shown))
        if key in _DURATIONS and isinstance(value, int | float):
            named.append(("DURATION_MS", f"{value * _DURATIONS[key]:.0f}"))
    return b"".join(_field(name, value) for name, value in named)


def _event(record: logging.LogRecord) -> str:
    """What our own lines begin with; "" for those of libraries."""
    found = _EVENT.match(record.getMessage()) if record.name.startswith("vllama") else None
    return found[0] if found else ""


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")[:MOST_BYTES]
    if b"\n" in data:
        # With its length before it, a value may hold anything.
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


class JournalHandler(logging.Handler):
    """Sends records to the journal. ``fields_of`` gives a record's fields; ``otherwise`` gets what cannot be sent
    because no journal listens."""

    def __init__(
        self, fields_of: Callable[[logging.LogRecord], Fields], otherwise: logging.Handler, path: Path = SOCKET
    ) -> None:
        super().__init__()
        self._fields_of = fields_of
        self._otherwise = otherwise
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises and never waits."""
        fields = self._fields_of(record)
        sent = entry(_event(record), self.format(record), record.levelno, record.name, fields)
        try:
            if self._lost:
                # Before the first line that gets through again, so that the gap is where it was.
                told = f"journal.lost lines={self._lost}: the journal did not keep up"
                self._socket.sendto(
                    entry("journal.lost", told, logging.WARNING, __name__, {"lines": self._lost}), self._path
                )
                self._lost = 0
            self._socket.sendto(sent, self._path)
        except BlockingIOError:
            self._lost += 1
        except OSError:  # no journal, or one that restarts: standard error is read by whoever started us
            self._otherwise.handle(record)

    def close(self) -> None:
        """Give up the socket."""
        self._socket.close()
        super().close()
