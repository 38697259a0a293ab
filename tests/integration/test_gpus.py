"""The real daemon on GPUs: its own NVML adapter over a library of ours, and engines whose memory shows on the cards."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.daemon import Daemon
from tests.fakes.devices import GIB, Card, cards
from tests.fakes.nvml.library import VARIABLE, ScriptedGpus, build

LOOK_S = 0.05
FOREIGN = 10_000_000
"""Processes from here on are others'."""
TAKEN = 0.9
"""Of its share."""


class Machine:
    """Cards whose memory follows the engines of a daemon: each takes, on the cards that it can see, the share that its
    command line says, until it has ended, or ``keeps`` it."""

    def __init__(self, daemon: Daemon, gpus: list[Card]) -> None:
        self.rack = ScriptedGpus(daemon.root / "nvml.txt", gpus, 10.0, None)
        self.keeps = False
        self.lag_s = 0.0
        """How long a card keeps the memory of a process that has ended."""
        self._gone: dict[int, float] = {}
        self._daemon = daemon
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._follow)
        self.rack.write()

    def __enter__(self) -> "Machine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def change(self, change: Callable[[ScriptedGpus], object]) -> None:
        with self._lock:
            change(self.rack)

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_S):
            with self._lock:
                living = {pid: engine for pid in self._daemon.processes() if (engine := core(pid)) is not None}
                for card in self.rack.cards:
                    for pid, (uuids, share) in living.items():
                        if card.uuid in uuids:
                            usable = card.total_bytes - (card.reserved_bytes or 0)
                            card.processes[pid] = int(TAKEN * share * usable)
                    for pid in set(card.processes) - set(living):
                        gone_at = self._gone.setdefault(pid, time.monotonic())
                        if not self.keeps and pid < FOREIGN and time.monotonic() - gone_at >= self.lag_s:
                            del card.processes[pid]
                self.rack.write()


def core(pid: int) -> tuple[list[str], float] | None:
    """The cards that an engine's core sees, and the share that it takes; None for every other process."""
    try:
        if "EngineCor" not in Path(f"/proc/{pid}/comm").read_text():
            return None
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    visible = next(each for each in environ if each.startswith(b"CUDA_VISIBLE_DEVICES=")).partition(b"=")[2]
    share = float(argv[argv.index(b"--gpu-memory-utilization") + 1])
    return visible.decode().split(","), share


@pytest.fixture
def new_machine(new_house: Callable[..., Daemon]) -> Iterator[Callable[..., tuple[Daemon, Machine]]]:
    made: list[Machine] = []

    def make(gpus: list[Card], models: dict[str, dict[str, object]], **environment: str) -> tuple[Daemon, Machine]:
        daemon = new_house(
            start=False,
            models=models,
            VLLAMA_ENGINE_DEVICE="cuda",
            FAKE_ENGINE_VERSION="vllm==0.32.0",
            VLLAMA_ENGINE_ENV="FAKE_ENGINE_VERSION",
            LD_LIBRARY_PATH=str(build().parent),
            **environment,
        )
        daemon.environment[VARIABLE] = str(daemon.root / "nvml.txt")
        machine = Machine(daemon, gpus)
        made.append(machine)
        machine.__enter__()
        daemon.start()
        return daemon, machine

    yield make
    for machine in made:
        machine.__exit__()


def ask(daemon: Daemon, model: str) -> Any:
    body = {"model": model, "stream": False, "messages": [{"role": "user", "content": "hi"}]}
    return daemon.request("POST", "/api/chat", body | {"options": {"num_predict": 1}})


def devices(daemon: Daemon) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in daemon.json("status")["devices"]}


def small() -> list[Card]:
    """Two cards of 3 GiB: one of the fake's models fits on each, 1.8 GiB with what engines need on GPUs."""
    made = cards(2)
    for card in made:
        card.total_bytes, card.reserved_bytes = 3 * GIB, GIB // 4
    return made


def test_models_go_to_cards_where_they_fit_and_their_memory_is_told_apart(
    new_machine: Callable[..., tuple[Daemon, Machine]],
) -> None:
    daemon, machine = new_machine(small(), {"a": {}, "b": {}, "c": {}})
    for name in "ab":
        assert ask(daemon, name).status == 200, daemon.log_text()
    workers = {each["model"].removesuffix(":latest"): each for each in daemon.workers()}
    assert sorted(each["device"] for each in workers.values()) == ["gpu 0", "gpu 1"]
    uuids = [card.uuid for card in machine.rack.cards]
    for each in workers.values():
        environ = Path(f"/proc/{each['pid']}/environ").read_bytes().split(b"\0")
        assert f"CUDA_VISIBLE_DEVICES={uuids[int(each['device'][-1])]}".encode() in environ
    for each in devices(daemon).values():
        assert int(each["reserved_bytes"]) > 0
        assert int(each.get("foreign_bytes", 0)) < GIB // 2, "what engines hold is not taken for others'"
    assert ask(daemon, "c").status == 200
    assert len(daemon.workers()) == 2, "one had to leave"
    log = daemon.log_text()
    assert "evict" in log and "to fit c:latest: needs" in log


def test_memory_that_does_not_return_is_quarantined_and_shouted_about_until_it_does(
    new_machine: Callable[..., tuple[Daemon, Machine]],
) -> None:
    daemon, machine = new_machine(small()[:1], {"a": {}}, VLLAMA_ENGINE_RELEASE_TIMEOUT="1s")
    assert ask(daemon, "a").status == 200, daemon.log_text()
    machine.change(lambda rack: setattr(machine, "keeps", True))
    daemon.ctl("stop", "a")
    daemon.wait_log("memory.leaked")
    assert "a:latest has leaked" in daemon.ctl("status").stdout
    (device,) = devices(daemon).values()
    assert int(device["reserved_bytes"]) > 0
    refused = ask(daemon, "a").body.decode()
    assert "it does not fit as things are: needs 1." in refused, "nobody gets what has leaked, not even who leaked it"
    machine.change(lambda rack: setattr(machine, "keeps", False))
    daemon.wait_log("had leaked are back")
    assert ask(daemon, "a").status == 200


def test_a_card_that_falls_off_the_bus_is_left_alone(new_machine: Callable[..., tuple[Daemon, Machine]]) -> None:
    daemon, machine = new_machine(small(), {"a": {}, "b": {}})
    assert ask(daemon, "a").status == 200, daemon.log_text()
    (worker,) = daemon.workers()
    lost = int(worker["device"][-1])
    machine.change(lambda rack: rack.lose(lost))
    daemon.wait_log(f"nothing is placed on GPU {lost}: lost")
    os.kill(int(worker["pid"]), 9)
    daemon.wait_log("from=BACKOFF to=STOPPED")
    assert ask(daemon, "a").status == 200, "started again where there is a card"
    assert [each["device"] for each in daemon.workers()] == [f"gpu {1 - lost}"]
    assert devices(daemon)[f"GPU {lost}"]["problem"].startswith("lost")
    assert daemon.request("GET", "/health").status == 200


def test_others_memory_is_not_given_away(new_machine: Callable[..., tuple[Daemon, Machine]]) -> None:
    gpus = small()[:1]
    gpus[0].processes[2 * FOREIGN] = 2 * GIB
    daemon, machine = new_machine(gpus, {"a": {}})
    answer = ask(daemon, "a")
    assert answer.status == 500
    assert "others hold 2.0 GiB there" in answer.body.decode()
    assert "not" in daemon.ctl("show", "a", "--fit").stdout
    machine.change(lambda rack: rack.cards[0].processes.clear())
    daemon.wait_log("others hold 0.0 GiB on GPU 0, before it was 2.0 GiB")
    assert ask(daemon, "a").status == 200


def test_after_kill_9_the_next_daemon_waits_for_the_memory_of_the_engines_that_it_kills(
    new_machine: Callable[..., tuple[Daemon, Machine]],
) -> None:
    deaf: dict[str, object] = {"ignore_term": True, "leave_grandchild": True}
    daemon, machine = new_machine(small()[:1], {"a": deaf}, VLLAMA_ENGINE_TERM_GRACE="200ms")
    assert ask(daemon, "a").status == 200, daemon.log_text()
    daemon.wait_file(daemon.state / "loaded.json", "a:latest")
    machine.change(lambda rack: setattr(machine, "lag_s", 0.7))
    daemon.kill()
    daemon.start()
    daemon.wait_log("memory.settled", 20.0)
    log = daemon.log_text()
    assert "process.leftovers killed=" in log
    daemon.wait_log("restore.load model=a:latest")
    assert ask(daemon, "a").status == 200
    assert "restore.failed" not in daemon.log_text()
