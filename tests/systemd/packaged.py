"""vllamad in a box, as its Debian package installs it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.package.deb import architecture, pack
from scripts.package.stage import stage
from tests.systemd.service import ROOT, STORE, Service

WHEN = 1_790_000_000
ENGINES = "/var/lib/vllama/engines"
KEPT_IN = ("/etc", "/var", "/usr", "/opt", "/srv", "/dev/shm", "/run/vllama")
"""Where a package, a service or an engine could leave something."""
NOT_OURS = ("/etc/subuid-", "/etc/subgid-", "/var/tmp/")
"""What useradd keeps, and other programs of this machine."""
NEW_DEFAULT = "\n# A newer version says more.\n"


class Packages:
    """Two versions of the package, the second with another configuration file. Packed without compression: that takes
    a minute, and is nothing that can break."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        stage(self.root)
        self.first = self._pack(folder, "0.1.0-1")
        config = self.root / "etc/vllama/config.toml"
        config.write_text(config.read_text() + NEW_DEFAULT)
        self.second = self._pack(folder, "0.1.0-2")

    def _pack(self, folder: Path, version: str) -> Path:
        name = folder / f"vllama_{version}_{architecture()}.deb"
        return pack(self.root, name, version, when=WHEN, compression="none")


class PackagedService(Service):
    """The unit that a package brings."""

    VLLAMACTL = "/usr/bin/vllamactl"

    def dpkg(self, *words: str, check: bool = True, **environment: str) -> str:
        """What dpkg and the package's scripts say."""
        given = {"DEBIAN_FRONTEND": "noninteractive"} | environment
        settings = [f"{name}={value}" for name, value in given.items()]
        # The index of all manual pages on this machine takes longer than all the rest.
        done = self.box.run("env", *settings, "dpkg", "--no-triggers", "--force-unsafe-io", *words, check=False)
        assert not check or done.returncode == 0, f"dpkg {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def prepare(self) -> None:
        """The engine that only tests have; and nobody forbids services, as images for containers do."""
        self.box.run("rm", "-f", "/usr/sbin/policy-rc.d")
        self.box.write("/etc/systemd/system/vllamad.service.d/test.conf", self._fake_engine())

    def add_real_engine(self, python: Path) -> None:
        """The engine that ``python`` has, as ``vllamactl engine install`` would have brought it: an environment of the
        system's own interpreter in the folder of engines, in use. Its packages are a mount, not another 3 GB."""
        made = f"{ENGINES}/cpu-test"
        self.box.run("/usr/lib/vllama/bin/python3", "-m", "venv", "--without-pip", made)
        self.box.run("mount", "--bind", str(python.parents[1] / "lib"), f"{made}/lib")
        complete = {"device": "cpu", "version": "test", "made_time": 0, "size_bytes": 0}
        self.box.write(f"{made}/.complete", json.dumps(complete))
        self.box.run("vllamactl", "engine", "use", "cpu-test")

    def add_users(self) -> None:
        """Ann, who may use it, and bob."""
        for name, groups in (("ann", "vllama"), ("bob", "")):
            self.box.run("userdel", name, check=False)
            self.box.run("useradd", "--no-create-home", *(["--groups", groups] if groups else []), name)

    def add_model(self) -> None:
        """The model ``tiny``, as if it had been pulled."""
        python = Path(sys.prefix) / "bin/python"
        self.box.run(str(python), "-c", STORE, str(ROOT))
        self.box.run("chown", "-R", "vllama:vllama", "/var/lib/vllama/models")

    def wait_status(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What ``vllamactl status`` shows a member of the group, when something holds in it."""
        found: dict[str, Any] = {}

        def ask() -> bool:
            found.update(json.loads(self.ctl("ann", "--json", "status").stdout))
            return is_so(found)

        self.wait("a status", ask)
        return found

    def exists(self, *paths: str) -> list[str]:
        """Those of the paths that are there."""
        return [path for path in paths if self.box.run("test", "-e", path, check=False).returncode == 0]

    def files(self) -> set[str]:
        """Every path where a package, a service or an engine could leave something."""
        found = self.box.run("find", *KEPT_IN, "-xdev", check=False).stdout.splitlines()
        return {path for path in found if not path.startswith(NOT_OURS)}
