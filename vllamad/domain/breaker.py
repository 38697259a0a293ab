"""When a model that fails is tried again (floor 1): pure, instants come in.

A worker's machine tries a crash again a few times and then gives up: a *final* failure. Without more, the next request
would begin another load of minutes, and the one after that as well. The breaker of a model is

- CLOSED: load it whenever it is wanted;
- OPEN, for a while after a final failure: requests get the stored cause at once instead of a load. The pause doubles
  with every further final failure;
- HALF_OPEN, once the pause is over: one try is let through. READY closes the breaker, a failure opens it for longer.

A model that gets READY is served, but how often it failed is forgotten only after it was stable. A person who asks for
a load is never refused (``insist``). A model that does not fit has not failed: its cause is in the machine's room.

The restart budget is the other bound: a model that crashes every 61 s is stable each time and would be restarted for
ever. Its tenth fault within an hour is final.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from vllama.reasons import Reason
from vllamad.domain.errors import Fact, VllamaError
from vllamad.domain.worker import State, WorkerRecord

FIRST_PAUSE_S = 10.0
"""Long enough that a client which asks again at once does not load again, short enough for a fault that passes."""
LONGEST_PAUSE_S = 300.0
"""A load may take minutes and all of a disk: at most about every fifth one is given to a model that keeps failing, and
one that somebody has mended comes back within five minutes by itself."""
STABLE_S = 60.0
"""A model that served this long is no longer suspected: its final failures are forgotten. As long as a worker's crashes
are remembered; most engines that fall under load do so in their first minute."""
BUDGET_FAULTS = 10
BUDGET_WINDOW_S = 3600.0
"""So many faults within so long are final whatever lay between them. Somebody who reads the log in the morning finds
tens of lines of such a model, not a thousand."""

EXEMPT = frozenset({Reason.WONT_FIT, Reason.QUEUE_FULL, Reason.DRAINING, Reason.CANCELLED})
"""Causes that say nothing about the model or its engine."""

_SERVING = frozenset({State.READY, State.DRAINING, State.SUSPENDING, State.SUSPENDED, State.RESUMING})
_AT_REST = frozenset({State.STOPPED, State.FAILED})


class Status(StrEnum):
    """What becomes of a request that would need a load."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


def pause_s(failures: int) -> float:
    """How long nothing is tried after so many final failures in a row (at least one)."""
    # The exponent is bounded: failures of a year would overflow a float.
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16))


@dataclass(slots=True)
class _History:
    """What is remembered of a model that failed."""

    faults: list[float]
    """Instants of the last ``BUDGET_FAULTS`` faults, oldest first."""
    failures: int = 0
    """Final ones since it was stable last."""
    error: VllamaError | None = None
    times: str = ""
    """How often it failed, in words."""
    failed_at: float = 0.0
    retry_at: float = -math.inf
    serving: dict[str, float] = field(default_factory=dict[str, float])
    """The workers that serve, and since when."""
    is_closed: bool = True

    def is_spent(self, now: float) -> bool:
        return len(self.faults) >= BUDGET_FAULTS and now - self.faults[0] < BUDGET_WINDOW_S


class Breaker:
    """The breakers of all models, by the keys of their workers. It hears of every change of a worker, and is asked
    before a request is made to wait for a load. Healthy models cost nothing: only of those that failed it keeps
    something."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    # --- what happens ----------------------------------------------------------------------------------------------

    def changed(
        self, key: str, worker: str, before: WorkerRecord, after: WorkerRecord, error: VllamaError | None, now: float
    ) -> str:
        """``worker``, one of this model's, was stepped. ``error`` is what people are told when it came to FAILED, None
        if that is not known. Call it after every step, in their order.

        Returns what was decided, as the rest of a sentence that begins with the model's name; "" mostly.
        """
        history = self._histories.get(key)
        if before.cause is None and after.cause is not None and after.cause not in EXEMPT:
            history = history or self._histories.setdefault(key, _History([]))
            self._forgive(history, now)
            history.faults = [*history.faults, now][-BUDGET_FAULTS:]
        if history is None:
            return ""
        decided = ""
        self._forgive(history, now)
        if after.state not in _SERVING:
            history.serving.pop(worker, None)
        elif worker not in history.serving:
            history.serving[worker] = now
            if not history.is_closed:
                history.is_closed = True
                decided = f"is no longer given up: it is ready, after it had failed {history.times}"
        if after.state in _AT_REST and before.state not in _AT_REST:
            # Stopped by somebody on its way down from a final failure, it rests as STOPPED and has failed all the same.
            last = after if after.state is State.FAILED else before
            if last.is_final and last.cause is not None and last.cause not in EXEMPT:
                decided = self._failed(history, error, last.cause, now)
        if history.failures == 0 and not any(now - fault < BUDGET_WINDOW_S for fault in history.faults):
            del self._histories[key]
        return decided

    def insist(self, key: str, now: float) -> None:
        """A person wants it loaded: the pause is over. How often it failed stays known, so that another failure opens
        the breaker for longer."""
        history = self._histories.get(key)
        if history is not None:
            history.retry_at = min(history.retry_at, now)

    # --- what follows ----------------------------------------------------------------------------------------------

    def attempts(self, key: str, usual: int, now: float) -> int:
        """What ``step`` gets as ``max_attempts``: ``usual``, or 1 (the next crash is final) if the model's budget of
        restarts is spent. Who configured more attempts in a row than the budget has gets them."""
        history = self._histories.get(key)
        if history is None or usual > BUDGET_FAULTS:
            return usual
        # The fault that is about to be stepped counts.
        recent = sum(1 for fault in history.faults if now - fault < BUDGET_WINDOW_S)
        return 1 if recent + 1 >= BUDGET_FAULTS else usual

    def status(self, key: str, now: float) -> Status:
        """What becomes of a request that would need a load. One that a worker serves already, or that joins a load, is
        not the breaker's business. While HALF_OPEN, load on one worker only."""
        history = self._histories.get(key)
        if history is None or history.is_closed:
            return Status.CLOSED
        return Status.OPEN if now < history.retry_at else Status.HALF_OPEN

    def refuse(self, key: str, model: str, now: float) -> VllamaError | None:
        """What a request for ``model`` gets instead of a load; None: load it."""
        history = self._histories.get(key)
        if history is None or self.status(key, now) is not Status.OPEN:
            return None
        assert history.error is not None
        return refusal(model, history.error, history.times, now - history.failed_at, history.retry_at - now)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _forgive(self, history: _History, now: float) -> None:
        is_stable = any(now - since >= STABLE_S for since in history.serving.values())
        if is_stable and not history.is_spent(now):
            history.failures = 0

    def _failed(self, history: _History, error: VllamaError | None, cause: Reason, now: float) -> str:
        history.failures += 1
        history.error = error or VllamaError(cause, "")
        history.times = {1: "once", 2: "twice"}.get(history.failures, f"{history.failures} times in a row")
        if history.is_spent(now):
            history.times = f"{BUDGET_FAULTS} times within an hour"
        history.failed_at = now
        history.retry_at = now + pause_s(history.failures)
        history.is_closed = False
        return f"is given up for {_span(pause_s(history.failures))}: it failed {history.times} ({cause})"


def refusal(model: str, cause: VllamaError, times: str, ago_s: float, retry_in_s: float) -> VllamaError:
    """What a client gets while a model is given up: the cause, with its reason, how often that happened ("twice"), and
    when asking again helps."""
    retry_after_s = max(1, math.ceil(retry_in_s))
    what = cause.message or f"cannot load {model}"
    # Models may share a worker: then the cause names the one that it was started for.
    told = what if model in what else f"cannot load {model}: {what}"
    facts: dict[str, Fact] = {**cause.facts, "model": model, "retry_after_s": retry_after_s}
    return VllamaError(
        cause.reason,
        f"{told} (failed {times}, last {_span(ago_s)} ago; {model} is tried again in {_span(retry_after_s)})",
        f"vllamactl load {model} tries at once; vllamactl logs {model} shows what it said",
        **facts,
    )


def _span(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < LONGEST_PAUSE_S else f"{round(whole / 60)} min"
