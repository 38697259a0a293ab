"""The gRPC server on the control socket (floor 4).

File permissions are the authorisation: the folder is the daemon's, the socket is 0660 with the control group. Whoever
holds the lock of the runtime folder may remove a stale socket; gRPC itself would bind over a live one.
"""

# gRPC's generated modules and its health package carry no types.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false

import logging
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vllama.control.v1 import (
    daemon_pb2,
    daemon_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    workers_pb2,
    workers_pb2_grpc,
)
from vllama.reasons import Reason
from vllamad.control.daemon import DaemonService
from vllamad.control.inference import InferenceService
from vllamad.control.models import ModelsService
from vllamad.control.operations import OperationsService
from vllamad.control.workers import WorkersService
from vllamad.domain.errors import VllamaError
from vllamad.host.folders import share_with_group
from vllamad.host.logs import event

log = logging.getLogger("vllamad.control")

SOCKET_MODE = 0o660
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 << 20),
)


class ControlServer:
    """Binds the socket and serves the five services, health and reflection."""

    def __init__(
        self,
        path: Path,
        group: str,
        models: ModelsService,
        workers: WorkersService,
        operations: OperationsService,
        daemon: DaemonService,
        inference: InferenceService,
    ) -> None:
        self._socket = path
        self._group = group
        self._health: Any = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=OPTIONS)
        self._is_bound = False
        models_pb2_grpc.add_ModelsServicer_to_server(models, self._server)
        workers_pb2_grpc.add_WorkersServicer_to_server(workers, self._server)
        operations_pb2_grpc.add_OperationsServicer_to_server(operations, self._server)
        daemon_pb2_grpc.add_DaemonServicer_to_server(daemon, self._server)
        inference_pb2_grpc.add_InferenceServicer_to_server(inference, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [
            module.DESCRIPTOR.services_by_name[name].full_name
            for module, name in (
                (models_pb2, "Models"),
                (workers_pb2, "Workers"),
                (operations_pb2, "Operations"),
                (daemon_pb2, "Daemon"),
                (inference_pb2, "Inference"),
            )
        ]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)

    async def start(self) -> None:
        """Bind and serve. Call it under the lock of the runtime folder. Raises ALREADY_RUNNING if the path is taken by
        a live socket or by something that is none, PERMISSION_DENIED or INTERNAL if it cannot be bound."""
        self._remove_stale()
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            bound = self._server.add_insecure_port(f"unix:{self._socket}")
        except RuntimeError as error:
            raise self._cannot_bind(str(error)) from error
        finally:
            os.umask(before)
        if not bound or not self._socket.exists():
            raise self._cannot_bind("gRPC could not bind it")
        self._is_bound = True
        self._give_to_group()
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Tell health watchers that the daemon is leaving; calls go on."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones ``grace_s`` seconds, and remove the socket."""
        await self._server.stop(grace_s)
        if self._is_bound:  # else it is somebody else's
            self._socket.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        try:
            mode = self._socket.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._cannot_bind(error.strerror or str(error)) from error
        if not stat.S_ISSOCK(mode):
            raise VllamaError(
                Reason.ALREADY_RUNNING,
                f"cannot listen on {self._socket}: it exists and is no socket",
                "remove it, or name another with --socket",
            )
        if _is_answered(self._socket):
            raise VllamaError(
                Reason.ALREADY_RUNNING,
                f"cannot listen on {self._socket}: another program answers there",
                "stop it, or name another with --socket",
            )
        event(log, logging.INFO, "control.stale_socket", path=self._socket)
        self._socket.unlink()

    def _give_to_group(self) -> None:
        why_not = share_with_group(self._socket, self._group, SOCKET_MODE)
        if why_not:
            event(log, logging.INFO, "control.group", group=self._group, text=f"only this user and root: {why_not}")

    def _cannot_bind(self, why: str) -> VllamaError:
        return VllamaError(
            Reason.PERMISSION_DENIED if "ermission" in why else Reason.INTERNAL,
            f"cannot listen on {self._socket}: {why}",
            "name another path with --socket, or make the folder writable",
        )


def _is_answered(path: Path) -> bool:
    """True if somebody listens: with --socket the path may lie outside the folder that is locked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) == 0
