"""Failures as answers (floor 4): the one place that turns a VllamaError into a status and a body for ``/api/*``."""

from aiohttp import web

from vllama.reasons import Reason
from vllamad.dialects import ollama_errors
from vllamad.domain.errors import VllamaError
from vllamad.http.calls import Call, json_answer


def error_answer(error: VllamaError, call: Call) -> web.Response:
    """The answer while no byte was sent."""
    answer = json_answer(ollama_errors.error_body(error), ollama_errors.status_of(error), call.error_type)
    if error.row.retry_after_s is not None:
        answer.headers["Retry-After"] = str(error.row.retry_after_s)
    return answer


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
