"""What a bench looks like while it runs (floor 4): a bar on a terminal, and a line for each turn that is over."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from vllamactl.bench.answers import Exchange
from vllamactl.bench.figures import Limits, Played, figures
from vllamactl.bench.report import rate, seconds
from vllamactl.console import CYAN, DIM, Console
from vllamactl.progress import TICK_S, LiveLine, bar
from vllamactl.render import cut

_BAR_WIDTH = 24


class BenchView:
    """Told of every answer that is over. It draws ten times a second and not for each answer: the process that draws
    is the one that measures."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = LiveLine(console)
        self._title = ""
        self._total = 0
        self._over = 0
        self._failed = 0

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator[None, None]:
        """Keep the line moving until the block ends; then it is gone."""
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            self._line.clear()

    def begin(self, title: str, total: int) -> None:
        self._title, self._total, self._over, self._failed = title, total, 0, 0

    def note(self, exchange: Exchange) -> None:
        """A request is over. Whether its answer is whole is not known yet: nothing is read while the clock runs."""
        self._over += 1
        self._failed += exchange.fault is not None or exchange.status != 200

    def end(self, title: str, played: Played) -> None:
        """Say what came of a turn."""
        found = figures([played], Limits())
        failed = f", {found.failed} failed" if found.failed else ""
        self.say(
            f"{title}: {found.answered} answered{failed} in {seconds(found.duration_s)}, "
            f"{rate(found.tokens_per_s)} tokens/s"
        )

    def say(self, text: str) -> None:
        """Say something that stays, above the line that moves."""
        self._line.clear()
        self._console.say(text, "→")

    async def _tick(self) -> None:
        while True:
            self._line.draw(self.text)
            await asyncio.sleep(TICK_S)

    def text(self, frame: str, width: int) -> str:
        """The line, at most so wide."""
        paint = self._console.paint_err
        facts = f"{self._over}/{self._total}" + (f", {self._failed} failed" if self._failed else "")
        room = width - len(self._title) - len(facts) - 6
        if room < 8 or not self._total:
            return paint(frame, CYAN) + " " + cut(f"{self._title}  {facts}", width - 2)
        done, rest = bar(self._over / self._total, min(room, _BAR_WIDTH), self._console.is_unicode)
        return f"{paint(frame, CYAN)} {self._title}  {paint(done, CYAN)}{paint(rest, DIM)}  {facts}"
