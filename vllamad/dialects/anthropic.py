"""What we say on Anthropic's face ourselves (floor 1): errors, and the list of models. Messages are the engine's."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model


def error_body(error: VllamaError, request_id: str = "") -> dict[str, Any]:
    """The envelope, with our own ``code`` in it."""
    inner = {"type": error.row.anthropic_type, "message": error.message, "code": error.reason.lower()}
    return {"type": "error", "error": inner, **({"request_id": request_id} if request_id else {})}


def error_event(error: VllamaError) -> bytes:
    """A failure inside of a stream; the official client raises it. No ``message_stop`` follows."""
    return b"event: error\ndata: " + orjson.dumps(error_body(error)) + b"\n\n"


def model_card(name: str, model: Model) -> dict[str, Any]:
    """A model as Anthropic's client knows one."""
    created = datetime.fromtimestamp(int(model.modified_time), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": model.name, "created_at": created}


def model_list(models: Sequence[Model]) -> dict[str, Any]:
    """Every model on one page."""
    cards = [model_card(model.name, model) for model in models]
    ends = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"]} if cards else {"first_id": None, "last_id": None}
    return {"data": cards, "has_more": False, **ends}
