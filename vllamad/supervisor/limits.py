"""How long each step of a worker may take, and how often a crash is tried again (floor 3)."""

import random
from dataclasses import dataclass

from vllamad.domain.worker import Deadline


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Seconds per deadline; ``attempts`` is how many crashes in a row are one too many."""

    start_s: float = 600.0
    drain_s: float = 600.0
    suspend_s: float = 200.0
    """A little more than the calls have by themselves: they know better what went wrong."""
    resume_s: float = 640.0
    term_s: float = 20.0
    kill_s: float = 10.0
    release_s: float = 10.0
    backoff_s: float = 1.0
    attempts: int = 3

    def seconds(self, deadline: Deadline, attempts: int) -> float:
        """How long a state may last; the back-off doubles with each crash and has jitter, so that workers that fell
        together do not rise together."""
        if deadline is Deadline.BACKOFF:
            return self.backoff_s * 2 ** max(0, attempts - 1) * random.uniform(0.8, 1.2)
        return {
            Deadline.START: self.start_s,
            Deadline.DRAIN: self.drain_s,
            Deadline.SUSPEND: self.suspend_s,
            Deadline.RESUME: self.resume_s,
            Deadline.TERM: self.term_s,
            Deadline.KILL: self.kill_s,
            Deadline.RELEASE: self.release_s,
        }[deadline]
