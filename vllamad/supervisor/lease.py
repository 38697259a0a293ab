"""A lease: the right to send requests to one incarnation of a worker (floor 3).

While it is held the worker is not stopped under its holder. If the worker dies all the same, the lease is *broken*: its
streams end at once with the cause, and its late return is a no-op.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Model
from vllamad.domain.ports import FAST_PATH_ON, EngineClient, EngineSocket, EngineStream, Sink

_ERROR_FRAME = b'data: {"error"'
"""How the engine says in mid-stream that it failed: its core may be dead, and its server about to follow."""


class Lease:
    """Held by one request. ``socket`` is where the worker listens, for whoever asks it from another process in this
    lease's name. ``load_ns`` is the time from the request's arrival until the worker was ready (Ollama's
    ``load_duration``), ``waited_ns`` the part of it that was spent waiting."""

    def __init__(
        self,
        model: Model,
        client: EngineClient,
        socket: Path,
        context_length: int,
        give_back: Callable[["Lease"], None],
        suspect: Callable[[], None],
    ) -> None:
        self.model = model
        self.context_length = context_length
        self.socket = socket
        self.load_ns = 0
        self.waited_ns = 0
        self.broken: VllamaError | None = None
        self._client = client
        self._give_back: Callable[[Lease], None] | None = give_back
        self.suspect = suspect
        """Have the worker asked whether it still lives: called when it failed this request."""
        self._streams: set[EngineStream | EngineSocket] = set()
        self._on_broken: Callable[[VllamaError], None] | None = None

    @property
    def served_name(self) -> str:
        """The model's name in this worker's answers."""
        return self.model.adapter.name if self.model.adapter is not None else self.engine_name

    @property
    def engine_name(self) -> str:
        """The name of the model that its worker was loaded with: what it goes by without an adapter."""
        return self._client.served_name

    @property
    def fast_path(self) -> str:
        """See ``EngineClient.fast_path``."""
        return self._client.fast_path

    @property
    def has_fast_path(self) -> bool:
        """Its engine writes plain streams as lines where it is asked to."""
        return self.fast_path == FAST_PATH_ON

    async def open(
        self, path: str, body: bytes | AsyncIterable[bytes], headers: Mapping[str, str] | None = None
    ) -> EngineStream:
        """POST to the engine; returns when the head of its answer is there. Raises ENGINE_DIED, or what broke the
        lease. The stream's own reads raise the same."""
        self._raise_if_broken()
        try:
            if self.model.adapter is not None:
                await self._client.learn(self.model.adapter)
            stream = await self._client.open("POST", path, body, headers)
        except VllamaError as error:
            if error.reason is Reason.ENGINE_DIED:
                self.suspect()
            raise self.broken or error from error
        if self.broken is not None:
            stream.close()
            raise self.broken
        if stream.status >= 500:
            self.suspect()
        self._streams.add(stream)
        return _LeasedStream(self, stream)

    async def connect(self, path: str, headers: Mapping[str, str] | None = None) -> EngineSocket:
        """A websocket to the engine; it ends with the lease. Raises UNSUPPORTED, ENGINE_DIED, or what broke the
        lease."""
        self._raise_if_broken()
        try:
            connection = await self._client.connect(path, headers)
        except VllamaError as error:
            if error.reason is Reason.ENGINE_DIED:
                self.suspect()
            raise self.broken or error from error
        if self.broken is not None:
            connection.close()
            raise self.broken
        self._streams.add(connection)
        return _LeasedSocket(self, connection)

    def break_off(self, error: VllamaError) -> None:
        """End every stream now; whoever reads one gets ``error``."""
        self.broken = error
        self._give_back = None
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        if self._on_broken is not None:
            self._on_broken(error)

    def watch(self, on_broken: Callable[[VllamaError], None]) -> None:
        """Be told, once, when the lease breaks, or that it is broken already."""
        if self.broken is not None:
            on_broken(self.broken)
        else:
            self._on_broken = on_broken

    def give_back(self) -> None:
        """Return the right; drops streams that are still open. Synchronous, and harmless when repeated."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self)

    def forget(self, stream: EngineStream | EngineSocket) -> None:
        """A stream of this lease has ended."""
        self._streams.discard(stream)

    def _raise_if_broken(self) -> None:
        if self.broken is not None:
            raise self.broken


class _LeasedStream:
    """An engine's answer whose failures are told in the words of the lease."""

    def __init__(self, lease: Lease, stream: EngineStream) -> None:
        self._lease = lease
        self._stream = stream

    @property
    def status(self) -> int:
        return self._stream.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._stream.headers

    async def pour(self, sink: Sink) -> bool:
        def watch(piece: bytes) -> bool:
            if _ERROR_FRAME in piece:
                self._lease.suspect()
            return sink(piece)

        try:
            has_more = await self._stream.pour(watch)
        except VllamaError as error:
            self._lease.suspect()
            raise self._lease.broken or error from error
        if self._lease.broken is not None:  # closed under the reader: its end is not the answer's end
            raise self._lease.broken
        return has_more

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream.chunks():
                if _ERROR_FRAME in chunk:
                    self._lease.suspect()
                yield chunk
        except VllamaError as error:
            self._lease.suspect()
            raise self._lease.broken or error from error
        if self._lease.broken is not None:  # closed under the reader: its end is not the answer's end
            raise self._lease.broken

    async def read(self) -> bytes:
        try:
            body = await self._stream.read()
        except VllamaError as error:
            self._lease.suspect()
            raise self._lease.broken or error from error
        if self._lease.broken is not None:
            raise self._lease.broken
        return body

    def close(self) -> None:
        self._stream.close()
        self._lease.forget(self._stream)


class _LeasedSocket:
    """A websocket whose failures are told in the words of the lease."""

    def __init__(self, lease: Lease, connection: EngineSocket) -> None:
        self._lease = lease
        self._connection = connection

    @property
    def close_code(self) -> int | None:
        return self._connection.close_code

    async def send(self, frame: str | bytes) -> None:
        try:
            await self._connection.send(frame)
        except VllamaError as error:
            self._lease.suspect()
            raise self._lease.broken or error from error

    async def frames(self) -> AsyncIterator[str | bytes]:
        try:
            async for frame in self._connection.frames():
                yield frame
        except VllamaError as error:
            self._lease.suspect()
            raise self._lease.broken or error from error
        if self._lease.broken is not None:
            raise self._lease.broken

    def close(self) -> None:
        self._connection.close()
        self._lease.forget(self._connection)


def engine_died(model: str, detail: str, **facts: str | int | float) -> VllamaError:
    """The failure that requests in flight get when their engine goes away."""
    return VllamaError(
        Reason.ENGINE_DIED,
        f"the engine of {model} has stopped unexpectedly: {detail}",
        f"see its last lines: vllamactl logs {model}",
        model=model,
        **facts,
    )
