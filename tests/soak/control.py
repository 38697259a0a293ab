"""The control socket, as far as it is needed to hold states and to see them. Blocking; each call has a deadline."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from vllama.control.v1 import (
    daemon_pb2,
    daemon_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    workers_pb2,
    workers_pb2_grpc,
)

CALL_S = 10.0


@dataclass(frozen=True)
class Shown:
    """A worker as the daemon shows it."""

    model: str
    state: str
    pid: int
    incarnation: int
    leases: int
    waiting: int
    failure: str


class Control:
    """Calls to one daemon; a connection of its own for each, so that restarts need no care."""

    def __init__(self, socket: Path) -> None:
        self._target = f"unix:{socket}"

    def workers(self) -> list[Shown]:
        with self._channel() as channel:
            asked = workers_pb2.ListWorkersRequest()
            listed = workers_pb2_grpc.WorkersStub(channel).ListWorkers(asked, timeout=CALL_S)
        return [
            Shown(
                one.model.removesuffix(":latest"),
                workers_pb2.Worker.State.Name(one.state),
                one.pid,
                one.incarnation,
                one.leases,
                one.waiting,
                one.failure.reason,
            )
            for one in listed.workers
        ]

    def waiting(self) -> int:
        """Requests that wait for a worker, also those of the daemon itself that loads again what was loaded."""
        return self._status().waiting_requests

    def devices(self) -> list[tuple[str, int, list[str]]]:
        """Each device, what is reserved on it, and for whom: what ``vllamactl status`` shows."""
        return [(one.name, one.reserved_bytes, list(one.holders)) for one in self._status().devices]

    def insist(self, model: str) -> None:
        """Begin to load a model as a person asks for it: at once, even if it has just failed."""
        with self._channel() as channel:
            asked = workers_pb2.StartWorkerRequest(model=model)
            workers_pb2_grpc.WorkersStub(channel).StartWorker(asked, timeout=CALL_S)

    def stop(self, model: str, *, force: bool = False, seconds: float = 60.0) -> str:
        """Unload a model and wait for it; returns the reason of a failure, or ""."""
        with self._channel() as channel:
            asked = workers_pb2.StopWorkerRequest(model=model, force=force)
            started = workers_pb2_grpc.WorkersStub(channel).StopWorker(asked, timeout=CALL_S).operation
            operations = operations_pb2_grpc.OperationsStub(channel)
            watched = operations_pb2.WatchOperationRequest(name=started.name)
            last = started
            for response in operations.WatchOperation(watched, timeout=seconds):
                last = response.operation
        return last.failure.reason

    def _status(self) -> daemon_pb2.GetStatusResponse:
        with self._channel() as channel:
            return daemon_pb2_grpc.DaemonStub(channel).GetStatus(daemon_pb2.GetStatusRequest(), timeout=CALL_S)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[grpc.Channel]:
        # A subchannel that is shared would remember that the last daemon is gone, and back off.
        with grpc.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield channel
