"""Sixty-four streams at once, and clients that leave when they like: nothing of them stays anywhere."""

import http.client
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.conftest import TALENT, Theatre

pytestmark = pytest.mark.engine

STREAMS = 64
SEED = 20
COINCIDENCES = 3
"""An answer may end just as its client leaves."""
DEADLINE_S = 180.0
NEVER, AT_ONCE, BEFORE_HEAD, AFTER_FIRST, IN_THE_MIDDLE, AT_THE_END = (
    "never", "at once", "before the head", "after the first line", "in the middle", "at the end",
)  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """What one client asks, and when it leaves."""

    number: int
    path: str
    tokens: int
    leaves: str

    @property
    def num_predict(self) -> int:
        """A client that leaves early asks for far more than it reads, so that the engine must be told to stop."""
        return self.tokens if self.leaves in (NEVER, AT_THE_END) else 1000

    @property
    def body(self) -> dict[str, Any]:
        text = f"Tell me a very long story about the number {self.number}."
        ask = {"prompt": text} if self.path == "/api/generate" else {"messages": [{"role": "user", "content": text}]}
        return {"model": TALENT, "think": False, "options": {"temperature": 0, "num_predict": self.num_predict}, **ask}


def visits() -> list[Visit]:
    """Half of them stay; each other moment is chosen at least a few times."""
    dice = random.Random(SEED)
    moments = [AT_ONCE, BEFORE_HEAD, AFTER_FIRST, IN_THE_MIDDLE, AT_THE_END]
    leaves = [NEVER] * (STREAMS // 2) + [moments[at % len(moments)] for at in range(STREAMS - STREAMS // 2)]
    dice.shuffle(leaves)
    paths = ("/api/chat", "/api/generate")
    return [Visit(number, dice.choice(paths), dice.randint(8, 24), moment) for number, moment in enumerate(leaves)]


class Crowd:
    """The clients, one thread each. All send before anyone reads."""

    def __init__(self, theatre: Theatre) -> None:
        self._port = theatre.daemon.port
        self._sent = threading.Barrier(STREAMS, timeout=DEADLINE_S)
        self._spoken = threading.Event()
        """The first line of any stream has come: the engine is at work, with most still waiting."""

    def visit(self, visit: Visit) -> list[Any]:
        """The lines that this client has read."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)
        try:
            connection.request("POST", visit.path, json.dumps(visit.body).encode())
            self._sent.wait()
            if visit.leaves == AT_ONCE:
                return []
            if visit.leaves == BEFORE_HEAD:
                assert self._spoken.wait(DEADLINE_S)
                return []
            response = connection.getresponse()
            assert response.status == 200, response.read()
            return self._read(response, visit)
        finally:
            # The answer may hold the socket: without this it would stay open until somebody collects it.
            if connection.sock is not None:
                connection.sock.close()
            connection.close()

    def _read(self, response: http.client.HTTPResponse, visit: Visit) -> list[Any]:
        lines: list[Any] = []
        with response:
            while line := response.readline():
                lines.append(json.loads(line))
                self._spoken.set()
                is_enough = {
                    AFTER_FIRST: True,
                    IN_THE_MIDDLE: len(lines) >= visit.tokens // 2,
                    AT_THE_END: lines[-1].get("done"),
                }
                if is_enough.get(visit.leaves):
                    break
        return lines


def check_whole(visit: Visit, lines: list[Any]) -> None:
    """Nothing is missing: text, then one last line with counts."""
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True], (visit, lines)
    last = lines[-1]
    assert "error" not in last
    assert 0 < last["eval_count"] <= visit.tokens
    assert last["done_reason"] == ("length" if last["eval_count"] == visit.tokens else "stop")
    assert last["prompt_eval_count"] > 10 and last["eval_duration"] > 0 and last["total_duration"] > 0
    key = "response" if visit.path == "/api/generate" else "message"
    assert all(line[key] if key == "response" else line[key]["content"] for line in lines[:-1]), visit
    if key == "response":
        assert len(last["context"]) > last["prompt_eval_count"]


def test_sixty_four_streams_whose_clients_come_and_go(theatre: Theatre) -> None:
    crowd, plan = Crowd(theatre), visits()
    before = theatre.finished()
    with ThreadPoolExecutor(STREAMS) as pool:
        seen = list(pool.map(crowd.visit, plan))
    asked = theatre.wait_settled()
    stayed = [(visit, lines) for visit, lines in zip(plan, seen, strict=True) if visit.leaves in (NEVER, AT_THE_END)]
    for visit, lines in stayed:
        check_whole(visit, lines)
    finished = theatre.finished() - before - asked
    assert len(stayed) <= finished <= len(stayed) + COINCIDENCES, "answers were finished for clients that had left"
    workers = theatre.daemon.json("ps")["workers"]
    assert [worker["leases"] for worker in workers] == [0]
    assert workers[0]["state"] == "READY"
