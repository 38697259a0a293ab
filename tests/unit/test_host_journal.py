"""Records for the journal: what a datagram holds, and that nobody waits for a journal."""

import io
import logging
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllamad.domain.worker import State
from vllamad.host import journal
from vllamad.host.journal import JournalHandler
from vllamad.host.logs import EntryFormatter, Format, event, fields_of, formatter


def read(datagram: bytes) -> dict[str, str]:
    """Undo the protocol: ``NAME=value`` lines, and ``NAME``, a length, and a value that may hold newlines."""
    found: dict[str, str] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        assert name.decode() not in found
        found[name.decode()] = value.decode()
        datagram = rest
    return found


class Journal:
    """A journal of our own, and a logger that writes to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(5)
        self.stderr = io.StringIO()
        otherwise = logging.StreamHandler(self.stderr)
        otherwise.setFormatter(formatter(Format.JOURNAL))
        self.handler = JournalHandler(fields_of, otherwise, self.path)
        self.handler.setFormatter(EntryFormatter())
        self.log = logging.getLogger("vllamad.test_journal")
        self.log.propagate = False
        self.log.setLevel(logging.DEBUG)
        self.log.addHandler(self.handler)

    def entry(self) -> dict[str, str]:
        return read(self.socket.recv(1 << 20))

    def close(self) -> None:
        self.log.removeHandler(self.handler)
        self.log.propagate = True
        self.handler.close()
        self.socket.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made.close()


def test_an_event_has_a_message_for_people_and_fields_for_questions(house: Journal) -> None:
    event(house.log, logging.WARNING, "worker.state", worker="workers/q-1", model="qwen3:0.6b", from_=State.READY)
    assert house.entry() == {
        "MESSAGE": "worker.state worker=workers/q-1 model=qwen3:0.6b from=READY",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "vllamad",
        "LOGGER": "vllamad.test_journal",
        "EVENT": "worker.state",
        "VLLAMA_WORKER": "workers/q-1",
        "WORKER": "workers/q-1",
        "VLLAMA_MODEL": "qwen3:0.6b",
        "MODEL": "qwen3:0.6b",
        "VLLAMA_FROM": "READY",
    }


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"id": "abc-1"}, "REQUEST_ID", "abc-1"),
        ({"total_ms": 12.6}, "DURATION_MS", "13"),
        ({"load_s": 4.25}, "DURATION_MS", "4250"),
    ],
)
def test_what_people_look_for_has_a_name_of_its_own(
    house: Journal, fields: dict[str, object], name: str, value: str
) -> None:
    event(house.log, logging.INFO, "http.request", **fields)
    assert house.entry()[name] == value


def test_what_the_engine_wrote_is_its_own_line_under_its_own_name(house: Journal) -> None:
    line = "(EngineCore pid=7) ERROR 11-26 10:00:00 [core.py:1] out of memory = bad"
    event(house.log, logging.ERROR, "engine.line", model="m:1", text=line)
    seen = house.entry()
    assert (seen["MESSAGE"], seen["SYSLOG_IDENTIFIER"], seen["PRIORITY"]) == (line, "vllama-engine", "3")
    assert (seen["MODEL"], "VLLAMA_TEXT" in seen) == ("m:1", False)


def test_a_trace_is_one_entry(house: Journal) -> None:
    try:
        raise ValueError("two\nlines=here")
    except ValueError:
        house.log.exception("gate.bug waiting=%d", 3)
    seen = house.entry()
    assert seen["EVENT"] == "gate.bug"
    assert seen["MESSAGE"].startswith("gate.bug waiting=3\nTraceback")
    assert seen["MESSAGE"].endswith("ValueError: two\nlines=here")


@pytest.mark.parametrize("text", ["Unclosed connection", "v1.2 is there", "a.b.c", "worker.state, or so"])
def test_only_our_own_events_are_events(house: Journal, text: str) -> None:
    house.log.info(text)
    assert "EVENT" not in house.entry()


def test_a_line_that_is_too_long_is_cut(house: Journal) -> None:
    house.log.info("x" * (1 << 20))
    assert len(house.entry()["MESSAGE"]) == journal.MOST_BYTES


def test_a_journal_that_does_not_keep_up_costs_lines_and_their_number_is_told(house: Journal) -> None:
    for number in range(5000):
        house.log.info("line %d", number)
    house.socket.settimeout(0)
    got = 0
    with pytest.raises(BlockingIOError):
        while True:
            house.socket.recv(1 << 16)
            got += 1
    house.socket.settimeout(5)
    assert 0 < got < 5000
    house.log.info("there again")
    told, after = house.entry(), house.entry()
    assert (told["EVENT"], told["VLLAMA_LINES"], told["PRIORITY"]) == ("journal.lost", str(5000 - got), "4")
    assert after["MESSAGE"] == "there again"
    assert house.stderr.getvalue() == ""


def test_without_a_journal_lines_go_to_standard_error_with_their_priority(house: Journal) -> None:
    house.path.unlink()
    event(house.log, logging.ERROR, "store.damaged", model="m:1")
    assert house.stderr.getvalue() == "<3>store.damaged model=m:1\n"
