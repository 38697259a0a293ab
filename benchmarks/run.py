"""Measure what vllama costs: one run, medians, each beside what it is compared with.

Usage: python benchmarks/run.py [--engine PYTHON --gguf FILE] [--quick] [--json FILE] [--plots DIR]
                                [--only PART] [--model-state DIR]

Run by `make bench`. Without --engine only what needs no engine is measured. Slow is never a failure: the exit status is
1 only if something did not work. Everything that is started is gone at the end.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".demo" / "state"


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, metavar="PYTHON", help="the engine's interpreter")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the packaged model")
    parser.add_argument(
        "--model-state", type=Path, metavar="DIR", default=KEPT, help="state folder with the model made"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", default=ROOT / "build" / "bench.json")
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="where pictures go; beside the JSON file if not given"
    )
    parser.add_argument("--only", metavar="PART", help='measure one part alone, such as "fast source"')
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    if (options.engine is None) != (options.gguf is None):
        parser.error("--engine and --gguf go together")
    return options


def leave(number: int, _frame: object) -> None:
    """End as if by Ctrl-C, so that what was started is stopped then too."""
    sys.exit(128 + number)


def main() -> int:
    options = parse()
    # Run by its path, not as a module: what this folder lies in is what can be imported.
    sys.path[0] = str(ROOT)
    from benchmarks import cold_start, fast_path, hotpath, machine, measuring, passthrough, plots, processes, scaling
    from benchmarks.client import BenchFailed
    from benchmarks.report import Row, table

    effort = measuring.QUICK if options.quick else measuring.Effort()
    found: dict[str, Any] = {"machine": machine.facts(), "quick": options.quick}
    say("machine: " + ", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    rows: list[Row] = []
    failures: list[str] = []

    def engine() -> list[Row]:
        more, about = measuring.measure_engine(options.engine, options.gguf, options.model_state, effort, say)
        found["engine"] = about
        return more

    parts: dict[str, Callable[[], list[Row]]] = {
        "start of the daemon": lambda: measuring.measure_start(effort),
        "vllamactl ps": lambda: measuring.measure_ps(effort),
        "gateway alone": lambda: measuring.measure_gateway(effort, say),
        "passthrough": lambda: passthrough.measure_passthrough(effort, say),
        "fast source": lambda: hotpath.measure_hotpath(effort, say),
        "processes": lambda: processes.measure_processes(effort, say),
        "growth": lambda: scaling.measure_scaling(effort, say),
    }
    if options.engine is not None:
        parts["cold start"] = lambda: cold_start.measure_cold_start(
            options.engine, options.gguf, options.model_state, effort, say
        )
        parts["real engine"] = engine
        parts["fast path"] = lambda: fast_path.measure_fast_path(
            options.engine, options.gguf, options.model_state, effort, say
        )
    if options.only is not None and options.only not in parts:
        say(f"✗ no part is called {options.only!r}; there are: {', '.join(parts)}")
        return 2
    for name, measure in parts.items():
        if options.only not in {None, name}:
            continue
        say(f"→ {name}")
        try:
            rows += measure()
        # AssertionError: how the daemon's harness says that a start failed or that a process is left.
        except (BenchFailed, AssertionError, OSError, subprocess.SubprocessError) as error:
            failures.append(f"{name}: {error}")
            say(f"✗ {failures[-1]}")
    found |= {"rows": [row.document() for row in rows], "failures": failures}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    folder = options.plots or options.json.parent
    folder.mkdir(parents=True, exist_ok=True)
    for file, picture in plots.pictures(rows).items():
        (folder / file).write_text(picture)
    sys.stdout.write(table(rows) + "\n")
    say(f"• all numbers: {options.json}")
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    sys.exit(main())
