"""How vllamactl fails (floor 4): one exception, one exit status per reason, all from the shared table.

The table is imported when something fails, not before: `vllamactl ps` has 0.3 s.
"""

from collections.abc import Mapping

INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell shows for a program that died of SIGPIPE (128 + 13)."""


class CtlError(Exception):
    """A verb could not do its work. ``reason`` is a name of the table of reasons; ``message`` and ``hint`` are the
    daemon's own words where the failure came from there."""

    def __init__(self, reason: str, message: str, hint: str = "", facts: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint
        self.facts = dict(facts or {})

    def plain(self) -> dict[str, object]:
        """Return it as JSON for scripts."""
        return {"reason": self.reason, "message": self.message, "hint": self.hint, "facts": self.facts}


class Reported(Exception):
    """A failure that the verb has told about by itself; only the exit status is left."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Interrupted(Exception):
    """Ctrl-C, after what had to be said about it has been said."""


def exit_status(reason: str) -> int:
    """Return the exit status of a reason; 1 for one that only a newer daemon knows."""
    from vllama.reasons import ROWS, Reason

    try:
        return ROWS[Reason(reason)].exit
    except ValueError:
        return 1


def explain(error: CtlError, doing: str) -> list[str]:
    """Return the lines for stderr: what could not be done and why, the log lines that came with it, and the hint."""
    message = error.message
    if doing and not message.startswith("cannot "):
        message = f"cannot {doing}: {message}"
    lines = [f"vllamactl: {message}"]
    # Only logs have more than one line among the facts; the numbers are in the message already.
    for fact in error.facts.values():
        if "\n" in fact:
            lines += [f"    {line}" for line in fact.splitlines()]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return lines
