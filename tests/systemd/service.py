"""vllamad in a box: installed from the repository's units, asked from inside, and looked at with systemd's tools."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.systemd.box import Box

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.prefix) / "bin"
CLIENT = str(Path(__file__).with_name("client.py"))
FREEZE = """
import signal, threading

def wait_for_ever(*_):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

signal.signal(signal.SIGUSR2, wait_for_ever)
"""
"""What Python runs at its start: SIGUSR2 freezes the loop, in the middle of whatever it does."""

GROUPS = [f"/sys/fs/cgroup{top}/system.slice/vllamad.service" for top in ("/unified", "")]
"""One of them is there: with controllers in version 1, and without."""

HIDDEN = ("/root/", "/home/", "/tmp/", "/var/tmp/")

STORE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.fakes.daemon import make_model_folder
from vllamad.domain.model import Source, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.ports import StagedModel
from vllamad.hub.store import ModelStore

store = ModelStore(Path("/var/lib/vllama/models"))
store.load()
staging = make_model_folder(store.staging("tiny"), "tiny")
(staging / "fake_engine.json").write_text('{"shared_memory": true}')
store.commit(ModelRef.parse("tiny"), StagedModel(staging, Source(SourceKind.FOLDER)))
"""


HUB = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.fakes.hub import HubServer, tiny_model

with HubServer() as hub:
    hub.add_repo("org/small", tiny_model())
    print(hub.url, flush=True)
    sys.stdin.read()
"""


class Service:
    """The unit in a box."""

    VLLAMACTL = str(BIN / "vllamactl")

    def __init__(self, box: Box) -> None:
        self.box = box

    def install(self) -> None:
        """Units, user, folders and a model, as an administrator has them; and the engine that only tests have."""
        box = self.box
        box.run(str(BIN / "python"), str(ROOT / "scripts/install_units.py"), "--vllamad", str(BIN / "vllamad"))
        box.run("systemd-sysusers")
        box.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/vllama.conf")
        for name, groups in (("ann", "vllama"), ("bob", "")):
            box.run("useradd", "--no-create-home", *(["--groups", groups] if groups else []), name)
        box.write("/etc/systemd/system/vllamad.service.d/test.conf", self._fake_engine())
        box.write("/srv/freeze/sitecustomize.py", FREEZE)
        box.run(str(BIN / "python"), "-c", STORE, str(ROOT))
        box.run("chown", "-R", "vllama:vllama", "/var/lib/vllama")
        box.run("systemctl", "daemon-reload")

    def _fake_engine(self) -> str:
        lines = [
            "[Service]",
            f"Environment=PATH={BIN}:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/srv/freeze",
            f"Environment=VLLAMA_ENGINE_PYTHON={ROOT}/tests/fakes/fake_python VLLAMA_ENGINE_DEVICE=cpu",
            "Environment=VLLAMA_ENGINE_CPU_MEMORY_BYTES=2GiB VLLAMA_ENGINE_CPU_KV_BYTES=64MiB",
            # Fifteen times faster than for everyone, so that a test need not wait for half a minute.
            "WatchdogSec=4s",
        ]
        # What lies in somebody's home or in /tmp is hidden from the service, and from the users of the tests.
        hidden = [path for path in {sys.base_prefix, str(ROOT)} if path.startswith(HIDDEN)]
        if hidden:
            lines += ["ProtectHome=tmpfs", f"BindReadOnlyPaths={' '.join(hidden)}"]
        for path in hidden:
            for folder in Path(path).parents:
                self.box.run("chmod", "o+x", str(folder))
        return "\n".join(lines) + "\n"

    # --- life ----------------------------------------------------------------------------------------------------

    def systemctl(self, *words: str, check: bool = True) -> str:
        done = self.box.run("systemctl", *words, check=False)
        if check and done.returncode:
            raise AssertionError(f"systemctl {' '.join(words)}: {done.stdout}{done.stderr}\n{self.journal()}")
        return done.stdout

    def start(self) -> None:
        self.systemctl("reset-failed", "vllamad.service", "vllamad.socket", check=False)
        self.systemctl("start", "vllamad.service")

    def stop(self) -> None:
        self.systemctl("stop", "vllamad.socket", "vllamad.service")

    def show(self, name: str, unit: str = "vllamad.service") -> str:
        return self.systemctl("show", unit, "--property", name, "--value").strip()

    def main_pid(self) -> int:
        return int(self.show("MainPID"))

    def journal(self) -> str:
        return self.box.run("journalctl", "-u", "vllamad", "-o", "cat", "--no-pager").stdout

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """The unit's entries in the journal that match, with their fields."""
        words = ("journalctl", "-u", "vllamad", "-o", "json", "--no-pager", *matches)
        return [json.loads(line) for line in self.box.run(*words).stdout.splitlines()]

    def wait(self, what: str, is_true: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait until something holds that only asking tells."""
        deadline = time.monotonic() + seconds
        while not is_true():
            assert time.monotonic() < deadline, f"not so: {what}\n{self.journal()[-4000:]}"
            time.sleep(0.05)

    # --- asking --------------------------------------------------------------------------------------------------

    def chat(self, model: str = "tiny") -> dict[str, Any]:
        """One whole answer of a model, over the socket that systemd holds."""
        return json.loads(self.box.run("/usr/bin/python3", CLIENT, "once", model).stdout)

    def begin_load(self) -> "subprocess.Popen[str]":
        """Four clients that ask again and again on new connections, until their standard input ends."""
        load = subprocess.Popen(
            self.box.command("/usr/bin/python3", CLIENT, "load"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert load.stdout is not None and load.stdout.readline() == "answered\n"
        return load

    @contextmanager
    def hub(self) -> Generator[str]:
        """A hub inside the box that has the model org/small; gives its address."""
        serving = subprocess.Popen(
            self.box.command(str(BIN / "python"), "-c", HUB, str(ROOT)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert serving.stdout is not None
        try:
            yield serving.stdout.readline().strip()
        finally:
            serving.communicate(timeout=20)

    def ctl(self, user: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """vllamactl as a user of the machine."""
        return self.box.run("runuser", "-u", user, "--", self.VLLAMACTL, *words, check=False)

    def ps(self) -> list[dict[str, Any]]:
        """What ``vllamactl ps`` shows a member of the group."""
        return json.loads(self.ctl("ann", "--json", "ps").stdout)["workers"]

    # --- what is there -------------------------------------------------------------------------------------------

    def leaves(self) -> list[str]:
        """The control groups below the unit's, but for the daemon's own."""
        found = self.box.run("find", *GROUPS, "-mindepth", "1", "-type", "d", "-printf", "%f\\n", check=False).stdout
        return [name for name in found.split() if name != "vllamad"]

    def processes(self) -> list[str]:
        """Every process of the service's user."""
        return self.box.run("ps", "-u", "vllama", "-o", "pid=,args=", check=False).stdout.splitlines()

    def listeners(self) -> list[str]:
        """Where anything listens: TCP and Unix, ours by port and path."""
        found = self.box.run("ss", "-lnxtH", check=False).stdout.splitlines()
        return [line for line in found if ":11434" in line or "/run/vllama" in line]

    def shared_memory(self) -> list[str]:
        return self.box.run("ls", "/dev/shm").stdout.split()
