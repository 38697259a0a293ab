"""Log lines of an acceptor (floor 4): they become the daemon's, in its form, and are in its ``vllamactl logs``."""

import logging
import threading
from collections.abc import Callable
from enum import Enum

from vllamad.acceptors.messages import Logged
from vllamad.host.logs import FIELDS, fields_of

_formatter = logging.Formatter()


class ToDaemon(logging.Handler):
    """Sends each line. Made in the loop's thread, where ``send`` is called; lines of other threads go through
    ``call_in_loop``."""

    def __init__(self, send: Callable[[Logged], None], call_in_loop: Callable[[Callable[[], None]], object]) -> None:
        super().__init__()
        self._send = send
        self._call_in_loop = call_in_loop
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        line = to_message(record)
        if threading.get_ident() == self._thread:
            self._send(line)
        else:
            self._call_in_loop(lambda: self._send(line))


def to_message(record: logging.LogRecord) -> Logged:
    """What is sent of a record."""
    return Logged(
        created=record.created,
        level=record.levelno,
        logger=record.name,
        text=record.getMessage(),
        fields={key: _plain(value) for key, value in fields_of(record).items()},
        trace=_formatter.formatException(record.exc_info) if record.exc_info else "",
    )


def write(line: Logged) -> None:
    """Put a line into this process's own log, as if it had been logged here at its time."""
    logger = logging.getLogger(line.logger)
    if not logger.isEnabledFor(line.level):
        return
    record = logger.makeRecord(line.logger, line.level, "", 0, line.text, (), None, extra={FIELDS: line.fields})
    record.created = line.created
    record.stack_info = line.trace or None
    logger.handle(record)


def _plain(value: object) -> str | int | float | bool | None:
    if isinstance(value, Enum):
        return _plain(value.value)
    return value if isinstance(value, str | int | float | None) else str(value)
