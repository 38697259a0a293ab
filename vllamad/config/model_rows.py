"""``[[model]]`` rows (floor 2): settings for the models whose names fit a pattern."""

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vllamad.config.checks import check_engine_argument
from vllamad.config.kinds import Boolean, Duration, Integer, IntegerList, Text, TextList
from vllamad.config.rows import Effect, Row, maybe, row, rows_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelRow:
    """Settings of the models whose name ``match`` fits. Rows are applied in turn, the most specific one last: the one
    with most letters outside wildcards, of two such the later one."""

    match: str = row(
        Text("a pattern of model names"),
        "",
        'Pattern of model names (*, ? and [...]), without regard to case: "qwen3:*".',
        'A pattern without tag also fits the tag "latest".',
        effect=Effect.AT_ONCE,
    )
    keep_alive_s: float | None = maybe(Duration(), "As models.keep_alive.", effect=Effect.AT_ONCE)
    context_length: int | None = maybe(Integer(0), "As models.context_length.")
    max_num_seqs: int | None = maybe(Integer(0), "As engine.max_num_seqs.")
    dtype: str | None = maybe(Text("a number format of the engine"), "As engine.dtype.")
    args: tuple[str, ...] | None = maybe(
        TextList(check=check_engine_argument),
        "More flags for the engine, behind those of engine.args and of less specific rows.",
    )
    tool_parser: str | None = maybe(Text("a name of a parser"), "The engine's parser for tool calls.")
    reasoning_parser: str | None = maybe(Text("a name of a parser"), "The engine's parser for thinking.")
    priority: int | None = maybe(
        Integer(-100, 100),
        "Requests for models of a higher priority go first; a minute of waiting is worth one level. 0 where none is "
        "given.",
        effect=Effect.AT_ONCE,
    )
    devices: tuple[int, ...] | None = maybe(
        IntegerList(0), "The only GPUs that it may use, as nvidia-smi numbers them: [0, 1]."
    )
    tensor_parallel: int | None = maybe(
        Integer(1, 64), "How many GPUs it is spread over; else as few as hold it. Must divide its attention heads."
    )
    replicas: int | None = maybe(
        Integer(1, 64),
        "How many workers it may have, started one by one as those that it has are crowded; 1 if not given.",
        effect=Effect.AT_ONCE,
    )
    cache_tokens: int | None = maybe(Integer(1), "As models.cache_tokens.")
    pin: bool | None = maybe(Boolean(), 'true: stays loaded, as with keep_alive = "forever".', effect=Effect.AT_ONCE)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What holds for one model, rows merged. ``args`` has those of the engine section in front; ``max_num_seqs`` 0
    leaves it to the engine, ``tensor_parallel`` 0 to the planner; ``keep_alive_s`` is ``math.inf`` for a pinned
    model."""

    keep_alive_s: float
    context_length: int
    max_num_seqs: int
    dtype: str
    args: tuple[str, ...]
    tool_parser: str = ""
    reasoning_parser: str = ""
    is_pinned: bool = False
    priority: int = 0
    devices: tuple[int, ...] = ()
    tensor_parallel: int = 0
    replicas: int = 1
    cache_tokens: int = 0


def merge_rows(defaults: ModelSettings, rows: Sequence[ModelRow], names: Sequence[str]) -> ModelSettings:
    """What holds for a model by the display forms of its names, its own last. A row that fits several counts for the
    last of them."""
    fitting: list[tuple[int, int, ModelRow]] = []
    for each in rows:
        fits = [at for at, name in enumerate(names) if _fits(each.match, name)]
        if fits:
            fitting.append((fits[-1], _literal_length(each.match), each))
    merged = defaults
    for _, _, each in sorted(fitting, key=lambda one: one[:2]):
        merged = ModelSettings(
            keep_alive_s=_or(each.keep_alive_s, merged.keep_alive_s),
            context_length=_or(each.context_length, merged.context_length),
            max_num_seqs=each.max_num_seqs or merged.max_num_seqs,
            dtype=_or(each.dtype, merged.dtype),
            args=merged.args + (each.args or ()),
            tool_parser=_or(each.tool_parser, merged.tool_parser),
            reasoning_parser=_or(each.reasoning_parser, merged.reasoning_parser),
            is_pinned=_or(each.pin, merged.is_pinned),
            priority=_or(each.priority, merged.priority),
            devices=_or(each.devices, merged.devices),
            tensor_parallel=_or(each.tensor_parallel, merged.tensor_parallel),
            replicas=_or(each.replicas, merged.replicas),
            cache_tokens=_or(each.cache_tokens, merged.cache_tokens),
        )
    return replace(merged, keep_alive_s=math.inf) if merged.is_pinned else merged


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _fits(pattern: str, name: str) -> bool:
    lowered, pattern = name.lower(), pattern.lower()
    return fnmatch.fnmatchcase(lowered, pattern) or fnmatch.fnmatchcase(lowered.removesuffix(":latest"), pattern)


def _literal_length(pattern: str) -> int:
    return len(re.sub(r"\[[^\]]*\]|[*?]", "", pattern))


MODEL_ROWS: dict[str, Row] = {each.name: each for each in rows_of("model", ModelRow)}
"""The keys of a row by their names."""
