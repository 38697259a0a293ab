"""The real engine for the whole ring. Two daemons have it, one after the other: the first serves a model made of the
packaged GGUF and dies a few times, the second serves the same weights to everyone who only asks."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.real_engine import START_DEADLINE_S, engine_metric, engine_python, model_folder, packaged_gguf
from tests.fakes.daemon import Daemon, running
from tests.fakes.hub import HubServer
from tests.fakes.lora import make_adapter

MODEL = "smollm2:135m"
TALENT = "smollm2:talent"
"""The same weights with a chat template for tools and thinking."""
ADAPTED = "smollm2:adapted"
"""The same with a LoRA adapter that turns its answers into something else."""
SETTLE_S = 30.0
WARM = {"VLLAMA_ENGINE_WARM_UP": "before-ready"}
"""What tests count as the engine's work is theirs: it has warmed up before."""


@pytest.fixture(scope="session")
def real() -> Iterator[Daemon]:
    """A daemon with the real engine and SmolLM2-135M-Instruct, which `create` has made of its GGUF file."""
    with running(engine=engine_python(), environment=WARM) as daemon:
        daemon.ctl("create", MODEL, "--from", str(packaged_gguf()), timeout=600)
        (model,) = daemon.json("list")["models"]
        # The tests of single parts use the same files, without converting them again.
        os.environ.setdefault("VLLAMA_TEST_MODEL", str(Path(model["path"])))
        yield daemon


@dataclass(frozen=True)
class Theatre:
    """A daemon with ``TALENT`` loaded; ``folder`` are the model's files with their own template, ``hub`` is what the
    daemon pulls from."""

    daemon: Daemon
    folder: Path
    hub: HubServer

    @property
    def url(self) -> str:
        return self.daemon.url

    def finished(self) -> int:
        """How many answers the engine has brought to their end; those it gave up are not among them."""
        return round(engine_metric(self.daemon, "vllm:request_success_total"))

    def wait_settled(self) -> int:
        """Wait until the engine says that it works for nobody, and the daemon that nobody is served. Returns how many
        answers that took."""
        daemon = self.daemon
        asked = 0
        deadline = time.monotonic() + SETTLE_S
        last: object = None
        body = {"model": TALENT, "prompt": "Hi", "stream": False, "think": False, "options": {"num_predict": 1}}
        while time.monotonic() < deadline:
            # The engine's gauges move with its steps: an idle one keeps the last value.
            assert daemon.request("POST", "/api/generate", body).status == 200
            asked += 1
            busy = [engine_metric(daemon, f"vllm:num_requests_{name}") for name in ("running", "waiting")]
            queue = daemon.request("GET", "/health").json()["queue"]
            leases = [worker["leases"] for worker in daemon.workers()]
            last = busy, queue, leases
            if not any(busy) and not any(leases) and queue["active"] == queue["waiting"] == 0:
                return asked
        raise AssertionError(f"{SETTLE_S:.0f} s after the last client had left: {last}\n{daemon.log_text()[-2000:]}")


@pytest.fixture(scope="session")
def theatre(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """One daemon and one start of the engine for every test that takes nothing apart."""
    if "VLLAMA_TEST_MODEL" not in os.environ:
        request.getfixturevalue("real")
    folder = model_folder()
    talent = tmp_path_factory.mktemp("talent") / "files"
    shutil.copytree(folder, talent, ignore=shutil.ignore_patterns("chat_template.jinja"))
    shutil.copyfile(Path(__file__).with_name("tools_and_thinking.jinja"), talent / "chat_template.jinja")
    # Other tests start engines of their own, which may take longer than a model stays by default.
    kept = {"VLLAMA_MODELS_KEEP_ALIVE": "1h", **WARM}
    with HubServer() as hub, running(engine=engine_python(), environment=kept | {"HF_ENDPOINT": hub.url}) as daemon:
        daemon.ctl("create", TALENT, "--from", str(talent))
        # The worker makes room for adapters from the beginning: the first one would have it started anew.
        make_adapter(talent.parent / "adapter", hidden=576, layers=30, strength=0.4)
        (talent.parent / "Modelfile").write_text(f"FROM {TALENT}\nADAPTER ./adapter\n")
        daemon.ctl("create", ADAPTED, "-f", str(talent.parent / "Modelfile"))
        loaded = daemon.request("POST", "/api/chat", {"model": TALENT}, timeout=START_DEADLINE_S)
        assert loaded.json()["done_reason"] == "load", daemon.log_text()[-3000:]
        yield Theatre(daemon, folder, hub)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The main job first: it makes the model that the tests of single parts use, and has left the engine by then."""
    items.sort(key=lambda item: "test_main_job" not in str(item.path))
