"""What is generated and committed is fresh, and true."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts.package import recipes
from scripts.package.files import FILES
from vllama.reasons import Reason
from vllamad.config.load import load
from vllamad.config.model_rows import MODEL_ROWS
from vllamad.config.settings import FILE_ROWS, ROWS, Settings
from vllamad.domain.worker import State

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    return script("gen_docs")


def test_pages_are_what_the_tables_say(docs: ModuleType) -> None:
    assert docs.stale() == [], "run: python scripts/gen_docs.py"


def test_recipes_of_packages_are_what_the_list_says() -> None:
    assert recipes.stale() == [], "run: python -m scripts.package.recipes"
    spec, container = recipes.spec(), recipes.containerfile()
    for file in FILES:
        place = file.place(is_rpm=True)
        assert not place or re.search(rf"^(%\S+(, \S+)* )?{re.escape(place)}$", spec, re.MULTILINE), place
    assert "COPY --from=build /stage/ /\n" in container, "all of the list, whatever is on it"


def test_pages_leave_nothing_out(docs: ModuleType) -> None:
    settings = docs.settings_page()
    for row in ROWS.values():
        assert f"### `{row.key}`" in settings
        assert row.help in settings
        assert all(f"`{name}`" in settings for name in (*row.env, row.ollama, row.flag) if name), row.key
    errors = docs.errors_page()
    assert all(errors.count(f"| `{reason}` |") == 2 for reason in Reason)
    states = docs.states_page()
    assert all(f"| `{state}` |" in states for state in State)


def test_the_check_tells_a_stale_page(docs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = docs.ROOT
    docs.ROOT = tmp_path
    try:
        assert docs.main(["--check"]) == 1
        assert "docs/reference/errors.md is stale: run python scripts/gen_docs.py" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
        assert docs.main([]) == 0
        assert docs.main(["--check"]) == 0
    finally:
        docs.ROOT = here


def test_conditions_name_the_features_that_decide(docs: ModuleType) -> None:
    lines = docs.states_page().splitlines()
    assert "| `SUSPENDING` | SuspendDone | goal RUN | `RESUMING` | wake the engine |" in lines
    assert "| `STOPPED` | Start | - | `STARTING` | reserve, spawn |" in lines
    assert "| `FAILED` | Stop | memory leaked | `KILLING` | kill tree |" in lines


def test_the_default_file_says_the_defaults_both_as_it_is_and_uncommented(tmp_path: Path) -> None:
    text = (ROOT / "packaging/config.toml").read_text()
    uncommented = re.sub(r"^#(?=[\[a-z])", "", text, flags=re.MULTILINE)
    file = tmp_path / "config.toml"
    for content in (text, uncommented):
        file.write_text(content)
        found = load({"config": str(file)}, {"HOME": "/"}, is_system_service=True)
        for key in FILE_ROWS:
            assert found.values[key].value == ROWS[key].default, key
        if content is text:
            assert found.settings.model == Settings().model
        else:
            assert {setting.source for key, setting in found.values.items() if key in FILE_ROWS} != {"default"}
            assert len(found.values) == len(ROWS) + len(MODEL_ROWS) - 1


def test_committed_stubs_are_what_the_generator_makes(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="the generator is for developers")
    subprocess.run([sys.executable, str(ROOT / "scripts/gen_proto.py"), str(tmp_path)], check=True, timeout=60)
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*_pb2*")}
    stubs = [path for path in (ROOT / "proto").rglob("*_pb2*") if path.suffix in {".py", ".pyi"}]
    committed = {path.relative_to(ROOT / "proto") for path in stubs}
    assert set(made) == committed
    for name, path in made.items():
        assert path.read_text() == (ROOT / "proto" / name).read_text(), f"{name}: run python scripts/gen_proto.py"
