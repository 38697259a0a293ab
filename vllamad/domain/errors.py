"""The one exception of this house (floor 1). Raised where the facts are known, translated once per face."""

import math

from vllama.reasons import ROWS, Reason, Row

Fact = str | int | float


class VllamaError(Exception):
    """Say what could not be done, for whom and why; what to do next; and the numbers.

    ``message`` reads "cannot X: why" and names the model or the field; ``hint`` is one sentence that a person can act
    on; ``facts`` travel to clients as ErrorInfo metadata, so no prompt, path of a secret or token belongs there.
    """

    def __init__(self, reason: Reason, message: str, hint: str | None = None, **facts: Fact) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint
        self.facts = facts

    @property
    def row(self) -> Row:
        """The columns of the failure table for this reason."""
        return ROWS[self.reason]

    @property
    def retry_after_s(self) -> int | None:
        """Whole seconds after which asking again may help: what is known of this failure (the fact of that name; 0: it
        does not help), else what the table says of its reason. None: nothing to wait for."""
        fact = self.facts.get("retry_after_s")
        if isinstance(fact, int | float):
            return math.ceil(fact) if fact > 0 else None
        return self.row.retry_after_s

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"VllamaError({self.reason}, {self.message!r}, hint={self.hint!r}, facts={self.facts!r})"


class ModelNotFound(VllamaError):
    """A model is not on this machine; someone catches this one to pull it or to word it per route."""

    def __init__(self, name: str, message: str | None = None, hint: str | None = None) -> None:
        super().__init__(
            Reason.MODEL_NOT_FOUND,
            message or f"model '{name}' not found",
            hint or f"pull it first: vllamactl pull {name}",
            model=name,
        )
