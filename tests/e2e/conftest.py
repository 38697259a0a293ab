"""The real engine, once for the whole ring: a model made of the packaged GGUF, and one daemon that serves it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.real_engine import engine_python, packaged_gguf
from tests.fakes.daemon import Daemon, running

MODEL = "smollm2:135m"


@pytest.fixture(scope="session")
def real() -> Iterator[Daemon]:
    """A daemon with the real engine and SmolLM2-135M-Instruct, which `create` has made of its GGUF file."""
    with running(engine=engine_python()) as daemon:
        daemon.ctl("create", MODEL, "--from", str(packaged_gguf()), timeout=600)
        (model,) = daemon.json("list")["models"]
        # The tests of single parts use the same files, without converting them again.
        os.environ.setdefault("VLLAMA_TEST_MODEL", str(Path(model["path"])))
        yield daemon


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The main job first: it makes the model that the tests of single parts use, and has left the engine by then."""
    items.sort(key=lambda item: "test_main_job" not in str(item.path))
