"""Rounds of streamed chats, asked of the daemon or of a worker itself."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.answers import Answer, Dialect

ROOT = Path(__file__).resolve().parent.parent
ROUND_S = 180.0
"""Far more than a round takes anywhere: what is not done by then hangs."""


class BenchFailed(Exception):
    """Something did not work; that it was slow is never a failure."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask. ``socket`` "": by TCP."""

    dialect: Dialect
    url: str
    socket: str = ""

    @classmethod
    def daemon(cls, port: int) -> "Target":
        """The daemon's Ollama face, as clients see it."""
        return cls("ollama", f"http://127.0.0.1:{port}/api/chat")

    @classmethod
    def passing(cls, port: int) -> "Target":
        """The daemon's OpenAI face: the engine's own wire."""
        return cls("openai", f"http://127.0.0.1:{port}/v1/chat/completions")

    @classmethod
    def worker(cls, socket: Path) -> "Target":
        """The engine's own server, past the daemon."""
        return cls("openai", "http://engine/v1/chat/completions", str(socket))

    def body(self, model: str, prompt: str, tokens: int) -> dict[str, Any]:
        """A chat of one turn, likeliest tokens only."""
        fields: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
        }
        if self.dialect == "ollama":
            return fields | {"options": {"temperature": 0, "num_predict": tokens}}
        return fields | {"temperature": 0, "max_tokens": tokens, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class Round:
    """``spent_s`` from the first request to the last byte; ``cpu_s`` and ``reads`` are the asking process's own."""

    spent_s: float
    cpu_s: float
    reads: int
    answers: tuple[Answer, ...]

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def texts(self) -> list[str]:
        return [answer.text for answer in self.answers]


class Client:
    """The asking process, for the length of a ``with`` block."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Client":
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # Ctrl-C is for the benchmark, which then closes this process's input.
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child is not None
        if kind is not None:
            self._child.terminate()
        self._child.communicate()

    def play(self, target: Target, model: str, prompts: list[str], tokens: int, deadline_s: float = ROUND_S) -> Round:
        """Ask every prompt at once and return when all are answered. Raises BenchFailed."""
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        bodies = [target.body(model, prompt, tokens) for prompt in prompts]
        asked = {"url": target.url, "socket": target.socket, "dialect": target.dialect}
        asked |= {"bodies": bodies, "deadline_s": deadline_s}
        child.stdin.write(json.dumps(asked) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            raise BenchFailed("the asking process ended; what it said stands above")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise BenchFailed(f"{target.url} with {len(prompts)} streams: {told['error']}")
        answers = tuple(Answer(**answer) for answer in told["answers"])
        return Round(told["spent_s"], told["cpu_s"], told["reads"], answers)
