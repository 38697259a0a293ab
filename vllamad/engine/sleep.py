"""Putting an engine to sleep and waking it, over its development routes (floor 2), and asking whether it is still
itself.

What is relied on was read in vLLM 0.32 and tried on its CPU engine, which takes the same calls and frees nothing. While
it sleeps, /health says 200, and requests for answers are neither refused nor answered: they wait for the wake. Falling
asleep ends running requests with "abort" and forgets every cached prefix. A sleeper that is told to sleep again says
200 and stays at its level. A sleep that fails leaves it taking no requests: it has to be stopped.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.ports import EngineStream

SLEEP_DEADLINE_S = 180.0
"""Level 1 pins as much host memory as the weights take and copies them there: 10.6 s for an 8B model in a public report
(vLLM's pull request 48337), so 140 GB may take a minute and a half. Not measured here."""

WAKE_DEADLINE_S = 600.0
"""Level 2 reads the weights again: 140 GB from a disk that gives 300 MB/s take eight minutes."""

STATE_DEADLINE_S = 5.0
"""As for health: it is a question to the engine's core, which answers between two steps."""

CANARY_DEADLINE_S = 30.0
"""One token takes milliseconds; the first one after a wake may bring pages and kernels back."""

CANARY_TEXT = "The capital of France is"
"""Short enough for any context, and clear enough that no model wavers between two next tokens."""

LIKENESS = 0.99
"""Cosine of two vectors of one text: batches and caches change the last digits, other weights change everything."""

Asking = Callable[[str, str, bytes | None], Awaitable[EngineStream]]
Said = str | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Question:
    """One that the engine answers cheaply; ``read`` raises LookupError, TypeError or ValueError on anything else."""

    path: str
    body: Mapping[str, Any]
    read: Callable[[dict[str, Any]], Said]


class SleepSwitch:
    """The switch of one incarnation. ``ask`` is ``EngineClient.open``."""

    def __init__(self, ask: Asking) -> None:
        self._ask = ask
        self._level = 0
        self._question: _Question | None = None
        self._said: Said | None = None

    async def sleep(self, level: int) -> None:
        """See ``EngineClient.sleep``."""
        what = f"put the engine to sleep at level {level}"
        if self._level:
            raise _failed(what, f"it sleeps at level {self._level}, and would only say that it did")
        # Before the answer: if none comes, nobody knows what it did, and reading weights once too often does no harm.
        self._level = level
        await self._call(what, "POST", f"/sleep?level={level}", SLEEP_DEADLINE_S)

    async def wake(self) -> None:
        """See ``EngineClient.wake``."""
        what = f"wake the engine from level {self._level}"
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + WAKE_DEADLINE_S
        path = "/wake_up"
        if self._level == 2:
            # Room for the weights, the weights, and only then room for the cache. Without the middle step it would
            # answer nonsense out of whatever lies in that memory. The cache last, because loading needs room too.
            await self._call(what, "POST", "/wake_up?tags=weights", WAKE_DEADLINE_S)
            reload = json.dumps({"method": "reload_weights"}).encode()
            await self._call(what, "POST", "/collective_rpc", ends_at - loop.time(), reload)
            path = "/wake_up?tags=kv_cache"
        said = await self._call(what, "POST", path, ends_at - loop.time())
        if said.get("status") != "awake":
            raise _failed(what, f"it says that it is {said.get('status')!r}")
        self._level = 0

    async def is_sleeping(self) -> bool:
        """See ``EngineClient.is_sleeping``."""
        what = "ask the engine whether it sleeps"
        said = await self._call(what, "GET", "/is_sleeping", STATE_DEADLINE_S)
        if not isinstance(said.get("is_sleeping"), bool):
            raise _failed(what, "its answer cannot be read")
        return said["is_sleeping"]

    async def canary(self) -> None:
        """See ``EngineClient.canary``."""
        what = "see whether the engine answers"
        for question in (self._question,) if self._question else _QUESTIONS:
            body = json.dumps(question.body).encode()
            status, answer = await self._exchange(what, "POST", question.path, CANARY_DEADLINE_S, body)
            if status == 404 and self._question is None:
                continue
            if status != 200:
                raise _failed(what, _refusal(question.path, status, answer))
            try:
                said = question.read(answer)
            except (LookupError, TypeError, ValueError) as error:
                raise _failed(what, "its answer to a question of one token cannot be read") from error
            self._question = question
            if self._said is None:
                self._said = said
            elif not _is_alike(self._said, said):
                raise _failed(what, "it answers otherwise than before it slept: its weights are not what they were")
            return
        raise VllamaError(
            Reason.UNSUPPORTED, f"cannot {what}: it has no route for a short question", "do not let this model sleep"
        )

    async def _call(
        self, what: str, method: str, path: str, deadline_s: float, body: bytes | None = None
    ) -> dict[str, Any]:
        status, answer = await self._exchange(what, method, path, deadline_s, body)
        if status != 200:
            raise _failed(what, _refusal(path, status, answer))
        return answer

    async def _exchange(
        self, what: str, method: str, path: str, deadline_s: float, body: bytes | None
    ) -> tuple[int, dict[str, Any]]:
        try:
            async with asyncio.timeout(deadline_s):
                stream = await self._ask(method, path, body)
                data = await stream.read()
        except TimeoutError as error:
            raise _failed(what, f"it did not answer {path.partition('?')[0]} in time") from error
        try:
            answer: object = json.loads(data or b"{}")
        except ValueError:
            answer = {}
        return stream.status, cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}


def _text_of(answer: dict[str, Any]) -> Said:
    choice = answer["choices"][0]
    if choice["finish_reason"] not in {"length", "stop"}:
        raise ValueError(choice["finish_reason"])  # "abort": it was put to sleep under our hands
    return str(choice["text"])


def _vector_of(answer: dict[str, Any]) -> Said:
    return _numbers(answer["data"][0]["embedding"])


def _score_of(answer: dict[str, Any]) -> Said:
    # With its complement, so that likeness is that of vectors here too.
    score = float(answer["data"][0]["score"])
    return _numbers([score, 1.0 - score])


def _numbers(values: list[Any]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError("not a number")
    return numbers


def _is_alike(before: Said, now: Said) -> bool:
    if isinstance(before, str) or isinstance(now, str):
        return before == now
    if len(before) != len(now):
        return False
    product = sum(one * other for one, other in zip(before, now, strict=True))
    return product >= LIKENESS * math.hypot(*before) * math.hypot(*now) > 0


_QUESTIONS = (
    _Question("/v1/completions", {"prompt": CANARY_TEXT, "max_tokens": 1, "temperature": 0}, _text_of),
    _Question("/v1/embeddings", {"input": CANARY_TEXT}, _vector_of),
    _Question("/score", {"text_1": CANARY_TEXT, "text_2": CANARY_TEXT + " Paris"}, _score_of),
)
"""In this order until one is not 404: what generates has the first, encoders the second, cross-encoders the third."""


def _refusal(path: str, status: int, answer: dict[str, Any]) -> str:
    error = answer.get("error")
    said = cast("dict[str, Any]", error).get("message", "") if isinstance(error, dict) else ""
    return f"it refused {path.partition('?')[0]} with {status}" + (f": {str(said)[:300]}" if said else "")


def _failed(what: str, why: str) -> VllamaError:
    return VllamaError(
        Reason.ENGINE_DIED, f"cannot {what}: {why}", "its worker is stopped; vllamactl logs shows what it said last"
    )
