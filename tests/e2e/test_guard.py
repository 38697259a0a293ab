"""The real engine: it keeps the claims that the fake keeps, and a killed API server leaves nothing behind."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.contract import engine_claims as claims
from tests.e2e.real_engine import START_DEADLINE_S, engine_python, model_folder
from vllamad.process import tree

pytestmark = pytest.mark.engine

SHARED_MEMORY = Path("/dev/shm")
GONE_DEADLINE_S = 10


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all starts: the later ones are faster, as they are in life."""
    return tmp_path_factory.mktemp("engine-cache")


def test_the_real_engine_keeps_every_claim(short_folder: Path, cache_folder: Path) -> None:
    async def scene() -> None:
        model = claims.make_model(model_folder())
        async with claims.running(
            engine_python(),
            model,
            short_folder,
            deadline_s=START_DEADLINE_S,
            cache_folder=cache_folder,
            environment=claims.DEVELOPMENT,
            is_forked=True,
        ) as engine:
            _show(engine)
            for claim in (*claims.CLAIMS, *claims.SLEEP_CLAIMS):
                before = time.monotonic()
                try:
                    await claim(engine)
                except Exception as error:
                    error.add_note(f"claim: {claim.__name__}")
                    raise
                print(f"{time.monotonic() - before:6.2f} s {claim.__name__}")
            await claims.sigterm_ends_it(engine)

    before = _shared_memory()
    asyncio.run(scene())
    assert _shared_memory() <= before


@pytest.mark.parametrize("is_forked", [False, True], ids=["executed", "forked"])
def test_killed_api_server_takes_its_inner_processes_along(
    short_folder: Path, cache_folder: Path, is_forked: bool
) -> None:
    """Executed with an own process for the worker, as on several GPUs; forked with the model inside the engine core."""
    before = _shared_memory()

    async def scene() -> None:
        model = claims.make_model(model_folder())
        async with claims.running(
            engine_python(),
            model,
            short_folder,
            deadline_s=START_DEADLINE_S,
            environment={} if is_forked else {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            cache_folder=cache_folder,
            is_forked=is_forked,
        ) as engine:
            _show(engine)
            members = tree.members(engine.child.pid, f"{short_folder}:none").processes
            found = {p.pid: _title(p.pid) for p in members}
            inner = [pid for pid, title in found.items() if "EngineCore" in title or "Worker" in title]
            assert len(inner) == (1 if is_forked else 2), found
            body = {"messages": claims.QUESTION, "max_tokens": 4000, "ignore_eos": True, "stream": True}
            stream = await engine.client.open("POST", "/v1/chat/completions", json.dumps(body).encode())
            chunks = stream.chunks()
            assert await anext(chunks)

            claims.kill(engine.child.pid)
            killed = time.monotonic()
            assert await engine.child.wait() == -9
            # Nobody else is signalled: what ends now, ends by the guard.
            dying = [tree.Dying(pid) for pid in inner]
            async with asyncio.timeout(GONE_DEADLINE_S):
                await tree.exits(dying)
            print(f"core and worker were gone {time.monotonic() - killed:.2f} s after the API server")
            await engine.child.kill_tree()
            assert not [pid for pid in found if tree.read(pid)]

    asyncio.run(scene())
    assert _shared_memory() <= before


def _shared_memory() -> set[Path]:
    return set(SHARED_MEMORY.iterdir())


def _title(pid: int) -> str:
    """What a process calls itself; with ``comm`` only 15 characters would be left of it."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")


def _show(engine: claims.Running) -> None:
    for seconds, step in engine.steps:
        print(f"{seconds:6.2f} s {step.phase} {step.fraction} {step.detail}")
    print(f"{engine.child.memory_bytes() / 2**20:.0f} MiB")
