"""``vllamad --check``: what it tells a person, and what it tells `vllamactl doctor`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.fakes.daemon import FAKE_PYTHON
from tests.fakes.hub import HubServer
from tests.fakes.nvml.library import VARIABLE, build


def vllamad(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "vllamad", *words],
        env={"PATH": os.environ["PATH"], "HF_ENDPOINT": "http://127.0.0.1:1"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def parts(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["part"]: line for line in lines}


def test_every_part_comes_and_nothing_is_made(tmp_path: Path) -> None:
    script = tmp_path / "nvml.txt"
    script.write_text(f"driver 570.86.15\ncuda 12080\ngpu GPU-1\nname A card\nmemory {9 << 30} {1 << 30} {5 << 30}\n")
    with HubServer() as hub:
        done = vllamad(
            "--check",
            "--json",
            HOME=str(tmp_path),
            HF_ENDPOINT=hub.url,
            HF_TOKEN="secret",
            VLLAMA_ENGINE_PYTHON=str(FAKE_PYTHON),
            VLLAMA_ENGINE_ENV="FAKE_ENGINE_VERSION",
            FAKE_ENGINE_VERSION="vllm==0.33.0",
            LD_LIBRARY_PATH=str(build().parent),
            **{VARIABLE: str(script)},
        )
    assert done.returncode == 0, done.stderr
    found = parts(done)
    assert found["config"]["state"] == f"{tmp_path}/.local/share/vllama" and found["config"]["port"] == 11434
    assert (found["engine"]["version"], found["engine"]["device"]) == ("0.33.0", "cuda")
    devices = found["devices"]
    assert (devices["driver"], devices["cuda"], len(devices["gpus"])) == ("570.86.15", "12.8", 1)
    hub_part = found["hub"]
    assert (hub_part["status"], hub_part["user"], hub_part["token_source"]) == (200, "ann", "HF_TOKEN")
    assert hub_part["date"].endswith("GMT")
    assert "secret" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [script]


def test_a_wrong_configuration_is_one_part_and_the_status(tmp_path: Path) -> None:
    done = vllamad("--check", "--json", HOME=str(tmp_path), VLLAMA_SERVER_PORT="x")
    assert done.returncode == 78
    assert "server.port" in parts(done)["config"]["problem"] and len(done.stdout.splitlines()) == 1


def test_as_the_service_nobodys_own_files_are_read(tmp_path: Path) -> None:
    own = tmp_path / ".config/vllama/config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("[server]\nprot = 1\n")
    assert vllamad("--check", HOME=str(tmp_path)).returncode == 78
    assert vllamad("--check", "--system", HOME=str(tmp_path)).returncode == 0


def test_what_says_more_about_a_check_needs_one() -> None:
    for flag in ("--json", "--system"):
        done = vllamad(flag)
        assert done.returncode == 2 and "need --check" in done.stderr
