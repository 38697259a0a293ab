"""The real vllamad as a child of a test: started, asked, stopped or killed, and then looked for in /proc.

Readiness is what the daemon tells its service manager; nothing is polled. Every process that carries the marker of this
daemon's workers is gone when the ``with`` block ends, or the test fails.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from vllama.control.v1 import workers_pb2, workers_pb2_grpc
from vllamad.domain.model import Source, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.ports import StagedModel
from vllamad.hub.store import ModelStore

ROOT = Path(__file__).resolve().parents[2]
FAKE_PYTHON = ROOT / "tests" / "fakes" / "fake_python"
MARKER = b"VLLAMA_WORKER="
KEPT = re.compile(r"process\.spawn title=(?:the zygote|acceptor-\d+) pid=(\d+)")
"""How the daemon's log tells of what it keeps beside workers."""
PROCESSES = os.environ.get("TEST_PROCESSES", "")
ZYGOTE_OF_TESTS = os.environ.get("TEST_ZYGOTE", "auto")
"""Whether real engines are forked: the same has to hold of one that is executed."""
"""Run every daemon with so many HTTP processes: what holds with one has to hold with several."""

READY_S = 20.0
STOP_S = 60.0


class DaemonDied(AssertionError):
    """vllamad ended where it should serve."""


class Daemon:
    """One vllamad over one root folder; ``start`` may be called again after ``stop`` or ``kill``."""

    def __init__(self, engine: Path, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = ()):
        # Socket paths are limited to 107 bytes, and pytest's own folders are long.
        self.root = Path(tempfile.mkdtemp(prefix="vl-"))
        self.state = self.root / "state"
        self.runtime = self.root / "run"
        self.socket = self.runtime / "vllamad.sock"
        self.log = self.root / "vllamad.log"
        self.port = 0
        self.arguments = list(arguments)
        self.wrapper: list[str] = []
        """A command that runs vllamad in its own place, such as unshare."""
        self.program = [sys.executable, "-m", "vllamad"]
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "VLLAMA_ENGINE_PYTHON": str(engine),
            "VLLAMA_ENGINE_DEVICE": "cpu",
            # The fake engine is up in a tenth of a second, and most tests want no process but those that they start.
            "VLLAMA_ENGINE_ZYGOTE": "off" if engine == FAKE_PYTHON else ZYGOTE_OF_TESTS,
            # And most count what the fake was asked.
            "VLLAMA_ENGINE_WARM_UP": "off" if engine == FAKE_PYTHON else "after-ready",
            # A processor that is busy with other tests has nothing to tell.
            "VLLAMA_ENGINE_SELF_TEST": "false",
            "PYTHONWARNINGS": "default",
            **({"VLLAMA_SERVER_PROCESSES": PROCESSES} if PROCESSES else {}),
            **(environment or {}),
        }
        self.child: subprocess.Popen[bytes] | None = None
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.root / "notify"))
        self.told: list[str] = []

    def add_model(self, name: str, **faults: object) -> None:
        """Put a model into the store whose fake engine misbehaves as told; only while no daemon runs."""
        assert self.child is None or self.child.poll() is not None
        store = ModelStore(self.state / "models")
        store.load()
        staging = make_model_folder(store.staging(name), name)
        (staging / "fake_engine.json").write_text(json.dumps(faults))
        store.commit(ModelRef.parse(name), StagedModel(staging, Source(SourceKind.FOLDER)))

    # --- life ----------------------------------------------------------------------------------------------------

    def launch(self, *extra: str) -> "subprocess.Popen[bytes]":
        """Start vllamad without waiting for anything."""
        self._forget_told()
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [
                    *self.wrapper,
                    *self.program,
                    f"--state-dir={self.state}",
                    f"--runtime-dir={self.runtime}",
                    f"--socket={self.socket}",
                    f"--port={self.port}",
                    *self.arguments,
                    *extra,
                ],
                env=self.environment | {"NOTIFY_SOCKET": str(self.root / "notify")},
                stdout=log,
                stderr=log,
                cwd=self.root,
            )
        return self.child

    def start(self, *extra: str) -> "Daemon":
        """Start vllamad and return once it says READY."""
        child = self.launch(*extra)
        self.wait_told("READY=1", READY_S)
        found = re.findall(r"daemon\.ready.*?http://[^ \"]*:(\d+)", self.log_text())
        assert found and child.poll() is None, self.log_text()
        self.port = int(found[-1])
        return self

    def _forget_told(self) -> None:
        """What a predecessor said: the kernel keeps ten messages, and a READY that finds no room is lost."""
        self.told.clear()
        self._notify.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._notify.recv(65536)

    def wait_told(self, what: str, seconds: float) -> None:
        """Wait until the daemon has told the service manager ``what``."""
        deadline = time.monotonic() + seconds
        while not any(what in message for message in self.told):
            self._notify.settimeout(0.2)
            try:
                self.told.append(self._notify.recv(65536).decode())
                continue
            except TimeoutError:
                pass
            if self.child is not None and self.child.poll() is not None:
                raise DaemonDied(f"vllamad ended with {self.child.returncode}:\n{self.log_text()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"vllamad never said {what!r}; it said {self.told}\n{self.log_text()}")

    def send_signal(self, number: int) -> None:
        assert self.child is not None
        self.child.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return its exit status."""
        assert self.child is not None
        if self.child.poll() is None:
            self.child.send_signal(number)
        status = self.child.wait(STOP_S)
        self.told.clear()
        return status

    def kill(self) -> None:
        """SIGKILL: what a daemon that never got to say goodbye looks like."""
        self.stop(signal.SIGKILL)

    def close(self) -> None:
        """End everything, and fail if anything had to be ended that should have been gone."""
        try:
            if self.child is not None and self.child.poll() is None:
                try:
                    self.stop()
                except subprocess.TimeoutExpired:
                    self.child.kill()
                    self.child.wait()
                    raise AssertionError(f"vllamad did not stop in {STOP_S} s:\n{self.log_text()}") from None
            self.wait_no_processes()
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._notify.close()
            # A folder that a test made unreadable on purpose must be removable.
            for folder in [path for path in self.root.rglob("*") if path.is_dir()]:
                folder.chmod(0o700)
            shutil.rmtree(self.root, ignore_errors=True)

    # --- asking --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ctl(
        self, *words: str, check: bool = True, stdin: str | None = None, timeout: float = 120.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run vllamactl; with ``check`` it must succeed."""
        result = subprocess.run(
            [sys.executable, "-m", "vllamactl", f"--socket={self.socket}", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            input=stdin if stdin is not None else "",
            timeout=timeout,
            check=False,
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"vllamactl {' '.join(words)}: {result.returncode}\n{result.stdout}{result.stderr}\n{self.log_text()}"
            )
        return result

    def json(self, *words: str) -> Any:
        """What vllamactl prints with --json."""
        return json.loads(self.ctl("--json", *words).stdout)

    def workers(self) -> list[dict[str, Any]]:
        """Every worker, asked over the control socket without the cost of a new vllamactl."""
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            listed = workers_pb2_grpc.WorkersStub(channel).ListWorkers(workers_pb2.ListWorkersRequest())
        shown = [
            MessageToDict(worker, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            for worker in listed.workers
        ]
        # JSON writes 64-bit integers as strings.
        return [
            {key: int(value) if isinstance(value, str) and value.isdecimal() else value for key, value in one.items()}
            for one in shown
        ]

    def request(self, method: str, path: str, body: object = None, timeout: float = 120.0) -> "Answer":
        """One HTTP request on a connection of its own. ``body`` may be bytes, or something that becomes JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, data)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def open_stream(self, path: str, body: object, timeout: float = 120.0) -> "Stream":
        """Send a request and read its answer line by line."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request("POST", path, json.dumps(body).encode())
        return Stream(connection)

    def open_waiting(self, path: str, body: object, timeout: float = 120.0) -> "Waiting":
        """Send a request whose answer is not expected yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request("POST", path, json.dumps(body).encode())
        return Waiting(connection)

    def wait_log(self, text: str, seconds: float = 15.0, count: int = 1) -> None:
        """Wait for a line of the daemon's log, or for so many of them."""
        deadline = time.monotonic() + seconds
        while self.log_text().count(text) < count:
            assert time.monotonic() < deadline, f"never logged {text!r}:\n{self.log_text()}"
            time.sleep(0.01)

    def wait_file(self, path: Path, text: str, seconds: float = 15.0) -> None:
        """Wait for a text in a file."""
        deadline = time.monotonic() + seconds
        while not path.exists() or text not in path.read_text():
            assert time.monotonic() < deadline, f"never in {path}: {text!r}"
            time.sleep(0.02)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # --- what is left --------------------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """Processes of this daemon's workers, by the marker in their environment. A zygote or an acceptor is none as
        long as the daemon runs; afterwards it is as much of a leftover as any."""
        is_running = self.child is not None and self.child.poll() is None
        kept = {int(pid) for pid in KEPT.findall(self.log_text())} if is_running else set[int]()
        owner = MARKER + os.fsencode(self.runtime)
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and owner in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return [pid for pid in found if pid not in kept]

    def wait_no_processes(self, seconds: float = 15.0) -> None:
        """Wait until no process of any worker is left; say which ones stay."""
        deadline = time.monotonic() + seconds
        while left := self.processes():
            if time.monotonic() > deadline:
                raise AssertionError(f"still there: {[describe(pid) for pid in left]}\n{self.log_text()}")
            wait_for_end(left[0], deadline)

    def leftovers(self) -> list[Path]:
        """What lies in the runtime folder, but for the folder of worker sockets, and the lock, which stays. The socket
        that acceptors refer to is none as long as the daemon runs."""
        kept = {self.runtime / "workers", self.runtime / "vllamad.lock"}
        if self.child is not None and self.child.poll() is None:
            kept.add(self.runtime / "workers/http")
        return [path for path in self.runtime.rglob("*") if path not in kept]


def wait_for_end(pid: int, deadline: float) -> None:
    """Wait for one process that is not our child, by its pidfd."""
    import select

    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(descriptor)


def describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ')[:120]!r}"
    return str(pid)


class Answer:
    """A whole HTTP answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.body[:500]!r})"


class Waiting:
    """A request that was sent and is not answered yet."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def result(self) -> Answer:
        response = self._connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        self._connection.close()
        return answer

    def hang_up(self) -> None:
        self._connection.close()


class Stream:
    """An NDJSON answer, read as it comes."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        self.status = self._response.status

    def line(self) -> Any:
        """The next line, or None at the end."""
        line = self._response.readline()
        return json.loads(line) if line else None

    def rest(self) -> list[Any]:
        lines: list[Any] = []
        while (line := self.line()) is not None:
            lines.append(line)
        return lines

    def hang_up(self) -> None:
        """Leave without reading to the end, as a client that was interrupted does."""
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._response.close()
        self._connection.close()


@contextlib.contextmanager
def running(
    engine: Path = FAKE_PYTHON,
    environment: Mapping[str, str] | None = None,
    models: Mapping[str, Mapping[str, object]] | None = None,
    **more: Any,
) -> Iterator[Daemon]:
    """A daemon that serves, for the length of the block."""
    daemon = Daemon(engine, environment, **more)
    for name, faults in (models or {}).items():
        daemon.add_model(name, **faults)
    try:
        yield daemon.start()
    finally:
        daemon.close()


def make_model_folder(folder: Path, name: str = "") -> Path:
    """A folder that looks like a model to the store; no real engine could load it. Models with another ``name`` have
    other files, or they would share a worker."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 2048,
        "_name_or_path": name,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]}}).encode()
    header += b" " * (-len(header) % 8)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))
    return folder
