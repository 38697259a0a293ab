"""What a bench found, as JSON (floor 4): every sample, and what a reader must know of it. Pure."""

from dataclasses import asdict
from typing import Any

from vllamactl.bench.comparing import compare
from vllamactl.bench.figures import Figures, Limits, Spread, figures
from vllamactl.bench.plan import Level
from vllamactl.bench.running import Bench, Results
from vllamactl.bench.workload import longest

_PERCENTS = (50.0, 90.0, 99.0)


def document(results: Results, environment: dict[str, Any]) -> dict[str, Any]:
    """Return everything. Times are in seconds; those of a sample are counted from the beginning of its round."""
    bench = results.bench
    return {
        "is_partial": results.is_partial,
        "environment": environment,
        "plan": _plan(bench),
        "sides": [
            {"name": target.name, **(results.facts[at] if at < len(results.facts) else {})}
            for at, target in enumerate(bench.targets)
        ],
        "figures": [
            {"side": target.name, **_level(level), **_figures(figures(played, bench.limits or Limits()), bench.limits)}
            for at, target in enumerate(bench.targets)
            for level in bench.levels
            if (played := results.of(level, at))
        ],
        "comparison": _comparison(results) if len(bench.targets) > 1 else None,
        "rounds": [
            {
                "side": bench.targets[record.turn.side].name,
                "round": record.turn.round,
                **_level(record.turn.level),
                "duration_s": record.played.duration_s,
                "cpu_s": record.played.cpu_s,
                "unfinished": record.played.unfinished,
                "samples": [asdict(sample) for sample in record.played.samples],
            }
            for record in results.records
        ],
    }


def _plan(bench: Bench) -> dict[str, Any]:
    return {
        "prompts": bench.workload.source,
        "is_distinct": bench.workload.is_distinct,
        "max_tokens": longest(bench.workload.asks),
        "levels": [
            {**_level(level), "requests": count} for level, count in zip(bench.levels, bench.requests, strict=True)
        ],
        "rounds": bench.rounds,
        "warmups": bench.usual_warmups,
        "limits": asdict(bench.limits) if bench.limits else None,
        "timeout_s": bench.timeout_s,
        "seed": bench.seed,
        "nonce": bench.nonce,
    }


def _level(level: Level) -> dict[str, Any]:
    return {"concurrency": level.users or None, "rate": level.rate or None}


def _figures(found: Figures, limits: Limits | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "answered": found.answered,
        "failed": found.failed,
        "unfinished": found.unfinished,
        "duration_s": found.duration_s,
        "requests_per_s": found.requests_per_s,
        "tokens_per_s": found.tokens_per_s,
        "latency_s": _spread(found.latency),
        "latency_trend_s": found.trend,
        "first_token_s": _spread(found.first_token),
        "per_token_s": _spread(found.per_token),
        "prompt_tokens": _spread(found.prompt_tokens),
        "tokens": _spread(found.tokens),
        "stopped_before_limit": found.stopped,
        "faults": dict(found.faults),
        "client_cpu_share": found.cpu_share,
        "most_in_flight": found.most_in_flight,
        "most_late_s": found.most_late_s,
    }
    if limits is not None:
        shown["goodput"] = {"good": found.good, "share": found.good_share, "requests_per_s": found.good_per_s}
    return shown


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    """Percentiles that so few values do not have are null."""
    if spread is None:
        return None
    shown: dict[str, Any] = {f"p{percent:g}": spread.at(percent) for percent in _PERCENTS}
    return {"n": len(spread.values), "min": spread.least, **shown, "max": spread.most}


def _comparison(results: Results) -> list[dict[str, Any]]:
    bench = results.bench
    names = bench.targets[0].name, bench.targets[1].name
    shown: list[dict[str, Any]] = []
    for level in bench.levels:
        pairs = results.pairs(level)
        if not pairs:
            continue
        found = compare(pairs, bench.limits, names)
        rows = [
            {
                "measure": row.measure.name,
                "unit": row.measure.unit,
                **dict(zip(names, row.values, strict=True)),
                "ratio": row.ratio.median if row.ratio else None,
                "pair_ratios": list(row.ratio.pairs) if row.ratio else None,
                "why_not": row.why or None,
                "better": names[row.better] if row.better is not None else None,
            }
            for row in found.rows
        ]
        shown.append({**_level(level), "measures": rows, "same_texts": found.same_texts, "notes": list(found.notes)})
    return shown
