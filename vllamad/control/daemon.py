"""The Daemon service (floor 4): what the daemon is doing, and how it is configured."""

# The generated base classes are untyped and synchronous.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from vllama import __version__
from vllama.control.v1 import daemon_pb2 as pb
from vllama.control.v1 import daemon_pb2_grpc as pb_grpc
from vllamad.control import convert
from vllamad.control.interceptor import Context, unary
from vllamad.domain.ports import EngineVersion
from vllamad.domain.view import AcceptorView, DeviceView, ZygoteView
from vllamad.operations.reloading import Reloaded
from vllamad.operations.upgrading import Upgrade
from vllamad.supervisor.supervisor import Decided, Supervisor


class ShownSetting(Protocol):
    """One setting as people may see it: secrets are masked already."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def overrode(self) -> Sequence[str]: ...
    @property
    def is_reloadable(self) -> bool: ...
    @property
    def help(self) -> str: ...
    @property
    def pending(self) -> "ShownChange | None": ...


class ShownChange(Protocol):
    """A setting that is to be another one, the same way. ``effect`` is named as on the wire."""

    @property
    def key(self) -> str: ...
    @property
    def before(self) -> str: ...
    @property
    def after(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def effect(self) -> Enum: ...
    @property
    def note(self) -> str: ...


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """What the status page shows beside the workers; sizes in bytes, ``start_time`` wall time in seconds."""

    state: str
    pid: int
    start_time: float
    http_url: str
    socket_path: str
    state_folder: str
    memory_bytes: int
    engine: EngineVersion
    models: int
    models_bytes: int
    free_bytes: int
    active: int
    waiting: int
    devices: Sequence[DeviceView]
    zygotes: Sequence[ZygoteView]
    waits: Sequence[str]
    decisions: Sequence[Decided]
    needs_restart: Sequence[ShownChange]
    acceptors: Sequence[AcceptorView]
    upgrades: int = 0
    """How often another daemon took over in this process."""


class DaemonService(pb_grpc.DaemonServicer):
    """Status, settings, their reload, and the upgrade of the daemon itself. ``reload`` and ``upgrade`` are told whether
    it is a dry run, ``upgrade`` also how long requests in flight may take (None: as it is set)."""

    def __init__(
        self,
        supervisor: Supervisor,
        status: Callable[[], Awaitable[DaemonStatus]],
        settings: Callable[[], Sequence[ShownSetting]],
        reload: Callable[[bool], Awaitable[Reloaded]],
        upgrade: Callable[[float | None, bool], Awaitable[Upgrade]],
    ) -> None:
        self._supervisor = supervisor
        self._status = status
        self._settings = settings
        self._reload = reload
        self._upgrade = upgrade

    @unary
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        now = await self._status()
        return pb.GetStatusResponse(
            version=__version__,
            state=now.state,
            pid=now.pid,
            start_time=convert.timestamp(now.start_time),
            http_url=now.http_url,
            socket_path=now.socket_path,
            state_folder=now.state_folder,
            memory_bytes=now.memory_bytes,
            engine=pb.Engine(
                python=now.engine.python,
                version=f"{now.engine.distribution} {now.engine.version}".strip(),
                problem=now.engine.problem,
                device=now.engine.device,
                zygotes=[
                    pb.Zygote(
                        state=one.state,
                        pid=one.pid,
                        memory_bytes=one.memory_bytes,
                        forked=one.forked,
                        problem=one.problem,
                    )
                    for one in now.zygotes
                ],
            ),
            workers=[convert.worker(view) for view in self._supervisor.views()],
            models=now.models,
            active_requests=now.active,
            waiting_requests=now.waiting,
            devices=[convert.device(device) for device in now.devices],
            waits=now.waits,
            storage=pb.Storage(path=now.state_folder, models_bytes=now.models_bytes, free_bytes=now.free_bytes),
            decisions=[pb.Decision(time=convert.timestamp(one.time), text=one.text) for one in now.decisions],
            needs_restart=[_change(one) for one in now.needs_restart],
            upgrades=now.upgrades,
            acceptors=[
                pb.Acceptor(
                    number=one.number,
                    pid=one.pid,
                    is_ready=one.is_ready,
                    requests=one.requests,
                    starts=one.starts,
                    memory_bytes=one.memory_bytes,
                )
                for one in now.acceptors
            ],
        )

    @unary
    async def GetConfig(self, request: pb.GetConfigRequest, context: Context) -> pb.GetConfigResponse:
        return pb.GetConfigResponse(
            settings=[
                pb.Setting(
                    key=one.key,
                    value=one.value,
                    source=one.source,
                    overrode=one.overrode,
                    is_reloadable=one.is_reloadable,
                    help=one.help,
                    pending=_change(one.pending) if one.pending is not None else None,
                )
                for one in self._settings()
            ]
        )

    @unary
    async def Reload(self, request: pb.ReloadRequest, context: Context) -> pb.ReloadResponse:
        told = await self._reload(request.dry_run)
        return pb.ReloadResponse(
            changes=[_change(one) for one in told.changes],
            models=[pb.ModelChange(model=one.model, kind=one.what.name, text=one.text) for one in told.consequences],
            warnings=told.warnings,
            dry_run=told.is_dry_run,
        )

    @unary
    async def Upgrade(self, request: pb.UpgradeRequest, context: Context) -> pb.UpgradeResponse:
        drain_s = request.drain.ToNanoseconds() / 1e9 if request.HasField("drain") else None
        upgrade = await self._upgrade(drain_s, request.dry_run)
        return pb.UpgradeResponse(version=upgrade.version, models=upgrade.models, dry_run=request.dry_run)


def _change(one: ShownChange) -> pb.Change:
    return pb.Change(
        key=one.key,
        before=one.before,
        after=one.after,
        source=one.source,
        effect=one.effect.name,
        note=one.note,
    )
