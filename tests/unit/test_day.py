"""The simulated day: the same requests for every policy, nobody lost, and the planner worth its lines."""

import pytest

from benchmarks.day import POLICIES, simulate, table
from benchmarks.day_machine import Outcome

MODELS, DEVICES, SECONDS = 20, 4, 7200.0


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return {
        name: simulate(policy, models=MODELS, devices=DEVICES, seconds=SECONDS, requests_per_s=0.05)
        for name, policy in POLICIES.items()
    }


def test_every_request_comes_to_an_end_under_every_policy(outcomes: dict[str, Outcome]) -> None:
    (count,) = {len(one.waits) for one in outcomes.values()}
    assert count > 100
    assert all(0 <= one.hits <= count and one.refused == 0 for one in outcomes.values())
    assert all(0 <= one.loads - one.evictions <= MODELS for one in outcomes.values())


def test_the_planner_beats_simpler_rules(outcomes: dict[str, Outcome]) -> None:
    planner = outcomes["planner"]
    for name in ("LRU", "one per GPU"):
        assert planner.hit_rate > outcomes[name].hit_rate
        assert planner.evictions < outcomes[name].evictions
        assert planner.mean_wait_s < outcomes[name].mean_wait_s


def test_a_day_can_be_had_again(outcomes: dict[str, Outcome]) -> None:
    again = simulate(POLICIES["planner"], models=MODELS, devices=DEVICES, seconds=SECONDS, requests_per_s=0.05)
    assert again == outcomes["planner"]


def test_the_table_has_a_line_for_each(outcomes: dict[str, Outcome]) -> None:
    head, *lines = table(outcomes)
    assert "p99" in head
    assert [line[:12].strip() for line in lines] == list(POLICIES)
    assert all(len(line) <= 100 for line in lines)
