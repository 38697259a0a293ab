"""Reading the configuration anew while the daemon serves (floor 3).

Wishes come from people, who wait for the answer, and from SIGHUP. They are fulfilled one after the other by one task:
two that overlap would apply what neither has read. Everything that can fail is done first, then one synchronous step
puts the new configuration in the place of the old one; a reload that fails has changed nothing.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vllama.reasons import Reason
from vllamad.config.difference import difference, taken_over
from vllamad.config.loaded import Change, Loaded
from vllamad.config.rows import Effect
from vllamad.domain.errors import VllamaError
from vllamad.host.logs import event
from vllamad.models.reconciling import Consequence

log = logging.getLogger("vllamad.config")

READ_S = 20.0
"""A disk that does not answer for so long holds up no other reload."""


class House(Protocol):
    """What is configured."""

    @property
    def in_force(self) -> Loaded: ...

    def foresee(self, then: Loaded) -> tuple[Consequence, ...]:
        """What ``then`` would mean for models that are loaded. Changes nothing."""
        ...

    def take_over(self, then: Loaded, consequences: Sequence[Consequence]) -> None:
        """Put ``then`` in force. Must not fail, and must not wait."""
        ...

    async def settle(self) -> None:
        """What has to be reckoned anew after that, and can wait."""
        ...


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did, or would do. Of ``changes`` those that need a restart are not in force."""

    changes: tuple[Change, ...]
    consequences: tuple[Consequence, ...]
    warnings: tuple[str, ...]
    is_dry_run: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    is_dry_run: bool
    future: asyncio.Future[Reloaded]
    is_signal: bool = False


class Reloading:
    """``read`` reads the whole configuration, blocking; ``begin`` and ``end`` are told of every reload that is no dry
    run, as the service manager wants to know."""

    def __init__(
        self, read: Callable[[], Loaded], house: House, begin: Callable[[], None], end: Callable[[], None]
    ) -> None:
        self._read = read
        self._house = house
        self._begin = begin
        self._end = end
        self._wishes: deque[_Wish] = deque()
        self._came = asyncio.Event()
        self._is_closed = False

    # --- wishes --------------------------------------------------------------------------------------------------

    async def reload(self, *, is_dry_run: bool = False) -> Reloaded:
        """Read the configuration and take over what can be; return when it is in force. With ``is_dry_run`` only say
        what would happen. A second call waits for the first and reads again: the files may have changed meanwhile. A
        call that is cancelled before its turn is dropped. Raises CONFIG_INVALID, DRAINING, DEADLINE_EXCEEDED (the files
        cannot be read); nothing has changed then."""
        return await self._wish(is_dry_run, is_signal=False).future

    def hang_up(self) -> None:
        """SIGHUP came. One that waits already reads what this one was sent for."""
        if self._is_closed:
            event(log, logging.WARNING, "config.refused", why="the daemon is stopping")
        elif not any(wish.is_signal for wish in self._wishes):
            wish = self._wish(is_dry_run=False, is_signal=True)
            # Nobody waits for it: the log tells how it went.
            wish.future.add_done_callback(lambda future: future.cancelled() or future.exception())

    def close(self) -> None:
        """Refuse every wish from now on, those that wait included."""
        self._is_closed = True
        while self._wishes:
            _answer(self._wishes.popleft().future, _draining())

    def _wish(self, is_dry_run: bool, is_signal: bool) -> _Wish:
        if self._is_closed:
            raise _draining()
        wish = _Wish(is_dry_run, asyncio.get_running_loop().create_future(), is_signal)
        self._wishes.append(wish)
        self._came.set()
        return wish

    # --- fulfilling ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The branch of the daemon's tree that fulfils them; runs until cancelled."""
        while True:
            await self._came.wait()
            self._came.clear()
            while self._wishes:
                await self._fulfil(self._wishes.popleft())

    async def _fulfil(self, wish: _Wish) -> None:
        if wish.future.cancelled():
            return
        try:
            outcome: Reloaded | VllamaError = await self._try(wish.is_dry_run)
        except VllamaError as error:
            outcome = error
            if not wish.is_dry_run:
                event(log, logging.ERROR, "config.unchanged", reason=error.reason, error=error.message, hint=error.hint)
        _answer(wish.future, outcome)

    async def _try(self, is_dry_run: bool) -> Reloaded:
        if is_dry_run:
            return await self._reload(is_dry_run=True)
        self._begin()
        try:
            return await self._reload(is_dry_run=False)
        finally:
            if not self._is_closed:
                self._end()

    async def _reload(self, *, is_dry_run: bool) -> Reloaded:
        try:
            async with asyncio.timeout(READ_S):
                read = await asyncio.to_thread(self._read)
        except TimeoutError:
            raise VllamaError(
                Reason.DEADLINE_EXCEEDED,
                f"cannot reload the configuration: its files were not read within {READ_S:.0f} s",
                "look at the disk that they lie on; nothing has changed",
            ) from None
        except VllamaError as error:
            raise VllamaError(
                error.reason,
                error.message.replace("cannot load", "cannot reload", 1),
                "nothing has changed: correct it, then run: vllamactl reload",
                **error.facts,
            ) from error
        if self._is_closed:
            raise _draining()
        # From here to the swap nothing else runs: what was foreseen is what happens.
        changes = difference(self._house.in_force, read)
        then = taken_over(self._house.in_force, read)
        consequences = self._house.foresee(then)
        outcome = Reloaded(changes, consequences, read.warnings, is_dry_run)
        if not is_dry_run:
            self._house.take_over(then, consequences)
            _tell(outcome)
            await self._house.settle()
        return outcome


def _tell(outcome: Reloaded) -> None:
    for warning in outcome.warnings:
        event(log, logging.WARNING, "config.warning", text=warning)
    for one in outcome.changes:
        facts = {"note": one.note} if one.note else {}
        values: dict[str, object] = {"key": one.key, "from_": one.before, "to": one.after, "source": one.source}
        event(log, logging.INFO, "config.changed", **values, effect=one.effect, **facts)
    for one in outcome.consequences:
        event(log, logging.INFO, "config.model", model=one.model, what=one.what, text=one.text)
    waiting = sum(one.effect is Effect.AT_RESTART for one in outcome.changes)
    event(log, logging.INFO, "config.reloaded", changes=len(outcome.changes), need_restart=waiting)


def _answer(future: asyncio.Future[Reloaded], outcome: Reloaded | VllamaError) -> None:
    if future.done():
        return  # whoever asked has left
    if isinstance(outcome, VllamaError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _draining() -> VllamaError:
    return VllamaError(
        Reason.DRAINING,
        "cannot reload the configuration: the daemon is stopping",
        "it reads the configuration when it starts again",
    )
