"""What the daemon's own program tells (floor 4): ``vllamad --check --json``, run as the daemon's user if we can."""

import asyncio
import json
from typing import Any, cast

from vllamactl.doctor.facts import Identity, Part, Service
from vllamactl.doctor.machine import end, start

PARTS = ("config", "engine", "devices", "hub")
UNKNOWN_FLAG = 2
"""The exit status of a command line that is not understood."""


class Program:
    """One run. Each part can be waited for by itself; parts that never come say why."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._parts: dict[str, asyncio.Future[Part]] = {name: loop.create_future() for name in PARTS}

    async def part(self, name: str) -> Part:
        return await asyncio.shield(self._parts[name])

    async def run(self, service: Service, me: Identity) -> None:
        """Run it to its end; when cancelled it is killed."""
        if not service.command or service.who.uid < 0:
            self.end("the unit names no program or no user that is there")
            return
        words = [*service.command, "--check", "--json", *(["--system"] if service.is_system else [])]
        become = service.who if me.is_root and not service.who.is_root else None
        try:
            child = await start(words, service.environ, service.folder, become)
        except OSError as error:
            self.end(f"cannot run {words[0]}: {error.strerror}")
            return
        try:
            assert child.stdout is not None and child.stderr is not None
            errors = asyncio.create_task(child.stderr.read())
            async for line in child.stdout:
                self._take(line)
            status, said = await child.wait(), (await errors).decode(errors="replace").strip()
        finally:
            await end(child)
        if status == UNKNOWN_FLAG:
            self.end("this vllamad is too old to tell (vllamad --check --json)")
        else:
            last = said.splitlines()[-1] if said else "nothing"
            self.end(f"vllamad --check as {service.who.name} ended with status {status} and said: {last}")

    def _take(self, line: bytes) -> None:
        try:
            told: object = json.loads(line)
        except ValueError:
            return  # a library that prints
        if not isinstance(told, dict):
            return
        part = cast(dict[str, Any], told)
        waiting = self._parts.get(str(part.get("part")))
        if waiting is not None and not waiting.done():
            waiting.set_result(Part(part))
        if part.get("part") == "config" and part.get("problem"):
            self.end("not known while the configuration is wrong")

    def end(self, why: str) -> None:
        """No more parts will come."""
        for waiting in self._parts.values():
            if not waiting.done():
                waiting.set_result(Part(missing=why))
