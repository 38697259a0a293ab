"""Log lines in their three forms, and the lines that vllamactl logs follows."""

import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllamad.domain.worker import State
from vllamad.host.fields import write_value
from vllamad.host.logs import Format, add_sink, configure, event, formatter, pick_format

LOG = logging.getLogger("vllamad.test")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    own = {name: logging.getLogger(name).level for name in ("vllama", "vllamad")}
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in own.items():
        logging.getLogger(name).setLevel(before)


def written(form: Format, write: Callable[[], None], level: str = "debug") -> str:
    stream = io.StringIO()
    configure(form, level, stream)
    write()
    return stream.getvalue()


def drain() -> None:
    event(LOG, logging.INFO, "worker.state", worker="qwen3-1", from_=State.READY, to=State.DRAINING, idle_s=312.0)


def trouble() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        LOG.exception("it broke: %s", "here")


def test_text_is_time_level_event_and_fields() -> None:
    line = written(Format.TEXT, drain)
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"
    assert re.fullmatch(rf"{stamp} INFO worker.state worker=qwen3-1 from=READY to=DRAINING idle_s=312\n", line)


def test_text_shows_the_trace() -> None:
    text = written(Format.TEXT, trouble)
    assert " ERROR it broke: here\nTraceback" in text
    assert text.endswith("ValueError: two\nlines\n")


def test_journal_lines_have_their_priority_and_no_time() -> None:
    assert written(Format.JOURNAL, drain) == "<6>worker.state worker=qwen3-1 from=READY to=DRAINING idle_s=312\n"


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_journal_priorities_are_syslogs(level: int, priority: int) -> None:
    assert written(Format.JOURNAL, lambda: LOG.log(level, "x")) == f"<{priority}>x\n"


def test_every_line_of_a_trace_has_the_priority() -> None:
    lines = written(Format.JOURNAL, trouble).splitlines()
    assert len(lines) > 4
    assert all(line.startswith("<3>") for line in lines)


def test_json_is_one_object_a_line() -> None:
    line = written(Format.JSON, drain)
    assert line.count("\n") == 1
    found = json.loads(line)
    assert re.match(r"\d{4}-\d\d-\d\dT", found.pop("time"))
    assert list(found.items()) == [
        ("level", "INFO"),
        ("logger", "vllamad.test"),
        ("event", "worker.state"),
        ("worker", "qwen3-1"),
        ("from", "READY"),
        ("to", "DRAINING"),
        ("idle_s", 312.0),
    ]


def test_json_fields_hide_nothing_and_are_always_json() -> None:
    def write() -> None:
        event(LOG, logging.INFO, "e", level="x", event="y", path=Path("/a"), end_s=float("inf"), none=None, text="→\n")

    found = json.loads(written(Format.JSON, write), parse_constant=pytest.fail)
    assert (found["level"], found["event"], found["logger"]) == ("INFO", "e", "vllamad.test")
    assert (found["level_"], found["event_"], found["path"], found["end_s"]) == ("x", "y", "/a", "forever")
    assert (found["none"], found["text"]) == (None, "→\n")


def test_json_keeps_the_trace_in_the_object() -> None:
    text = written(Format.JSON, trouble)
    assert text.count("\n") == 1
    assert "ValueError: two\nlines" in json.loads(text)["exc_info"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b', '"a\\"b"'),
        ("a=b", '"a=b"'),
        ("a\nb", '"a\\nb"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("größer", "größer"),
        (None, "-"),
        (True, "true"),
        (3, "3"),
        (3.0, "3"),
        (0.12345, "0.123"),
        (float("inf"), "forever"),
        (State.READY, "READY"),
        (Path("/a/b"), "/a/b"),
    ],
)
def test_values_stay_on_their_line_and_can_be_told_apart(value: object, text: str) -> None:
    assert write_value(value) == text


def test_level_is_for_us_and_libraries_are_heard_from_warning_on() -> None:
    def write() -> None:
        for name in ("vllamad.x", "library"):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger(name).log(level, "%s", name)

    def heard(level: str) -> list[str]:
        return written(Format.JOURNAL, write, level).splitlines()

    assert heard("info") == ["<6>vllamad.x", "<4>vllamad.x", "<4>library"]
    assert heard("debug") == ["<7>vllamad.x", "<6>vllamad.x", "<4>vllamad.x", "<6>library", "<4>library"]
    assert heard("error") == []


def test_configuring_again_replaces_what_was() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(Format.TEXT, "info", first)
    configure(Format.JOURNAL, "info", second)
    drain()
    assert first.getvalue() == ""
    assert second.getvalue().count("worker.state") == 1


def test_auto_is_the_journal_only_if_this_very_stream_goes_there(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        found = os.fstat(stream.fileno())
        ours = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        other = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"}
        assert pick_format("auto", ours, stream.fileno()) is Format.JOURNAL
        assert pick_format("auto", other, stream.fileno()) is Format.TEXT
        assert pick_format("auto", {}, stream.fileno()) is Format.TEXT
        assert pick_format("json", ours, stream.fileno()) is Format.JSON
        descriptor = stream.fileno()
    assert pick_format("auto", ours, descriptor) is Format.TEXT


def test_a_sink_gets_every_line_in_the_loops_thread() -> None:
    configure(Format.TEXT, "info", io.StringIO())
    lines: list[str] = []
    handed_over: list[Callable[[], None]] = []
    end = add_sink(lines.append, handed_over.append)
    drain()
    thread = threading.Thread(target=trouble)
    thread.start()
    thread.join()
    assert lines == ["INFO worker.state worker=qwen3-1 from=READY to=DRAINING idle_s=312"]
    handed_over[0]()
    assert lines[1] == "ERROR it broke: here"
    assert lines[-2:] == ["ValueError: two", "lines"]
    end()
    drain()
    assert lines[-1] == "lines"


def test_a_line_of_a_thread_after_the_loops_end_is_dropped_from_the_sink_only() -> None:
    stream = io.StringIO()
    configure(Format.TEXT, "info", stream)

    def closed(_call: Callable[[], None]) -> None:
        raise RuntimeError("Event loop is closed")

    end = add_sink(pytest.fail, closed)
    thread = threading.Thread(target=drain)
    thread.start()
    thread.join()
    end()
    assert "worker.state" in stream.getvalue()


def test_a_silent_level_costs_no_fields() -> None:
    logging.getLogger("vllamad").setLevel(logging.INFO)

    class Costly:
        def __str__(self) -> str:
            return pytest.fail("was written")

    assert written(Format.TEXT, lambda: event(LOG, logging.DEBUG, "x", field=Costly()), "info") == ""


def test_the_json_library_is_imported_only_for_json() -> None:
    import subprocess

    program = "import sys, vllamad.host.logs as l; l.formatter(l.Format.TEXT); print('pythonjsonlogger' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "False"
    assert formatter(Format.JSON).__class__.__module__ == "vllamad.host.logs"
