"""A hub of our own on loopback: what huggingface_hub asks of a server, and what goes wrong with real ones.

::

    with HubServer() as hub:
        hub.add_repo("org/repo", tiny_model())
        hub.fail_after("model.safetensors", 1000)   # then the connection breaks, until `heal()`
        ...  hub.url, hub.served_bytes["model.safetensors"]

It serves from a thread of its own on an ephemeral port; leaving the block closes the socket and ends the thread.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

LFS_FROM_BYTES = 512
"""Files from this size on are told as LFS (with a sha256), smaller ones as git blobs (with git's sha1)."""


@dataclass
class Repo:
    """One repository with one commit."""

    files: dict[str, bytes]
    gated: bool
    commit: str
    token: str = ""


@dataclass
class Faults:
    """What goes wrong, by path of the file ("*": any)."""

    cut_after: dict[str, int] = field(default_factory=dict[str, int])
    pause_after: dict[str, int] = field(default_factory=dict[str, int])
    corrupt: set[str] = field(default_factory=set[str])
    status: list[int] = field(default_factory=list[int])
    """Statuses that the next requests get instead of an answer, first one first."""


class HubServer:
    """Serve repositories; see the module. ``gated`` repositories answer only to ``token``."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.served_bytes: Counter[str] = Counter()
        """Bytes of contents that went out, by path."""
        self.requests: list[str] = []
        self.paused = threading.Event()
        """Set while a download hangs at ``pause_after``."""
        self._go_on = threading.Event()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start to serve; on the same port as before after a ``stop``."""
        self._go_on.clear()
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake-hub")
        self._thread.start()

    def stop(self) -> None:
        """Be down: open downloads break, new connections are refused."""
        server, thread, self._server = self._server, self._thread, None
        if server is None or thread is None:
            return
        server.shutdown()
        server.server_close()
        server.break_connections()
        self._go_on.set()
        thread.join(10)
        assert not thread.is_alive(), "the hub's thread did not end"

    def add_repo(self, name: str, files: dict[str, bytes], *, gated: bool = False, token: str = "secret") -> str:
        """Put a repository (or its next commit) on the hub; returns the commit."""
        content = repr(sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items()))
        commit = hashlib.sha1(f"{name}{content}".encode()).hexdigest()
        self.repos[name.lower()] = Repo(dict(files), gated, commit, token if gated else "")
        return commit

    def fail_after(self, path: str, count: int) -> None:
        """Break every connection that serves ``path`` once ``count`` bytes of the answer went out."""
        self.faults.cut_after[path] = count

    def pause_after(self, path: str, count: int) -> None:
        """Hang after ``count`` bytes of ``path`` until ``heal`` or ``stop``; ``paused`` tells when it does."""
        self.faults.pause_after[path] = count

    def heal(self) -> None:
        """Forget every fault and let what hangs go on."""
        self.faults = Faults()
        self.paused.clear()
        self._go_on.set()
        self._go_on = threading.Event()

    def hang(self) -> None:
        """Called by a request that shall hang; returns at `heal` or `stop`."""
        go_on = self._go_on
        self.paused.set()
        go_on.wait(60)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], hub: HubServer) -> None:
        self.hub = hub
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that leave in mid-answer are part of the game

    def break_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended by itself


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body of each small answer lie 40 ms apart
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.faults.status:
            self._json(hub.faults.status.pop(0), {"error": "scripted"})
            return
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            self._model(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3], with_body)
        elif path == "/api/whoami-v2":
            self._whoami()
        else:
            self._json(404, {"error": "no such route"})

    def _whoami(self) -> None:
        if self.headers.get("Authorization", "") == "Bearer secret":
            self._json(200, {"type": "user", "name": "ann"})
        else:
            self._json(401, {"error": "Invalid username or password."})

    def _repo(self, name: str, revision: str) -> Repo | None:
        repo = self.server.hub.repos.get(name.lower())
        sent = self.headers.get("Authorization", "")
        if sent == "Bearer broken":
            self._json(401, {"error": "bad token"}, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None:
            self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif revision not in {"main", repo.commit}:
            self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            return repo
        return None

    def _model(self, name: str, revision: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        siblings: list[dict[str, Any]] = []
        for path, data in sorted(repo.files.items()):
            sibling: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
            if len(data) >= LFS_FROM_BYTES:
                sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        gated = "manual" if repo.gated else False
        self._json(200, {"id": name, "modelId": name, "sha": repo.commit, "gated": gated, "siblings": siblings})

    def _file(self, name: str, revision: str, path: str, with_body: bool) -> None:
        hub = self.server.hub
        repo = self._repo(name, revision)
        if repo is None:
            return
        if repo.gated and self.headers.get("Authorization") != f"Bearer {repo.token}":
            self._json(
                403, {"error": "gated"}, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
            )
            return
        data = repo.files.get(path)
        if data is None:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        whole = len(data)
        lfs = whole >= LFS_FROM_BYTES
        etag = hashlib.sha256(data).hexdigest() if lfs else git_sha1(data)
        if path in hub.faults.corrupt:
            data = bytes([data[0] ^ 0xFF]) + data[1:]
        start, status = 0, 200
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(found[1]), 206
        if start >= whole > 0:
            self._json(416, {"error": "range"}, {"Content-Range": f"bytes */{whole}"})
            return
        self.send_response(status)
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("ETag", f'"{etag}"')
        if lfs:
            self.send_header("X-Linked-ETag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(whole))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(whole - start))
        self.end_headers()
        if with_body:
            self._pour(path, data[start:])

    def _pour(self, path: str, data: bytes) -> None:
        hub = self.server.hub
        cut = hub.faults.cut_after.get(path, hub.faults.cut_after.get("*", len(data)))
        pause = hub.faults.pause_after.get(path, hub.faults.pause_after.get("*", len(data)))
        sent = 0
        while sent < len(data):
            if sent == cut:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if sent == pause:
                hub.hang()
                if self._has_client_left():
                    self.close_connection = True
                    return
                pause = len(data)
            end = min(end for end in (len(data), sent + 65536, cut, pause) if end > sent)
            self.wfile.write(data[sent:end])
            hub.served_bytes[path] += end - sent
            sent = end

    def _has_client_left(self) -> bool:
        """So that bytes for nobody are not counted."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _json(self, status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def git_sha1(data: bytes) -> str:
    """The name that git gives to a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A valid safetensors file: name -> (dtype, shape, bytes per element); the contents count up."""
    header: dict[str, Any] = {}
    body = bytearray()
    for name, (dtype, shape, width) in tensors.items():
        count = width
        for size in shape:
            count *= size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + count]}
        body += bytes((len(body) + i) % 251 for i in range(count))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(body)


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(*, salt: str = "", rows: int = 64) -> dict[str, bytes]:
    """The files of a tiny model that looks like a Llama: right in form, without sense. ``salt`` makes other weights;
    ``rows`` scales them (128 bytes each)."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "vocab_size": rows,
        "torch_dtype": "bfloat16",
    }
    weights = safetensors({f"model.embed_tokens.weight{salt}": ("BF16", [rows, 64], 2)})
    tokenizer = {"version": "1.0", "model": {"type": "BPE", "vocab": {f"t{i}": i for i in range(64)}, "merges": []}}
    return {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": b'{"eos_token_id": 2}',
        "model.safetensors": weights,
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": json.dumps({"chat_template": CHAT_TEMPLATE}).encode(),
        "LICENSE": b"Apache License\nVersion 2.0",
        "README.md": b"# tiny",
    }
