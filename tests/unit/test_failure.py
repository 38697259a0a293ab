"""What people are told of an engine that ended: the line that says why."""

from vllama.reasons import Reason
from vllamad.engine.phases import plain
from vllamad.supervisor.failure import LAST_LINES, last_words, load_failed

LEAKS = [
    "nanobind: leaked 3 types!",
    ' - leaked type "mlir.Type"',
    " - ... skipped remainder",
    "nanobind: this is likely caused by a reference counting issue in the binding code.",
    "See https://nanobind.readthedocs.io/en/latest/refleaks.html",
]
FATAL = "RuntimeError: Engine core initialization failed. See root cause above."


def test_a_library_that_reports_at_exit_does_not_hide_what_happened() -> None:
    lines = last_words(["Process EngineCore:", "Traceback (most recent call last):", FATAL, *(10 * LEAKS)])
    failure = load_failed("tiny", Reason.ENGINE_START_FAILED, "it exited with status 1", lines, 1, plain)
    assert failure.message == f"cannot load tiny: it exited with status 1: {FATAL}"
    assert "nanobind" not in failure.facts["log"]


def test_the_last_lines_travel_along() -> None:
    assert last_words(f"line {number}" for number in range(50)) == [
        f"line {50 - LAST_LINES + n}" for n in range(LAST_LINES)
    ]
