"""A day's traffic over 8 GPUs and 40 models, without a clock: what the planner is worth beside simpler rules.

Usage: python benchmarks/day.py [--seed N] [--requests-per-s R]

Events only, seconds to run. Every policy sees the same requests and is carried out by the same machine: loads take what
the model's size takes, one load at a time per GPU, engines batch whatever they are given. The policies:

- planner: `vllamad/domain/planning.py`.
- LRU: several models share a GPU; when the oldest request's model does not fit, the one that was idle longest leaves,
  wherever it is, until it does.
- one per GPU: a model has its GPU (or GPUs) to itself; again the one that was idle longest leaves.

A *hit* finds its model ready. Waits are from arrival to the lease; who waits 900 s (the default of scheduler.load_wait)
is refused, and counts with that.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Run by its path, not as a module: what this folder lies in is what can be imported.
    sys.path[0] = str(ROOT)

from benchmarks.day_machine import Machine, Outcome, Policy  # noqa: E402
from benchmarks.day_policies import least_recently_used, one_per_gpu  # noqa: E402
from benchmarks.day_traffic import DAY_S, make_models, make_requests  # noqa: E402
from vllamad.domain.planning import plan  # noqa: E402
from vllamad.domain.workload import Limits  # noqa: E402

POLICIES: dict[str, Policy] = {"planner": plan, "LRU": least_recently_used, "one per GPU": one_per_gpu}


def simulate(
    policy: Policy,
    *,
    models: int = 40,
    devices: int = 8,
    requests_per_s: float = 0.1,
    seconds: float = DAY_S,
    seed: int = 1,
    limits: Limits | None = None,
) -> Outcome:
    """One day under one policy."""
    made = make_models(models, seed)
    # Grants follow at once, as many as come: the queue's bound is not what is measured here.
    machine = Machine(made, devices, policy, limits or Limits(queue=100_000))
    return machine.run(make_requests(made, requests_per_s, seconds, seed))


def table(outcomes: Mapping[str, Outcome]) -> list[str]:
    """For people: a line per policy."""
    lines = [
        f"{'policy':<12} {'requests':>8} {'hits':>7} {'loads':>6} {'evictions':>9} "
        f"{'mean wait':>10} {'p95':>8} {'p99':>8} {'refused':>7}"
    ]
    for name, one in outcomes.items():
        lines.append(
            f"{name:<12} {len(one.waits):>8} {one.hit_rate:>7.1%} {one.loads:>6} {one.evictions:>9} "
            f"{one.mean_wait_s:>8.2f} s {one.wait_s(0.95):>6.1f} s {one.wait_s(0.99):>6.1f} s {one.refused:>7}"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests-per-s", type=float, default=0.1, help="on average over the day")
    options = parser.parse_args()
    outcomes = {
        name: simulate(policy, seed=options.seed, requests_per_s=options.requests_per_s)
        for name, policy in POLICIES.items()
    }
    sys.stdout.write("\n".join(table(outcomes)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
