"""The models of a made-up day, and who asks for them when."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from vllamad.domain.placement import demand_of
from vllamad.domain.workload import Wanted

GIB = 1 << 30
DAY_S = 86_400.0
READ_BYTES_PER_S = 2 * GIB
"""Weights from a fast disk into one GPU."""
ENGINE_START_S = 12.0
"""Imports, processes and captured graphs, whatever the size."""
ZIPF = 1.2
"""How much the popular ones are asked more: the first model gets 28 % of all requests, the last 0.3 %."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the day: ``share`` of all requests; ``token_s`` per token of an answer."""

    wanted: Wanted
    share: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    key: str
    caller: str
    seconds: float


def make_models(count: int, seed: int) -> dict[str, Model]:
    """1 to 140 GiB of weights, spread evenly on a logarithmic scale; popular by Zipf, in an order of their own."""
    chance = random.Random(seed)
    sizes = [140.0 ** (number / (count - 1)) for number in range(count)]
    chance.shuffle(sizes)
    shares = [1 / (rank + 1) ** ZIPF for rank in range(count)]
    models: dict[str, Model] = {}
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        key = f"model-{number}"
        demand = demand_of(
            int(size * GIB),
            overhead_bytes=2 * GIB,
            # About 128 KiB a token for 16 GiB of weights (an 8B model), growing with the root of the size.
            token_bytes=int(32 * 1024 * math.sqrt(size)),
            heads=64,
            kv_heads=8,
            least_tokens=8_192,
            wanted_tokens=65_536,
        )
        load_cost_s = ENGINE_START_S + size * GIB / READ_BYTES_PER_S
        models[key] = Model(Wanted(key, key, demand, load_cost_s), share / sum(shares), 0.004 + size * 0.0003)
    return models


def make_requests(models: Mapping[str, Model], per_s: float, seconds: float, seed: int) -> list[Request]:
    """Arrivals at random, four times as many in the busiest hour as at night; each model has its own busy hour."""
    chance = random.Random(seed + 1)
    requests: list[Request] = []
    for key, model in models.items():
        peak_at = chance.gauss(14.0, 3.0) * 3600
        at = 0.0
        rate = per_s * model.share
        while True:
            at += chance.expovariate(rate * 1.6)
            if at >= seconds:
                break
            wave = 1 + 0.6 * math.cos((at - peak_at) / DAY_S * math.tau)
            if chance.random() < wave / 1.6:
                tokens = min(4000.0, chance.lognormvariate(5.3, 0.9))
                requests.append(Request(at, key, f"caller-{chance.randrange(20)}", tokens * model.token_s))
    return sorted(requests, key=lambda request: request.at)
