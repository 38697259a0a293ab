"""What the engine's log says about the progress of loading (floor 2).

Lines were taken from vLLM 0.32. They are prose and may change: a line that is not known is no step, and readiness is
never decided here but by the engine's own health.

Fractions are of the time of a start on CPU (20 s with filled caches: 8 s imports in the API server, 8 s imports in the
engine core, the rest model, contexts and routes), with more room for weights and compilation, which rule on a GPU.
"""

import logging
import re
from collections.abc import Callable

from vllamad.domain.ports import LoadStep

Reading = Callable[[re.Match[str]], LoadStep]


def _step(phase: str, fraction: float) -> Reading:
    return lambda _match: LoadStep(phase, fraction)


def _share(phase: str, start: float, end: float) -> Reading:
    """A step by the line's own percentage; its detail is the count that the line shows."""

    def read(match: re.Match[str]) -> LoadStep:
        percent = min(100, int(match["percent"]))
        return LoadStep(phase, round(start + (end - start) * percent / 100, 3), match["count"] or f"{percent} %")

    return read


_STEPS: tuple[tuple[re.Pattern[str], Reading], ...] = (
    (re.compile(r"\] vLLM server version"), _step("import", 0.3)),
    (re.compile(r"\] Resolved architecture: "), _step("import", 0.35)),
    (re.compile(r"Initializing a V1 LLM engine"), _step("engine", 0.6)),
    (re.compile(r"\] Starting to load model "), _step("weights", 0.65)),
    (
        re.compile(r"^Loading .*(?:shards|Streamer|loader): +(?P<percent>\d+)%(?:[^|]*\|+ *(?P<count>\d+/\d+))?"),
        _share("weights", 0.65, 0.8),
    ),
    (re.compile(r"\] Loading weights took "), _step("weights", 0.8)),
    (re.compile(r"\] Model loading took "), _step("loaded", 0.81)),
    (re.compile(r"\] .*(?:Dynamo bytecode transform time|Compiling a graph|torch\.compile )"), _step("compile", 0.82)),
    (
        re.compile(r"^Capturing CUDA graphs.*?: +(?P<percent>\d+)%(?:[^/]*?(?P<count>\d+/\d+))?"),
        _share("graphs", 0.84, 0.9),
    ),
    (re.compile(r"\] Graph capturing finished"), _step("graphs", 0.9)),
    (
        re.compile(r"KV cache size: (?P<tokens>[\d,]+) tokens"),
        lambda match: LoadStep("cache", 0.91, f"{match['tokens']} tokens"),
    ),
    (re.compile(r"\] init engine .*took "), _step("cache", 0.93)),
    (re.compile(r"\] Starting vLLM server on "), _step("routes", 0.97)),
    (re.compile(r"Application startup complete"), _step("ready", 1.0)),
)


_HEAD = re.compile(
    r"^\((?:APIServer|EngineCore|Worker)\w* pid=\d+\) "
    r"(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] )?"
)
_LEVELS = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.CRITICAL}


def level(line: str) -> int:
    """How bad a line is, as a level of ``logging``. A trace is written line by line without one, and is INFO: the line
    before it says that it is an error."""
    match = _HEAD.match(line)
    return _LEVELS.get(match["level"], logging.INFO) if match else logging.INFO


def plain(line: str) -> str:
    """A line without its process, level, time and place in the code."""
    return _HEAD.sub("", line)


def read_phase(line: str) -> LoadStep | None:
    """What a line says about the progress of loading; None for every other line."""
    for pattern, reading in _STEPS:
        if match := pattern.search(line):
            return reading(match)
    return None
