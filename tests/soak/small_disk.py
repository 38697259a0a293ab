"""A world whose state and runtime folders have little room, which can be taken and given back.

They are file systems in memory inside of a mount namespace that lives as long as its daemon, so nothing can be left
mounted. Needs ``unshare`` and the right to use it: root's, or user namespaces that everyone may make.
"""

import errno
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.soak.control import Control
from tests.soak.world import Character, World

SIZE = "size=4m,nr_inodes=600"
SCRIPT = """
state=$1 runtime=$2; shift 2
mkdir -p "$runtime" && cp -a "$state" "$state.kept"
mount -t tmpfs -o {size} tmpfs "$state" && cp -a "$state.kept/." "$state" && rm -r "$state.kept"
mount -t tmpfs -o {size},mode=750 tmpfs "$runtime" && exec "$@"
"""


def unshare() -> list[str] | None:
    """The command that gives a program mounts of its own, as this user may; None if none does."""
    program = shutil.which("unshare")
    for flags in ("-m", "-Urm"):
        command = [program or "", flags, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        if program and subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return [program, flags]
    return None


class SmallDisk(World):
    """``wrapper`` is what ``unshare()`` found."""

    def __init__(self, models: Sequence[Character], environment: Mapping[str, str], wrapper: list[str]) -> None:
        super().__init__(models, environment)
        daemon = self.daemon
        # Outside of the small place, so that clients find it without a detour.
        daemon.socket = daemon.root / "vllamad.sock"
        self.control = Control(daemon.socket)
        script = "set -e" + SCRIPT.format(size=SIZE)
        daemon.wrapper = [*wrapper, "sh", "-c", script, "sh", str(daemon.state), str(daemon.runtime)]

    def fill(self) -> None:
        """Take every byte and every file that there is."""
        for folder in (self.daemon.runtime, self.daemon.state):
            place = self._seen(folder)
            try:
                (place / "ballast").write_bytes(bytes(8 << 20))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            try:
                for number in range(10_000):
                    (place / f"ballast-{number}").touch()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        for folder in (self.daemon.runtime, self.daemon.state):
            for path in self._seen(folder).glob("ballast*"):
                path.unlink()

    def leftovers(self) -> list[Path]:
        runtime = self._seen(self.daemon.runtime)
        return [path for path in runtime.rglob("*") if path.name not in {"workers", "vllamad.lock"}]

    def _seen(self, folder: Path) -> Path:
        """A folder by the way of the daemon's own mounts."""
        assert self.daemon.child is not None
        return Path(f"/proc/{self.daemon.child.pid}/root{folder}")
