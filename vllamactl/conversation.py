"""A chat and its settings (floor 4): what was said, and what is sent with the next turn. No terminal, no wire."""

from dataclasses import dataclass, field

from vllama.control.v1.inference_pb2 import ChatRequest, Message, Options
from vllamactl.client import duration
from vllamactl.exits import CtlError

PARAMETERS: dict[str, type[int] | type[float] | type[str]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "seed": int,
    "num_predict": int,
    "repeat_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "stop": str,
}
"""What `/set parameter` and the options of `run` take: the fields of Options, under Ollama's names."""


@dataclass
class Conversation:
    """One chat with one model. ``think`` None: the model's default; ``keep_alive_s`` None: the daemon's."""

    model: str
    system: str = ""
    format: str = ""
    think: bool | None = None
    keep_alive_s: float | None = None
    is_verbose: bool = False
    hides_thinking: bool = False
    options: Options = field(default_factory=Options)
    messages: list[Message] = field(default_factory=list[Message])

    def request(self, prompt: str) -> ChatRequest:
        """Return the request for a next turn. The turn counts as said only once ``answered`` is called."""
        first = [Message(role="system", content=self.system)] if self.system else []
        request = ChatRequest(
            model=self.model,
            messages=[*first, *self.messages, Message(role="user", content=prompt)],
            options=self.options,
            keep_alive=duration(self.keep_alive_s),
            format=self.format,
        )
        if self.think is not None:
            request.think = self.think
        return request

    def answered(self, prompt: str, answer: str) -> None:
        """Remember a turn, also one that was broken off in the middle of its answer."""
        self.messages += [Message(role="user", content=prompt), Message(role="assistant", content=answer)]

    def clear(self) -> None:
        self.messages.clear()

    def set_parameter(self, name: str, values: list[str]) -> None:
        """Set one parameter from text; raises INVALID_REQUEST. ``stop`` takes several values."""
        kind = PARAMETERS.get(name)
        if kind is None:
            hint = f"one of: {', '.join(PARAMETERS)}"
            if name == "num_ctx":
                hint = "the context is fixed when the engine loads: see the settings of the daemon"
            raise CtlError("INVALID_REQUEST", f"cannot set {name}: there is no such parameter", hint)
        if name == "stop":
            del self.options.stop[:]
            self.options.stop.extend(values)
            return
        try:
            (text,) = values
            setattr(self.options, name, kind(text))
        except ValueError as error:
            given, noun = " ".join(values), "a whole number" if kind is int else "a number"
            raise CtlError("INVALID_REQUEST", f"cannot set {name}: {given!r} is not {noun}") from error

    def parameters(self) -> list[tuple[str, str]]:
        """Return what was set, as rows of name and value."""
        return [
            (name, ", ".join(self.options.stop) if name == "stop" else f"{getattr(self.options, name):g}")
            for name in PARAMETERS
            if (bool(self.options.stop) if name == "stop" else self.options.HasField(name))  # pyright: ignore[reportArgumentType]
        ]
