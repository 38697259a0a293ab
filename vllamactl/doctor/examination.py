"""All checks at once (floor 4), each with its deadline: one that hangs says so and holds nobody up."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from vllama import __version__
from vllamactl.doctor import daemon, host, paths, processes, systemd
from vllamactl.doctor.facts import Clock, Identity, Limits, Reach, Service, Unit
from vllamactl.doctor.finding import Finding, State, ok, skipped, warn
from vllamactl.doctor.judge_access import judge_folders, judge_way
from vllamactl.doctor.judge_engine import judge_driver, judge_engine
from vllamactl.doctor.judge_machine import (
    judge_clock,
    judge_disk,
    judge_hub,
    judge_leftovers,
    judge_limits,
    judge_memory,
    judge_ollama,
    judge_port,
)
from vllamactl.doctor.judge_service import (
    judge_config,
    judge_daemon,
    judge_socket,
    judge_unit,
    judge_user,
    judge_version,
)
from vllamactl.doctor.machine import Machine, in_thread
from vllamactl.doctor.program import Program

T = TypeVar("T")

STATUS_PART = 0.6
"""The part of a check's deadline that the daemon gets to answer, so that the check can say that it did not."""
HUB_PART = 0.8
"""The part of it for which a check waits that wants to know the hub's time as well."""


async def examine(machine: Machine, sockets: Sequence[str], deadline_s: float) -> list[Finding]:
    """Return one finding a check, in the order of the checks. Nothing that was started is left behind."""
    examination = Examination(machine, sockets, deadline_s)
    try:
        return list(await asyncio.gather(*(_within(name, deadline_s, check) for name, check in examination.checks())))
    finally:
        await examination.close()


async def _within(name: str, deadline_s: float, check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        async with asyncio.timeout(deadline_s):
            return await check()
    except TimeoutError:
        return warn(name, f"did not come back within {deadline_s:g} s", "vllamactl doctor --timeout 60")
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return skipped(name, f"could not be looked at:{where} {error.strerror or error}")


class Examination:
    """What several checks need is gathered once: each such fact is a task that they all wait for."""

    def __init__(self, machine: Machine, sockets: Sequence[str], deadline_s: float) -> None:
        self._machine = machine
        self._sockets = sockets
        self._deadline_s = deadline_s
        self._program = Program()
        self._tasks: list[asyncio.Task[Any]] = []
        self._me = self._begin(in_thread(machine.me))
        self._unit = self._begin(systemd.look(machine))
        self._knocks = self._begin(daemon.knock_all(machine, sockets))
        self._reach = self._begin(self._ask())
        self._service = self._begin(self._find_service())
        self._begin(self._run_program())

    def checks(self) -> list[tuple[str, Callable[[], Awaitable[Finding]]]]:
        """Every check by its stable name, from the outside in."""
        return [
            ("unit", self._check_unit),
            ("user", self._check_user),
            ("program", self._check_program),
            ("folders", self._check_folders),
            ("config", self._check_config),
            ("socket", self._check_socket),
            ("daemon", self._check_daemon),
            ("version", self._check_version),
            ("port", self._check_port),
            ("engine", self._check_engine),
            ("driver", self._check_driver),
            ("hub", self._check_hub),
            ("disk", self._check_disk),
            ("memory", self._check_memory),
            ("limits", self._check_limits),
            ("clock", self._check_clock),
            ("ollama", self._check_ollama),
            ("leftovers", self._check_leftovers),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- facts -------------------------------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def _ask(self) -> Reach:
        return await daemon.ask(await self._knocks, self._deadline_s * STATUS_PART)

    async def _find_service(self) -> Service:
        unit, knocks, me = await self._unit, await self._knocks, await self._me
        return await in_thread(lambda: daemon.find_service(self._machine, unit, knocks, me))

    async def _run_program(self) -> None:
        try:
            service = await self._service
        except OSError as error:
            self._program.end(f"how the daemon is started could not be looked at: {error}")
            return
        await self._program.run(service, await self._me)

    async def _facts(self) -> tuple[Unit, Service, Identity]:
        """A check that is given up must not take from the others what they wait for as well."""
        return await asyncio.shield(self._unit), await asyncio.shield(self._service), await asyncio.shield(self._me)

    # --- the service -------------------------------------------------------------------------------------------------

    async def _check_unit(self) -> Finding:
        knocks = await asyncio.shield(self._knocks)
        return judge_unit(await asyncio.shield(self._unit), any(one.errno == 0 for one in knocks))

    async def _check_user(self) -> Finding:
        unit = await asyncio.shield(self._unit)
        config = await self._program.part("config")
        return judge_user(await in_thread(lambda: daemon.find_account(self._machine, unit, config.text("group"))))

    async def _check_program(self) -> Finding:
        unit, service, _me = await self._facts()
        found = await in_thread(lambda: paths.program_ways(self._machine, service.command))
        if not found:
            return skipped("program", "where vllamad lies is not known")
        for way, rights in found:
            finding = judge_way("program", way, service.who, rights, unit)
            if finding.state is not State.OK:
                return finding
        return ok("program", f"{service.who.name} can run {found[-1][0].path}")

    async def _check_folders(self) -> Finding:
        unit, service, _me = await self._facts()
        config = await self._program.part("config")
        return judge_folders(await in_thread(lambda: paths.folder_ways(self._machine, config)), service.who, unit)

    async def _check_config(self) -> Finding:
        return judge_config(await self._program.part("config"), (await self._facts())[1])

    async def _check_socket(self) -> Finding:
        return judge_socket(Reach(await asyncio.shield(self._knocks)), await asyncio.shield(self._me))

    async def _check_daemon(self) -> Finding:
        unit, _service, _me = await self._facts()
        return judge_daemon(await asyncio.shield(self._reach), unit, time.time())

    async def _check_version(self) -> Finding:
        unit, _service, _me = await self._facts()
        return judge_version(__version__, await asyncio.shield(self._reach), await self._program.part("config"), unit)

    async def _check_port(self) -> Finding:
        unit, _service, _me = await self._facts()
        config, reach = await self._program.part("config"), await asyncio.shield(self._reach)
        port = int(config.told.get("port") or 0)
        found = await in_thread(lambda: processes.listeners(self._machine, port) if port else [])
        return judge_port(found, config, reach, unit)

    # --- what it runs ------------------------------------------------------------------------------------------------

    async def _check_engine(self) -> Finding:
        unit, service, _me = await self._facts()
        python = (await self._program.part("config")).text("engine_python")
        access = None
        if python.startswith("/"):
            way = await in_thread(lambda: paths.look(self._machine, "engine.python", python))
            # What its absence means, the daemon's own program says better.
            access = None if way.missing else judge_way("engine", way, service.who, "x", unit)
        engine, devices = await self._program.part("engine"), await self._program.part("devices")
        return judge_engine(engine, devices, access, service.stand_in)

    async def _check_driver(self) -> Finding:
        _unit, service, _me = await self._facts()
        gpus = await in_thread(lambda: host.gpus(self._machine, service.who))
        devices, engine = await self._program.part("devices"), await self._program.part("engine")
        return judge_driver(devices, engine, await self._program.part("config"), gpus, service.stand_in)

    async def _check_hub(self) -> Finding:
        _unit, service, _me = await self._facts()
        return judge_hub(await self._program.part("hub"), service)

    # --- the machine -------------------------------------------------------------------------------------------------

    async def _check_disk(self) -> Finding:
        config = await self._program.part("config")
        named = [(name, config.text(name)) for name in ("state", "cache") if config.text(name)]
        return judge_disk(await in_thread(lambda: [host.disk(self._machine, *one) for one in named]), config.missing)

    async def _check_memory(self) -> Finding:
        pid = await self._daemon_pid()
        return judge_memory(await in_thread(lambda: host.memory(self._machine, pid)))

    async def _check_limits(self) -> Finding:
        unit, _service, _me = await self._facts()
        pid = await self._daemon_pid()
        found: Limits = await in_thread(lambda: processes.limits(self._machine, pid, unit))
        return judge_limits(found, unit, await self._program.part("engine"))

    async def _check_clock(self) -> Finding:
        clock: Clock = await host.clock(self._machine)
        try:
            async with asyncio.timeout(self._deadline_s * HUB_PART):
                ahead_s = host.ahead_of(await self._program.part("hub"), time.time())
        except TimeoutError:
            ahead_s = None  # a hub that hangs has a check of its own
        return judge_clock(replace(clock, ahead_s=ahead_s))

    async def _check_ollama(self) -> Finding:
        unit = await asyncio.shield(self._unit)
        return judge_ollama(await in_thread(lambda: processes.named(self._machine, "ollama")), unit)

    async def _check_leftovers(self) -> Finding:
        unit, service, _me = await self._facts()
        knocks, config = await asyncio.shield(self._knocks), await self._program.part("config")
        if not service.pid and any(one.errno == 0 for one in knocks):
            return skipped("leftovers", "the daemon's own processes cannot be told from others: it is in a container")
        found = await in_thread(lambda: processes.leftovers(self._machine, config, service, unit))
        return judge_leftovers(found, service.pid != 0, unit)

    async def _daemon_pid(self) -> int:
        service = await asyncio.shield(self._service)
        return service.pid
