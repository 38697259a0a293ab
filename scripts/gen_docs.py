"""Write the pages and files that are made from tables in the code.

Usage: python scripts/gen_docs.py [--check]     (--check: write nothing, exit 1 if something is stale)
"""

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import wrap

from vllama.reasons import ROWS as REASONS
from vllamad.config.model_rows import MODEL_ROWS
from vllamad.config.rows import Row
from vllamad.config.settings import EMPTY_SECTIONS, FILE_ROWS, PLACE_ROWS, SECTIONS
from vllamad.domain.worker import (
    MEANING,
    Effect,
    Event,
    IllegalTransition,
    Kind,
    State,
    WorkerRecord,
    deadline_of,
    step,
)

ROOT = Path(__file__).resolve().parent.parent
MADE_BY = "made by scripts/gen_docs.py; change the table it is made from, not this file"
MAX_LEASES = 2


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells) + "\n"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def page(title: str, source: str, body: str) -> str:
    return f"<!-- {MADE_BY}: {source} -->\n# {title}\n\n{body.rstrip()}\n"


# --- settings --------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """docs/reference/settings.md."""
    parts = [
        """Where a setting can stand; later wins:

1. built in: the defaults on this page
2. `/etc/vllama/config.toml`, then `/etc/vllama/config.d/*.toml` in the order of their names
3. `$XDG_CONFIG_HOME/vllama/config.toml` (else `~/.config/vllama/config.toml`), then `./vllama.toml`;
   neither is read by a system service
4. `OLLAMA_*` variables; one that makes no sense is ignored with a warning, as by Ollama
5. the environment: a credential of systemd (`hub_token`), then `HF_*`, then short names like `VLLAMA_HOST`, then
   `VLLAMA_<SECTION>_<KEY>`; a variable that is set but empty counts as unset
6. the command line

`--config FILE` or `VLLAMA_CONFIG` replaces 2 and 3 by one file. A key or variable that does not exist, a wrong type
and a value out of range stop the daemon with exit status 78; all such problems are listed at once. `vllamad --check`
only looks. `vllamactl config` shows every value, where it came from and what it overrode.

The daemon reads its configuration when it starts and [when it is told to](../how-to/reload.md). Then a change takes
effect at once, or for each model when it is loaded next (a model whose own settings differ is loaded anew), or it needs
a restart and is shown as waiting for it; each setting says which.

Durations are numbers of seconds or strings like `"90s"`, `"5m"`, `"1h30m"`; where a setting allows it, a negative one
or `"forever"` has no end. Sizes are bytes or strings like `"512MiB"` or `"8G"` (powers of 1024), `"2GB"` (of 1000).
Relative paths in a file are meant from the folder of the file, elsewhere from the working directory; `~` is the home
folder.
"""
    ]
    for name, owner in SECTIONS.items():
        parts.append(f"## [{name}]\n\n{owner.__doc__}\n")
        parts += [_setting(row) for row in FILE_ROWS.values() if row.section == name]
    parts.append(
        "## [[model]]\n\nSettings for models whose names fit a pattern; any number of rows. They are applied in turn, "
        "the most specific one last: the one with most letters outside wildcards, of two such the later one.\n\n"
        '```toml\n[[model]]\nmatch = "qwen3:*"\nkeep_alive = "1h"\ncontext_length = 16384\n```\n'
    )
    parts.append(
        table(
            ["key", "type", "meaning", "a change takes effect"],
            [
                [code(row.name), row.kind.name, " ".join(filter(None, (row.help, row.why))), row.effect.value]
                for row in MODEL_ROWS.values()
            ],
        )
    )
    parts.append("## Places\n\nThese decide which files are read, so no file can set them.\n")
    parts += [_setting(row) for row in PLACE_ROWS.values()]
    sections = ", ".join(f"`[{name}]`" for name in EMPTY_SECTIONS)
    parts.append(f"## Sections without settings\n\n{sections}: reserved; this version refuses every key in them.\n")
    return page("Settings", "vllamad/config/settings.py", "\n".join(parts))


def _setting(row: Row) -> str:
    default = "" if row.default in ("", ()) else f", default {code(row.kind.to_toml(row.default))}"
    unit = f" ({row.unit})" if row.unit else ""
    names = [code(name) for name in (row.flag, *row.env, row.ollama) if name]
    lines = [f"### {code(row.key)}", "", row.help, ""]
    if row.why:
        lines += [row.why, ""]
    lines += [f"- {row.kind.name}{unit}{default}; {row.kind.allowed}", f"- also {', '.join(names)}"]
    lines += [f"- a change takes effect {row.effect.value}" if row.is_reloadable else "- a change needs a restart", ""]
    return "\n".join(lines)


def config_file() -> str:
    """packaging/config.toml: every default, commented out."""
    lines = [
        "# Configuration of vllamad. " + MADE_BY[0].upper() + MADE_BY[1:] + ".",
        "# Every setting is here with its default, commented out. The environment and the command line win over this",
        "# file; `vllamad --check` tells whether it is right. `systemctl reload vllamad` applies it, but for settings",
        "# that need a restart, as they say here.",
    ]
    for name, owner in SECTIONS.items():
        lines += ["", *_comment(owner.__doc__ or ""), f"[{name}]"]
        for row in FILE_ROWS.values():
            if row.section == name:
                restart = "" if row.is_reloadable else "Needs a restart."
                lines += ["", *_comment(row.help), *_comment(f"{row.why} {restart}")]
                lines.append(f"#{row.name} = {row.kind.to_toml(row.default)}")
    lines += ["", *_comment("Settings for some models; any number of rows, the most specific one wins.")]
    samples = {"match": '"qwen3:*"', "keep_alive": '"1h"', "context_length": "16384", "max_num_seqs": "64"}
    samples |= {"dtype": '"bfloat16"', "args": "[]", "tool_parser": '"hermes"', "reasoning_parser": '"qwen3"'}
    samples |= {"pin": "false", "priority": "0", "devices": "[0, 1]", "tensor_parallel": "2", "replicas": "1"}
    samples |= {"cache_tokens": "131072"}
    lines.append("#[[model]]")
    lines += [f"#{row.name} = {samples[row.name]}  # {row.help}" for row in MODEL_ROWS.values()]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(" ".join(text.split()), 98)]


# --- failures --------------------------------------------------------------------------------------------------------

EXITS = {
    0: "done",
    1: "a bug",
    2: "asked wrongly",
    3: "no such thing",
    4: "daemon not there",
    5: "not allowed",
    6: "not in this state",
    7: "try later",
    8: "the engine or the disk failed",
    78: "the configuration is wrong (vllamad); systemd does not restart it",
    124: "a deadline passed",
    130: "cancelled",
}


def errors_page() -> str:
    """docs/reference/errors.md."""

    def number(value: int | None) -> str:
        return str(value) if value else "-"

    body = [
        "Every failure has a reason. Its name is stable and the same everywhere: in the log, as `code` in lower case "
        "on the OpenAI face, and as `reason` of the ErrorInfo (domain `vllama`) that goes with every gRPC status. The "
        "text says what could not be done and why, and mostly what to do next.\n",
        table(
            ["reason", "meaning"],
            [[code(str(reason)), row.meaning] for reason, row in REASONS.items()],
        ),
        "## On each face\n\nA dash: not seen there. HTTP is the status on our own and the OpenAI routes, Ollama the "
        "one on `/api/*`, where its clients depend on its number. Retry is the usual Retry-After header in seconds; a "
        "failure that knows better says so, in its fact `retry_after_s` too. "
        "Once the first byte of an answer is sent, the status is spent: the failure then comes in the stream, in the "
        "form of its dialect.\n",
        table(
            ["reason", "HTTP", "Ollama", "OpenAI type", "Anthropic", "gRPC", "exit", "retry"],
            [
                [
                    code(str(reason)),
                    number(row.http),
                    number(row.ollama),
                    row.openai_type or "-",
                    f"{row.anthropic_status} {row.anthropic_type}" if row.anthropic_status else "-",
                    row.grpc or "-",
                    str(row.exit),
                    number(row.retry_after_s),
                ]
                for reason, row in REASONS.items()
            ],
        ),
        "## Exit statuses in words\n",
        table(["exit", "meaning"], [[str(exit_), words] for exit_, words in EXITS.items()]),
    ]
    missing = {row.exit for row in REASONS.values()} - set(EXITS)
    if missing:
        sys.exit(f"gen_docs: exit statuses without words: {sorted(missing)}")
    return page("Failures", "vllama/reasons.py", "\n".join(body))


# --- worker states ---------------------------------------------------------------------------------------------------

Outcome = tuple[str, str]
Features = tuple[str, ...]
WISHES = (Kind.START, Kind.STOP, Kind.SUSPEND)


def walk() -> list[tuple[WorkerRecord, Event, WorkerRecord, tuple[Effect, ...]]]:
    """Every step from every reachable record, with the life counter held still."""
    seen = {WorkerRecord()}
    frontier = [WorkerRecord()]
    steps: list[tuple[WorkerRecord, Event, WorkerRecord, tuple[Effect, ...]]] = []
    while frontier:
        record = frontier.pop()
        for kind in Kind:
            if kind is Kind.LEASED and record.leases == MAX_LEASES:
                continue
            try:
                after, effects = step(record, Event(kind, None if kind in WISHES else record.incarnation))
            except IllegalTransition:
                continue
            after = replace(after, incarnation=0)
            steps.append((record, Event(kind), after, effects))
            if after not in seen:
                seen.add(after)
                frontier.append(after)
    return steps


FEATURES: dict[str, Callable[[WorkerRecord], str]] = {
    "goal": lambda record: f"goal {record.goal}",
    "leases": lambda record: {0: "no lease", 1: "the last lease"}.get(record.leases, "more leases"),
    "held": lambda record: "memory leaked" if record.held == "leaked" else "memory not leaked",
    "retry": lambda record: "to be tried again" if record.will_retry else "not to be tried again",
    "fault": lambda record: "after a fault" if record.cause else "no fault",
    "attempts": lambda record: "first start" if record.attempts == 0 else "a restart",
}


def conditions(cases: list[tuple[WorkerRecord, Outcome]]) -> dict[Outcome, str]:
    """Say when each outcome comes, by the fewest features of the record that tell them apart."""
    outcomes = {outcome for _, outcome in cases}
    if len(outcomes) == 1:
        return dict.fromkeys(outcomes, "")
    for count in range(1, len(FEATURES) + 1):
        for names in itertools.combinations(FEATURES, count):
            found: dict[Features, set[Outcome]] = defaultdict(set)
            for record, outcome in cases:
                found[tuple(FEATURES[name](record) for name in names)].add(outcome)
            if all(len(several) == 1 for several in found.values()):
                return {outcome: _either(found, outcome) for outcome in outcomes}
    sys.exit(f"gen_docs: no features tell these apart: {outcomes}")


def _either(found: dict[Features, set[Outcome]], outcome: Outcome) -> str:
    ways = [features for features, several in found.items() if several == {outcome}]
    spread = [sorted({way[place] for way in ways}) for place in range(len(ways[0]))]
    everywhere = [{features[place] for features in found} for place in range(len(ways[0]))]
    if len(ways) == _product(spread):  # each feature speaks for itself: name those that matter
        words = [" or ".join(here) for here, all_ in zip(spread, everywhere, strict=True) if set(here) != all_]
        return ", ".join(words)
    return "; or ".join(", ".join(way) for way in sorted(ways))


def _product(spread: list[list[str]]) -> int:
    count = 1
    for here in spread:
        count *= len(here)
    return count


def states_page() -> str:
    """docs/reference/worker-states.md."""
    steps = walk()
    records = {record for record, *_ in steps}
    cases: dict[tuple[State, Kind], list[tuple[WorkerRecord, Outcome]]] = defaultdict(list)
    for record, event, after, effects in steps:
        words = [effect.value for effect in effects]
        if after.leases == record.leases + 1:
            words.append("lease + 1")
        elif after.leases == record.leases - 1 and record.leases and Effect.BREAK_LEASES not in effects:
            words.append("lease - 1")
        cases[record.state, event.kind].append((record, (str(after.state), ", ".join(words))))
    # Events that end the same way from a state share a row.
    merged: dict[tuple[State, str, Outcome], list[str]] = defaultdict(list)
    for state, kind in itertools.product(State, Kind):
        if (state, kind) in cases:
            for outcome, when in sorted(conditions(cases[state, kind]).items()):
                if outcome != (str(state), ""):
                    merged[state, when, outcome].append(str(kind))
    body = [
        "A worker is one slot that runs an engine for one model. Its *state* is what it is, its *goal* (RUN, SUSPEND, "
        "STOP) what is wanted of it. States that end in ING, and BACKOFF, end by themselves: each has one deadline.\n",
        table(
            ["state", "meaning", "leases", "memory held", "deadline"],
            [[code(str(state)), MEANING[state], *_of_state(state, records)] for state in State],
        ),
        "## Transitions\n",
        table(
            ["from", "event", "when", "to", "effects"],
            [
                [code(str(state)), ", ".join(kinds), when or "-", code(outcome[0]), outcome[1] or "-"]
                for (state, when, outcome), kinds in merged.items()
            ],
        ),
        "Start, Stop and Suspend are allowed everywhere; where they are not listed they move the goal only. An event "
        "of an earlier life of the worker changes nothing. What is neither listed nor a late answer is refused as a "
        "bug.\n",
        f"The table was made by walking all {len(records)} records that can be reached, counting up to {MAX_LEASES} "
        "leases; the tests check the invariants on each of them.\n",
    ]
    return page("States of a worker", "vllamad/domain/worker.py", "\n".join(body))


def _of_state(state: State, records: Iterable[WorkerRecord]) -> list[str]:
    own = [record for record in records if record.state is state]
    deadlines = {str(deadline_of(record) or "-") for record in own}
    held = sorted({record.held.value for record in own})
    return ["n" if any(record.leases for record in own) else "0", " or ".join(held), ", ".join(sorted(deadlines))]


# --- all of them -----------------------------------------------------------------------------------------------------

PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/settings.md": settings_page,
    "docs/reference/errors.md": errors_page,
    "docs/reference/worker-states.md": states_page,
    "packaging/config.toml": config_file,
}


def stale() -> list[str]:
    """The generated files that are not what they would be now."""
    return [name for name, make in PAGES.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != make()]


def main(arguments: Sequence[str]) -> int:
    """Write the files, or check them."""
    names = stale()
    if "--check" in arguments:
        for name in names:
            print(f"{name} is stale: run python scripts/gen_docs.py", file=sys.stderr)
        return 1 if names else 0
    for name in names:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(PAGES[name]())
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
