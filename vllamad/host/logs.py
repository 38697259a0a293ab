"""Log lines (floor 2): one event with fields a line, as text, as JSON, or for systemd's journal.

Everything goes through the standard library's logging, so that libraries are heard too: to standard error, or to the
journal with fields of its own (``journal.py``). Prompts and answers never get here: no part of this house logs them.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TextIO, cast

from vllamad.host.fields import Fields, write_fields
from vllamad.host.journal import JournalHandler, priority

OWN_LOGGERS = ("vllama", "vllamad")
FIELDS = "fields"
"""The attribute of a LogRecord that carries the fields of ``event``."""


class Format(Enum):
    """The form of log lines."""

    TEXT = "text"
    JSON = "json"
    JOURNAL = "journal"


def event(logger: logging.Logger, level: int, name: str, /, **fields: object) -> None:
    """Log one event. ``name`` reads like ``worker.state``; fields follow in the order given; a trailing underscore is
    dropped, for words that Python keeps for itself (``from_=...``)."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", name, extra={FIELDS: {key.rstrip("_"): value for key, value in fields.items()}})


def pick_format(name: str, environ: Mapping[str, str], descriptor: int) -> Format:
    """The form for a setting; "auto" is the journal's if systemd connected ``descriptor`` to it, else text."""
    if name != "auto":
        return Format(name)
    return Format.JOURNAL if _reaches_journal(environ, descriptor) else Format.TEXT


def _reaches_journal(environ: Mapping[str, str], descriptor: int) -> bool:
    # JOURNAL_STREAM is inherited, also by a shell that redirects elsewhere: systemd says to compare device and inode.
    stream = environ.get("JOURNAL_STREAM", "")
    if not stream:
        return False
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def configure(form: Format, level: str, stream: TextIO | None = None) -> None:
    """Send every log line to ``stream`` (standard error) in this form; replaces what was configured before.

    ``level`` is for this house; libraries are heard from WARNING on, with "debug" from INFO on.
    """
    handler: logging.Handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter(form))
    if form is Format.JOURNAL and stream is None:
        handler = JournalHandler(fields_of, handler)
        handler.setFormatter(EntryFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)
    logging.captureWarnings(True)


def set_level(level: str) -> None:
    """Hear from ``level`` on; see ``configure``."""
    own = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(logging.INFO if own <= logging.DEBUG else max(own, logging.WARNING))
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(own)


def add_sink(sink: Callable[[str], None], call_in_loop: Callable[[Callable[[], None]], object]) -> Callable[[], None]:
    """Give every log line also to ``sink``, as text without its time, one call a line: for ``vllamactl logs``.

    Call it in the loop's thread: ``sink`` runs there only, lines of other threads go through ``call_in_loop`` (the
    loop's ``call_soon_threadsafe``). Returns what ends it.
    """
    handler = _SinkHandler(sink, call_in_loop)
    root = logging.getLogger()
    root.addHandler(handler)
    return lambda: root.removeHandler(handler)


def formatter(form: Format) -> logging.Formatter:
    """What writes records in this form."""
    match form:
        case Format.TEXT:
            return TextFormatter()
        case Format.JOURNAL:
            return JournalFormatter()
        case Format.JSON:
            return _json_formatter()


def fields_of(record: logging.LogRecord) -> Fields:
    """What ``event`` was given."""
    return cast("Fields", record.__dict__.get(FIELDS) or {})


class LineFormatter(logging.Formatter):
    """``LEVEL event key=value ...``; a trace follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname} {self.body(record)}"

    def body(self, record: logging.LogRecord) -> str:
        """The event, its fields, and what was raised."""
        text = record.getMessage()
        fields = fields_of(record)
        if fields:
            text += " " + write_fields(fields)
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if record.stack_info:
            text += "\n" + self.formatStack(record.stack_info)
        return text


class TextFormatter(LineFormatter):
    """The same after the time, for people: ``2026-11-03T10:15:00.123+01:00 INFO worker.state from=READY``."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_timestamp(record.created)} {super().format(record)}"


class JournalFormatter(LineFormatter):
    """A syslog priority before every line (see sd-daemon(3)), also those of a trace; the journal has the time."""

    def format(self, record: logging.LogRecord) -> str:
        number = priority(record.levelno)
        return "\n".join(f"<{number}>{line}" for line in self.body(record).split("\n"))


class EntryFormatter(LineFormatter):
    """The message of a record whose priority is a field."""

    def format(self, record: logging.LogRecord) -> str:
        return self.body(record)


def _timestamp(seconds: float) -> str:
    local = time.localtime(seconds)
    zone = time.strftime("%z", local)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", local)
    return f"{whole}.{int(seconds % 1 * 1000):03d}{zone[:3]}:{zone[3:]}"


def _json_formatter() -> logging.Formatter:
    # Imported here: it takes longer than the rest of this module together, and most daemons write text.
    from pythonjsonlogger.json import JsonFormatter

    class EventFormatter(JsonFormatter):
        """One object a line: time, level, logger, event, then the fields, none of which may hide the former."""

        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            fields = cast("Fields", log_data.pop(FIELDS, None) or {})
            for key, value in fields.items():
                log_data[f"{key}_" if key in log_data else key] = _plain(value)
            return log_data

        def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
            return _timestamp(record.created)

    return EventFormatter(
        ["asctime", "levelname", "name", "message"],
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "message": "event"},
        json_ensure_ascii=False,
        json_default=str,
    )


def _plain(value: object) -> object:
    # JSON knows no infinity, and enumerations are for us.
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "forever"
    return value.value if isinstance(value, Enum) else value


class _SinkHandler(logging.Handler):
    """Hands lines to a function in the loop's thread."""

    def __init__(self, sink: Callable[[str], None], call_in_loop: Callable[[Callable[[], None]], object]) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self._sink = sink
        self._call_in_loop = call_in_loop
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record).split("\n")
        if threading.get_ident() == self._thread:
            self._pass_on(lines)
            return
        try:
            self._call_in_loop(lambda: self._pass_on(lines))
        except RuntimeError:
            # The loop is closed: the daemon is ending, and nobody can follow its log any more. It went to stderr.
            return

    def _pass_on(self, lines: list[str]) -> None:
        for line in lines:
            self._sink(line)
