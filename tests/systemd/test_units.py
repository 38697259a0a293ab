"""The units as systemd reads them, without starting anything."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.install_units import main

UNITS = Path(__file__).resolve().parents[2] / "systemd"
EXAMPLES = sorted((UNITS / "examples").glob("*.conf"))
SINCE = {"subgroup.conf": 254, "reload-credentials.conf": 260}
"""Examples for newer systemds than the units themselves."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*words: str, **environment: str) -> str:
    """What systemd-analyze says, which must be satisfied."""
    done = subprocess.run(
        ["systemd-analyze", *words],
        env=dict(os.environ) | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as they are installed, with a program that is there."""
    assert main(["--vllamad", str(Path(sys.prefix) / "bin/vllamad"), "--root", str(tmp_path), "--vendor"]) == 0
    return tmp_path / "usr/lib"


def test_systemd_has_nothing_to_say(installed: Path, tmp_path: Path) -> None:
    units, user = installed / "systemd/system", installed / "systemd/user/vllamad.service"
    assert analyze("verify", str(units / "vllamad.service"), str(units / "vllamad.socket")) == ""
    assert analyze("--user", "verify", str(user), XDG_RUNTIME_DIR=str(tmp_path)) == ""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_drop_in_that_systemd_takes(example: Path, installed: Path) -> None:
    version = int(re.findall(r"systemd (\d+)", analyze("--version"))[0])
    if version < (least := SINCE.get(example.name, 0)):
        pytest.skip(f"needs systemd {least}, here is {version}")
    where = re.findall(r"^# /etc/systemd/system/(\S+)", example.read_text())[0]
    target = installed / "systemd/system" / where
    assert target.name == example.name
    target.parent.mkdir()
    shutil.copy(example, target)
    units = installed / "systemd/system"
    assert analyze("verify", str(units / "vllamad.service"), str(units / "vllamad.socket")) == ""


def test_the_exposure_is_at_most_two() -> None:
    told = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(UNITS / "vllamad.service"))
    assert re.search(r"Overall exposure level for vllamad.service: [0-2]\.\d ", told), told


def test_every_option_that_is_off_says_why() -> None:
    unit = UNITS / "vllamad.service"
    told = json.loads(analyze("security", "--offline=true", "--json=short", "--no-pager", str(unit)))
    reasons = "".join(line for line in unit.read_text().splitlines(keepends=True) if line.startswith("#"))
    off = [one["name"] for one in told if one["set"] is False]
    assert "PrivateDevices=" in off
    for name in off:
        option, _, denied = name.partition("=~")
        for word in re.findall(r"@?\w+", denied) or [option.partition("=")[0]]:
            assert word in reasons, f"{name} is off, and no comment says why"


def test_the_programs_are_written_into_every_service(installed: Path) -> None:
    services = list(installed.glob("systemd/*/*.service"))
    assert len(services) == 2
    for service in services:
        assert f"\nExecStart={sys.prefix}/bin/vllamad\n" in service.read_text()
        assert f"\nExecReload={sys.prefix}/bin/vllamactl reload\n" in service.read_text()


@pytest.mark.parametrize("program", ["bin/vllamad", "/opt/my tools/vllamad", "/opt/100%/vllamad"])
def test_a_path_that_a_unit_cannot_hold_is_refused(program: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="absolute path"):
        main(["--vllamad", program, "--root", str(tmp_path)])
