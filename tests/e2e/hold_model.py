"""Run by the engine's interpreter: load a model and print what that took, as one line of JSON.

Usage: python hold_model.py FOLDER DTYPE CACHE_BYTES generate|pooling

Prints ``weights_bytes`` (private memory that loading the model added), ``cache_bytes`` (the same for the cache) and
``cache_tokens`` (what the engine says that it holds; 0 for encoders). It looks from outside, at the process: packed
copies of matrices are no tensors that could be counted.
"""

import ctypes
import gc
import json
import os
import re
import sys
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


def private_bytes() -> int:
    """Memory of this process that no file backs, with what was freed given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"^Anonymous:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def main(folder: str, dtype: str, cache_bytes: int, runner: str) -> None:
    import vllm
    from vllm.v1.worker.cpu_worker import CPUWorker

    took: dict[str, int] = {}

    def watch(method: str, name: str) -> None:
        inner = getattr(CPUWorker, method)

        def outer(*args: object, **kwargs: object) -> object:
            before = private_bytes()
            answer = inner(*args, **kwargs)
            took[name] = private_bytes() - before
            return answer

        setattr(CPUWorker, method, outer)

    watch("load_model", "weights_bytes")
    watch("initialize_from_config", "cache_bytes")
    length = -1 if runner == "generate" else None
    model = vllm.LLM(
        folder,
        dtype=dtype,
        runner=runner,
        enforce_eager=True,
        kv_cache_memory_bytes=cache_bytes,
        max_model_len=length,
        max_num_batched_tokens=2048,
    )
    took["cache_tokens"] = model.llm_engine.vllm_config.cache_config.kv_cache_size_tokens or 0
    print("HELD", json.dumps(took))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
