"""`vllamactl bench` counts what the real engine has done, no more and no less."""

import pytest

from tests.e2e.conftest import TALENT, Theatre
from tests.e2e.real_engine import engine_metric

pytestmark = pytest.mark.engine

KNOCK_TOKENS = 1
"""One request before each turn is not measured."""


def test_tokens_are_those_that_the_engine_generated(theatre: Theatre) -> None:
    before = engine_metric(theatre.daemon, "vllm:generation_tokens_total")
    words = ["bench", TALENT, "-c", "3", "-n", "6", "--max-tokens", "8", "--warmup", "0"]
    found = theatre.daemon.json(*words)
    (turn,) = found["rounds"]
    generated = engine_metric(theatre.daemon, "vllm:generation_tokens_total") - before
    assert sum(sample["tokens"] for sample in turn["samples"]) == generated - KNOCK_TOKENS
    for sample in turn["samples"]:
        assert sample["fault"] is None and 0 < sample["tokens"] <= 8 and sample["prompt_tokens"] > 5
        assert sample["intended_s"] <= sample["first_s"] <= sample["end_s"]
    (figures,) = found["figures"]
    assert figures["tokens_per_s"] == pytest.approx((generated - KNOCK_TOKENS) / turn["duration_s"])
