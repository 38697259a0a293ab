"""The interactive chat (floor 4): a prompt with history, slash commands, and answers that Ctrl-C stops."""

import os
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from vllama.control.v1.models_pb2 import Model
from vllamactl.answer import Answer, figures, stream_answer
from vllamactl.client import Client
from vllamactl.commands.show import page
from vllamactl.console import Console
from vllamactl.conversation import PARAMETERS, Conversation
from vllamactl.exits import CtlError, Interrupted, explain
from vllamactl.follow import Interrupts
from vllamactl.places import history_file
from vllamactl.render import pairs

FENCE = '"""'

HELP = """\
  /set parameter NAME VALUE   temperature, top_p, seed, num_predict, stop, ...
  /set system "TEXT"          a system message; "" for none
  /set verbose | quiet        counts and rates after each answer, or none
  /set think | nothink        let the model think, or not
  /set format json | noformat answers as JSON, or as they come
  /show info | parameters | template | system | license
  /load MODEL                 go on with another model, from the start
  /clear                      forget what was said
  /help, /?                   this page
  /bye, /exit                 leave (as Ctrl-D does)

  \"\"\" begins and ends a message of several lines. Ctrl-C stops an answer."""


class Editor:
    """Reads messages from the terminal."""

    def __init__(self, history: History) -> None:
        self._session: PromptSession[str] = PromptSession(history=history)

    async def read(self) -> str:
        """Return the next message; several lines between triple quotes. Raises EOFError at Ctrl-D, KeyboardInterrupt
        at Ctrl-C."""
        text = await self._session.prompt_async(
            ">>> ", placeholder=HTML("<ansigray>Send a message (/? for help)</ansigray>")
        )
        before, fence, rest = text.partition(FENCE)
        if not fence or not (before == "" or before.startswith("/set system")):
            return text
        lines = [rest]
        while FENCE not in lines[-1]:
            lines.append(await self._session.prompt_async("... ", placeholder=""))
        lines[-1] = lines[-1].partition(FENCE)[0]
        whole = "\n".join(lines)
        return f"{before}{shlex.quote(whole)}" if before else whole


class Repl:
    """One interactive chat. ``switch`` makes another model ready and returns what is known about it."""

    def __init__(
        self,
        console: Console,
        client: Client,
        conversation: Conversation,
        model: Model,
        switch: Callable[[str], Awaitable[Model]],
    ) -> None:
        self._console = console
        self._client = client
        self._chat = conversation
        self._model = model
        self._switch = switch

    async def run(self) -> None:
        """Read and answer until the user leaves."""
        editor = Editor(open_history(Path(history_file())))
        while True:
            try:
                text = (await editor.read()).strip()
            except KeyboardInterrupt:
                self._console.warn("Use Ctrl-D or /bye to leave.")
                continue
            except EOFError:
                return
            if text in {"/bye", "/exit", "/quit"}:
                return
            try:
                if text.startswith("/"):
                    await self._command(text)
                elif text:
                    await self._answer(text)
            except Interrupted:
                continue
            except CtlError as error:
                # A failed turn is not the end of the chat, unless nobody is there to talk to.
                if error.reason == "DAEMON_UNREACHABLE":
                    raise
                for line in explain(error, f"ask {self._chat.model}"):
                    self._console.warn(line)

    async def _answer(self, prompt: str) -> None:
        answer = Answer()
        request = self._chat.request(prompt)
        try:
            with Interrupts() as interrupts:
                await interrupts.or_result(
                    stream_answer(self._console, self._client, request, answer, self._chat.hides_thinking)
                )
        finally:
            if answer.text:
                self._chat.answered(prompt, answer.text)
        self._console.write("\n", flush=True)
        if self._chat.is_verbose and answer.finish is not None:
            for line in figures(answer.finish):
                self._console.warn(line)

    async def _command(self, text: str) -> None:
        try:
            words = shlex.split(text)
        except ValueError:
            words = text.split()  # an apostrophe in a system message is no open quote
        match words:
            case ["/help" | "/?", *_]:
                self._console.data(HELP)
            case ["/clear"]:
                self._chat.clear()
                self._console.say("forgot what was said", "✓")
            case ["/load", name]:
                self._model = await self._switch(name)
                self._chat.model = name
                self._chat.clear()
            case ["/set", *rest]:
                self._set(rest)
            case ["/show", *rest]:
                self._show(rest)
            case _:
                raise CtlError("INVALID_REQUEST", f"cannot {words[0]}: there is no such command", "/? shows them all")

    def _set(self, words: list[str]) -> None:
        chat = self._chat
        match words:
            case ["parameter", name, *values] if values:
                chat.set_parameter(name, values)
            case ["system", *rest] if rest:
                chat.system = " ".join(rest)
            case ["verbose"]:
                chat.is_verbose = True
            case ["quiet"]:
                chat.is_verbose = False
            case ["think"]:
                chat.think = True
            case ["nothink"]:
                chat.think = False
            case ["format", "json"]:
                chat.format = "json"
            case ["noformat"]:
                chat.format = ""
            case _:
                raise CtlError("INVALID_REQUEST", "cannot set that", "/? shows what can be set")
        self._console.say("set " + " ".join(words[:2] if words[0] == "parameter" else words[:1]), "✓")

    def _show(self, words: list[str]) -> None:
        match words:
            case [] | ["info"]:
                import time

                lines = page(self._model, [], time.time())
            case ["parameters"]:
                names = f"none were set; there are: {', '.join(PARAMETERS)}"
                lines = pairs(self._chat.parameters()) or [f"  {names}"]
            case ["template"]:
                lines = [self._model.template or "  this model has no template"]
            case ["system"]:
                lines = [self._chat.system or "  no system message was set"]
            case ["license"]:
                lines = [self._model.license or "  this model has no license"]
            case _:
                raise CtlError("INVALID_REQUEST", "cannot show that", "/? shows what can be shown")
        for line in lines:
            self._console.data(line)


def open_history(path: Path) -> History:
    """Return the history in a file of the user's own (prompts are private), or in memory where none can be kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        if not os.access(path, os.R_OK | os.W_OK):
            return InMemoryHistory()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
