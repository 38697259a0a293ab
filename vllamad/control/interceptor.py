"""The boundary of the control plane (floor 4): failures become status + ErrorInfo, bugs become INTERNAL with an id."""

import functools
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import grpc.aio

from vllama import __version__
from vllama.errorinfo import MESSAGE_MAX, METADATA_KEY, encode
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

log = logging.getLogger("vllamad.control")

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]

VERSION_METADATA = (("vllama-version", __version__),)


async def abort(context: Context, error: VllamaError) -> None:
    """End the call with what the table says about ``error``; raises, as gRPC's abort does."""
    status = grpc.StatusCode[error.row.grpc or "UNKNOWN"]
    details = encode(error.reason, error.message, error.hint, error.facts, status.value[0])
    # gRPC percent-encodes the message into a trailer of at most 8 KiB, which the details share.
    await context.abort(status, error.message[:MESSAGE_MAX], ((METADATA_KEY, details),))


def unary(
    method: Callable[[Any, Request, Context], Awaitable[Response]],
) -> Callable[[Any, Request, Context], Awaitable[Response]]:
    """Wrap a servicer's unary method."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Request, context: Context) -> Response:
        await context.send_initial_metadata(VERSION_METADATA)
        try:
            return await method(self, request, context)
        except VllamaError as error:
            await abort(context, error)
            raise
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception as bug:  # the boundary: a bug ends the call, not the daemon
            await abort(context, _bug(method.__name__, bug))
            raise

    return wrapped


def streaming(
    method: Callable[[Any, Request, Context], AsyncGenerator[Response, None]],
) -> Callable[[Any, Request, Context], AsyncIterator[Response]]:
    """Wrap a servicer's method that answers with a stream."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Request, context: Context) -> AsyncIterator[Response]:
        await context.send_initial_metadata(VERSION_METADATA)
        try:
            async with aclosing(method(self, request, context)) as responses:
                async for response in responses:
                    yield response
        except VllamaError as error:
            await abort(context, error)
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception as bug:  # noqa: BLE001 - the boundary: a bug ends the call, not the daemon
            await abort(context, _bug(method.__name__, bug))

    return wrapped


def _bug(where: str, bug: Exception) -> VllamaError:
    identity = uuid.uuid4().hex[:12]
    log.exception("control.bug method=%s id=%s", where, identity)
    return VllamaError(
        Reason.INTERNAL, f"internal error in {where}: {bug}", f"see the daemon's log for id {identity}", id=identity
    )
