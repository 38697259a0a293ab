"""Signals (floor 2): the first SIGTERM or SIGINT stops in good order, the second hurries, and none is lost; SIGHUP asks
for the configuration to be read anew."""

import asyncio
import logging
import signal
from collections.abc import Callable

from vllamad.host.logs import event

_LOG = logging.getLogger(__name__)
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
HANDLED = (*_STOP_SIGNALS, signal.SIGHUP)
"""What would end this process if nobody handled it."""


class Signals:
    """Listens while it is installed. ``on_stop`` is called once, ``on_hurry`` with every stop signal after that: it
    shortens every deadline to zero and skips no step. Both get the signal's name. ``on_reload`` is called with every
    SIGHUP, stopping or not. All run in the loop's thread."""

    def __init__(
        self, on_stop: Callable[[str], None], on_hurry: Callable[[str], None], on_reload: Callable[[], None]
    ) -> None:
        self._on_stop = on_stop
        self._on_hurry = on_hurry
        self._on_reload = on_reload
        self._is_stopping = False

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to listen; from the main thread, as Python wants it."""
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._stop, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        # A predecessor in this process has them wait for us (``succession.py``).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def remove(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop to listen; the signals have Python's default effect again."""
        for number in HANDLED:
            loop.remove_signal_handler(number)

    def _stop(self, name: str) -> None:
        if self._is_stopping:
            event(_LOG, logging.WARNING, "daemon.hurry", signal=name, text="every deadline is now")
            self._on_hurry(name)
            return
        self._is_stopping = True
        event(_LOG, logging.INFO, "daemon.stop", signal=name)
        self._on_stop(name)
