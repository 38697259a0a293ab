"""A program that behaves like vLLM's API server on a Unix socket, and misbehaves on demand.

Takes vLLM's command line (unknown flags are ignored), prints log lines of its shape, starts an ``EngineCore``
grandchild, and serves from the standard library alone: it is up in a tenth of a second.

Misbehaviour comes from, later wins: ``fake_engine.json`` in the model's folder; the environment variable FAKE_ENGINE
(a JSON object, or flags as below); flags on the command line (``engine.args``); the file that ``more`` names, which a
test may change from one life to the next. See ``Faults``. ``GET /_fake/state`` tells what is going on, ``POST
/_fake/faults`` replaces the faults of a running one and begins its counts anew. SIGUSR1 to the core is an
allocation that failed: it says so as PyTorch does, and is gone.
"""

import asyncio
import contextlib
import dataclasses
import json
import mmap
import os
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engine_faces as faces
import engine_lines
from engine_answers import Card, Refused, chunks, count_tokens, embeddings, plan, sse, whole
from engine_sleep import NONSENSE, Sleep, failed

if TYPE_CHECKING:
    from multiprocessing.shared_memory import SharedMemory

CORE_DEATH_TO_EXIT_S = 1.0
GENERATING_ROUTES = {
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
}  # fmt: skip
POOLING_ROUTES = {"/v1/embeddings", "/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank"}
DEVELOPMENT_ROUTES = {("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping"), ("POST", "/collective_rpc")}
POLL_S = 0.01
"""How soon a stream notices that its client has gone."""


@dataclasses.dataclass
class Faults:
    """Each is a flag too: ``--load-s 2``, ``--ignore-term``."""

    load_s: float = 0.0
    """Time between the first log line and readiness."""
    die_while_loading: bool = False
    """Print a traceback and exit 1 instead of getting ready."""
    bad_loader: str = ""
    """Die while loading with this one (``--load-format``)."""
    die_after: float = 0.0
    """Seconds from readiness to a sudden end; the core stays behind."""
    exit_0_on_crash: bool = False
    """Sudden ends have status 0, as vLLM's after its engine core died."""
    ignore_term: bool = False
    hang_on_open_streams: bool = False
    """On SIGTERM, wait for open connections without limit (vLLM without --shutdown-timeout)."""
    leave_grandchild: bool = False
    """The core leads a session of its own, ignores SIGTERM and is not taken along."""
    shared_memory: bool = False
    """Map a file in /dev/shm, ``vllama-fake-PID``, as the queues between vLLM's processes are."""
    never_ready: bool = False
    hang_health: bool = False
    """/health takes the request and never answers."""
    sick_health: bool = False
    """/health says 503."""
    half_stream: int = 0
    """Die after so many chunks of a stream."""
    hang_stream: int = 0
    """Fall silent after so many chunks of a stream."""
    error_in_stream: int = 0
    """After so many chunks of a stream send vLLM's in-band error and [DONE]."""
    error_500: bool = False
    """Answer generation requests with 500 and close the connection."""
    drop_requests: int = 0
    """Close the connection without an answer, for so many generation requests."""
    close_idle: bool = False
    """Close kept-alive connections after each answer without having said so."""
    hang_sleep: bool = False
    """/sleep takes the request and does nothing as long as this is so."""
    hang_wake: bool = False
    """The same for /wake_up."""
    sleep_fails: bool = False
    """/sleep says 500, and requests wait from then on."""
    wake_fails: bool = False
    """/wake_up says 500: somebody else has the memory."""
    wake_garbage: bool = False
    """After level 2 answer nonsense, although the weights were read again (seen with some models of vLLM)."""
    has_audio: bool = False
    """Serve recordings and the realtime websocket, as for a model that transcribes."""
    token_delay_s: float = 0.0
    tokens: int = 16
    """Length of an answer that nothing limits."""
    voice: str = ""
    """What the model says first in every answer, before it repeats the question and counts."""
    tracked_memory: str = ""
    """Share a file of /dev/shm with the core, as vLLM's processes do; its name is this and the leader's pid."""
    has_lines: bool = False
    """Have loaded our plugin that writes lines, where it lies on PYTHONPATH."""
    other_lines: bool = False
    """Say that it is another one than the daemon's."""
    more: str = ""
    """A file with more of these, read at start."""

    def take(self, values: dict[str, Any]) -> None:
        """Set what is named; other names are an error, so that a typing error does not pass as good behaviour."""
        for name, value in values.items():
            kind = type(getattr(self, name))
            setattr(self, name, kind(value))

    def take_flags(self, arguments: list[str]) -> list[str]:
        """Set what is among these flags; returns the rest."""
        rest: list[str] = []
        left = deque(arguments)
        names = {f"--{name.replace('_', '-')}": name for name in self.__dataclass_fields__}
        while left:
            flag, _, value = left.popleft().partition("=")
            if flag not in names:
                rest.append(f"{flag}={value}" if value else flag)
            elif isinstance(getattr(self, names[flag]), bool):
                setattr(self, names[flag], True)
            else:
                self.take({names[flag]: value or left.popleft()})
        return rest


class FakeEngine:
    """One API server."""

    def __init__(self, card: Card, faults: Faults, socket: Path, loader: str = "") -> None:
        self.card = card
        self.loader = loader
        self.faults = faults
        self.socket = socket
        self.core = 0
        self.core_is_dead = False
        self.running = 0
        self.aborted = 0
        self.finished = 0
        self.served = 0
        self.requests: deque[dict[str, Any]] = deque(maxlen=50)
        self.connections: set[asyncio.StreamWriter] = set()
        self.adapters: dict[str, str] = {}
        self.sleep = Sleep()
        self.shared_memory = Path(f"/dev/shm/vllama-fake-{os.getpid()}")
        self.mapped: mmap.mmap | None = None
        self.shared: SharedMemory | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: None if self.faults.ignore_term else ended.set())
        log(f"vLLM server version 0.32.0, serving model {self.card.root}")
        if self.faults.shared_memory:
            self.share_memory()
        self.start_core()
        self.show_memory()
        watching = asyncio.create_task(self.watch_core())
        log("Initializing a V1 LLM engine (v0.32.0) with config: fake", "EngineCore", self.core)
        log(f"Starting to load model {self.card.root}...", "EngineCore", self.core)
        loading = asyncio.create_task(self.load())
        stopping = asyncio.create_task(ended.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            await stopping
        loading.cancel()
        watching.cancel()
        await self.stop()

    async def load(self) -> None:
        for percent in (0, 50, 100):
            sys.stderr.write(f"\rLoading safetensors checkpoint shards: {percent:3d}% Completed | {percent // 50}/2")
            sys.stderr.flush()
            await asyncio.sleep(self.faults.load_s / 3)
        sys.stderr.write("\n")
        log("Loading weights took 0.01 seconds", "EngineCore", self.core)
        if self.faults.die_while_loading or (self.loader and self.loader == self.faults.bad_loader):
            log("EngineCore failed to start.", "EngineCore", self.core, level="ERROR")
            log("ValueError: No available memory for the cache blocks.", "EngineCore", self.core, level="ERROR")
            self.kill_core()
            leave(1)
        log("CPU KV cache size: 11,648 tokens, Maximum concurrency: 1.42x", "EngineCore", self.core)
        log("init engine (profile, create kv cache, warmup model) took 0.01 s", "EngineCore", self.core)
        if self.faults.never_ready:
            await asyncio.Event().wait()
        log(f"Starting vLLM server on unix:{self.socket}")
        await asyncio.start_unix_server(self.serve, str(self.socket), limit=64 * 1024 * 1024)
        print("INFO:     Application startup complete.", file=sys.stderr, flush=True)
        if self.faults.die_after:
            await asyncio.sleep(self.faults.die_after)
            self.crash()

    def share_memory(self) -> None:
        with self.shared_memory.open("wb+") as file:
            file.truncate(4096)
            self.mapped = mmap.mmap(file.fileno(), 4096)

    def start_core(self) -> None:
        if self.faults.tracked_memory:
            from multiprocessing import resource_tracker  # together they cost ten milliseconds
            from multiprocessing.shared_memory import SharedMemory

            # Python's process that unlinks what its users leave behind is there before them, as in vLLM.
            resource_tracker.ensure_running()
            self.shared = SharedMemory(f"{self.faults.tracked_memory}{os.getpid()}", create=True, size=65536)
        self.core = os.fork()
        if self.core:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.set_wakeup_fd(-1)
            signal.signal(number, signal.SIG_IGN if self.faults.leave_grandchild else signal.SIG_DFL)
        if self.faults.leave_grandchild:
            os.setsid()
        signal.signal(signal.SIGUSR1, run_out_of_memory)
        Path("/proc/self/comm").write_text("VLLM::EngineCore")
        while True:
            signal.pause()

    async def watch_core(self) -> None:
        """When its core dies, vLLM answers everyone with errors, and its server ends a second or more later with 0."""
        died = asyncio.Event()
        descriptor = os.pidfd_open(self.core)
        asyncio.get_running_loop().add_reader(descriptor, died.set)
        await died.wait()
        asyncio.get_running_loop().remove_reader(descriptor)
        self.core_is_dead = True
        self.core = 0
        log("EngineCore encountered an issue. See stack trace for the root cause.", level="ERROR")
        await asyncio.sleep(CORE_DEATH_TO_EXIT_S)
        leave(0)

    def kill_core(self) -> None:
        if self.core and not self.faults.leave_grandchild:
            os.kill(self.core, signal.SIGKILL)
            os.waitpid(self.core, 0)
            self.core = 0

    async def stop(self) -> None:
        log("[shutdown] API server: shutdown triggered")
        self.kill_core()
        self.shared_memory.unlink(missing_ok=True)
        while self.faults.hang_on_open_streams and self.running:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        if self.shared is not None:
            self.shared.unlink()
        # The socket stays behind, as vLLM's does.
        leave(0)

    def crash(self) -> None:
        """A sudden end: the core stays, nothing is closed, unlike ``stop``."""
        log("EngineCore encountered an issue.", level="ERROR")
        leave(0 if self.faults.exit_0_on_crash else 1)

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while (request := await read_request(reader)) is not None:
                method, path, headers, body = request
                if headers.get("upgrade", "").lower() == "websocket" and path.startswith("/v1/realtime"):
                    await self.realtime(reader, writer, headers)
                    break
                work = asyncio.create_task(self.answer(writer, method, path, headers, body))
                gone = asyncio.create_task(self.hang_up(reader))
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    work.cancel()
                gone.cancel()
                keeps = (await asyncio.gather(work, return_exceptions=True))[0]
                if keeps is not True or self.faults.close_idle or reader.at_eof():
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    async def hang_up(self, reader: asyncio.StreamReader) -> None:
        """Return when the client has closed its side. It never pipelines, so nothing else can come."""
        while not reader.at_eof():  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)

    async def answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> bool:
        """Answer one request; True if the connection may be used again."""
        path, _, query = path.partition("?")
        try:
            if os.environ.get("VLLM_SERVER_DEV_MODE") == "1" and (method, path) in DEVELOPMENT_ROUTES:
                return await self.develop(writer, path, query, json.loads(body or b"{}"))
            if method == "POST" and path.startswith("/v1/audio/"):
                return await self.hear(writer, path, headers, body)
            if method == "POST":
                data = json.loads(body) if body else {}
                return await self.post(writer, path, headers, data)
            return await self.get(writer, path)
        except Refused as refused:
            return await respond(writer, refused.status, refused.body)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            kind = {"message": f"{error!r}", "type": "Bad Request", "param": None, "code": 400}
            return await respond(writer, 400, {"error": kind})

    async def develop(self, writer: asyncio.StreamWriter, path: str, query: str, body: dict[str, Any]) -> bool:
        """One of the routes that only exist where the environment says so."""
        while self.hangs(path):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        faults = self.faults
        if self.core_is_dead:
            raise failed(path.strip("/"), "EngineCore encountered an issue.")
        match path:
            case "/sleep":
                answer = self.sleep.fall_asleep(query, fails=faults.sleep_fails)
            case "/wake_up":
                answer = self.sleep.wake(query, fails=faults.wake_fails)
            case "/collective_rpc":
                answer = self.sleep.collective(body, spoils=faults.wake_garbage)
            case _:
                answer = {"is_sleeping": not self.sleep.awake.is_set()}
        self.show_memory()
        return await respond(writer, 200, answer)

    def show_memory(self) -> None:
        """On a GPU: a note of the core, and what part of its memory it has, for whoever plays the cards. See
        tests/fakes/cards.py."""
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            note = self.socket.with_name(f"{self.socket.name}.memory")
            draft = note.with_suffix(".draft")
            draft.write_text(f"{self.core} {self.sleep.awake_share}")
            draft.rename(note)

    def hangs(self, path: str) -> bool:
        return (path == "/sleep" and self.faults.hang_sleep) or (path == "/wake_up" and self.faults.hang_wake)

    async def get(self, writer: asyncio.StreamWriter, path: str) -> bool:
        match path:
            case "/health" | "/ping":
                if self.faults.hang_health:
                    await asyncio.Event().wait()
                is_sick = self.faults.sick_health or self.core_is_dead
                return await respond(writer, 503 if is_sick else 200, b"")
            case "/version":
                return await respond(writer, 200, {"version": "0.32.0"})
            case "/v1/models":
                card = {"object": "model", "owned_by": "vllm", "root": self.card.root, "parent": None}
                card |= {"max_model_len": self.card.max_model_len, "created": 1_700_000_000, "permission": []}
                return await respond(
                    writer, 200, {"object": "list", "data": [{"id": name, **card} for name in self.card.names]}
                )
            case "/metrics":
                usage = min(1.0, self.running / 10)
                label = f'{{engine="0",model_name="{self.card.names[0]}"}}'
                text = (
                    f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{label} {self.running}.0\n"
                    f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{label} 0.0\n"
                    f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{label} {usage}\n"
                )
                return await respond(writer, 200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")
            case engine_lines.ROUTE if self.faults.has_lines:
                told = engine_lines.told(thinks=self.card.has_reasoning, is_other=self.faults.other_lines)
                return await respond(writer, 200, told)
            case "/_fake/state":
                return await respond(writer, 200, self.state())
            case _:
                return await respond(writer, 404, {"detail": "Not Found"})

    def state(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "core": self.core,
            "running": self.running,
            "aborted": self.aborted,
            "finished": self.finished,
            "sleep_level": self.sleep.level,
            "connections": len(self.connections),
            "requests": list(self.requests),
            "argv": sys.argv,
            "environment": dict(os.environ),
        }

    async def post(
        self, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], body: dict[str, Any]
    ) -> bool:
        if path == "/_fake/faults":
            self.faults = Faults()
            self.faults.take(body)
            self.requests.clear()
            self.aborted = self.finished = 0
            return await respond(writer, 200, {})
        if path == "/tokenize":
            ids = count_tokens(self.card, body)
            answer = {"count": len(ids), "max_model_len": self.card.max_model_len, "tokens": ids, "token_strs": None}
            return await respond(writer, 200, answer)
        if path == "/detokenize":
            return await respond(writer, 200, {"prompt": " ".join(f"t{each}" for each in body["tokens"])})
        if path == "/v1/load_lora_adapter" and self.card.has_adapters:
            return await self.learn(writer, body["lora_name"], body["lora_path"])
        self.requests.append({"path": path, "headers": headers, "body": body})
        self.served += 1
        if self.faults.drop_requests > 0:
            self.faults.drop_requests -= 1
            return False
        if self.faults.error_500 or self.core_is_dead:
            error = {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
            await respond(writer, 500, {"error": error})
            return False
        if self.faults.has_lines and path == engine_lines.ROUTE:
            return await self.generate(writer, path, body)
        if path not in (POOLING_ROUTES if self.card.is_pooling else GENERATING_ROUTES):
            return await respond(writer, 404, {"detail": "Not Found"})
        if path == "/v1/messages/count_tokens":
            return await respond(writer, 200, faces.token_count(self.card, body))
        await self.sleep.awake.wait()
        if path == "/v1/embeddings":
            return await self.embed(writer, body)
        if self.card.is_pooling:
            return await self.once(writer, faces.scores(self.card, path, body, self.served), 0.0)
        try:
            return await self.generate(writer, path, body)
        except Refused as refused:
            if path != "/v1/messages":
                raise
            error = refused.body["error"]
            told = {"type": error["type"], "message": error["message"]}
            return await respond(writer, refused.status, {"type": "error", "error": told})

    async def generate(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> bool:
        """One of the four wires; the same plan behind each."""
        is_adapted = body.get("model") in self.adapters
        # As vLLM: an adapter answers under its own name.
        card = dataclasses.replace(self.card, names=[body["model"]]) if is_adapted else self.card
        number = self.served
        read = {"/v1/messages": faces.chat_of_messages, "/v1/responses": faces.chat_of_responses}.get(path)
        decided = plan(card, read(body) if read else body, is_chat=path != "/v1/completions")
        if self.sleep.is_nonsense:
            decided.tokens = [NONSENSE for _ in decided.tokens]
        if is_adapted:
            decided.tokens = [token.upper() for token in decided.tokens]
        if path == "/v1/messages":
            answer, events = faces.message(card, decided, number), faces.message_events(card, decided, number)
        elif path == "/v1/responses":
            answer = faces.response(card, body, decided, number)
            events = faces.response_events(card, body, decided, number)
        else:
            is_chat = path in {"/v1/chat/completions", engine_lines.ROUTE}
            answer = whole(card, body, decided, number, is_chat=is_chat)
            events = map(sse, chunks(card, body, decided, number, is_chat=is_chat))
        if not body.get("stream"):
            return await self.once(writer, answer, self.faults.token_delay_s * len(decided.tokens))
        ends = sse("[DONE]") if path in {"/v1/chat/completions", "/v1/completions", engine_lines.ROUTE} else b""
        if path == engine_lines.ROUTE:
            events = engine_lines.written(events, body["vllama_line"])
        self.running += 1
        try:
            await self.stream(writer, events, ends, writes_lines=path == engine_lines.ROUTE)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1
        self.finished += 1
        return True

    async def learn(self, writer: asyncio.StreamWriter, name: str, path: str) -> bool:
        """Whoever asks for an adapter by its name gets answers in capitals; any other name is the model's own."""
        if name in self.adapters:
            hint = " If you want to load the adapter in place, set 'load_inplace' to True."
            text = f"The lora adapter '{name}' has already been loaded.{hint}"
            return await respond(writer, 400, Refused(400, text, "InvalidUserInput").body)
        if not (Path(path) / "adapter_model.safetensors").exists():
            text = f"The lora adapter '{name}' at path '{path}' does not exist."
            return await respond(writer, 404, Refused(404, text, "NotFoundError").body)
        self.adapters[name] = path
        text = f"Success: LoRA adapter '{name}' added successfully."
        return await respond(writer, 200, text.encode(), "text/plain; charset=utf-8")

    async def hear(self, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], body: bytes) -> bool:
        """A recording."""
        fields = faces.form(headers.get("content-type", ""), body)
        shown = {name: value.decode("latin-1")[:100] for name, value in fields.items() if name != "file"}
        self.requests.append({"path": path, "headers": headers, "body": shown})
        self.served += 1
        if not self.faults.has_audio:
            return await respond(writer, 404, {"detail": "Not Found"})
        return await self.once(writer, faces.transcription(fields), self.faults.token_delay_s)

    async def realtime(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str]
    ) -> None:
        """A websocket, to its end."""
        self.requests.append({"path": "/v1/realtime", "headers": headers, "body": {}})
        if not self.faults.has_audio:
            await respond(writer, 403, b"")
            return
        websocket = faces.Websocket(reader, writer)
        await websocket.accept(headers["sec-websocket-key"])
        self.running += 1
        try:
            await faces.realtime(websocket)
        finally:
            self.running -= 1

    async def embed(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        answer = embeddings(self.card, body, self.served)
        if self.sleep.is_nonsense:
            for each in answer["data"]:
                each["embedding"] = [float(at == 0) for at, _ in enumerate(each["embedding"])]
        return await self.once(writer, answer, self.faults.token_delay_s * len(answer["data"]))

    async def once(self, writer: asyncio.StreamWriter, answer: dict[str, Any], spent_s: float) -> bool:
        """An answer that is not streamed."""
        self.running += 1
        try:
            await asyncio.sleep(spent_s)
            if self.core_is_dead:
                raise Refused(500, "EngineCore encountered an issue.", "InternalServerError")
            await respond(writer, 200, answer)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1
        self.finished += 1
        return True

    async def stream(
        self, writer: asyncio.StreamWriter, events: Iterator[bytes], ends: bytes, *, writes_lines: bool = False
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        sent = 0
        async for event in self.spoiled(events, ends, writes_lines=writes_lines):
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            sent += 1
            if sent == self.faults.half_stream:
                self.crash()
            if sent == self.faults.hang_stream:
                await asyncio.Event().wait()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def spoiled(
        self, events: Iterator[bytes], ends: bytes, *, writes_lines: bool = False
    ) -> AsyncIterator[bytes]:
        for at, event in enumerate(events):
            if self.core_is_dead or (at and at == self.faults.error_in_stream):
                error = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}
                yield (engine_lines.MARK if writes_lines else b"") + sse({"error": error | {"param": None}})
                break
            if at:
                await asyncio.sleep(self.faults.token_delay_s)
            yield event
        if ends:
            yield ends


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], bytes] | None:
    """Method, path, headers (names in lower case) and body; None when the client has closed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return method, path, headers, body


async def respond(
    writer: asyncio.StreamWriter, status: int, body: dict[str, Any] | bytes, kind: str = "application/json"
) -> bool:
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    head = f"HTTP/1.1 {status} Fake\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    return True


def log(text: str, who: str = "APIServer", pid: int = 0, level: str = "INFO") -> None:
    """One line as vLLM's loggers write it."""
    stamp = time.strftime("%m-%d %H:%M:%S")
    # Whoever reads may be dead; vLLM's loggers shrug that off as well.
    with contextlib.suppress(BrokenPipeError):
        print(f"({who} pid={pid or os.getpid()}) {level} {stamp} [fake.py:1] {text}", flush=True)


def run_out_of_memory(*_: object) -> None:
    """The core's last words."""
    text = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB."
    log(text, "EngineCore", os.getpid(), level="ERROR")
    os.kill(os.getpid(), signal.SIGKILL)


def leave(status: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(status)


def serve(arguments: list[str]) -> None:
    """Run until told to stop; the arguments are what follows ``-m vllm.entrypoints...``."""
    options = read_flags(arguments)
    model = Path(options["--model"][0])
    faults = Faults()
    if (file := model / "fake_engine.json").is_file():
        faults.take(json.loads(file.read_text()))
    if text := os.environ.get("FAKE_ENGINE", ""):
        if text.lstrip().startswith("{"):
            faults.take(json.loads(text))
        else:
            faults.take_flags(shlex.split(text))
    faults.take_flags(arguments)
    if faults.more and (file := Path(faults.more)).is_file():
        faults.take(json.loads(file.read_text()))
    card = Card(
        names=options.get("--served-model-name", [str(model)]),
        root=str(model),
        max_model_len=context_length(model, options.get("--max-model-len", ["auto"])[-1]),
        has_tools="--enable-auto-tool-choice" in options and "--tool-call-parser" in options,
        has_reasoning="--reasoning-parser" in options,
        is_pooling=options.get("--runner") == ["pooling"],
        has_adapters="--enable-lora" in options,
        default_tokens=faults.tokens,
        voice=faults.voice,
    )
    loader = options.get("--load-format", [""])[-1]
    asyncio.run(FakeEngine(card, faults, Path(options["--uds"][0]), loader).run())


def read_flags(arguments: list[str]) -> dict[str, list[str]]:
    """Flags with the words that follow each; the last of equal flags wins."""
    options: dict[str, list[str]] = {}
    name = ""
    for word in arguments:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            options[name] = [value] if value else []
        elif name:
            options[name].append(word)
    return options


def context_length(model: Path, flag: str) -> int:
    if flag.isdigit():
        return int(flag)
    try:
        return int(json.loads((model / "config.json").read_text())["max_position_embeddings"])
    except (OSError, ValueError, KeyError):
        return 8192


if __name__ == "__main__":
    serve(sys.argv[1:])
