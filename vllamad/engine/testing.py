"""Runs the engine's self-test on this processor (floor 2): ``self_test/cpu_formats.py``, in a child."""

import asyncio
import json
from typing import Any, cast

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import Command, Launcher
from vllamad.domain.self_test import SelfTest

DEADLINE_S = 120.0
"""Two seconds of import and one of work, at the lowest priority; a processor that has no bfloat16 takes much longer."""

PREFIX = "self-test:"


async def run_self_test(launcher: Launcher, command: Command, key: str) -> SelfTest:
    """Run it to its end; when cancelled, it is ended and reaped before the cancellation goes on. Raises
    ENGINE_START_FAILED with what it said."""
    lines: list[str] = []
    child = launcher.spawn(command, lines.append)
    try:
        async with asyncio.timeout(DEADLINE_S):
            status = await child.wait()
    except TimeoutError:
        raise _failed(f"it did not end within {DEADLINE_S:g} s") from None
    finally:
        await child.kill_tree()
    answers = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    if status != 0 or not answers:
        raise _failed(f"it ended with status {status} and said: {lines[-1] if lines else 'nothing'}")
    try:
        found = cast("dict[str, Any]", json.loads(answers[-1]))
        return SelfTest(key, float(found["bfloat16"]), float(found["float32"]))
    except (ValueError, KeyError, TypeError) as error:
        raise _failed(f"its answer cannot be read: {answers[-1][:200]}") from error


def _failed(why: str) -> VllamaError:
    return VllamaError(
        Reason.ENGINE_START_FAILED,
        f"cannot test this CPU: {why}",
        "nothing depends on it: what the CPU says of itself holds; engine.self_test = false does without",
    )
