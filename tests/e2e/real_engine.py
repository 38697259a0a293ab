"""Where the real engine and a real model are, for the tests that need them, and what an engine says of itself."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.daemon import Daemon

START_DEADLINE_S = 300
"""A start takes 20 to 60 s on two cores; on a busy machine with a cold disk several times that."""


JAVASCRIPT = Path(__file__).with_name("javascript") / "client.mjs"
JAVASCRIPT_S = 90.0


def engine_python() -> Path:
    """The interpreter that has vLLM, or skip."""
    return _path("VLLAMA_TEST_ENGINE_PYTHON", "an interpreter that has vLLM")


def packaged_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, or skip."""
    return _path("VLLAMA_TEST_GGUF", "SmolLM2-135M-Instruct as a GGUF file")


def model_folder() -> Path:
    """A folder with SmolLM2-135M-Instruct as the engine loads it, or skip."""
    return _path("VLLAMA_TEST_MODEL", "a folder with SmolLM2-135M-Instruct in safetensors")


def embedding_model() -> Path:
    """A folder with all-MiniLM-L6-v2 as sentence-transformers has it, or skip."""
    return _path("VLLAMA_TEST_EMBEDDING_MODEL", "a folder with all-MiniLM-L6-v2")


def node_modules() -> Path:
    """A folder with the packages of ``tests/e2e/javascript/package.json``, or skip."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed: it runs the official JavaScript client")
    return _path("VLLAMA_TEST_NODE_MODULES", "a node_modules folder with the official JavaScript client")


def javascript_command(daemon: Daemon, model: str, scene: str) -> list[str]:
    """The command that plays one scene of ``javascript/client.mjs`` with a daemon."""
    return ["node", str(JAVASCRIPT), str(node_modules()), daemon.url, model, scene]


def play_javascript(daemon: Daemon, model: str, scene: str) -> Any:
    """Play a scene to its end; returns what the client saw."""
    played = subprocess.run(
        javascript_command(daemon, model, scene),
        capture_output=True,
        text=True,
        timeout=JAVASCRIPT_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert played.returncode == 0, played.stderr + daemon.log_text()[-2000:]
    return json.loads(played.stdout.splitlines()[-1])


class UnixConnection(http.client.HTTPConnection):
    """HTTP to the worker itself, past the daemon."""

    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def engine_metric(daemon: Daemon, name: str) -> float:
    """A sum over the labels of one of the engine's own metrics."""
    (path,) = (daemon.runtime / "workers").glob("*/s")
    connection = UnixConnection(path)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE))


def _path(name: str, meaning: str) -> Path:
    value = os.environ.get(name, "")
    if not value:
        pytest.skip(f"{name} is not set: it names {meaning}")
    if not Path(value).exists():
        pytest.skip(f"{name} names {value}, which does not exist")
    return Path(value)
