"""Long work and Ctrl-C (floor 4): follow an operation to its end, or leave it in the way that the user wants."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

from vllama.control.v1.operations_pb2 import Failure, Operation
from vllamactl.client import Client
from vllamactl.console import Console
from vllamactl.exits import CtlError, Interrupted
from vllamactl.plain import plain
from vllamactl.progress import ProgressView, outcome

T = TypeVar("T")

CANCEL_WAIT_S = 1.0
"""How long to ask again after Ctrl-C. Our own watch counts as interest until the daemon noticed that it is closed."""


class Interrupts:
    """Turns the first Ctrl-C inside the block into an event; the second one ends the program as usual."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> "Interrupts":
        self._loop.add_signal_handler(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self._loop.remove_signal_handler(signal.SIGINT)

    def _interrupt(self) -> None:
        self._event.set()
        self._loop.remove_signal_handler(signal.SIGINT)

    async def or_result(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns, or cancel it and raise Interrupted at Ctrl-C."""
        # Tasks, because a cancelled wait would look like our own caller cancelling us.
        task = asyncio.create_task(work)
        bell = asyncio.create_task(self._event.wait())
        try:
            await asyncio.wait({task, bell}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Interrupted
        finally:
            bell.cancel()
            task.cancel()
            await asyncio.wait({task, bell})


async def follow(
    console: Console,
    client: Client,
    start: Callable[[], Awaitable[Operation]],
    *,
    verb: str,
    done: str,
    cancels: bool = True,
    detach: bool = False,
) -> Operation:
    """Start an operation and show it until it is done; raises what it failed with.

    ``verb`` and ``done`` are the words for it ("pulling", "pulled"). Ctrl-C cancels it if nobody else watches, or just
    leaves if not ``cancels``. With ``detach`` only its name is printed.
    """
    with Interrupts() as interrupts:
        operation = await start()
        if detach:
            _print_detached(console, operation)
            return operation
        view = ProgressView(console, verb, operation.model)
        try:
            async with view.shown():
                operation = await interrupts.or_result(_watch(console, client, operation, view))
        except Interrupted:
            await _leave(console, client, operation, verb, cancels)
            raise
    _raise_failure(operation)
    console.done(f"{done} {operation.model}{outcome(operation)}")
    return operation


async def _watch(console: Console, client: Client, operation: Operation, view: ProgressView) -> Operation:
    view.update(operation.progress)
    async with aclosing(client.watch_operation(operation.name)) as snapshots:
        async for operation in snapshots:
            view.update(operation.progress)
            if console.is_json:
                console.document(plain(operation))
    if not operation.done:
        raise CtlError(
            "INTERNAL",
            f"the daemon stopped telling about {operation.name} before its end",
            "the work may go on: vllamactl status, and the daemon's log",
        )
    return operation


async def _leave(console: Console, client: Client, operation: Operation, verb: str, cancels: bool) -> None:
    if not cancels:
        console.say(f"{verb} {operation.model} goes on ({operation.name})", "→")
        return
    operation = await cancel_unwatched(client, operation.name)
    if not operation.done:
        console.say(f"{verb} {operation.model} goes on: someone else watches it ({operation.name})", "→")
    elif operation.HasField("failure") and operation.failure.reason == "CANCELLED":
        console.say(f"{verb} {operation.model} was cancelled; the same command goes on where it stopped", "✗")
    else:
        _raise_failure(operation)
        console.done(f"{operation.model} was complete already")


async def cancel_unwatched(client: Client, name: str) -> Operation:
    """Cancel an operation that we watched until now, unless others watch it; returns it as it is then."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CANCEL_WAIT_S
    while True:
        operation = await client.cancel_operation(name, only_if_unwatched=True)
        if operation.done or loop.time() > deadline:
            return operation
        await asyncio.sleep(0.1)


def _print_detached(console: Console, operation: Operation) -> None:
    if console.is_json:
        console.document(plain(operation))
        return
    console.data(operation.name)
    console.say(f"{operation.model} goes on without this terminal; running the command again shows it", "→")


def _raise_failure(operation: Operation) -> None:
    if operation.HasField("failure"):
        raise failed(operation.failure)


def failed(failure: Failure) -> CtlError:
    """Return a failure that came inside of an answer as an exception."""
    return CtlError(failure.reason, failure.message, failure.hint, dict(failure.facts))
