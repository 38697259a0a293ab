"""Where the real engine and a real model are, for the tests that need them."""

import os
from pathlib import Path

import pytest

START_DEADLINE_S = 300
"""A start takes 20 to 60 s on two cores; on a busy machine with a cold disk several times that."""


def engine_python() -> Path:
    """The interpreter that has vLLM, or skip."""
    return _path("VLLAMA_TEST_ENGINE_PYTHON", "an interpreter that has vLLM")


def packaged_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, or skip."""
    return _path("VLLAMA_TEST_GGUF", "SmolLM2-135M-Instruct as a GGUF file")


def model_folder() -> Path:
    """A folder with SmolLM2-135M-Instruct as the engine loads it, or skip."""
    return _path("VLLAMA_TEST_MODEL", "a folder with SmolLM2-135M-Instruct in safetensors")


def _path(name: str, meaning: str) -> Path:
    value = os.environ.get(name, "")
    if not value:
        pytest.skip(f"{name} is not set: it names {meaning}")
    if not Path(value).exists():
        pytest.skip(f"{name} names {value}, which does not exist")
    return Path(value)
