"""How fast this processor multiplies matrices in the number formats that weights come in. Executed by the engine's
interpreter, never imported by the daemon; needs torch only, not vLLM.

The product is a token's way through a few layers, for one request and for a batch: what an engine on CPU spends most of
its time with. The shortest time of each counts: whatever else runs on the machine only makes it longer.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

WIDTH, LAYERS = 2048, 4
"""8 MiB a layer in 16 bits, 16 in 32: together beyond the cache that one core has to itself."""
ROWS = (1, 16)
ROUNDS = 8
FORMATS = ("bfloat16", "float32")


def main() -> None:
    # Whoever else wants the processor comes first.
    os.nice(19)
    torch: Any = importlib.import_module("torch")
    formats = {name: getattr(torch, name) for name in FORMATS}
    layers = {name: [torch.randn(WIDTH, WIDTH).to(dtype) for _ in range(LAYERS)] for name, dtype in formats.items()}
    shortest: dict[str, float] = {}
    for name in FORMATS:
        shortest |= {f"{name} {rows}": float("inf") for rows in ROWS}
    with torch.inference_mode():
        for _ in range(ROUNDS):  # in turns, so that a slow moment meets all of them
            for rows in ROWS:
                for name, dtype in formats.items():
                    values = torch.randn(rows, WIDTH).to(dtype)
                    begun = time.perf_counter()
                    for weights in layers[name]:
                        values = torch.nn.functional.linear(values, weights)
                    key = f"{name} {rows}"
                    shortest[key] = min(shortest[key], time.perf_counter() - begun)
    found = {name: 1000 * sum(shortest[f"{name} {rows}"] for rows in ROWS) for name in FORMATS}
    sys.stdout.write("self-test:" + json.dumps(found) + "\n")


main()
