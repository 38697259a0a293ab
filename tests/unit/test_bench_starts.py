"""How `vllamactl bench --start` tells a load from a wake, and its phases apart, over a daemon that is played."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration

from vllama.control.v1.models_pb2 import Model
from vllama.control.v1.operations_pb2 import Failure, Operation, Progress
from vllama.control.v1.workers_pb2 import Worker
from vllamactl.bench.answers import Exchange
from vllamactl.bench.http import Server, Target
from vllamactl.bench.starting import Before, Start, Starts, start_page
from vllamactl.bench.workload import Ask, question
from vllamactl.client import Client
from vllamactl.exits import CtlError

ANSWER = (
    b'{"message": {"content": "a"}, "done": false}\n'
    b'{"message": {"content": ""}, "done": true, "eval_count": 1, "done_reason": "length"}\n'
)


def worker(state: Any, incarnation: int = 1, **more: Any) -> Worker:
    return Worker(name="workers/m-1", model="m:latest", state=state, incarnation=incarnation, **more)


@dataclass
class PlayedDaemon:
    """A client whose every look at the workers sees the next of ``looks``; loads tell ``phases``."""

    looks: list[list[Worker]]
    phases: Sequence[str] = ("ready",)
    failure: Failure | None = None
    hangs: asyncio.Event | None = None
    """Set when a load is under way, which then never ends."""
    calls: list[str] = field(default_factory=list[str])

    async def list_workers(self) -> list[Worker]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    async def start_worker(self, model: str, keep_alive_s: float | None) -> Operation:
        self.calls.append(f"start {model} {keep_alive_s}")
        return Operation(name="operations/1")

    async def stop_worker(self, model: str, force: bool) -> Operation:
        self.calls.append(f"stop {model} {force}")
        return Operation(name="operations/2")

    async def cancel_operation(self, name: str, only_if_unwatched: bool) -> Operation:
        self.calls.append(f"cancel {name} {only_if_unwatched}")
        return Operation(name=name, done=True)

    async def watch_operation(self, name: str) -> AsyncGenerator[Operation, None]:
        for phase in self.phases:
            yield Operation(name=name, progress=Progress(phase=phase))
        if self.hangs is not None and name == "operations/1":
            self.hangs.set()
            await asyncio.Event().wait()
        yield Operation(name=name, progress=Progress(phase=self.phases[-1]), done=True, failure=self.failure)


class QuickServer:
    """Answers with one token."""

    target = Target("vllama", "ollama", "http://x", "m")

    async def ask(self, body: bytes, began: float, index: int = 0, intended_s: float | None = None) -> Exchange:
        await asyncio.sleep(0)  # the load is watched meanwhile
        at_s = time.perf_counter() - began
        return Exchange(index, intended_s or 0.0, 0.0, at_s, 200, [(at_s, ANSWER)])


def starts(daemon: PlayedDaemon, swap_with: str = "") -> Starts:
    model = Model(name="m:latest", digest="d")
    client, server = cast(Client, daemon), cast(Server, QuickServer())
    return Starts(client, server, model, swap_with, lambda _text: None, lambda _title, _total: None)


def measure(daemon: PlayedDaemon, swap_with: str = "") -> Start:
    found = starts(daemon, swap_with)

    def ask(number: int) -> Ask:
        return question(str(number), 1)

    asyncio.run(found.run(1, ask))
    (start,) = found.found
    return start


READY = worker(Worker.READY, load_duration=Duration(seconds=3))
ASLEEP = worker(Worker.SUSPENDED)


def test_an_unloaded_model_starts_cold() -> None:
    daemon = PlayedDaemon([[], [READY]], ["waiting for a place", "import", "weights", "ready"])
    start = measure(daemon)
    assert (start.kind, start.engine_s) == ("cold", 3.0)
    assert [phase for phase, _ in start.phases] == ["waiting for a place", "import", "weights"]
    assert sum(span for _, span in start.phases) + start.answer_s == pytest.approx(start.first_token_s)
    assert daemon.calls == ["stop m:latest False", "start m:latest None"]


def test_one_that_slept_and_is_the_same_process_woke() -> None:
    start = measure(PlayedDaemon([[ASLEEP], [ASLEEP], [READY]]), "other")
    assert (start.kind, start.engine_s) == ("wake", None)


def test_one_that_slept_and_was_replaced_did_not_wake() -> None:
    anew = worker(Worker.READY, incarnation=2, load_duration=Duration(seconds=3))
    start = measure(PlayedDaemon([[ASLEEP], [ASLEEP], [anew]]), "other")
    assert (start.kind, start.engine_s) == ("failed wake", 3.0)
    assert start_page("m", [start], "cuda")[0] == "m loaded after it did not wake once, on cuda"


def test_what_fits_beside_it_does_not_make_it_leave() -> None:
    with pytest.raises(CtlError, match="both are loaded side by side"):
        measure(PlayedDaemon([[READY]]), "other")


def test_a_load_that_fails_is_told_in_the_daemons_words() -> None:
    failure = Failure(reason="ENGINE_START_FAILED", message="cannot start m: no room", hint="read its log")
    with pytest.raises(CtlError, match="no room") as failed:
        measure(PlayedDaemon([[]], failure=failure))
    assert failed.value.reason == "ENGINE_START_FAILED"


@pytest.mark.parametrize(
    ("found", "before", "call"),
    [
        ([], Before(False, False), "stop m:latest False"),
        ([ASLEEP], Before(False, False), "stop m:latest False"),
        ([READY], Before(True, True), "start m:latest -1.0"),
    ],
)
def test_the_model_is_left_as_it_was(found: list[Worker], before: Before, call: str) -> None:
    async def look_and_restore() -> Before:
        looked = await measured.look()
        await measured.restore(looked)
        return looked

    daemon = PlayedDaemon([found])
    measured = starts(daemon)
    assert asyncio.run(look_and_restore()) == before
    assert daemon.calls == [call]


def test_a_load_that_is_broken_off_is_not_wanted_any_more() -> None:
    async def break_off() -> None:
        daemon.hangs = asyncio.Event()
        measured = starts(daemon)
        before = await measured.look()
        running = asyncio.create_task(measured.run(1, lambda number: question(str(number), 1)))
        await daemon.hangs.wait()
        running.cancel()
        await asyncio.wait({running})
        await measured.restore(before)

    daemon = PlayedDaemon([[]])
    asyncio.run(break_off())
    assert daemon.calls[-3:] == ["start m:latest None", "cancel operations/1 True", "stop m:latest False"]


def test_one_that_would_have_left_is_not_kept_for_ever() -> None:
    leaving = worker(Worker.READY)
    leaving.expire_time.FromSeconds(1)
    assert asyncio.run(starts(PlayedDaemon([[leaving]])).look()) == Before(True, False)


def test_a_phase_that_one_start_was_too_quick_for_keeps_its_place() -> None:
    spans = [("import", 1.0), ("weights", 2.0)], [("waiting", 0.1), ("import", 1.0), ("weights", 2.0)]
    made = [Start("cold", 0.0, 3.2, tuple(each), 0.1, 3.0, 0.05) for each in spans]
    names = [line.strip().split("  ")[0] for line in start_page("m", made, "cpu")]
    assert names[3:7] == ["waiting", "import", "weights", "answering"]


def test_nothing_measured_is_said() -> None:
    assert start_page("m", [], "") == ["m: nothing was measured"]
