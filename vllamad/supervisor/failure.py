"""What a worker died of, as people are told (floor 3)."""

import re
from collections.abc import Callable, Iterable

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

LAST_LINES = 12
"""Lines of the engine's output that travel with a failure."""

SOUGHT_LINES = 100
"""So many of the last ones are read for them."""

_REPORT_AT_EXIT = re.compile(r"nanobind: | - leaked \w+ | - \.\.\. skipped remainder|See https://nanobind\.")
"""What a library of the engine's compiler (nanobind, with vLLM 0.32 on CPU) writes when the interpreter ends by an
exception: forty lines about itself, below the one that matters."""


def last_words(lines: Iterable[str]) -> list[str]:
    """The last lines that tell something of why an engine ended."""
    return [line for line in lines if not _REPORT_AT_EXIT.match(line)][-LAST_LINES:]


def load_failed(
    model: str, cause: Reason, fault: str, lines: list[str], attempts: int, plain: Callable[[str], str]
) -> VllamaError:
    """The failure of a worker that is given up, or tried again later: what happened (``fault``), and the engine's own
    word for it, without what it writes before each line (``plain``)."""
    detail = fault or "the engine ended"
    telling = plain(_telling_line(lines))
    says_the_same = telling in detail or detail in telling
    shown = detail if says_the_same else f"{detail}: {telling}"
    what = f"the engine of {model} has stopped unexpectedly" if cause is Reason.ENGINE_DIED else f"cannot load {model}"
    return VllamaError(
        cause,
        f"{what}: {shown}",
        f"see what the engine said: vllamactl logs {model}",
        model=model,
        attempts=attempts,
        log="\n".join(lines),
    )


def _telling_line(lines: list[str]) -> str:
    """The last line that names an error; the last of all if none does."""
    telling = [line for line in lines if "warnings.warn(" not in line and "Warning:" not in line]
    for line in reversed(telling):
        if "Error" in line or "error:" in line:
            return line.strip()[:300]
    return telling[-1].strip()[:300] if telling else ""
