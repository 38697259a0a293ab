"""The architecture as a test: imports point down, each third-party package has one door, the daemon stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOOR: dict[str, int] = {
    "vllama": 0,
    "vllamad.domain": 1,
    "vllamad.dialects": 1,
    "vllamad.process": 2,
    "vllamad.engine": 2,
    "vllamad.hub": 2,
    "vllamad.devices": 2,
    "vllamad.config": 2,
    "vllamad.host": 2,
    "vllamad.supervisor": 3,
    "vllamad.gate": 3,
    "vllamad.operations": 3,
    "vllamad.models": 3,
    "vllamad.http": 4,
    "vllamad.control": 4,
    "vllamad.acceptors": 4,
    "vllamad.acceptors.__main__": 5,
    "vllamad.app": 5,
    "vllamad.checkup": 5,
    "vllamad.from_settings": 5,
    "vllamad.showing": 5,
    "vllamad.__main__": 5,
}

PURE = {
    "abc", "base64", "binascii", "bisect", "collections", "contextlib", "copy", "dataclasses", "datetime", "enum",
    "fnmatch", "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "pathlib", "re", "secrets",
    "string", "struct", "types", "typing",
}  # fmt: skip
"""What floor 1 may use of the standard library. pathlib for the type in ports; datetime and secrets for writing stamps
and ids from values that come in."""

DOORS: dict[str, set[str]] = {
    "aiohttp": {"vllamad/http/", "vllamad/engine/client.py", "vllamactl/bench/http.py"},
    "httptools": {"vllamad/engine/connection.py"},
    "grpc": {"vllamad/control/", "vllamactl/client.py", "proto/vllama/"},
    "grpc_health": {"vllamad/control/"},
    "grpc_reflection": {"vllamad/control/"},
    "pynvml": {"vllamad/devices/nvml.py"},
    "tomli": {"vllamad/config/load.py"},
    "sdnotify": {"vllamad/host/notify.py"},
    "pythonjsonlogger": {"vllamad/host/logs.py"},
    "huggingface_hub": {"vllamad/hub/fetch.py", "vllamad/hub/account.py"},
    "orjson": {"vllamad/dialects/", "vllamad/http/", "vllamad/control/inference.py"},
    "uvloop": {"vllamad/__main__.py", "vllamad/acceptors/__main__.py"},
    "msgspec": {"vllamad/acceptors/messages.py"},
}

CHILD_SCRIPTS = {
    "vllamad/hub/convert_gguf.py",
    "vllamad/engine/guard/",
    "vllamad/engine/lines/",
    "vllamad/engine/self_test/",
    "vllamad/engine/zygote/",
}
"""Run by the engine's interpreter, never imported by the daemon."""


def sources() -> list[Path]:
    found = [*ROOT.glob("vllamad/**/*.py"), *ROOT.glob("vllamactl/**/*.py"), *ROOT.glob("proto/vllama/**/*.py")]
    return [path for path in found if "_pb2" not in path.name]


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    parts = [part for part in relative.parts if part not in {"proto", "__init__"}]
    return ".".join(parts)


def imports(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it the import stands."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names.append(module)
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def floor_of(name: str) -> int | None:
    while name:
        if name in FLOOR:
            return FLOOR[name]
        name = name.rpartition(".")[0]
    return None


def package_of(name: str) -> str:
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    name = module_name(path)
    own = floor_of(name)
    for imported in imports(path):
        other = floor_of(imported)
        if name.startswith("vllamactl"):
            assert not imported.startswith("vllamad"), f"{name} imports {imported}: the client peeks behind the socket"
        elif own is not None and other is not None:
            assert other <= own, f"{name} (floor {own}) imports {imported} (floor {other})"
            if own == other == 2:
                assert package_of(imported) == package_of(name), f"adapters know each other: {name} and {imported}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_package_has_one_door(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    tops = {name.split(".")[0] for name in imports(path)}
    for package, doors in DOORS.items():
        if package in tops:
            assert any(relative.startswith(door) for door in doors), f"{relative} imports {package}"
    if not any(relative.startswith(script) for script in CHILD_SCRIPTS):
        assert not tops & {"vllm", "torch", "transformers", "gguf"}, f"{relative} imports {tops}"


def test_floor_one_is_pure() -> None:
    for path in [*ROOT.glob("vllamad/domain/*.py"), *ROOT.glob("vllamad/dialects/*.py")]:
        allowed = PURE | {"vllama", "vllamad"} | ({"orjson"} if path.parent.name == "dialects" else set())
        tops = {name.split(".")[0] for name in imports(path)}
        assert tops <= allowed, f"{path.relative_to(ROOT)} imports {sorted(tops - allowed)}"


def test_what_bench_reckons_with_is_pure() -> None:
    """Asking, timing and showing are the other modules' part."""
    pure = {"workload", "plan", "answers", "figures", "comparing"}
    own = {f"vllamactl.bench.{name}" for name in pure}
    for path in (ROOT / f"vllamactl/bench/{name}.py" for name in pure):
        names = imports(path)
        tops = {name.split(".")[0] for name in names}
        allowed = PURE | {"vllama", "vllamactl", "random", "statistics"}
        assert tops <= allowed, f"{path.name} imports {sorted(tops - allowed)}"
        inner = {name for name in names if name.startswith("vllamactl.")}
        assert all(any(name.startswith(each) for each in own) for name in inner), f"{path.name} imports {inner}"


def test_every_package_is_in_the_distribution() -> None:
    import tomli

    listed = set(tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        ".".join(part for part in path.parent.relative_to(ROOT).parts if part != "proto")
        for pattern in ("vllamad/**/__init__.py", "vllamactl/**/__init__.py", "proto/vllama/**/__init__.py")
        for path in ROOT.glob(pattern)
    }
    assert listed == there


def test_the_daemon_imports_no_engine_and_no_torch() -> None:
    """And neither does it load what only its children need, or what takes several HTTP processes."""
    code = (
        "import sys, vllamad.__main__, vllamad.app\n"
        "heavy = {'vllm', 'torch', 'transformers', 'huggingface_hub', 'pynvml', 'numpy', 'rich', 'click', 'msgspec'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
