"""A worker in a few words (floor 4): what `ps` and `status` say about it."""

from vllama.control.v1.workers_pb2 import Worker
from vllamactl import human
from vllamactl.plain import seconds_of

_ON_ITS_WAY = {
    Worker.DRAINING: "finishing requests",
    Worker.STOPPING: "stopping",
    Worker.KILLING: "stopping",
    Worker.RELEASING: "freeing memory",
    Worker.SUSPENDING: "going to sleep",
    Worker.SUSPENDED: "asleep",
    Worker.RESUMING: "waking up",
    Worker.BACKOFF: "trying again soon",
}


def state(worker: Worker) -> str:
    """Return the state in small letters."""
    return Worker.State.Name(worker.state).lower()


MOST_LOG_LINES = 6


def failure_lines(worker: Worker) -> list[str]:
    """Return why it failed, what to do, and what its engine said last; [] if it has not failed."""
    if not worker.HasField("failure"):
        return []
    said = worker.failure.facts.get("log", "").splitlines()[-MOST_LOG_LINES:]
    hint = [f"hint: {worker.failure.hint}"] if worker.failure.hint else []
    return [worker.failure.message, *hint, *(f"| {line}" for line in said)]


def size_bytes(worker: Worker) -> int:
    """Return what it holds where it computes: on GPUs, or in main memory. Drivers do not tell it everywhere; then what
    was reserved for it."""
    is_on_gpu = worker.device.startswith("gpu")
    return worker.device_bytes or (worker.reserved_bytes if is_on_gpu else worker.memory_bytes)


def processor(worker: Worker) -> str:
    """Return Ollama's word for where it runs, "-" if it does not; an engine is always on one side with all of a
    model."""
    if worker.state == Worker.FAILED:
        return "-"
    return "100% GPU" if worker.device.startswith("gpu") or worker.device_bytes else "100% CPU"


def until(worker: Worker, now: float) -> str:
    """Return when it leaves ("4 minutes from now", "Forever", "busy"), or what it is doing instead."""
    if worker.state == Worker.STARTING:
        return f"{worker.load_phase or 'starting'} {worker.load_fraction * 100:.0f} %"
    if worker.state == Worker.FAILED:
        return worker.failure.reason.replace("_", " ").lower() or "failed"
    if worker.state in _ON_ITS_WAY:
        return _ON_ITS_WAY[worker.state]
    if worker.leases:
        return f"busy, {worker.cache_usage * 100:.0f} % KV" if worker.cache_usage else "busy"
    if worker.is_pinned:
        return "Pinned"
    return human.instant(seconds_of(worker.expire_time), now) if worker.HasField("expire_time") else "Forever"
