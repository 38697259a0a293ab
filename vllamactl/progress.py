"""What long work looks like while it runs (floor 4): a bar or a spinner on a terminal, a line per phase elsewhere."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from vllama.control.v1.operations_pb2 import Operation, Progress
from vllamactl import human
from vllamactl.console import CYAN, DIM, Console
from vllamactl.render import cut

TICK_S = 0.1
SPEED_WINDOW_S = 5.0
"""Speed is taken over this long: less jumps about, more lags behind a network that changed."""

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_SPINNER = "|/-\\"
_BAR_MIN, _BAR_MAX = 8, 30


class Meter:
    """Bytes per second over the last seconds. Bytes that were there at the first look (a resumed pull) do not count."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, completed: int) -> None:
        if self._samples and completed < self._samples[-1][1]:
            self._samples.clear()  # a new phase counts from nothing
        self._samples.append((now, completed))
        while len(self._samples) > 2 and now - self._samples[0][0] > SPEED_WINDOW_S:
            self._samples.popleft()

    @property
    def speed(self) -> float:
        """Bytes per second; 0 while unknown."""
        if len(self._samples) < 2:
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0


def bar(fraction: float, width: int, is_unicode: bool) -> tuple[str, str]:
    """Return the done and the open part of a bar."""
    full = round(max(0.0, min(1.0, fraction)) * width)
    done, rest = ("━", "─") if is_unicode else ("#", "-")
    return done * full, rest * (width - full)


class LiveLine:
    """One line at the bottom of stderr that is drawn again and again; nothing where stderr is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_on = console.can_draw and not (console.is_quiet or console.is_json)
        self._is_drawn = False
        self._frame = 0

    def draw(self, text: Callable[[str, int], str]) -> None:
        """Draw what ``text`` makes of a spinner's frame and the width."""
        if not self._is_on:
            return
        frames = _SPINNER if self._console.is_unicode else _PLAIN_SPINNER
        self._frame = (self._frame + 1) % len(frames)
        # Three columns stay free: a full line makes some terminals scroll, and they echo Ctrl-C as ^C.
        line = text(frames[self._frame], self._console.err_width - 3)
        hide = "" if self._is_drawn else "\x1b[?25l"
        self._console.err.write(f"{hide}\r{line}\x1b[K")
        self._console.err.flush()
        self._is_drawn = True

    def clear(self) -> None:
        if self._is_drawn:
            self._console.err.write("\r\x1b[K\x1b[?25h")
            self._console.err.flush()
            self._is_drawn = False


class ProgressView:
    """Shows the progress of one piece of work. ``verb`` and ``subject`` as in "pulling smollm2:135m"."""

    def __init__(self, console: Console, verb: str, subject: str) -> None:
        self._console = console
        self._line = LiveLine(console)
        self._title = f"{verb} {subject}"
        self._progress = Progress()
        self._meter = Meter()
        self._said = ""
        self._is_stopped = False

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator["ProgressView", None]:
        """Keep the line moving until the block ends; then it is gone."""
        ticking = asyncio.create_task(self._tick())  # a spinner moves also while no news comes
        try:
            yield self
        finally:
            ticking.cancel()
            self._line.clear()

    def update(self, progress: Progress) -> None:
        self._progress = progress
        if progress.total_bytes:
            self._meter.add(time.monotonic(), progress.completed_bytes)
        if not self._console.is_err_terminal and progress.phase and progress.phase != self._said:
            self._said = progress.phase
            self._console.say(f"{self._title}: {progress.phase}", "→")
        self._line.draw(self._text)

    def stop(self) -> None:
        """Take the line away for good: what was waited for is there."""
        self._is_stopped = True
        self._line.clear()

    async def _tick(self) -> None:
        while not self._is_stopped:
            self._line.draw(self._text)
            await asyncio.sleep(TICK_S)

    def _text(self, frame: str, width: int) -> str:
        progress, console = self._progress, self._console
        if progress.total_bytes:
            fraction = progress.completed_bytes / progress.total_bytes
            return self._with_bar(fraction, byte_facts(progress, self._meter.speed), width)
        if progress.fraction:
            return self._with_bar(progress.fraction, f"{progress.fraction * 100:.0f} %  {progress.phase}", width)
        words = f"{self._title}: {progress.phase}" if progress.phase else self._title
        if progress.detail:
            words += f" {progress.detail}"
        return console.paint_err(frame, CYAN) + " " + cut(words, width - 2)

    def _with_bar(self, fraction: float, facts: str, width: int) -> str:
        room = width - len(self._title) - len(facts) - 4
        if room < _BAR_MIN:
            return cut(f"{self._title}  {facts}", width)
        done, rest = bar(fraction, min(room, _BAR_MAX), self._console.is_unicode)
        paint = self._console.paint_err
        return f"{self._title}  {paint(done, CYAN)}{paint(rest, DIM)}  {facts}"


def byte_facts(progress: Progress, speed: float) -> str:
    """Return "45 %  121 MB/270 MB  12 MB/s  12 s left"; the phase instead of a speed where nothing flows."""
    done, total = progress.completed_bytes, progress.total_bytes
    facts = f"{min(100, done * 100 // total):3d} %  {human.size(done)}/{human.size(total)}"
    if progress.phase and progress.phase != "downloading":
        return f"{facts}  {progress.phase}"
    if speed > 0 and done < total:
        facts += f"  {human.size(int(speed))}/s  {human.short_span(max(1, round((total - done) / speed)))} left"
    return facts


def outcome(operation: Operation) -> str:
    """Return " (270 MB in 12 s)" for an operation that ended well."""
    took = operation.end_time.ToMilliseconds() - operation.create_time.ToMilliseconds()
    parts = [human.size(operation.progress.total_bytes)] if operation.progress.total_bytes else []
    if took > 0:
        parts.append(f"in {human.short_span(took / 1000)}")
    return f" ({' '.join(parts)})" if parts else ""
