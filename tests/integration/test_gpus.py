"""The real daemon on GPUs: its own NVML adapter over a library of ours, and engines whose memory shows on the cards."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cards import FOREIGN, Machine, small
from tests.fakes.daemon import Daemon
from tests.fakes.devices import GIB, Card


@pytest.fixture
def new_machine(new_house: Callable[..., Daemon]) -> Iterator[Callable[..., tuple[Daemon, Machine]]]:
    made: list[tuple[Daemon, Machine]] = []

    def make(gpus: list[Card], models: dict[str, dict[str, object]], **environment: str) -> tuple[Daemon, Machine]:
        daemon = new_house(start=False, models=models, **environment)
        machine = Machine(daemon, gpus)
        made.append((daemon, machine))
        machine.__enter__()
        daemon.start()
        return daemon, machine

    yield make
    for daemon, machine in made:
        daemon.stop()  # while its memory can still return
        machine.__exit__()


def ask(daemon: Daemon, model: str) -> Any:
    body = {"model": model, "stream": False, "messages": [{"role": "user", "content": "hi"}]}
    return daemon.request("POST", "/api/chat", body | {"options": {"num_predict": 1}})


def devices(daemon: Daemon) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in daemon.json("status")["devices"]}


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
    daemon, machine = new_machine(small(1), {"a": {}}, VLLAMA_ENGINE_RELEASE_TIMEOUT="1s")
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
    gpus = small(1)
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
    daemon, machine = new_machine(small(1), {"a": deaf}, VLLAMA_ENGINE_TERM_GRACE="200ms")
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


def test_an_upgrade_leaves_engines_where_they_are_and_their_memory_counted_once(
    new_machine: Callable[..., tuple[Daemon, Machine]],
) -> None:
    gpus = small()
    gpus[1].processes[2 * FOREIGN] = GIB // 4
    daemon, machine = new_machine(gpus, {"a": {}, "b": {}, "c": {}})
    for name in "ab":
        assert ask(daemon, name).status == 200, daemon.log_text()
    where = {each["model"]: (each["pid"], each["device"]) for each in daemon.workers()}
    assert len({device for _pid, device in where.values()}) == 2

    def held() -> dict[str, tuple[int, int]]:
        return {
            name: (int(each["reserved_bytes"]), int(each.get("foreign_bytes", 0)) // (64 << 20))
            for name, each in devices(daemon).items()
        }

    before = held()
    assert "kept a:latest, b:latest" in daemon.ctl("upgrade").stderr
    assert {each["model"]: (each["pid"], each["device"]) for each in daemon.workers()} == where
    assert held() == before
    # Somebody who has left is seen to have left, and who comes gets what that gives.
    machine.change(lambda rack: setattr(machine, "lag_s", 0.7))
    assert ask(daemon, "c").status == 200, daemon.log_text()
    stayed = {each["model"]: (each["pid"], each["device"]) for each in daemon.workers()}
    assert len(stayed) == 2 and len(stayed.items() & where.items()) == 1, "one had to leave for it"
    # Its engine is dead when the upgrade comes, and its memory not back yet: that is waited for.
    machine.change(lambda rack: setattr(machine, "lag_s", 2.0))
    os.kill(next(each["pid"] for each in daemon.workers() if each["model"] == "c:latest"), 9)
    daemon.wait_log("model=c:latest from=KILLING to=RELEASING")
    (other,) = stayed.items() & where.items()
    assert f"kept {other[0]}" in daemon.ctl("upgrade").stderr
    assert {name: foreign for name, (_reserved, foreign) in held().items()} == {
        name: foreign for name, (_reserved, foreign) in before.items()
    }
    assert ask(daemon, "c").status == 200, daemon.log_text()
    assert other[0] in {each["model"] for each in daemon.workers()}
