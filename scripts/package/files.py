"""THE list of what a package puts on a machine: the .deb, the rpm's spec and the container's recipe are made from it.

What is made out of the repository's files is told by ``source``: a path in the repository, or how stage.py makes it.
"""

from dataclasses import dataclass
from pathlib import Path

from scripts.install_units import places

ROOT = Path(__file__).resolve().parents[2]
NAME = "vllama"
HOME = "/usr/lib/vllama"
"""The daemon's own environment: a virtual environment that nobody writes to."""

DEBIAN_NEEDS = ("libc6 (>= 2.17)", "libgcc-s1", "libstdc++6", "ca-certificates")
"""Besides Python. The C library is the oldest that every wheel of requirements/daemon.lock runs on, by its tags; a test
compares them."""

DEBIAN_ENGINE_NEEDS = ("gcc", "libc6-dev", "libnuma1")
"""What an engine needs: on GPUs a compiler, besides Python's headers, since Triton compiles small programs at run time;
on CPU the library that its kernels are linked with."""


@dataclass(frozen=True, slots=True)
class File:
    """``path`` is where it is on the machine; a tree of files ends in a slash. ``source`` is a path in the repository,
    or a word in angle brackets: who makes it. ``is_config``: an upgrade keeps what the administrator changed.
    ``rpm_path`` is set where distributions with rpm have another place for it; "-": they do not want it."""

    path: str
    source: str
    mode: int = 0o644
    is_config: bool = False
    rpm_path: str = ""

    @property
    def is_tree(self) -> bool:
        return self.path.endswith("/")

    def place(self, *, is_rpm: bool) -> str:
        """Its path in one of the two kinds of package; "" where it is in that kind not at all."""
        return (self.rpm_path or self.path).removeprefix("-") if is_rpm else self.path


def _man(page: str, section: int) -> File:
    return File(f"/usr/share/man/man{section}/{page}.{section}.gz", "<manual>")


FILES: tuple[File, ...] = (
    File("/usr/bin/vllamad", "<launcher>", 0o755),
    File("/usr/bin/vllamactl", "<launcher>", 0o755),
    File(f"{HOME}/", "<environment>"),
    *(File(f"/{place}", f"systemd/{name}") for name, place in places(vendor=True).items()),
    File("/etc/vllama/config.toml", "packaging/config.toml", is_config=True),
    _man("vllamad", 8),
    _man("vllamactl", 1),
    _man("vllama-config", 5),
    File("/usr/share/bash-completion/completions/vllamactl", "<completion>"),
    File("/usr/share/fish/vendor_completions.d/vllamactl.fish", "<completion>"),
    File(
        "/usr/share/zsh/vendor-completions/_vllamactl",
        "<completion>",
        rpm_path="/usr/share/zsh/site-functions/_vllamactl",
    ),
    File("/usr/share/doc/vllama/copyright", "<copyright>"),
    File("/usr/share/doc/vllama/changelog.Debian.gz", "<changelog>", rpm_path="-"),
    File("/usr/share/lintian/overrides/vllama", "packaging/deb/lintian-overrides", rpm_path="-"),
    *(
        File(f"/usr/share/doc/vllama/examples/{path.name}", f"systemd/examples/{path.name}")
        for path in sorted((ROOT / "systemd/examples").iterdir())
    ),
)
"""In the order in which a person would look for them."""
