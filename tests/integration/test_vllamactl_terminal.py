"""vllamactl on a terminal: the pull bar, Ctrl-C, and the interactive chat, over a real pty and the real entry."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.control_server import ControlServer, failure
from vllama.control.v1.inference_pb2 import ChatResponse, Finish
from vllama.control.v1.operations_pb2 import Progress
from vllama.reasons import Reason

DEADLINE_S = 15.0
CTRL_C, CTRL_D, ENTER = "\x03", "\x04", "\r"
TOTAL = 270_900_000
OPEN_TERMINAL = 'exec "$@" <"$0" >"$0" 2>"$0"'


class Terminal:
    """A program on a terminal of 80 columns. ``seen`` is all that it wrote."""

    def __init__(self, server: ControlServer, folder: Path, *arguments: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        # The shell opens the terminal as a session leader, so it becomes the one whose Ctrl-C is a signal.
        self.process = subprocess.Popen(
            ["sh", "-c", OPEN_TERMINAL, os.ttyname(slave), sys.executable, "-m", "vllamactl", *arguments],
            start_new_session=True,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "XDG_STATE_HOME": str(folder / "state"),
                "VLLAMA_SOCKET": str(server.socket),
                "TERM": "xterm",
                "LANG": "C.UTF-8",
                "PROMPT_TOOLKIT_NO_CPR": "1",
                **env,
            },
            cwd=Path(__file__).resolve().parents[2],
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str, after: int = 0) -> int:
        """Read until ``text`` was written behind position ``after``; returns the position behind it."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self.seen.find(text, after)) < 0:
            assert time.monotonic() < deadline, f"waited for {text!r}, saw {self.seen[after:]!r}"
            assert self._read(), f"it ended without {text!r}, saw {self.seen[after:]!r}"
        return found + len(text)

    def end(self) -> int:
        """Read the rest and return the exit status."""
        while self._read():
            pass
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        os.close(self._master)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], DEADLINE_S)[0]:
            return False
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # the last holder of the other side is gone
            return False
        self.seen += chunk.decode(errors="replace")
        return bool(chunk)


Start = Callable[..., Terminal]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ctl") as name:
        yield Path(name)


@pytest.fixture
def server(folder: Path) -> Iterator[ControlServer]:
    with ControlServer(folder / "d.sock") as running:
        yield running


@pytest.fixture
def start(server: ControlServer, folder: Path) -> Iterator[Start]:
    started: list[Terminal] = []

    def run(*arguments: str, **env: str) -> Terminal:
        started.append(Terminal(server, folder, *arguments, **env))
        return started[-1]

    yield run
    for terminal in started:
        terminal.close()


def downloading(completed: int) -> Progress:
    return Progress(phase="downloading", completed_bytes=completed, total_bytes=TOTAL)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_pull_draws_a_bar_and_leaves_one_line(start: Start, server: ControlServer) -> None:
    server.answers.script.steps = [Progress(phase="resolving"), *(downloading(TOTAL * n // 10) for n in range(11))]
    server.answers.script.step_s = 0.03
    terminal = start("pull", "qwen3:0.6b")
    assert terminal.end() == 0
    drawn = plain(terminal.seen).split("\r")
    full = [line for line in drawn if "MB/s" in line]
    assert full, terminal.seen
    assert re.fullmatch(r"pulling qwen3:0.6b  ━+─+  +\d+ %  [\d.]+ [KM]?B/271 MB  [\d.]+ [MG]B/s  \d+ s left", full[0])
    assert all(len(line) <= 80 for line in drawn)
    assert drawn[-2].endswith("✓ pulled qwen3:0.6b (271 MB in 12 s)")
    assert terminal.seen.count("\x1b[?25l") == terminal.seen.count("\x1b[?25h") == 1
    assert "\x1b[36m" in terminal.seen


def test_no_color_means_none(start: Start, server: ControlServer) -> None:
    server.answers.script.steps = [downloading(5), downloading(TOTAL)]
    terminal = start("pull", "qwen3:0.6b", NO_COLOR="1")
    assert terminal.end() == 0
    assert "━" in terminal.seen
    assert not re.search(r"\x1b\[\d*m", terminal.seen)


def test_ctrl_c_cancels_a_pull(start: Start, server: ControlServer) -> None:
    server.answers.script.steps = [downloading(TOTAL // 2)]
    server.answers.script.holds = True
    terminal = start("pull", "qwen3:0.6b")
    terminal.expect("50 %")
    assert server.held.wait(DEADLINE_S)
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert "✗ pulling qwen3:0.6b was cancelled" in plain(terminal.seen)
    assert server.answers.script.cancelled.is_set()
    assert all(request.only_if_unwatched for request in server.requests("CancelOperation"))
    assert "\x1b[?25h" in terminal.seen


def test_ctrl_c_leaves_a_pull_that_others_watch(start: Start, server: ControlServer) -> None:
    server.answers.script.steps = [downloading(TOTAL // 2)]
    server.answers.script.holds = True
    server.answers.script.strangers = 1
    terminal = start("pull", "qwen3:0.6b")
    assert server.held.wait(DEADLINE_S)
    terminal.expect("50 %")
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert "goes on: someone else watches it (operations/7)" in plain(terminal.seen)
    assert not server.answers.script.cancelled.is_set()


def test_ctrl_c_stops_waiting_for_a_stop_only(start: Start, server: ControlServer) -> None:
    server.answers.script.holds = True
    terminal = start("stop", "smollm2:135m")
    assert server.held.wait(DEADLINE_S)
    terminal.expect("working")
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert server.requests("CancelOperation") == []


def test_ctrl_c_ends_following_logs(start: Start, server: ControlServer) -> None:
    terminal = start("logs", "-f")
    assert server.held.wait(DEADLINE_S)
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert server.left.wait(DEADLINE_S)
    assert "Traceback" not in terminal.seen


def test_an_answer_cannot_drive_the_terminal(start: Start, server: ControlServer) -> None:
    server.answers.chat = [ChatResponse(text="a\x1b[2Jb\x07c\n"), ChatResponse(finish=Finish(reason="stop"))]
    terminal = start("run", "smollm2:135m", "x", TERM="dumb")
    terminal.expect("c\r\n")
    assert terminal.end() == 0
    assert terminal.seen == "a[2Jbc\r\n"


PROMPT = ">>> "
END = ChatResponse(finish=Finish(reason="stop", completion_tokens=3))


def test_a_chat(start: Start, server: ControlServer, folder: Path) -> None:
    server.answers.chat = [ChatResponse(thinking="hm"), ChatResponse(text="Paris."), END]
    terminal = start("run", "smollm2:135m")
    at = terminal.expect(PROMPT, terminal.expect("loaded smollm2:135m"))
    terminal.type("capital?" + ENTER)
    at = terminal.expect("Thinking...", at)
    at = terminal.expect("...done thinking.", at)
    at = terminal.expect("Paris.", at)
    at = terminal.expect(PROMPT, at)
    terminal.type('"""two' + ENTER)
    at = terminal.expect("...", at)
    terminal.type('lines"""' + ENTER)
    at = terminal.expect(PROMPT, terminal.expect("Paris.", at))
    for line, expected in (
        ("/set system be brief", "set system"),
        ("/set parameter seed 7", "set parameter seed"),
        ("/set verbose", "set verbose"),
        ("/show parameters", "seed    7"),
        ("/show system", "be brief"),
        ("/show info", "architecture"),
        ("/nonsense", "there is no such command"),
        ("/?", "/bye, /exit"),
        ("/set parameter seed x", "is not a whole number"),
        ("it's what?", "eval count:"),
        ("/clear", "forgot what was said"),
        ("again", "eval count:"),
    ):
        terminal.type(line + ENTER)
        at = terminal.expect(PROMPT, terminal.expect(expected, terminal.expect(line, at)))
    terminal.type(CTRL_C)
    at = terminal.expect(PROMPT, terminal.expect("Use Ctrl-D or /bye to leave.", at))
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    said = [[message.content for message in request.messages] for request in server.requests("Chat")]
    assert said == [
        ["capital?"],
        ["capital?", "Paris.", "two\nlines"],
        ["be brief", "capital?", "Paris.", "two\nlines", "Paris.", "it's what?"],
        ["be brief", "again"],
    ]
    assert server.requests("Chat")[-1].options.seed == 7
    history = folder / "state" / "vllama" / "history"
    assert "+capital?" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(start: Start, server: ControlServer) -> None:
    server.answers.chat = [ChatResponse(text="Once upon"), ChatResponse(text=" a time")]
    server.answers.chat_holds_after = 1
    terminal = start("run", "smollm2:135m")
    at = terminal.expect(PROMPT, terminal.expect("loaded smollm2:135m"))
    terminal.type("tell" + ENTER)
    at = terminal.expect("Once upon", at)
    assert server.held.wait(DEADLINE_S)
    terminal.type(CTRL_C)
    assert server.left.wait(DEADLINE_S), "the daemon was not told that the caller left"
    at = terminal.expect(PROMPT, at)
    server.answers.chat_holds_after = None
    server.answers.chat = [ChatResponse(text="yes"), END]
    terminal.type("more" + ENTER)
    at = terminal.expect(PROMPT, terminal.expect("yes", at))
    terminal.type("/bye" + ENTER)
    assert terminal.end() == 0
    assert [message.content for message in server.requests("Chat")[1].messages] == ["tell", "Once upon", "more"]


def test_a_failed_turn_does_not_end_the_chat(start: Start, server: ControlServer) -> None:
    server.answers.errors["Chat"] = failure(Reason.ENGINE_DIED, "cannot answer: the engine ended", "ask again")
    terminal = start("run", "smollm2:135m")
    at = terminal.expect(PROMPT, terminal.expect("loaded smollm2:135m"))
    terminal.type("x" + ENTER)
    at = terminal.expect(PROMPT, terminal.expect("hint: ask again", at))
    server.answers.errors.clear()
    server.answers.script.failure = failure(Reason.WONT_FIT, "cannot start smollm2:135m: too big")
    terminal.type("/load smollm2:135m" + ENTER)
    at = terminal.expect(PROMPT, terminal.expect("vllamactl: cannot start smollm2:135m: too big", at))
    terminal.type(CTRL_D)
    assert terminal.end() == 0
