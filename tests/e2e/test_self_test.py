"""The self-test of this processor, by the real engine's interpreter."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.real_engine import engine_python
from vllamad.domain.errors import VllamaError
from vllamad.engine.command import EngineOptions, self_test_command
from vllamad.engine.testing import run_self_test
from vllamad.process.child import PosixLauncher


def test_both_formats_are_timed(tmp_path: Path) -> None:
    options = EngineOptions(engine_python(), tmp_path, {"PATH": os.environ["PATH"]}, cpu_count=2)

    async def scene() -> None:
        found = await run_self_test(PosixLauncher("test"), self_test_command(options), "here")
        assert found.key == "here" and "float32" in found.sentence

    asyncio.run(scene())


def test_one_that_fails_is_not_believed(tmp_path: Path) -> None:
    options = EngineOptions(engine_python(), tmp_path, {"PATH": os.environ["PATH"]}, cpu_count=2)
    broken = self_test_command(options)

    async def scene() -> None:
        with pytest.raises(VllamaError, match="NameError"):
            await run_self_test(PosixLauncher("test"), replace(broken, argv=[broken.argv[0], "-c", "boom"]), "here")

    asyncio.run(scene())
