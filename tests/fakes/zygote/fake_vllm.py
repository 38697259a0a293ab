"""Prepares a zygote of the fake engine, as ``vllm_zygote.py`` does of the real one."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def warm() -> None:
    """Have everything imported, and ``-m vllm.entrypoints...`` find the fake engine."""
    sys.path[:0] = [str(HERE / "modules"), str(HERE.parent)]
    import engine  # noqa: F401


def objection() -> str:
    return ""


def files() -> list[str]:
    return [__file__]


def begin(argv: list[str]) -> None:
    pass
