"""The service manager (floor 2): systemd's notification protocol, see sd_notify(3).

The only module that knows sdnotify. Without NOTIFY_SOCKET every call is a no-op.
"""

import math
import os
import socket
import time
from collections.abc import Mapping
from typing import Protocol

_LONGEST_EXTENSION_S = 86_400.0  # systemd takes no infinity here; whoever waits longer says so again


class _Sender(Protocol):
    socket: socket.socket | None

    def notify(self, state: str) -> None: ...


class SystemdNotifier:
    """Fills the port ``Notifier``. A message that cannot be sent is lost silently: sdnotify's way, and right, since
    the daemon has to work the same without a service manager."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._sender: _Sender | None = None
        if environ.get("NOTIFY_SOCKET"):
            from sdnotify import SystemdNotifier as Sender

            # It reads NOTIFY_SOCKET of the process by itself, and leaks a socket if there is none.
            self._sender = Sender()
            if self._sender.socket is not None:
                # The kernel keeps about ten unread messages; the next one would block the event loop for as long as
                # the manager is busy. Then it is rather lost: a newer STATUS follows, and READY is the first of all.
                self._sender.socket.setblocking(False)

    @property
    def is_connected(self) -> bool:
        """True if a service manager listens."""
        return self._sender is not None

    def ready(self, status: str) -> None:
        """Both faces serve, or serve on after a reload."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, text: str) -> None:
        """One line on what is going on; ``systemctl status`` shows it."""
        self._send(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        """The configuration is being read anew; ``ready`` ends it, however it went."""
        # The instant tells the manager that this is about the reload that it asked for, not an earlier one.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """On the way out."""
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """The current phase (start, stop) needs up to this much longer, counted from now."""
        micros = math.ceil(min(max(seconds, 0.0), _LONGEST_EXTENSION_S) * 1_000_000)
        self._send(f"EXTEND_TIMEOUT_USEC={micros}")

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Hang up; later calls are no-ops. The end of the process does the same."""
        if self._sender is not None and self._sender.socket is not None:
            self._sender.socket.close()
        self._sender = None

    def _send(self, *assignments: str) -> None:
        if self._sender is not None:
            # sdnotify 0.3.2 encodes as Latin-1 and drops what does not fit; systemd reads UTF-8. This carries it over.
            self._sender.notify("\n".join(assignments).encode().decode("latin-1"))


def _line(text: str) -> str:
    return " ".join(text.split())


def watchdog_interval_s(environ: Mapping[str, str], pid: int | None = None) -> float | None:
    """How often to call ``watchdog``: half of what systemd allows; None if it does not watch this process."""
    watched = environ.get("WATCHDOG_PID", "")
    if watched and watched != str(os.getpid() if pid is None else pid):
        return None
    micros = environ.get("WATCHDOG_USEC", "")
    return int(micros) / 2_000_000 if micros.isdecimal() and int(micros) > 0 else None
