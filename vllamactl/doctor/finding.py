"""What one check has found (floor 4). Pure."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a check ended. SKIPPED: it does not apply here, or could not be looked at; the text says which."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result: a sentence with the facts, and what to type about it ("" if nothing). ``check`` is the stable
    name of the check, which scripts may compare."""

    check: str
    state: State
    text: str
    remedy: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, State.OK, text)


def warn(check: str, text: str, remedy: str = "") -> Finding:
    return Finding(check, State.WARN, text, remedy)


def fail(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, State.FAIL, text, remedy)


def skipped(check: str, text: str, remedy: str = "") -> Finding:
    return Finding(check, State.SKIPPED, text, remedy)
