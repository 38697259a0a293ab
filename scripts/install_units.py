#!/usr/bin/env python3
"""Put the units where systemd finds them, with the paths of vllamad, and of vllamactl beside it, as they are installed.

    install_units.py --vllamad /opt/vllama/bin/vllamad              for the system: /etc/systemd/system and so on
    install_units.py --vllamad ~/vllama/bin/vllamad --user          for one user: ~/.config/systemd/user
    install_units.py --vllamad /usr/bin/vllamad --root DIR --vendor for a package: below DIR/usr/lib

Prints what it wrote, one path a line. It starts nothing and enables nothing.
"""

import argparse
import os
import sys
from pathlib import Path

UNITS = Path(__file__).resolve().parents[1] / "systemd"
LINES = {"ExecStart=/usr/bin/vllamad\n": "vllamad", "ExecReload=/usr/bin/vllamactl reload\n": "vllamactl"}
"""Lines of a unit with a path that is another one on each machine, and the program that it is of."""
MODE = 0o644


def places(*, vendor: bool) -> dict[str, str]:
    """Where each file goes: what an administrator installs lies in /etc, what a package brings in /usr/lib."""
    base = "usr/lib" if vendor else "etc"
    files = {
        "vllamad.service": f"{base}/systemd/system/vllamad.service",
        "vllamad.socket": f"{base}/systemd/system/vllamad.socket",
        "vllama.sysusers": f"{base}/sysusers.d/vllama.conf",
        "vllama.tmpfiles": f"{base}/tmpfiles.d/vllama.conf",
        "vllama.preset": f"{base}/systemd/system-preset/80-vllama.preset",
    }
    if vendor:
        files["user/vllamad.service"] = f"{base}/systemd/user/vllamad.service"
    return files


def with_program(text: str, program: str) -> str:
    """The unit with the path of vllamad, and of vllamactl in the same folder, in their places."""
    if not os.path.isabs(program) or any(letter in program for letter in " \t\"'\\%$"):  # noqa: PTH117
        raise SystemExit(f"install_units.py: {program}: needs an absolute path without blanks, quotes, %, $")
    for line, name in LINES.items():
        if text.count(line) != 1:
            raise SystemExit(f"install_units.py: the unit has no line {line.strip()}")
        path = program if name == "vllamad" else f"{os.path.dirname(program)}/{name}"  # noqa: PTH120
        text = text.replace(line, line.replace(f"/usr/bin/{name}", path))
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllamad", required=True, metavar="PATH", help="the program, as it will be on the machine")
    parser.add_argument("--root", type=Path, default=Path("/"), help="write below this folder (default: /)")
    parser.add_argument("--vendor", action="store_true", help="write to /usr/lib, as a package does")
    parser.add_argument("--user", action="store_true", help="write the unit for one user, below XDG_CONFIG_HOME")
    options = parser.parse_args(argv)
    if options.user:
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        wanted = {"user/vllamad.service": config / "systemd/user/vllamad.service"}
    else:
        wanted = {name: options.root / place for name, place in places(vendor=options.vendor).items()}
    for name, path in wanted.items():
        text = (UNITS / name).read_text()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(with_program(text, options.vllamad) if name.endswith(".service") else text)
        path.chmod(MODE)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
