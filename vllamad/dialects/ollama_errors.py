"""Refusals in Ollama's words (floor 1). Clients compare some of these texts, so they are kept letter by letter; where
Ollama's status differs from the table of reasons, a ``Refusal`` carries it."""

from vllama.reasons import Reason
from vllamad.dialects.go_values import dumps
from vllamad.domain.errors import VllamaError

QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
PULL_NOT_FOUND = "pull model manifest: file does not exist"


class Refusal(VllamaError):
    """A refusal whose status on ``/api/*`` is not that of its reason."""

    def __init__(self, status: int, message: str, reason: Reason = Reason.INVALID_REQUEST, hint: str = "") -> None:
        super().__init__(reason, message, hint or None)
        self.status = status


def status_of(error: VllamaError) -> int:
    """The status on ``/api/*``."""
    return error.status if isinstance(error, Refusal) else error.row.ollama


def text_of(error: VllamaError) -> str:
    """The text on ``/api/*``: Ollama's own where clients look for it, else the message."""
    return QUEUE_FULL if error.reason is Reason.QUEUE_FULL else error.message


def error_body(error: VllamaError) -> bytes:
    """The envelope of ``/api/*``, also the in-band error line (without its line feed)."""
    return dumps({"error": text_of(error)})


def unsupported(name: str, what: str, hint: str = "") -> VllamaError:
    """``name`` as the client wrote it: thinking, chat, generate."""
    return VllamaError(Reason.UNSUPPORTED, f'"{name}" does not support {what}', hint or None, model=name)


def lacks(full_name: str, capability: str, hint: str = "") -> VllamaError:
    """For tools and insert Ollama shows the full name, without quotes; agents search for "does not support tools"."""
    return VllamaError(Reason.UNSUPPORTED, f"{full_name} does not support {capability}", hint or None, model=full_name)


def no_images() -> VllamaError:
    """What Ollama's engine answers to an image for a text model: JSON in a string."""
    return VllamaError(
        Reason.UNSUPPORTED,
        _engine_json(
            {
                "code": 400,
                "message": "Multimodal data provided, but model does not support multimodal requests.",
                "type": "invalid_request_error",
            }
        ),
    )


def context_exceeded(prompt_tokens: int, context_length: int) -> VllamaError:
    """A prompt that cannot be made to fit, in the form of Ollama's engine; ``prompt_tokens`` 0 if nobody counted."""
    if not prompt_tokens:
        return VllamaError(
            Reason.INVALID_REQUEST,
            "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust"
            " the context length in settings, or use a model with a longer context length",
        )
    return VllamaError(
        Reason.INVALID_REQUEST,
        _engine_json(
            {
                "code": 400,
                "message": f"request ({prompt_tokens} tokens) exceeds the available context size"
                f" ({context_length} tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": prompt_tokens,
                "n_ctx": context_length,
            }
        ),
    )


def _engine_json(error: dict[str, object]) -> str:
    return dumps({"error": error}).decode()
