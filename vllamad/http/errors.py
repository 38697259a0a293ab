"""Failures as answers (floor 4): the one place that turns a VllamaError into a status and a body, per face."""

from aiohttp import web

from vllama.reasons import Reason
from vllamad.dialects import anthropic, ollama_errors, openai
from vllamad.dialects.ollama_errors import Refusal
from vllamad.dialects.passing import Face
from vllamad.domain.errors import VllamaError
from vllamad.http.calls import PLAIN_JSON, Call, json_answer

TOO_LARGE = 413


def error_answer(error: VllamaError, call: Call) -> web.Response:
    """The answer while no byte was sent."""
    match call.face:
        case Face.OLLAMA:
            answer = json_answer(ollama_errors.error_body(error), ollama_errors.status_of(error), call.error_type)
        case Face.OPENAI:
            answer = json_answer(openai.error_body(error), _status(error, error.row.http), PLAIN_JSON)
        case Face.ANTHROPIC:
            body = anthropic.error_body(error, call.id)
            answer = json_answer(body, _status(error, error.row.anthropic_status), PLAIN_JSON)
    if error.retry_after_s is not None:
        answer.headers["Retry-After"] = str(error.retry_after_s)
    return answer


def _status(error: VllamaError, usual: int) -> int:
    """Of Ollama's own statuses one is everybody's: a body that is too large."""
    return TOO_LARGE if isinstance(error, Refusal) and error.status == TOO_LARGE else usual


async def end_lines(answer: web.StreamResponse, error: VllamaError) -> None:
    """The answer once the status is spent: one more line that says so, then the end."""
    await answer.write(ollama_errors.error_body(error) + b"\n")
    await answer.write_eof()


def bug(call: Call) -> VllamaError:
    """What a caller gets to see of an exception that nobody foresaw."""
    return VllamaError(
        Reason.INTERNAL,
        f"internal error; request {call.id}",
        "the daemon's log holds the trace under this id",
        request_id=call.id,
    )
