"""How long a model takes that is on disk only: from asking for it to its first token.

Four ways in turns, the order changing from round to round: vLLM's own server as one would start it by hand, the daemon
without a zygote, the daemon that has just started and whose zygote is not warm yet, and the daemon with one that is.
Files are in the page cache, and what vLLM keeps between starts is kept, for all of them.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path

from benchmarks.client import BenchFailed, Client, Target
from benchmarks.comparing import prompts
from benchmarks.measuring import LOAD_S, MODEL, Effort, Say, daemon_of, reuse_model
from benchmarks.report import Row
from benchmarks.samples import Samples, pair_ratios
from tests.fakes.daemon import Daemon

ENTRY = "vllm.entrypoints.launchers.api_server.entry"
KV_BYTES = 1 << 30
"""As the daemon gives it on CPU; vLLM's own default is a share of all memory."""
STOP_S = 60.0
TOKENS = 2

PLAIN, OFF, COLD, WARM = "vllm serve", "zygote off", "zygote not warm yet", "zygote warm"


def measure_cold_start(engine: Path, gguf: Path, kept: Path | None, effort: Effort, say: Say) -> list[Row]:
    """See above. The first round fills the caches and does not count."""
    found: dict[str, list[float]] = {PLAIN: [], OFF: [], COLD: [], WARM: []}
    with daemon_of(engine) as daemon:
        if kept is None or not reuse_model(kept, daemon.state):
            say(f"→ making {MODEL} out of {gguf.name}; `make demo` keeps one that is used instead")
            with serving(daemon, "off"):
                daemon.ctl("create", MODEL, "--from", str(gguf), timeout=LOAD_S)
        ways: list[Callable[[], dict[str, float]]] = [
            lambda: {PLAIN: by_hand(engine, daemon)},
            lambda: {OFF: without(daemon)},
            lambda: just_started(daemon),
        ]
        for number in range(effort.loads + 1):
            for way in ways[number % 3 :] + ways[: number % 3]:
                for name, seconds in way().items():
                    if number:
                        found[name].append(seconds)
            if number:
                say(f"round {number} of {effort.loads}: " + ", ".join(f"{n} {v[-1]:.1f} s" for n, v in found.items()))
    plain = Samples.of(found.pop(PLAIN))
    against = f"{PLAIN}, by hand"
    rows: list[Row] = []
    for name, seconds in found.items():
        one = Samples.of(seconds)
        rows.append(Row(f"cold start, {name}: to the first token", "s", one, against, plain, pair_ratios(one, plain)))
    return rows


@contextlib.contextmanager
def serving(daemon: Daemon, zygote: str) -> Generator[None]:
    """The daemon for a while, with this setting."""
    daemon.environment["VLLAMA_ENGINE_ZYGOTE"] = zygote
    daemon.log.unlink(missing_ok=True)
    daemon.start()
    try:
        yield
    finally:
        daemon.stop()


def without(daemon: Daemon) -> float:
    """Every engine is executed."""
    with serving(daemon, "off"):
        return first_token_s(Target.daemon(daemon.port))


def just_started(daemon: Daemon) -> dict[str, float]:
    """Asked at READY, then once more when there is a zygote for certain."""
    with serving(daemon, "auto"):
        cold = first_token_s(Target.daemon(daemon.port))
        daemon.ctl("stop", MODEL, timeout=LOAD_S)
        daemon.wait_log("zygote.ready", STOP_S)
        warm = first_token_s(Target.daemon(daemon.port))
        if daemon.log_text().count("process.fork ") != 2:
            raise BenchFailed(f"engines were not forked:\n{daemon.log_text()[-3000:]}")
    return {COLD: cold, WARM: warm}


def by_hand(engine: Path, daemon: Daemon) -> float:
    """The same model by vLLM's own server, from the command to the first token."""
    (model,) = (daemon.state / "models" / "folders").iterdir()
    path = daemon.root / "s"
    path.unlink(missing_ok=True)
    caches = {"XDG_CACHE_HOME": str(daemon.root / "by-hand"), "HOME": str(daemon.root)}
    argv = [str(engine), "-m", ENTRY, "--model", str(model), "--uds", str(path), "--served-model-name", MODEL]
    argv += ["--enforce-eager", "--kv-cache-memory-bytes", str(KV_BYTES)]
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **caches}
    started = time.perf_counter()
    with (daemon.root / "by-hand.log").open("wb") as log:
        server = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, cwd=daemon.root)
    try:
        while not path.exists() or not is_up(path):
            if server.poll() is not None or time.perf_counter() - started > LOAD_S:
                raise BenchFailed(f"vLLM did not start:\n{(daemon.root / 'by-hand.log').read_text()[-3000:]}")
            time.sleep(0.05)
        ready_s = time.perf_counter() - started
        return ready_s + first_token_s(Target.worker(path))
    finally:
        server.terminate()
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def is_up(path: Path) -> bool:
    """True if a server accepts connections there: vLLM listens when it is ready."""
    with socket.socket(socket.AF_UNIX) as trying:
        try:
            trying.connect(str(path))
        except OSError:
            return False
    return True


def first_token_s(target: Target) -> float:
    """From the request to the first token."""
    with Client() as client:
        played = client.play(target, MODEL, prompts(1), TOKENS, LOAD_S)
    return played.answers[0].first_s
