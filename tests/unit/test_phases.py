"""Lines of real starts (vLLM 0.32), and what they say."""

import logging

import pytest

from vllamad.domain.ports import LoadStep, Taken
from vllamad.engine.phases import level, plain, read_phase
from vllamad.engine.taken import read_taken

CORE = "(EngineCore pid=8456) INFO 11-22 18:50:17 "


@pytest.mark.parametrize(
    ("line", "step"),
    [
        (
            "(APIServer pid=1) INFO 11-22 18:49:59 [api_utils.py:347] vLLM server version 0.32.0, serving model /m",
            LoadStep("import", 0.3),
        ),
        (CORE + "[model.py:733] Resolved architecture: LlamaForCausalLM", LoadStep("import", 0.35)),
        (
            CORE + "[core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/m'",
            LoadStep("engine", 0.6),
        ),
        (CORE + "[cpu_model_runner.py:68] Starting to load model /m...", LoadStep("weights", 0.65)),
        (
            "Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]",
            LoadStep("weights", 0.65, "0/4"),
        ),
        (
            "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:01,  3.47it/s]",
            LoadStep("weights", 0.725, "2/4"),
        ),
        ("Loading pt checkpoint shards: 100% Completed | 1/1", LoadStep("weights", 0.8, "1/1")),
        (CORE + "[default_loader.py:501] Loading weights took 0.30 seconds", LoadStep("weights", 0.8)),
        (CORE + "[backends.py:1167] Dynamo bytecode transform time: 4.51 s", LoadStep("compile", 0.82)),
        (CORE + "[monitor.py:34] torch.compile takes 21.40 s in total", LoadStep("compile", 0.82)),
        (
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|#####     | 17/35 [00:01<00:00, 29.9it/s]",
            LoadStep("graphs", 0.87, "17/35"),
        ),
        (
            CORE + "[gpu_model_runner.py:6582] Graph capturing finished in 4 secs, took 0.60 GiB",
            LoadStep("graphs", 0.9),
        ),
        (
            CORE + "[kv_cache_utils.py:2327] GPU KV cache size: 1,211,648 tokens, Maximum concurrency: 9.1x",
            LoadStep("cache", 0.91, "1,211,648 tokens"),
        ),
        (
            CORE + "[core.py:402] init engine (profile, create kv cache, warmup model) took 0.33 s",
            LoadStep("cache", 0.93),
        ),
        ("(APIServer pid=1) INFO 11-22 18:50 [entry.py:140] Starting vLLM server on unix:/s", LoadStep("routes", 0.97)),
        ("INFO:     Application startup complete.", LoadStep("ready", 1.0)),
    ],
)
def test_known_lines(line: str, step: LoadStep) -> None:
    assert read_phase(line) == step


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Triton is installed, but doesn't include CPU backend. Disabling Triton.",
        CORE + "[weight_utils.py:1108] Filesystem type for checkpoints: EXT4. Checkpoint size: 0.25 GiB.",
        CORE + "[loggers.py:335] Engine 000: Avg prompt throughput: 9.3 tokens/s, CPU KV cache usage: 50.0%",
        CORE + "[vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs, and JIT kernel warmup.",
        "INFO:     Waiting for application startup.",
        "Loading % weird | 1/",
    ],
)
def test_other_lines_are_no_step(line: str) -> None:
    assert read_phase(line) is None


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        (CORE.replace("INFO", "ERROR") + "[core.py:1140] ValueError: no room", "ValueError: no room"),
        ("(APIServer pid=1) Traceback (most recent call last):", "Traceback (most recent call last):"),
        (
            "(Worker_TP0 pid=77) torch.OutOfMemoryError: CUDA out of memory",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("(of a kind) of line", "(of a kind) of line"),
    ],
)
def test_what_the_engine_writes_before_each_line_is_not_told(line: str, rest: str) -> None:
    assert plain(line) == rest


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        (CORE + "[kv_cache_utils.py:2327] CPU KV cache size: 11,648 tokens, Maximum", Taken(cache_tokens=11_648)),
        (CORE + "[gpu_model_runner.py:5150] Model loading took 1.5 GiB memory and 3.2 seconds", Taken(3 << 29)),
        (CORE + "[core.py:1] something else", None),
    ],
)
def test_what_the_engine_says_that_it_took(line: str, taken: Taken | None) -> None:
    assert read_taken(line) == taken


def test_what_was_said_first_stays_until_it_is_said_anew() -> None:
    assert Taken(5, 0) | Taken(0, 7) | Taken(6, 0) == Taken(6, 7)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("(EngineCore pid=7) ERROR 11-26 10:00:00 [core.py:1] out of memory", logging.ERROR),
        ("(APIServer pid=7) WARNING 11-26 10:00:00 [api.py:9] slow", logging.WARNING),
        ("(APIServer pid=7) INFO 11-26 10:00:00 [api.py:9] ERROR is a word here", logging.INFO),
        ("(EngineCore pid=7) Traceback (most recent call last):", logging.INFO),
        ("INFO:     Application startup complete.", logging.INFO),
    ],
)
def test_a_line_is_as_bad_as_the_engine_says(line: str, expected: int) -> None:
    assert level(line) == expected
