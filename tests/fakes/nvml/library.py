"""A stand-in for NVIDIA's libnvidia-ml.so.1 of our own, built from ``nvml.c`` and told what to say by a file.

nvidia-ml-py loads "libnvidia-ml.so.1" by name. A child process finds ours first by ``LD_LIBRARY_PATH``. In a process
that runs already that variable is read no more; there ``in_process`` gives nvidia-ml-py the library by its path, and
takes it away again. Ours carries no name inside (no DT_SONAME), so the real one is still found afterwards.
"""

import asyncio
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.devices import Card, Rack
from vllamad.devices.nvml import NvmlProbe
from vllamad.domain.ports import DeviceReading

SOURCE = Path(__file__).with_name("nvml.c")
NAME = "libnvidia-ml.so.1"
VARIABLE = "FAKE_NVML"
DEADLINE_S = 10.0
"""Far more than a reading takes, for tests in which nothing hangs."""


NO_COMPILER = "no C compiler (cc, gcc, clang or $CC) to build the fake libnvidia-ml.so.1"


def compiler() -> str | None:
    """The C compiler; None where there is none."""
    named = os.environ.get("CC", "")
    return next((found for name in (named, "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)


@functools.cache
def build() -> Path:
    """The library, in a folder of its own that goes with this process. Skips the test where there is no compiler."""
    program = compiler()
    if program is None:
        pytest.skip(NO_COMPILER)
    folder = tempfile.TemporaryDirectory(prefix="vllama-nvml-")
    _folders.append(folder)
    library = Path(folder.name) / NAME
    command = [program, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return library


_folders: list[tempfile.TemporaryDirectory[str]] = []


@contextmanager
def in_process(script: Path) -> Iterator[ctypes.CDLL]:
    """Let nvidia-ml-py in this process talk to our library and this script. At the end the driver is gone for whoever
    still asks, and calls that hang return."""
    import pynvml

    nvml: Any = pynvml
    ours = ctypes.CDLL(str(build()))
    ours.vllama_fake_reset()
    before = nvml.nvmlLib
    nvml.nvmlLib = ours
    nvml._nvmlGetFunctionPointer_cache.clear()
    os.environ[VARIABLE] = str(script)
    try:
        yield ours
    finally:
        script.unlink(missing_ok=True)
        del os.environ[VARIABLE]
        nvml.nvmlLib = before
        nvml._nvmlGetFunctionPointer_cache.clear()


def child(code: str, script: Path) -> str:
    """What a Python program prints in a process that finds our library before the driver's."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(build().parent), VARIABLE: str(script)}
    command = [sys.executable, "-X", "dev", "-c", code]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


class ScriptedGpus(Rack):
    """A DeviceProbe: the real adapter over our library, which shows what happens in the rack. Made by ``scripted``."""

    def __init__(self, script: Path, cards_: Iterable[Card] | None, deadline_s: float, visible: str | None) -> None:
        super().__init__(cards_)
        self.script = script
        self.lines: list[str] = []
        """More for the script, such as errors and delays of single functions."""
        self.generation = 1
        self.probe = NvmlProbe(deadline_s, visible)

    @property
    def problem(self) -> str:
        return self.probe.problem

    async def read(self) -> list[DeviceReading]:
        self.write()
        readings = await self.probe.read()
        self.elapse()
        return readings

    async def close(self) -> None:
        """Take the driver away, which ends every call that hangs, and wait until the thread is out of it."""
        self.script.unlink(missing_ok=True)
        pending = self.probe._asker._pending  # pyright: ignore
        if pending is not None and not pending.answer.done():
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.shield(pending.answer)

    def write(self) -> None:
        """Put what there is now into the script, in one piece: a call reads the old text or the new one."""
        draft = self.script.with_suffix(".draft")
        draft.write_text("".join(f"{line}\n" for line in self._text()))
        draft.rename(self.script)

    def _text(self) -> Iterator[str]:
        yield f"generation {self.generation}"
        if self.is_silent:
            yield "hang nvmlDeviceGetCount_v2"
            yield "hang nvmlInitWithFlags"
        if self.failure:
            yield f"error nvmlDeviceGetCount_v2 {self.failure}"
            yield f"error nvmlInitWithFlags {self.failure}"
        for card in self.cards:
            yield from self._card(card)
        yield from self.lines

    def _card(self, card: Card) -> Iterator[str]:
        yield f"gpu {card.uuid}"
        yield f"name {card.name}"
        if card.is_lost:
            yield "lost"
        yield f"memory {card.total_bytes} {card.reserved_bytes or 0} {card.free_bytes}"
        if card.reserved_bytes is None:
            yield f"error nvmlDeviceGetMemoryInfo_v2 13 {card.uuid}"
        for pid, used in card.processes.items():
            yield f"process {pid} {-1 if used is None else used}"
        if card.temperature_c is not None:
            yield f"temperature {card.temperature_c}"
        if card.utilisation is not None:
            yield f"utilisation {round(card.utilisation * 100)}"
        if card.capability is not None:
            yield f"capability {card.capability[0]} {card.capability[1]}"
        for word, value in (("mig", card.is_mig), ("remap_failure", card.remap_failed)):
            if value is not None:
                yield f"{word} {int(value)}"
        for word, value in (("ecc", card.ecc_errors), ("recovery", card.recovery)):
            if value is not None:
                yield f"{word} {value}"
        for peer in card.peers:
            yield f"nvlink {peer}"
        for serial, xid in card.xids.items():
            yield f"xid {xid} {serial}"


@asynccontextmanager
async def scripted(
    folder: Path, cards_: Iterable[Card] | None = None, *, deadline_s: float = DEADLINE_S, visible: str | None = None
) -> AsyncIterator[ScriptedGpus]:
    """The real adapter in this process, over our library; the script lies in ``folder``. One at a time."""
    gpus = ScriptedGpus(folder / "nvml.txt", cards_, deadline_s, visible)
    gpus.write()
    with in_process(gpus.script):
        try:
            yield gpus
        finally:
            await gpus.close()
