"""The daemon's end of a channel (floor 4): what an acceptor asks is answered by the catalogue and the gate.

They decide about its requests as about any others. What an acceptor holds, it holds by its channel: when that is lost,
everything is given back.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vllama.reasons import Reason
from vllamad.acceptors.messages import (
    Ask,
    Broken,
    Done,
    Failure,
    Find,
    Found,
    FromDaemon,
    Granted,
    Over,
    Refused,
    Suspect,
    Unload,
)
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model

log = logging.getLogger("vllamad.acceptors")

Asked = Find | Ask | Over | Suspect | Unload


class HeldLease(Protocol):
    """A lease that is held for somebody else, see ``supervisor.lease.Lease``."""

    @property
    def model(self) -> Model: ...
    @property
    def socket(self) -> Path: ...
    @property
    def engine_name(self) -> str: ...
    @property
    def fast_path(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    @property
    def load_ns(self) -> int: ...
    @property
    def waited_ns(self) -> int: ...
    @property
    def suspect(self) -> Callable[[], None]: ...
    def watch(self, on_broken: Callable[[VllamaError], None]) -> None: ...


class Catalog(Protocol):
    """Names to models."""

    def resolve(self, name: str) -> Model: ...


class Gate(Protocol):
    """Admission."""

    def lease(
        self, model: Model, *, keep_alive_s: float | None = None, caller: str = ""
    ) -> AbstractAsyncContextManager[HeldLease, bool | None]: ...
    def set_keep_alive(self, model: Model, keep_alive_s: float) -> None: ...


class Granting:
    """Serves one acceptor: what it asks is given to ``take``, answers go out by ``send``."""

    def __init__(self, catalog: Catalog, gate: Gate, send: Callable[[FromDaemon], None]) -> None:
        self._catalog = catalog
        self._gate = gate
        self._send = send
        # Tasks, because requests wait side by side; each ends by ``Over``, or when the acceptor is gone.
        self._holders: dict[int, asyncio.Task[None]] = {}
        self._leases: dict[int, HeldLease] = {}

    @property
    def active(self) -> int:
        """Leases that the acceptor holds."""
        return len(self._leases)

    def take(self, asked: Asked) -> None:
        """Answer, at once or later."""
        number = asked.number
        match asked:
            case Find():
                self._answer(number, lambda: Found(number, _to_build_from(self._catalog.resolve(asked.name))))
            case Unload():
                self._answer(number, lambda: self._unload(number, asked.name))
            case Ask():
                holder = asyncio.get_running_loop().create_task(self._hold(asked), name=f"acceptor/{number}")
                # Not at the end of what it does: one that is cancelled at once does not even begin.
                holder.add_done_callback(lambda _: self._holders.pop(number))
                self._holders[number] = holder
            case Over():
                if holder := self._holders.get(number):
                    holder.cancel()
            case Suspect():
                if lease := self._leases.get(number):
                    lease.suspect()

    def close(self) -> None:
        """The acceptor is gone: take everything back."""
        for holder in self._holders.values():
            holder.cancel()

    def _unload(self, number: int, name: str) -> Done:
        self._gate.set_keep_alive(self._catalog.resolve(name), 0)
        return Done(number)

    async def _hold(self, asked: Ask) -> None:
        """One request, from the queue to the end of its lease."""
        number = asked.number
        try:
            model = self._catalog.resolve(asked.name)
            async with self._gate.lease(model, keep_alive_s=asked.keep_alive_s, caller=asked.caller) as lease:
                self._leases[number] = lease
                self._send(
                    Granted(
                        number,
                        str(lease.socket),
                        lease.engine_name,
                        lease.fast_path,
                        lease.context_length,
                        lease.load_ns,
                        lease.waited_ns,
                        lease.model.adapter,
                    )
                )
                lease.watch(lambda error: self._send(Broken(number, Failure.of(error))))
                await asyncio.get_running_loop().create_future()  # until it is cancelled
        except VllamaError as error:
            self._refuse(number, error)
        except Exception as error:  # a bug of ours must not be a request that waits for ever
            log.exception("acceptor.bug model=%s", asked.name)
            self._refuse(number, _bug(error))
        finally:
            self._leases.pop(number, None)

    def _answer(self, number: int, answer: Callable[[], FromDaemon]) -> None:
        try:
            self._send(answer())
        except VllamaError as error:
            self._refuse(number, error)
        except Exception as error:  # as above
            log.exception("acceptor.bug")
            self._refuse(number, _bug(error))

    def _refuse(self, number: int, error: VllamaError) -> None:
        self._send(Refused(number, Failure.of(error)))


def _bug(error: Exception) -> VllamaError:
    return VllamaError(Reason.INTERNAL, f"internal error: {error!r}", "report it with the log of vllamad")


def _to_build_from(model: Model) -> Model:
    """Without its files and the text of its licence: they are long, and no request is built from them."""
    return replace(model, files=(), license="")
