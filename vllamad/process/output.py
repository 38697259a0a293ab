"""What a child writes: bytes from a pipe into lines, and the last lines for whoever asks (floor 2).

``PipeReader`` empties a pipe for ever, so that no child ever blocks on its own log; ``LineRing`` keeps the newest
lines and feeds followers. Everything here runs in the event loop's thread and waits for nothing.
"""

import asyncio
import contextlib
import os
import re
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable

from vllamad.domain.ports import OutputLine

READ_BYTES = 64 * 1024
"""One read per turn of the loop and pipe: a child that shouts slows itself down, not the loop."""

MAX_LINE_BYTES = 8 * 1024
"""What is longer is cut: vLLM prints whole configurations, and a binary blob may have no end of line at all."""

DRAIN_BYTES = 1024 * 1024
"""At most this much is read at once when the writer has ended: as much as a pipe can be told to hold."""

_LINE_END = re.compile(rb"[\r\n]")
# Colours, and control characters that would move a terminal's cursor: log lines are shown on terminals.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b-\x1f\x7f]")


class LineSplitter:
    """Bytes in, complete lines out. A carriage return ends a line too (progress bars redraw with it); blank lines and
    terminal controls are dropped, invalid UTF-8 is replaced, long lines are cut and end in an ellipsis."""

    def __init__(self, longest_bytes: int = MAX_LINE_BYTES, rest: bytes = b"") -> None:
        self._longest_bytes = longest_bytes
        self._rest = rest
        self._is_cutting = False

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes; return the lines that they complete."""
        *ends, self._rest = _LINE_END.split(self._rest + data)
        lines = [text for part in ends if (text := self._finish(part))]
        if len(self._rest) > self._longest_bytes:
            if not self._is_cutting and (text := self._decode(self._rest)):
                lines.append(text)
            self._rest, self._is_cutting = b"", True
        return lines

    @property
    def rest(self) -> bytes:
        """The beginning of a line that was fed already."""
        return self._rest

    def end(self) -> list[str]:
        """Return what was written without an end of line."""
        part, self._rest = self._rest, b""
        text = self._finish(part)
        return [text] if text else []

    def _finish(self, part: bytes) -> str:
        if self._is_cutting:
            self._is_cutting = False
            return ""
        return self._decode(part)

    def _decode(self, part: bytes) -> str:
        text = _CONTROL.sub("", part[: self._longest_bytes].decode("utf-8", "replace")).rstrip()
        return f"{text} …" if len(part) > self._longest_bytes else text


class PipeReader:
    """Reads the read end of a pipe by the event loop and hands on lines; owns the descriptor."""

    def __init__(
        self,
        descriptor: int,
        on_line: Callable[[str], None],
        longest_line_bytes: int = MAX_LINE_BYTES,
        unfinished: bytes = b"",
    ) -> None:
        os.set_blocking(descriptor, False)
        self.longest_line_bytes = longest_line_bytes
        self._descriptor = descriptor
        self._on_line = on_line
        self._splitter = LineSplitter(longest_line_bytes, unfinished)
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        self._loop.add_reader(descriptor, self._read)

    def drain(self) -> None:
        """Hand on what is in the pipe now, without waiting for more."""
        left = DRAIN_BYTES
        while self._is_open and left > 0 and (count := self._read()):
            left -= count

    def close(self) -> None:
        """Drain, then stop reading, even if some process still holds the other end."""
        self.drain()
        self._end()

    def let_go(self) -> tuple[int, bytes]:
        """Read no more; return the descriptor (-1 if the writers have closed their end) and the beginning of a line
        that was read already. The descriptor is the caller's."""
        if not self._is_open:
            return -1, b""
        self._is_open = False
        self._loop.remove_reader(self._descriptor)
        return self._descriptor, self._splitter.rest

    def _read(self) -> int:
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._end()
            return 0
        self._hand_on(self._splitter.feed(data))
        return len(data)

    def _end(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._hand_on(self._splitter.end())

    def _hand_on(self, lines: list[str]) -> None:
        for line in lines:
            self._on_line(line)


class LineRing:
    """The newest ``capacity`` lines of a worker, numbered from 1 over all its incarnations. Fills ``OutputRing``."""

    def __init__(
        self, capacity: int = 1000, follower_capacity: int = 1000, time: Callable[[], float] = time.time
    ) -> None:
        self._lines: deque[OutputLine] = deque(maxlen=capacity)
        self._follower_capacity = follower_capacity
        self._time = time
        self._number = 0
        # Weak: a follower that was dropped without a word (its stream was cancelled) leaves by itself.
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()

    def append(self, text: str) -> OutputLine:
        """Keep a line and pass it to every follower."""
        self._number += 1
        line = OutputLine(self._number, self._time(), text)
        self._lines.append(line)
        for follower in tuple(self._followers):
            follower.push(line)
        return line

    def restore(self, lines: Iterable[OutputLine]) -> None:
        """Go on behind lines that an earlier ring kept, numbers included; those that are here already are not doubled:
        workers of one model share a ring, and each brings it along."""
        self._lines.extend(line for line in lines if line.number > self._number)
        self._number = max([self._number, *(line.number for line in self._lines)])

    def tail(self, count: int) -> list[OutputLine]:
        """The newest lines, oldest first; all that are kept if ``count`` is negative."""
        lines = list(self._lines)
        if count < 0:
            return lines
        return lines[-count:] if count else []

    def follow(self) -> "Follower":
        """Every line from this call on (not from the first ``anext``), so that ``tail`` and ``follow`` called together
        leave no gap."""
        follower = Follower(self._follower_capacity)
        self._followers.add(follower)
        return follower


class Follower:
    """One reader of a ring, with a bounded queue: when it is full the oldest line goes, visible by the numbers."""

    def __init__(self, capacity: int) -> None:
        self._queue: deque[OutputLine] = deque(maxlen=capacity)
        self._arrived = asyncio.Event()

    def push(self, line: OutputLine) -> None:
        """Called by the ring."""
        self._queue.append(line)
        self._arrived.set()

    def __aiter__(self) -> "Follower":
        return self

    async def __anext__(self) -> OutputLine:
        while True:
            with contextlib.suppress(IndexError):
                return self._queue.popleft()
            self._arrived.clear()
            await self._arrived.wait()
