"""vllamad as the first process of a container: signals reach it only if it asks for them, and nobody else reaps."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.daemon import FAKE_PYTHON, STOP_S, Daemon

WAYS = {(): (), ("--user", "--map-root-user"): ("--user", "--preserve-credentials")}
"""Root's way, and everyone's where the kernel lets everyone make namespaces: flags to make one and to enter it."""
REAPED_S = 60.0


class Contained(Daemon):
    """A daemon that is process 1; its ``child`` is the unshare around it, which is deaf to signals."""

    def enclose(self) -> None:
        """Give it a PID namespace of its own, or skip."""
        for flags, entering in WAYS.items():
            command = ["unshare", *flags, "--pid", "--mount-proc", "--fork", "--kill-child"]
            if shutil.which("unshare") and subprocess.run([*command, "true"], check=False).returncode == 0:
                self.wrapper, self._entering = command, entering
                return
        pytest.skip("neither root nor user namespaces: no PID namespace can be made")

    def enter(self, *words: str) -> None:
        """Run a command inside, as `docker exec` does."""
        place = ["nsenter", "--target", str(self.first), "--pid", "--mount", *self._entering]
        subprocess.run([*place, *words], check=True)

    @property
    def first(self) -> int:
        """Its number out here."""
        assert self.child is not None
        (pid,) = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        return int(pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.child is not None
        if self.child.poll() is None:
            os.kill(self.first, number)
        return self.child.wait(STOP_S)

    def children(self) -> dict[int, str]:
        """Its children with their states, as /proc tells."""
        pids = Path(f"/proc/{self.first}/task/{self.first}/children").read_text().split()
        stats = {int(pid): Path(f"/proc/{pid}/stat") for pid in pids}
        return {pid: stat.read_text().rpartition(")")[2].split()[0] for pid, stat in stats.items() if stat.exists()}


@pytest.fixture
def contained() -> Iterator[Contained]:
    daemon = Contained(FAKE_PYTHON, {"VLLAMA_ENGINE_TERM_GRACE": "200ms"})
    daemon.enclose()
    daemon.add_model("tiny")
    daemon.add_model("deaf", ignore_term=True, leave_grandchild=True)
    try:
        yield daemon
    finally:
        daemon.close()


def chat(daemon: Daemon, model: str) -> bytes:
    answer = daemon.request("POST", "/api/chat", {"model": model, "messages": [{"role": "user", "content": "Hi"}]})
    assert answer.status == 200, answer.body
    return answer.body


def test_it_serves_as_process_1_and_ends_at_sigterm(contained: Contained) -> None:
    contained.start()
    status = Path(f"/proc/{contained.first}/status").read_text()
    assert "\nNSpid:" in status and status.partition("\nNSpid:")[2].split("\n")[0].split()[-1] == "1"
    assert chat(contained, "tiny")
    assert contained.stop() == 0
    assert contained.processes() == [] and contained.leftovers() == []


def test_process_1_reaps_what_others_leave(contained: Contained) -> None:
    contained.start()
    assert chat(contained, "deaf")
    contained.ctl("stop", "deaf", "--force")
    # A shell that leaves a child: it becomes ours, as everybody's does in a container.
    contained.enter("sh", "-c", "sleep 0.2 &")
    assert "sleep" in {Path(f"/proc/{pid}/comm").read_text().strip() for pid in contained.children()}
    deadline = time.monotonic() + REAPED_S
    while left := contained.children():
        assert time.monotonic() < deadline, f"never reaped: {left}\n{contained.log_text()}"
        time.sleep(0.1)


def test_nothing_outlives_process_1(contained: Contained) -> None:
    contained.start()
    assert chat(contained, "deaf")
    assert contained.processes()
    assert contained.stop(signal.SIGKILL) != 0
    contained.wait_no_processes()
