"""What can be wrong with a conversion before and around the engine's libraries; a script of ours stands in for them."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import SourceKind
from vllamad.domain.operation import Progress
from vllamad.domain.ports import StagedModel
from vllamad.hub.convert import GgufConverter
from vllamad.process.child import PosixLauncher

_HEAD = "import json, os, sys\nrequest = json.load(sys.stdin)\n"
GOOD = _HEAD + (
    "assert os.environ['HF_HUB_OFFLINE'] == '1' and 'https_proxy' not in os.environ\n"
    "print('a library that prints')\n"
    "print(json.dumps({'type': 'phase', 'phase': 'converting', 'fraction': 0.5, 'detail': 'llama'}))\n"
    "open(request['folder'] + '/config.json', 'w').write('{}')\n"
    "print(json.dumps({'type': 'done'}))\n"
)


def _convert(tmp_path: Path, script: str, file: Path | None = None, python: str = sys.executable) -> StagedModel:
    (tmp_path / "script.py").write_text(script)
    if file is None:
        file = tmp_path / "x.gguf"
        file.write_bytes(b"GGUF and more")
    seen: list[Progress] = []
    environ = {**os.environ, "https_proxy": "http://nowhere"}
    converter = GgufConverter(PosixLauncher(str(tmp_path)), python, environ, script=tmp_path / "script.py")
    staging = tmp_path / "staging"
    staging.mkdir(exist_ok=True)
    (staging / "files").mkdir(exist_ok=True)
    (staging / "files" / "left-over").write_text("of an interrupted one")
    staged = asyncio.run(converter.convert_gguf(file, staging, seen.append))
    assert seen[-1] == Progress(phase="converting", detail="llama", fraction=0.5)
    return staged


def test_a_conversion_starts_afresh_and_is_staged(tmp_path: Path) -> None:
    staged = _convert(tmp_path, GOOD)
    assert staged.source.kind is SourceKind.GGUF
    assert [path.name for path in staged.folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("what", ["missing", "a folder", "another format", "empty"])
def test_what_is_no_gguf_file_is_refused_without_a_child(tmp_path: Path, what: str) -> None:
    file = tmp_path / "x.gguf"
    if what == "a folder":
        file.mkdir()
    elif what != "missing":
        file.write_bytes(b"PK\x03\x04 a zip" if what == "another format" else b"")
    with pytest.raises(VllamaError) as caught:
        _convert(tmp_path, GOOD, file, python="/nowhere/python")
    assert caught.value.reason is Reason.INVALID_REQUEST
    if what in {"another format", "empty"}:
        assert "supplied file was not in GGUF format" in caught.value.message


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(VllamaError) as caught:
        _convert(tmp_path, GOOD, python="/nowhere/python")
    assert caught.value.reason is Reason.ENGINE_START_FAILED
    assert "/nowhere/python" in caught.value.message
    assert "engine.python" in (caught.value.hint or "")


def test_what_the_script_says_is_told(tmp_path: Path) -> None:
    line = "{'type': 'error', 'reason': 'STORAGE_FULL', 'message': 'cannot', 'hint': 'free', 'facts': {'n': 1}}"
    with pytest.raises(VllamaError) as caught:
        _convert(tmp_path, _HEAD + f"print(json.dumps({line}))\nsys.exit(1)\n")
    error = caught.value
    assert (error.reason, error.message, error.hint, error.facts) == (Reason.STORAGE_FULL, "cannot", "free", {"n": 1})


def test_the_real_script_says_what_this_interpreter_lacks(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "vllamad" / "hub" / "convert_gguf.py"
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF and more")
    converter = GgufConverter(PosixLauncher(str(tmp_path)), sys.executable, os.environ, script=script)
    with pytest.raises(VllamaError) as caught:
        asyncio.run(converter.convert_gguf(file, tmp_path, lambda _progress: None))
    assert caught.value.reason is Reason.UNSUPPORTED
    assert "lacks torch" in caught.value.message
