"""The fastest engine that Python can play: frames that are rendered once, written to raw sockets, nothing else.

It takes vLLM's command line and serves the routes that the daemon asks: what it streams has the shape of vLLM's chat
chunks. Like an engine's batch, one step gives one token to each open stream, each in a write of its own. ``step_s`` and
``tokens`` come from ``fake_engine.json`` in the model's folder; a step of 0 is "flat out". Standard library alone.
"""

import json
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

WORDS = ("one", " two", " three", " four", " five", " six", " seven", " eight", " nine", " ten")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
READ_BYTES = 256 * 1024


def framed(data: dict[str, Any]) -> bytes:
    """One event in one chunk."""
    event = b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


class Frames:
    """Everything that is ever sent, ready to be sent."""

    def __init__(self, name: str) -> None:
        self._head = {
            "id": "chatcmpl-5f0c9d2b7a3e4c1d8e6f", "object": "chat.completion.chunk", "created": 1_700_000_000,
            "model": name,
        }  # fmt: skip
        self.first = HEAD + self._choice({"role": "assistant", "content": ""})
        self.words = [self._choice({"content": word}) for word in WORDS]

    def _choice(self, delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, "token_ids": None}
        return framed(self._head | {"choices": [choice]})

    def last(self, tokens: int) -> bytes:
        """The end of a stream: why, how much, and that it is whole."""
        usage = {"prompt_tokens": 10, "total_tokens": 10 + tokens, "completion_tokens": tokens}
        return self._choice({}, "length") + framed(self._head | {"choices": [], "usage": usage}) + END


class Connection:
    """One client. ``left`` tokens are to come; ``waiting`` is what the socket did not take."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.received = b""
        self.waiting = b""
        self.tokens = self.left = 0

    def take_request(self) -> tuple[str, dict[str, Any]] | None:
        """The path and the body of a request that is there as a whole."""
        head, blank, rest = self.received.partition(b"\r\n\r\n")
        if not blank:
            return None
        _, found, value = head.lower().partition(b"content-length:")
        length = int(value.split(b"\r\n")[0]) if found else 0
        if len(rest) < length:
            return None
        self.received = rest[length:]
        return head.split(b" ", 2)[1].decode(), json.loads(rest[:length] or b"{}")

    def send(self, data: bytes) -> bool:
        """False if the socket took less than all."""
        try:
            sent = self.peer.send(data)
        except BlockingIOError:
            sent = 0
        self.waiting = data[sent:]
        return not self.waiting


class Source:
    """A listener on a Unix socket and its connections; one thread, no event loop."""

    def __init__(self, path: str, name: str, step_s: float, tokens: int) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(4096)
        self._listener.setblocking(False)
        self._name = name
        self._frames = Frames(name)
        self._step_s = step_s
        self._tokens = tokens
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._streaming: dict[int, Connection] = {}
        """Those that get a token in the next step; one that does not read is left out until it does."""

    def serve(self) -> None:
        """For ever."""
        due_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if self._streaming and now_s >= due_s:
                for connection in list(self._streaming.values()):
                    self._step(connection)
                # A source that was late does not hurry afterwards.
                due_s = max(due_s + self._step_s, now_s)
                now_s = time.monotonic()
            timeout_s = max(0.0, due_s - now_s) if self._streaming else -1
            for descriptor, events in self._poll.poll(timeout_s):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    self._read(self._connections[descriptor])
                elif events & select.EPOLLOUT:
                    self._go_on(self._connections[descriptor])

    def _accept(self) -> None:
        peer, _ = self._listener.accept()
        peer.setblocking(False)
        self._connections[peer.fileno()] = Connection(peer)
        self._poll.register(peer, select.EPOLLIN)

    def _drop(self, connection: Connection) -> None:
        descriptor = connection.peer.fileno()
        self._poll.unregister(descriptor)
        self._connections.pop(descriptor)
        self._streaming.pop(descriptor, None)
        connection.peer.close()

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.peer.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.received += data
        while (request := connection.take_request()) is not None:
            self._answer(connection, *request)

    def _answer(self, connection: Connection, path: str, body: dict[str, Any]) -> None:
        if path == "/v1/chat/completions" and body.get("stream"):
            connection.tokens = connection.left = min(self._tokens, body.get("max_tokens") or self._tokens)
            self._write(connection, self._frames.first)
            self._step(connection)
            if connection.left and not connection.waiting:
                self._streaming[connection.peer.fileno()] = connection
            return
        card = {"id": self._name, "object": "model", "max_model_len": 8192}
        answer = json.dumps({"object": "list", "data": [card]}).encode() if path == "/v1/models" else b""
        status = b"200 OK" if path in {"/v1/models", "/health"} else b"404 Not Found"
        self._write(connection, b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer))

    def _step(self, connection: Connection) -> None:
        """One token for one stream; with the last one, its end."""
        data = self._frames.words[connection.left % len(WORDS)]
        connection.left -= 1
        if not connection.left:
            data += self._frames.last(connection.tokens)
            self._streaming.pop(connection.peer.fileno(), None)
        self._write(connection, data)

    def _write(self, connection: Connection, data: bytes) -> None:
        try:
            if not connection.send(data):
                self._streaming.pop(connection.peer.fileno(), None)
                self._poll.modify(connection.peer, select.EPOLLIN | select.EPOLLOUT)
        except ConnectionError:
            self._drop(connection)

    def _go_on(self, connection: Connection) -> None:
        """The socket takes more again."""
        self._poll.modify(connection.peer, select.EPOLLIN)
        self._write(connection, connection.waiting)
        if not connection.waiting and connection.left:
            self._streaming[connection.peer.fileno()] = connection


def main(arguments: list[str]) -> None:
    """The words after a flag belong to it."""
    after = {word: arguments[at + 1] for at, word in enumerate(arguments[:-1]) if word.startswith("--")}
    told = json.loads((Path(after["--model"]) / "fake_engine.json").read_text())
    Source(after["--uds"], after["--served-model-name"], told["step_s"], told["tokens"]).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
