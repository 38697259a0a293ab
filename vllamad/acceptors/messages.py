"""What an acceptor and the daemon say to each other (floor 4), and its bytes. The only module that imports msgspec.

Each message is a record; on the wire it is MessagePack, which knows infinity (a keep-alive) and bytes. Domain objects
cross as what they are: a decoder checks every field against its type, and neither side executes what it reads.
"""

from collections.abc import Mapping

import msgspec

from vllama.reasons import Reason
from vllamad.domain.errors import Fact, ModelNotFound, VllamaError
from vllamad.domain.model import Adapter, Model
from vllamad.http.services import Policy


class Failure(msgspec.Struct, frozen=True):
    """A VllamaError on its way."""

    reason: Reason
    message: str
    hint: str | None
    facts: Mapping[str, Fact]

    @classmethod
    def of(cls, error: VllamaError) -> "Failure":
        return cls(error.reason, error.message, error.hint, error.facts)

    def error(self) -> VllamaError:
        """The same error again: of the class that faces catch, if it is that one."""
        name = self.facts.get("model")
        if self.reason is Reason.MODEL_NOT_FOUND and isinstance(name, str):
            return ModelNotFound(name, self.message, self.hint)
        return VllamaError(self.reason, self.message, self.hint, **self.facts)


class Terms(msgspec.Struct, frozen=True):
    """What an acceptor goes by, as it is configured now."""

    policy: Policy
    log_level: str


# --- from the daemon ---


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The first message: listen on these descriptors. ``daemon`` is the socket of the daemon's own HTTP; ``silence_s``
    after how long an engine that says nothing counts as hung (None: never)."""

    listeners: tuple[int, ...]
    daemon: str
    silence_s: float | None
    terms: Terms


class Use(msgspec.Struct, frozen=True, tag=True):
    """Go by other terms from the next request on. Answered by ``Done``."""

    number: int
    terms: Terms


class StopListening(msgspec.Struct, frozen=True, tag=True):
    """Take no new connections. Answered by ``Done``."""

    number: int


class LetGo(msgspec.Struct, frozen=True, tag=True):
    """Close connections that are idle. Answered by ``Done``."""

    number: int


class Leave(msgspec.Struct, frozen=True, tag=True):
    """End."""


class Found(msgspec.Struct, frozen=True, tag=True):
    """The answer to ``Find``: the model without its files and licence, which no request is built from."""

    number: int
    model: Model


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The answer to ``Ask``: a lease, which is held until ``Over``."""

    number: int
    socket: str
    """Where the worker listens."""
    engine_name: str
    """The name of its model in the engine's answers; one with an adapter goes by that one's."""
    fast_path: str
    """Whether the engine writes plain streams as lines, see ``ports.EngineClient.fast_path``."""
    context_length: int
    load_ns: int
    waited_ns: int
    adapter: Adapter | None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The answer to whatever was asked, if it failed."""

    number: int
    failure: Failure


class Broken(msgspec.Struct, frozen=True, tag=True):
    """A lease that was granted has broken."""

    number: int
    failure: Failure


# --- from an acceptor ---


class Ready(msgspec.Struct, frozen=True, tag=True):
    """It listens."""


class Find(msgspec.Struct, frozen=True, tag=True):
    """Which model is it? Answered by ``Found`` or ``Refused``."""

    number: int
    name: str


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A lease, please: see ``Gate.lease``. Answered, perhaps much later, by ``Granted`` or ``Refused``."""

    number: int
    name: str
    keep_alive_s: float | None
    caller: str


class Over(msgspec.Struct, frozen=True, tag=True):
    """The lease that was asked for under this number is not needed any more, whether it was granted or not."""

    number: int


class Suspect(msgspec.Struct, frozen=True, tag=True):
    """The worker of this lease failed a request: ask it whether it lives."""

    number: int


class Unload(msgspec.Struct, frozen=True, tag=True):
    """See ``Gate.unload``. Answered by ``Done`` or ``Refused``."""

    number: int
    name: str


class Logged(msgspec.Struct, frozen=True, tag=True):
    """A line for the daemon's log: ``created`` is wall time, ``level`` a number of the standard library's logging."""

    created: float
    level: int
    logger: str
    text: str
    fields: Mapping[str, str | int | float | bool | None]
    trace: str


# --- from both ---


class Done(msgspec.Struct, frozen=True, tag=True):
    """What was asked for is done."""

    number: int


FromDaemon = Begin | Use | StopListening | LetGo | Leave | Found | Granted | Refused | Broken | Done
FromAcceptor = Ready | Find | Ask | Over | Suspect | Unload | Logged | Done
Message = FromDaemon | FromAcceptor

_encoder = msgspec.msgpack.Encoder()
_from_daemon: msgspec.msgpack.Decoder[FromDaemon] = msgspec.msgpack.Decoder(FromDaemon)
_from_acceptor: msgspec.msgpack.Decoder[FromAcceptor] = msgspec.msgpack.Decoder(FromAcceptor)


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def from_daemon(data: bytes) -> FromDaemon:
    """What the daemon said. Raises ValueError if it is no message of its."""
    return _from_daemon.decode(data)


def from_acceptor(data: bytes) -> FromAcceptor:
    """What an acceptor said. Raises ValueError if it is no message of its."""
    return _from_acceptor.decode(data)
