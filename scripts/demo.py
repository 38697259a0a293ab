"""The demo: a real daemon, a real engine, a real model, two questions, two answers.

Usage: python scripts/demo.py --engine PYTHON --gguf FILE [--serve PORT]

Run by `make demo` inside the checkout's environment. Starts vllamad on a free port with its state under .demo/, makes
the packaged model loadable (once), asks through the official `ollama` client and through `vllamactl run`, shows
`vllamactl ps`, and stops everything. Exits 0 only if both answers came from the engine and name the right city.
With --serve the daemon and its model stay in the foreground until interrupted.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
STATE = ROOT / ".demo" / "state"
MODEL = "smollm2:135m"
QUESTION = "What is the capital of France?"
ANSWER = "Paris"
READY_S = 30.0


def say(text: str) -> None:
    print(text, flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Demo:
    """One run of the daemon and the client that talks to it."""

    def __init__(self, engine: str, runtime: Path, port: int) -> None:
        self.socket = runtime / "vllamad.sock"
        self.url = f"http://127.0.0.1:{port}"
        self.log = ROOT / ".demo" / "vllamad.log"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("VLLAMA_", "OLLAMA_"))
        }
        self.command = [
            str(BIN / "vllamad"),
            f"--port={port}",
            f"--socket={self.socket}",
            f"--state-dir={STATE}",
            f"--runtime-dir={runtime}",
        ]
        self.environment["VLLAMA_ENGINE_PYTHON"] = engine

    @contextmanager
    def daemon(self, foreground: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """Run vllamad until the block ends; it stops by SIGTERM, and the end is waited for."""
        STATE.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            output = None if foreground else log
            child = subprocess.Popen(self.command, env=self.environment, stderr=output, stdout=output)
            try:
                self._wait_until_ready(child)
                yield child
            finally:
                child.send_signal(signal.SIGTERM)
                if child.wait(timeout=90) != 0:
                    sys.exit(f"✗ vllamad ended with status {child.returncode}; see {self.log}")

    def _wait_until_ready(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_S
        while self.control("status", check=False).returncode != 0:
            if child.poll() is not None:
                sys.exit(f"✗ vllamad did not start:\n{self.log.read_text(errors='replace')}")
            if time.monotonic() > deadline:
                sys.exit(f"✗ vllamad was not ready after {READY_S:.0f} s; see {self.log}")

    def control(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run vllamactl and return what it printed."""
        command = [str(BIN / "vllamactl"), f"--socket={self.socket}", *words]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if check and result.returncode != 0:
            sys.exit(f"✗ {' '.join(command)}\n{result.stdout}{result.stderr}")
        return result

    def make_model(self, gguf: str) -> None:
        """Create the demo's model unless an earlier run did."""
        listed = json.loads(self.control("--json", "list").stdout)
        if any(model["name"] == MODEL for model in listed["models"]):
            return
        say(f"→ making {MODEL} out of {Path(gguf).name} (once, about half a minute)")
        self.control("create", MODEL, "--from", gguf)


def ask_by_ollama(url: str) -> bool:
    """Ask through the official client; True if the engine gave the right answer."""
    import ollama

    say(f'→ "{QUESTION}" through the official ollama client at {url} (loads the model first)')
    started = time.monotonic()
    answer = ollama.Client(host=url).chat(
        MODEL, [{"role": "user", "content": QUESTION}], options={"temperature": 0, "num_predict": 32}
    )
    text, count, spent_ns = answer.message.content or "", answer.eval_count or 0, answer.eval_duration or 0
    say(f"  {text}")
    if not count or not spent_ns:
        return False
    total = time.monotonic() - started
    say(f"  • {count} tokens, {count / (spent_ns / 1e9):.1f} tokens/s, {total:.1f} s in all with loading")
    return ANSWER in text


def ask_by_vllamactl(demo: Demo) -> bool:
    """Ask through the control socket; True if the engine gave the right answer."""
    say(f'→ "{QUESTION}" through vllamactl run')
    result = demo.control("run", MODEL, QUESTION, "--temperature", "0", "--num-predict", "32", "--verbose")
    say("  " + result.stdout.strip().replace("\n", "\n  "))
    counts = [line.strip() for line in result.stderr.splitlines() if "tokens/s" in line or "eval rate" in line]
    say("\n".join(f"  • {line}" for line in counts))
    return ANSWER in result.stdout and bool(counts)


def worker_runs_engine(demo: Demo) -> bool:
    """True if the one worker is READY and its process is the engine's."""
    workers = json.loads(demo.control("--json", "ps").stdout)["workers"]
    if len(workers) != 1 or workers[0]["state"] != "READY":
        return False
    command = Path(f"/proc/{workers[0]['pid']}/cmdline").read_bytes()
    return b"vllm" in command or b"VLLAMA" in command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True, help="the engine's interpreter")
    parser.add_argument("--gguf", required=True, help="the packaged model")
    parser.add_argument("--serve", type=int, metavar="PORT", help="stay in the foreground on this port")
    options = parser.parse_args()

    # Socket paths are limited to 107 bytes, and a checkout may lie deep.
    with tempfile.TemporaryDirectory(prefix="vllama-demo-") as runtime:
        demo = Demo(options.engine, Path(runtime), options.serve or free_port())
        with demo.daemon(foreground=options.serve is not None) as daemon:
            demo.make_model(options.gguf)
            if options.serve is not None:
                say(f"✓ {demo.url} serves {MODEL}; stop with Ctrl-C")
                say(f"  vllamactl: {BIN / 'vllamactl'} --socket {demo.socket} ps")
                signal.signal(signal.SIGINT, lambda *_: None)
                daemon.wait()
                return
            by_ollama = ask_by_ollama(demo.url)
            by_vllamactl = ask_by_vllamactl(demo)
            say("→ vllamactl ps")
            say("  " + demo.control("ps").stdout.rstrip().replace("\n", "\n  "))
            from_engine = worker_runs_engine(demo)
    say("✓ stopped cleanly")
    if not (by_ollama and by_vllamactl and from_engine):
        sys.exit(f"✗ not both answers were right and from the engine; see {demo.log}")
    say("✓ both answers came from the engine")


if __name__ == "__main__":
    main()
