"""One answer of a model as it arrives (floor 4): text on stdout, everything else on stderr."""

from contextlib import aclosing
from dataclasses import dataclass

from vllama.control.v1.inference_pb2 import ChatRequest, Finish
from vllamactl import human
from vllamactl.client import Client
from vllamactl.console import DIM, Console
from vllamactl.exits import CtlError
from vllamactl.plain import plain, seconds_of
from vllamactl.progress import ProgressView


@dataclass
class Answer:
    """What has arrived so far; ``finish`` is None if the answer was broken off."""

    text: str = ""
    finish: Finish | None = None


class AnswerView:
    """Writes an answer to the console. Thinking is shown dim between two markers, and on terminals only."""

    def __init__(self, console: Console, hides_thinking: bool) -> None:
        self._console = console
        self._shows_thinking = console.is_out_terminal and not hides_thinking
        self._is_thinking = False
        self._last = "\n"

    def thinking(self, text: str) -> None:
        if not self._shows_thinking:
            return
        if not self._is_thinking:
            self._is_thinking = True
            self._write("Thinking...\n", DIM)
        self._write(text, DIM)

    def text(self, text: str) -> None:
        self._end_thinking()
        self._write(text)

    def end(self) -> None:
        """Leave the cursor at the start of a line, also after an answer that was broken off."""
        self._end_thinking()
        if self._last != "\n":
            self._write("\n")

    def _end_thinking(self) -> None:
        if self._is_thinking:
            self._is_thinking = False
            self._write(("" if self._last == "\n" else "\n") + "...done thinking.\n\n", DIM)

    def _write(self, text: str, color: str = "") -> None:
        shown = self._console.printable(text)
        if not shown:
            return
        self._console.write(self._console.paint(shown, color), flush=True)
        self._last = shown[-1]


async def stream_answer(
    console: Console, client: Client, request: ChatRequest, into: Answer, hides_thinking: bool = False
) -> None:
    """Ask, and show the answer while it comes. What has come is in ``into`` also if this is cancelled or fails."""
    view = AnswerView(console, hides_thinking)
    waiting = ProgressView(console, "loading", request.model)
    try:
        async with waiting.shown(), aclosing(client.chat(request)) as events:
            async for event in events:
                if console.is_json:
                    console.document(plain(event))
                match event.WhichOneof("event"):
                    case "loading":
                        waiting.update(event.loading)
                    case "text":
                        waiting.stop()
                        into.text += event.text
                        if not console.is_json:
                            view.text(event.text)
                    case "thinking":
                        waiting.stop()
                        if not console.is_json:
                            view.thinking(event.thinking)
                    case "finish":
                        into.finish = event.finish
                    case _:
                        pass  # an event of a newer daemon
    finally:
        if not console.is_json:
            view.end()
    if into.finish is None:
        raise CtlError("INTERNAL", "the answer broke off before its end", "ask again; the daemon's log tells why")


def figures(finish: Finish) -> list[str]:
    """Return the engine's counts and times in Ollama's words, for `--verbose`."""
    prompt_s, generation_s = seconds_of(finish.prompt_duration), seconds_of(finish.generation_duration)
    rows = [
        ("total duration:", seconds_of(finish.total_duration), ""),
        ("load duration:", seconds_of(finish.load_duration), ""),
        ("prompt eval count:", finish.prompt_tokens, " token(s)"),
        ("prompt eval duration:", prompt_s, ""),
        ("prompt eval rate:", finish.prompt_tokens / prompt_s if prompt_s else 0, " tokens/s"),
        ("eval count:", finish.completion_tokens, " token(s)"),
        ("eval duration:", generation_s, ""),
        ("eval rate:", finish.completion_tokens / generation_s if generation_s else 0, " tokens/s"),
    ]
    lines: list[str] = []
    for label, value, unit in rows:
        if value > 0:
            shown = (
                human.short_span(value)
                if label.endswith("duration:")
                else f"{value:.2f}"
                if "rate" in label
                else f"{value}"
            )
            lines.append(f"{label:<22}{shown}{unit}")
    return lines
