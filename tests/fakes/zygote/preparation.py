"""Prepares a zygote that becomes ``program.py``, and misbehaves as a file in its working folder says: ``fault`` is read
before each step, and names one of the functions below with the step at which it shows."""

import os
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
UPGRADED = Path(os.environ["HOME"]) / "upgraded"
FAULT = Path(os.environ["HOME"]) / "fault"


def warm() -> None:
    sys.path.insert(0, str(HERE))
    while _is("slow to warm"):
        time.sleep(0.01)
    if _is("ends"):
        sys.exit("the imports failed")
    if _is("has threads"):
        threading.Thread(target=threading.Event().wait, daemon=True).start()


def objection() -> str:
    return "it has seen a GPU" if _is("objects") else ""


def files() -> list[str]:
    return [str(UPGRADED)]


def begin(argv: list[str]) -> None:
    pass


def _is(fault: str) -> bool:
    return FAULT.exists() and FAULT.read_text() == fault
