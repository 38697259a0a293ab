"""Three real engines side by side, then three models that want the place of two.

The tests run in this order on one daemon. In the first two there is room for all three: each is loaded by estimate,
measured, and asked for its answers while nobody else asks; then one of them dies under the eyes of the others. For the
third the daemon starts anew with a budget for two of them as they were measured, and clients ask for all three.
"""

import json
import math
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import ollama
import openai
import pytest

from tests.e2e.real_engine import embedding_model, engine_python, model_folder
from tests.e2e.tiny_model import make_tiny_model
from tests.fakes.daemon import Daemon, running
from vllama.control.v1 import daemon_pb2, daemon_pb2_grpc, workers_pb2

pytestmark = pytest.mark.engine

CHAT, EMBED, TINY = "smollm2:chat", "all-minilm:latest", "tiny:latest"
MODELS = (CHAT, EMBED, TINY)
CACHE_BYTES = 256 << 20
ROOMY_BYTES = 9 << 30
"""For three engines by estimate, which is about 7 GiB."""

SEED = 2026
CLIENTS = 8
ASKS = 2
"""Requests of each client, one after another. A third of them meet the model that is not loaded: this is a few
evictions, however long a load takes (20 to 40 s on two cores)."""
ANSWER_S = 600.0
"""How long one client waits for one answer: for two loads before its own, on a busy machine."""
PAUSE_S = 0.5
"""Between requests of those who would ask without end while another model loads: it shares two cores with them."""
POLL_S = 0.25
NEAR = 1e-4
"""How far apart an embedding may be from itself in another batch, in float32 and of length 1."""

TEXTS = ("What is the capital of France?", "Name three colours.", "Write one sentence about the sea.")
TOKENS = 12
UP = (workers_pb2.Worker.STARTING, workers_pb2.Worker.READY, workers_pb2.Worker.DRAINING)


# --- the house -------------------------------------------------------------------------------------------------------


@dataclass
class House:
    """The daemon, and what each model answers when nobody else asks."""

    daemon: Daemon
    alone: dict[tuple[str, str], Any] = field(default_factory=dict)

    def start(self, memory_bytes: int) -> None:
        self.daemon.environment["VLLAMA_ENGINE_CPU_MEMORY_BYTES"] = str(memory_bytes)
        self.daemon.start()

    def worker(self, model: str) -> dict[str, Any]:
        return next(one for one in self.daemon.workers() if one["model"] == model)

    def fit(self, model: str) -> dict[str, Any]:
        """What ``vllamactl show MODEL --fit`` reckons with: the numbers of one device."""
        (footprint,) = self.daemon.json("show", model, "--fit")["footprints"]
        return footprint

    def reserves(self, model: str) -> int:
        """What a worker of the model is given."""
        fit = self.fit(model)
        cache = CACHE_BYTES if fit["kv_bytes_per_token"] else 0
        return fit["weights_bytes"] + fit["activation_bytes"] + fit["overhead_bytes"] + cache

    def tree_bytes(self, model: str) -> int:
        """What all processes of its worker hold, seen past the daemon."""
        leader = self.worker(model)["pid"]
        return sum(_proportional(pid) for pid in self.daemon.processes() if os.getsid(pid) == leader)


def _proportional(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@pytest.fixture(scope="module")
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    if "VLLAMA_TEST_MODEL" not in os.environ:
        request.getfixturevalue("real")
    environment = {
        "VLLAMA_ENGINE_CPU_KV_BYTES": str(CACHE_BYTES),
        "VLLAMA_ENGINE_CPU_MEMORY_BYTES": str(ROOMY_BYTES),
        # In 16 bits the company in a batch changes answers.
        "VLLAMA_ENGINE_DTYPE": "float32",
    }
    tiny = make_tiny_model(tmp_path_factory.mktemp("tiny") / "files", model_folder())
    with running(engine=engine_python(), environment=environment) as daemon:
        for name, folder in ((CHAT, model_folder()), (EMBED, embedding_model()), (TINY, tiny)):
            daemon.ctl("create", name, "--from", str(folder))
        yield House(daemon)


# --- clients ---------------------------------------------------------------------------------------------------------


class Asker:
    """The official clients. Every way to ask a model the same returns the same."""

    WAYS = ("ollama", "ollama stream", "openai", "openai stream")

    def __init__(self, house: House) -> None:
        self._ollama = ollama.Client(host=house.daemon.url, timeout=ANSWER_S)
        self._openai = openai.OpenAI(
            base_url=f"{house.daemon.url}/v1", api_key="unused", max_retries=0, timeout=ANSWER_S
        )

    def close(self) -> None:
        self._openai.close()

    def ask(self, model: str, text: str, way: str) -> Any:
        if model == EMBED:
            return self._embed(text, way)
        messages = [{"role": "user", "content": text}]
        if way == "ollama":
            return self._ollama.chat(model, messages, options=_GREEDY).message.content
        if way == "ollama stream":
            parts = list(self._ollama.chat(model, messages, options=_GREEDY, stream=True))
            assert parts[-1].done and parts[-1].eval_count
            return "".join(part.message.content or "" for part in parts)
        chosen: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0, "max_tokens": TOKENS}
        if way == "openai":
            return self._openai.chat.completions.create(**chosen).choices[0].message.content
        chunks = list(self._openai.chat.completions.create(**chosen, stream=True))
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def _embed(self, text: str, way: str) -> list[float]:
        if way.startswith("ollama"):
            (vector,) = self._ollama.embed(EMBED, text).embeddings
            return list(vector)
        return self._openai.embeddings.create(model=EMBED, input=text).data[0].embedding


_GREEDY = {"temperature": 0, "num_predict": TOKENS}


@dataclass(frozen=True)
class Asked:
    """One request and its answer; instants are monotonic."""

    model: str
    way: str
    text: str
    began: float
    ended: float
    answer: Any

    @property
    def took_s(self) -> float:
        return self.ended - self.began

    def is_right(self, alone: Any) -> bool:
        return math.dist(self.answer, alone) < NEAR if self.model == EMBED else self.answer == alone


def ask(asker: Asker, model: str, text: str, way: str) -> Asked:
    """Ask; what breaks or hangs becomes the answer, so that all of them can be shown."""
    began = time.monotonic()
    try:
        answer = asker.ask(model, text, way)
    except (ollama.ResponseError, openai.OpenAIError, httpx.HTTPError, OSError) as error:
        answer = [math.inf] * 384 if model == EMBED else repr(error)
        print(f"{model} by {way}: {error!r}")
    return Asked(model, way, text, began, time.monotonic(), answer)


def check_right(house: House, asked: list[Asked]) -> None:
    wrong = [one for one in asked if not one.is_right(house.alone[one.model, one.text])]
    shown = [(one.model, one.way, one.text, f"{one.took_s:.1f} s", str(one.answer)[:200]) for one in wrong]
    assert not wrong, f"{len(wrong)} of {len(asked)}: {shown}\n{house.daemon.log_text()[-3000:]}"


# --- the watch -------------------------------------------------------------------------------------------------------


@dataclass
class Life:
    """One life of a worker's process, as it was seen from outside."""

    model: str
    reserved: int = 0
    resident: int = 0
    load_s: float = 0.0
    seen_at: float = 0.0
    """When it was there first, and ready first; ready last, and there last."""
    ready_at: float = 0.0
    last_ready_at: float = 0.0
    last_at: float = 0.0


class Watch:
    """Asks for the status again and again, from a thread of its own, and notes what must never be."""

    def __init__(self, house: House) -> None:
        self._socket = house.daemon.socket
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.lives: dict[tuple[str, int, int], Life] = {}
        self.decisions: dict[tuple[float, str], None] = {}
        self.most_reserved = 0
        self.most_resident = 0
        self.least_available = 1 << 60
        self.together: set[frozenset[str]] = set()
        """Models that were seen ready at the same time."""
        self.wrong: list[str] = []
        self.looks = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)

    def _run(self) -> None:
        with grpc.insecure_channel(f"unix:{self._socket}") as channel:
            stub = daemon_pb2_grpc.DaemonStub(channel)
            while not self._ended.wait(POLL_S):
                try:
                    self._look(stub.GetStatus(daemon_pb2.GetStatusRequest(), timeout=20))
                except grpc.RpcError as error:
                    self.wrong.append(repr(error))
                    return

    def _look(self, status: daemon_pb2.GetStatusResponse) -> None:
        now = time.monotonic()
        self.looks += 1
        if not status.devices:
            return  # it serves before it has looked at its devices
        (device,) = status.devices
        mine = sum(worker.reserved_bytes for worker in status.workers)
        if device.reserved_bytes > device.usable_bytes:
            self.wrong.append(f"{device.reserved_bytes} of {device.usable_bytes} are reserved")
        if mine != device.reserved_bytes:
            self.wrong.append(f"the device has {device.reserved_bytes} reserved, its workers {mine}")
        self.most_reserved = max(self.most_reserved, device.reserved_bytes)
        self.most_resident = max(self.most_resident, sum(one.memory_bytes for one in status.workers))
        available = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
        self.least_available = min(self.least_available, int(available[1]) * 1024 if available else 0)
        self.together.add(frozenset(one.model for one in status.workers if one.state == one.READY))
        for worker in status.workers:
            self._look_at(worker, now)
        self.decisions |= {(one.time.seconds + one.time.nanos / 1e9, one.text): None for one in status.decisions}

    def _look_at(self, worker: Any, now: float) -> None:
        if worker.state not in UP or not worker.pid:
            return  # pid 0: a zygote is asked for it
        key = (worker.name, worker.incarnation, worker.pid)
        life = self.lives.setdefault(key, Life(worker.model, seen_at=now))
        life.last_at = now
        life.reserved, life.resident = worker.reserved_bytes, max(life.resident, worker.memory_bytes)
        if worker.memory_bytes > worker.reserved_bytes:
            self.wrong.append(f"{worker.model} holds {worker.memory_bytes} and was given {worker.reserved_bytes}")
        if worker.state == worker.READY:
            life.ready_at = life.ready_at or now
            life.last_ready_at = now
            life.load_s = worker.load_duration.seconds + worker.load_duration.nanos / 1e9

    def tell(self) -> None:
        for life in self.lives.values():
            print(
                f"{life.model}: load {life.load_s:.1f} s, ready for {life.last_ready_at - life.ready_at:.1f} s, "
                f"reserved {life.reserved:,}, held {life.resident:,} at most"
            )
        print(
            f"{self.looks} looks: reserved {self.most_reserved:,}, held {self.most_resident:,} at most; "
            f"available {self.least_available:,} at least; together: {sorted(map(sorted, self.together))}"
        )
        first = min((at for at, _text in self.decisions), default=0.0)
        for at, text in sorted(self.decisions):
            print(f"{at - first:7.1f} s  {text}")


# --- scenes ----------------------------------------------------------------------------------------------------------


def test_three_are_loaded_by_estimate_and_measured(house: House) -> None:
    asker = Asker(house)
    with Watch(house) as watch:
        for model in MODELS:
            guess = house.fit(model)
            assert guess["origin"] == "estimated"
            before = time.monotonic()
            for text in TEXTS:
                house.alone[model, text] = asker.ask(model, text, "ollama")
            print(f"{model}: three answers after {time.monotonic() - before:.1f} s")
            house.daemon.wait_log(f"sizing.measured model={model}")
            found, worker = house.fit(model), house.worker(model)
            assert found["origin"] == "measured"
            print(f"{model}: guess {guess}\n  measured {found}\n  tree {house.tree_bytes(model):,}, {worker}")
            # The engine rounds what it tells to a hundredth of a GiB.
            assert found["weights_bytes"] - (1 << 30) // 100 <= guess["weights_bytes"]
            assert house.tree_bytes(model) <= worker["reserved_bytes"]
    asker.close()
    watch.tell()
    assert not watch.wrong
    assert frozenset(MODELS) in watch.together
    assert not [text for _at, text in watch.decisions if text.startswith("evict")]
    stored = json.loads((house.daemon.state / "footprints.json").read_text())["footprints"]
    assert {one["model"] for one in stored.values()} == set(MODELS)
    assert len({str(house.alone[model, text]) for model in MODELS for text in TEXTS}) == 9, "each has its own answers"
    assert "Paris" in house.alone[CHAT, TEXTS[0]]


def test_one_dies_beside_two_that_serve(house: House) -> None:
    before = {model: house.worker(model) for model in MODELS}
    back = threading.Event()

    def go_on(model: str) -> list[Asked]:
        """Ask one model in every way until the killed one is back."""
        asker, found = Asker(house), list[Asked]()
        while not back.wait(PAUSE_S):
            way, text = Asker.WAYS[len(found) % 4], TEXTS[len(found) % 3]
            found.append(ask(asker, model, text, way))
        asker.close()
        return found

    def wait(text: str) -> Asked:
        asker = Asker(house)
        try:
            return ask(asker, CHAT, text, "ollama")
        finally:
            asker.close()

    with Watch(house) as watch, ThreadPoolExecutor(8) as pool:
        others = [pool.submit(go_on, model) for model in (EMBED, TINY)]
        try:
            stream = house.daemon.open_stream(
                "/api/generate", {"model": CHAT, "prompt": "Once upon a time", "options": {"num_predict": 2000}}
            )
            assert "response" in stream.line()
            leader = before[CHAT]["pid"]
            (core,) = [
                pid
                for pid in house.daemon.processes()
                if os.getsid(pid) == leader and b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ] or [leader]
            print(f"killed {'the engine core' if core != leader else 'the API server'}")
            os.kill(core, signal.SIGKILL)
            lines = stream.rest()
            assert "error" in lines[-1], lines[-1]
            waited = list(pool.map(wait, TEXTS))
        finally:
            back.set()
        served = [one for other in others for one in other.result()]
    watch.tell()
    print(f"beside it {len(served)} were served, the slowest in {max(one.took_s for one in served):.1f} s")
    print(f"who waited for it: {[f'{one.took_s:.1f} s' for one in waited]}")
    check_right(house, [*served, *waited])
    assert not watch.wrong
    after = {model: house.worker(model) for model in MODELS}
    for model in (EMBED, TINY):
        assert (after[model]["pid"], after[model]["incarnation"]) == (
            before[model]["pid"],
            before[model]["incarnation"],
        ), "the death of one is no business of the others"
        assert max(one.took_s for one in served if one.model == model) < 30
    assert after[CHAT]["incarnation"] == before[CHAT]["incarnation"] + 1
    assert core not in house.daemon.processes()


def test_three_want_the_place_of_two(house: House) -> None:
    needs = {model: house.reserves(model) for model in MODELS}
    assert house.daemon.stop() == 0
    house.daemon.wait_no_processes()
    # Room for the two that need most, and for half of the third.
    budget = sum(needs.values()) - min(needs.values()) // 2
    print(f"budget {budget:,}, needs {needs}")
    seen = len(house.daemon.log_text())
    house.start(budget)

    def come_and_go(number: int) -> list[Asked]:
        dice, asker = random.Random(SEED + number), Asker(house)
        plan = [(dice.choice(MODELS), dice.choice(TEXTS), dice.choice(Asker.WAYS)) for _ in range(ASKS)]
        found = [ask(asker, *one) for one in plan]
        asker.close()
        return found

    with Watch(house) as watch, ThreadPoolExecutor(CLIENTS) as pool:
        asked = [one for found in pool.map(come_and_go, range(CLIENTS)) for one in found]
        (device,) = house.daemon.json("status")["devices"]
        assert device["usable_bytes"] == budget
        for model in MODELS:
            house.daemon.ctl("stop", model)
    watch.tell()
    for model in MODELS:
        waits = sorted(one.took_s for one in asked if one.model == model)
        print(
            f"{model}: {len(waits)} requests, waited {waits[len(waits) // 2]:.1f} s (median), {waits[-1]:.1f} s (most)"
        )
    check_right(house, asked)
    assert not watch.wrong
    assert budget - min(needs.values()) < watch.most_reserved <= budget
    assert {len(models) for models in watch.together} <= {0, 1, 2} and any(len(one) == 2 for one in watch.together)
    check_evictions(watch, asked)
    own = [line for line in house.daemon.log_text()[seen:].splitlines() if " engine.line " not in line]
    assert not [line for line in own if re.search(" (ERROR|CRITICAL) ", line)]
    house.daemon.wait_no_processes()
    status = house.daemon.json("status")
    assert [one["reserved_bytes"] for one in status["devices"]] == [0]
    assert sum(one["reserved_bytes"] for one in status["workers"]) == 0
    assert status["active_requests"] == status["waiting_requests"] == 0


EVICTION = re.compile(r"evict (\S+) \(idle \d+ s, (\d+) s to come back\) to fit (\S+): needs [\d.]+ GiB")


def check_evictions(watch: Watch, asked: list[Asked]) -> None:
    """There were some, each with its sentence and for one start; and who was loaded had served somebody before."""
    texts = [text for _at, text in sorted(watch.decisions)]
    said = [found for text in texts if (found := EVICTION.match(text))]
    assert len(said) == len([text for text in texts if text.startswith("evict")])
    assert said, "nobody had to leave"
    assert {found[1] for found in said} | {found[3] for found in said} <= set(MODELS)
    starts = "".join(
        "e" if text.startswith("evict") else "s" for text in texts if re.match("evict|start .* on CPU", text)
    )
    assert "ee" not in starts, "one place was made twice"
    for life in watch.lives.values():
        there = [one for one in asked if one.model == life.model and life.seen_at <= one.ended <= life.last_at + 1]
        assert there, f"loaded for nobody: {life}"
