"""How a daemon leaves in good order (floor 5): for ever, or for another one that goes on with what is loaded."""

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Any, Protocol

from vllama import __version__
from vllama.reasons import Reason
from vllamad.control.server import ControlServer
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import Handover
from vllamad.domain.operation import Operation, OperationKind
from vllamad.domain.ports import Clock, Notifier
from vllamad.domain.worker import Kind, State
from vllamad.gate.gate import Gate
from vllamad.host.logs import event
from vllamad.models.restoring import Restoring
from vllamad.models.taking_over import TakingOver
from vllamad.operations.registry import Operations
from vllamad.operations.reloading import Reloading
from vllamad.operations.upgrading import Upgrading
from vllamad.supervisor.supervisor import Supervisor

log = logging.getLogger("vllamad.daemon")

CONTROL_GRACE_S = 2.0
TELLING_S = 0.5
"""For those who are told that it took too long, to write that to their clients."""
SETTLING_S = 30.0
"""An engine that was asked to end gets 20 s for it, one that is to be forked waits 15 s for the zygote at most."""
SETTLING_LOOK_S = 0.05


class HttpFace(Protocol):
    """The HTTP face, in one process or in several."""

    def hand_over(self) -> tuple[int, ...]: ...
    async def stop_listening(self) -> None: ...
    async def let_go(self) -> None: ...
    async def quiet(self, seconds: float) -> bool: ...
    async def close(self) -> None: ...


class Departure:
    """``stop`` is set when somebody asks the daemon to stop."""

    def __init__(
        self,
        gate: Gate,
        supervisor: Supervisor,
        operations: Operations,
        restoring: Restoring,
        reloading: Reloading,
        upgrading: Upgrading,
        taking_over: TakingOver,
        http: HttpFace,
        control: ControlServer,
        notifier: Notifier,
        clock: Clock,
        stop: asyncio.Event,
    ) -> None:
        self._gate = gate
        self._supervisor = supervisor
        self._operations = operations
        self._restoring = restoring
        self._reloading = reloading
        self._upgrading = upgrading
        self._taking_over = taking_over
        self._http = http
        self._control = control
        self._notifier = notifier
        self._clock = clock
        self._stop = stop

    # --- for ever ------------------------------------------------------------------------------------------------

    async def shut_down(self, drain_s: float, longest_s: float) -> None:
        """End everything: requests in flight get ``drain_s`` seconds, and all of it is done after ``longest_s``."""
        self._reloading.close()
        self._upgrading.close()
        self._restoring.stop()
        self._notifier.stopping()
        self._notifier.extend(longest_s + CONTROL_GRACE_S)
        await self._http.stop_listening()
        await self._http.let_go()
        await self._control.drain()
        self._gate.close()
        await self._operations.close()
        await self._taking_over.give_up()
        await self._supervisor.stop_all(drain_s)
        await self._control.stop(CONTROL_GRACE_S)
        await self._http.close()
        event(log, logging.INFO, "daemon.stopped")

    # --- for another one -----------------------------------------------------------------------------------------

    async def hand_over(self, drain_s: float, *, count: int, bound_to: str) -> Handover | None:
        """Leave without ending what is loaded: everybody who is here is served to the end, or told after ``drain_s``
        seconds; whoever comes waits in the sockets. None, and all as it was but for the faces, if somebody asks to stop
        meanwhile. The locks in it are the caller's to add."""
        requests = self._gate.active + self._gate.waiting
        event(log, logging.INFO, "daemon.upgrade", drain_s=drain_s, requests=requests)
        self._reloading.close()
        left_at, sockets = self._clock.now(), self._http.hand_over()
        await self._http.stop_listening()
        await self._http.let_go()
        is_finished = await self._unless_stopped(self._finished(drain_s))
        # Before anybody is turned away: what waits to be loaded again is among those, and is the successor's to load.
        await self._restoring.note()
        self._restoring.stop()
        if not is_finished and not self._stop.is_set():
            await self._break_off(drain_s)
        # Whoever had not come so far is told to ask again, and granted nothing that would be lost.
        self._gate.close()
        pulls = self._running(OperationKind.PULL)
        if not self._stop.is_set():
            await self._operations.close(
                "the daemon is being upgraded: its successor goes on with a pull by itself, ask again for all else"
            )
        await self._unless_stopped(self._gone(left_at + drain_s))
        await self._unless_stopped(self._settled())
        if self._stop.is_set():
            for descriptor in sockets:
                os.close(descriptor)
            return None
        self._notifier.reloading()
        workers = self._supervisor.hand_over()
        await self._control.drain()
        await self._control.stop(TELLING_S)
        await self._http.close()
        return Handover(
            version=__version__,
            count=count,
            left_at=left_at,
            http=sockets,
            bound_to=bound_to,
            locks={},
            workers=workers,
            pulls=tuple(one.model for one in pulls),
        )

    async def _finished(self, seconds: float) -> bool:
        """True once nobody is served or waits, and no model is being made: nobody goes on with that."""
        try:
            async with asyncio.timeout(seconds):
                while not await self._gate.quiet(seconds) or self._running(OperationKind.CREATE):  # noqa: ASYNC110
                    await asyncio.sleep(SETTLING_LOOK_S)
        except TimeoutError:
            return False
        return True

    async def _gone(self, deadline: float) -> bool:
        """True once every answer has been read by its client, and what clients upload has been read by us."""
        left_s = max(TELLING_S, deadline - self._clock.now())
        if not await self._gate.quiet(left_s):  # one that was granted in the moment before the gate closed
            self._supervisor.break_off(_late())
        return await self._http.quiet(max(TELLING_S, deadline - self._clock.now()))

    def _running(self, kind: OperationKind) -> list[Operation]:
        return [one for one in self._operations.list() if one.kind is kind and not one.is_done]

    async def _break_off(self, drain_s: float) -> None:
        self._gate.close()
        self._supervisor.break_off(_late(f", and did not wait for longer than {drain_s:g} s"))
        await self._gate.quiet(TELLING_S)

    async def _settled(self) -> bool:
        """Give workers that are on their way somewhere the time to arrive: what is not at rest cannot go on."""
        for handle in self._supervisor.handles():
            if handle.state is State.BACKOFF:
                handle.post(Kind.STOP)
        try:
            async with asyncio.timeout(SETTLING_S):
                # Not told of: a worker that is to be forked gets its process without a change of its state.
                while not self._supervisor.is_settled:  # noqa: ASYNC110
                    await asyncio.sleep(SETTLING_LOOK_S)
        except TimeoutError:
            return False
        return True

    async def _unless_stopped(self, work: Coroutine[Any, Any, bool]) -> bool:
        """The outcome of ``work``; False as soon as somebody asks to stop."""
        stop, working = asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(work)
        try:
            await asyncio.wait({stop, working}, return_when=asyncio.FIRST_COMPLETED)
            return working.done() and working.result()
        finally:
            stop.cancel()
            working.cancel()


def _late(why: str = "") -> VllamaError:
    return VllamaError(Reason.DRAINING, f"the daemon is being upgraded{why}", "ask again")
