"""What is read from a model's own files, and which of them are chosen at all."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.hub import CHAT_TEMPLATE, safetensors, tiny_model
from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability
from vllamad.domain.ports import HubSource
from vllamad.hub.inspect import inspect_model
from vllamad.hub.selection import choose_files, is_safe_path

TOOLS = "{% if tools %}<tool_call>{{ tools }}</tool_call>{% endif %}"


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def _model(folder: Path, config: dict[str, Any] | None = None, **files: bytes) -> Path:
    every = tiny_model()
    if config is not None:
        every["config.json"] = json.dumps(config).encode()
    renamed = {name.replace("__", "."): data for name, data in files.items()}
    return _write(folder, every | renamed)


def test_a_plain_model(tmp_path: Path) -> None:
    seen = inspect_model(_model(tmp_path))
    details = seen.details
    assert (details.format, details.family, details.quantization_level) == ("safetensors", "llama", "BF16")
    assert details.parameter_count == 64 * 64
    assert (details.context_length, details.embedding_length, details.block_count) == (2048, 64, 1)
    assert (details.feed_forward_length, details.head_count, details.head_count_kv) == (128, 4, 2)
    assert seen.capabilities == (Capability.COMPLETION,)
    assert seen.template == CHAT_TEMPLATE
    assert seen.license.startswith("Apache License")


def test_the_text_part_of_a_multimodal_model_counts(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "max_position_embeddings": 131072},
        "vision_config": {"hidden_size": 1152},
        "hidden_size": 7,
    }
    seen = inspect_model(_model(tmp_path, config))
    assert (seen.details.family, seen.details.embedding_length, seen.details.context_length) == ("gemma3", 2560, 131072)
    assert seen.capabilities == (Capability.COMPLETION, Capability.VISION)


def test_tools_need_a_parser_and_a_template_that_shows_them(tmp_path: Path) -> None:
    hints = HubSource("a/b", tool_parser="hermes", capabilities=("completion", "tools"))
    plain = inspect_model(_model(tmp_path / "plain"), hints=hints)
    assert (plain.tool_parser, plain.capabilities) == ("", (Capability.COMPLETION,))
    able = inspect_model(_model(tmp_path / "able", chat_template__jinja=TOOLS.encode()), hints=hints)
    assert (able.tool_parser, able.capabilities) == ("hermes", (Capability.COMPLETION, Capability.TOOLS))


def test_the_table_comes_before_the_rules(tmp_path: Path) -> None:
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    template = (TOOLS + "<think>").encode()
    folder = _model(tmp_path, config, chat_template__jinja=template, tokenizer__json=_tokenizer(*FIM))
    guessed = inspect_model(folder)
    assert (guessed.tool_parser, guessed.reasoning_parser) == ("hermes", "qwen3")
    assert Capability.THINKING in guessed.capabilities
    assert Capability.INSERT in guessed.capabilities
    told = inspect_model(folder, hints=HubSource("a/b", tool_parser="hermes", capabilities=("completion", "insert")))
    assert told.reasoning_parser == ""
    assert told.capabilities == (Capability.COMPLETION, Capability.TOOLS, Capability.INSERT)
    # The marks are in its tokenizer, and the table knows that it was not trained for them.
    told = inspect_model(folder, hints=HubSource("a/b", capabilities=("completion",)))
    assert (told.capabilities, told.insert_format) == ((Capability.COMPLETION,), "")


FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def _tokenizer(*tokens: str, vocabulary: Sequence[str] = ()) -> bytes:
    added = [{"id": number, "content": token} for number, token in enumerate(tokens)]
    return json.dumps({"added_tokens": added, "model": {"vocab": dict.fromkeys(vocabulary, 0)}}).encode()


@pytest.mark.parametrize(
    ("tokenizer", "form"),
    [
        (_tokenizer(*FIM), "<|fim_prefix|>{prompt}<|fim_suffix|>{suffix}<|fim_middle|>"),
        (
            _tokenizer("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
            "<fim_prefix>{prompt}<fim_suffix>{suffix}<fim_middle>",
        ),
        (
            _tokenizer("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
            "<｜fim▁begin｜>{prompt}<｜fim▁hole｜>{suffix}<｜fim▁end｜>",
        ),
        (_tokenizer("[PREFIX]", "[SUFFIX]"), "[SUFFIX]{suffix}[PREFIX]{prompt}"),
        (_tokenizer(vocabulary=["▁<PRE>", "▁<SUF>", "▁<MID>"]), "<PRE> {prompt} <SUF>{suffix} <MID>"),
        (_tokenizer("<|fim_prefix|>", "<|fim_suffix|>"), ""),
        (b"{broken", ""),
    ],
)
def test_filling_in_the_middle_is_known_by_the_tokenizers_marks(tmp_path: Path, tokenizer: bytes, form: str) -> None:
    seen = inspect_model(_model(tmp_path, {"model_type": "llama"}, tokenizer__json=tokenizer))
    assert seen.insert_format == form
    assert (Capability.INSERT in seen.capabilities) == bool(form)


@pytest.mark.parametrize(
    ("config", "files", "name"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, {}, ""),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, {}, "Qwen/Qwen3-Embedding-0.6B"),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, {"modules__json": b"[]"}, ""),
    ],
)
def test_embedding_models(tmp_path: Path, config: dict[str, Any], files: dict[str, bytes], name: str) -> None:
    seen = inspect_model(_model(tmp_path, config, chat_template__jinja=TOOLS.encode(), **files), name=name)
    assert seen.capabilities == (Capability.EMBEDDING,)
    assert (seen.tool_parser, seen.reasoning_parser) == ("", "")


def test_the_length_that_sentence_transformers_sets_counts(tmp_path: Path) -> None:
    config = {"model_type": "bert", "max_position_embeddings": 512}
    folder = _model(tmp_path, config, sentence_bert_config__json=b'{"max_seq_length": 256}')
    assert inspect_model(folder).details.context_length == 256


def test_what_only_classifies_or_listens_completes_nothing(tmp_path: Path) -> None:
    ranker = {"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"]}
    whisper = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
    assert inspect_model(_model(tmp_path / "a", ranker)).capabilities == ()
    assert inspect_model(_model(tmp_path / "b", whisper)).capabilities == ()


@pytest.mark.parametrize(
    ("quantization", "tensors", "level", "parameters"),
    [
        ({"quant_method": "fp8"}, {"a.weight": ("F8_E4M3", [8, 8], 1), "a.weight_scale": ("F32", [1], 4)}, "FP8", 64),
        (
            {"quant_method": "awq", "bits": 4},
            {"a.qweight": ("I32", [8, 1], 4), "a.qzeros": ("I32", [1, 1], 4), "a.scales": ("F16", [1, 8], 2)},
            "AWQ",
            64,
        ),
        (
            {"quant_method": "gptq", "bits": 8},
            {"a.qweight": ("I32", [2, 8], 4), "a.g_idx": ("I32", [8], 4)},
            "GPTQ",
            64,
        ),
        ({"quant_method": "mxfp4"}, {"a_blocks": ("U8", [2, 16], 1), "a_scales": ("U8", [2], 1)}, "MXFP4", 64),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            {"a.weight": ("F8_E4M3", [8, 8], 1), "a.weight_scale": ("BF16", [8], 2)},
            "FP8",
            64,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            {"a.weight_packed": ("I32", [8, 1], 4), "a.weight_shape": ("I64", [2], 8)},
            "INT4",
            64,
        ),
        (None, {"a": ("F32", [8, 8], 4)}, "F32", 64),
        (None, {"a": ("F16", [8, 8], 2), "b": ("F32", [4], 4)}, "F16", 68),
    ],
)
def test_quantisation_and_parameters(
    tmp_path: Path,
    quantization: dict[str, Any] | None,
    tensors: dict[str, tuple[str, list[int], int]],
    level: str,
    parameters: int,
) -> None:
    config: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    if quantization:
        config["quantization_config"] = quantization
    details = inspect_model(_model(tmp_path, config, model__safetensors=safetensors(tensors))).details
    assert (details.quantization_level, details.parameter_count) == (level, parameters)


def test_shards_are_summed(tmp_path: Path) -> None:
    folder = _model(tmp_path)
    (folder / "model.safetensors").unlink()
    for number in (1, 2):
        data = safetensors({f"w{number}": ("BF16", [10, 10], 2)})
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(data)
    assert inspect_model(folder).details.parameter_count == 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 4) + b"nope",
        safetensors({"a": ("F32", [9], 4)})[:-1],
    ],
    ids=["empty", "short", "huge header", "no json", "cut off"],
)
def test_weights_that_are_damaged_are_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(VllamaError) as caught:
        inspect_model(_model(tmp_path, model__safetensors=data))
    assert caught.value.reason is Reason.UNSUPPORTED
    assert "model.safetensors" in caught.value.message


def test_broken_companions_are_no_obstacle(tmp_path: Path) -> None:
    seen = inspect_model(_model(tmp_path, tokenizer_config__json=b"{", config__json=b"[1]"))
    assert (seen.template, seen.details.family) == ("", "")


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "README.md", "onnx/model.onnx"],
            ["config.json", "model.safetensors"],
        ),
        (
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "consolidated.safetensors",
                "original/consolidated.00.pth",
                "params.json",
                "tekken.json",
            ],
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "params.json",
                "tekken.json",
            ],
        ),
        (["config.json", "model.fp16.safetensors", "model.safetensors"], ["config.json", "model.safetensors"]),
        (["params.json", "consolidated.safetensors"], ["consolidated.safetensors", "params.json"]),
        (["config.json", "pytorch_model.bin", "x.gguf", "a.py"], ["a.py", "config.json", "pytorch_model.bin"]),
        (
            ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "2_Dense/pytorch_model.bin"],
            ["1_Pooling/config.json", "2_Dense/pytorch_model.bin", "config.json", "model.safetensors", "modules.json"],
        ),
        (
            ["config.json", "model.safetensors", "2_Dense/pytorch_model.bin", "2_Dense/model.safetensors"],
            ["2_Dense/model.safetensors", "config.json", "model.safetensors"],
        ),
        (["config.json", "model.safetensors", "../config.json", "/etc/passwd"], ["config.json", "model.safetensors"]),
    ],
)
def test_each_weight_is_chosen_once(there: list[str], chosen: list[str]) -> None:
    assert choose_files(there, "it") == chosen
    assert choose_files(chosen, "it") == chosen


@pytest.mark.parametrize(
    ("there", "why"),
    [
        (["config.json", "model-Q4_K_M.gguf"], "only GGUF"),
        (["README.md"], "no safetensors"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["model_index.json", "unet/model.safetensors"], "subfolders"),
        (["model.safetensors"], "no config.json"),
    ],
)
def test_what_cannot_be_loaded_is_said_so(there: list[str], why: str) -> None:
    with pytest.raises(VllamaError) as caught:
        choose_files(there, "org/repo")
    assert caught.value.reason is Reason.UNSUPPORTED
    assert why in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a\\b", "a\nb", "..", "a\0"])
def test_paths_that_would_leave_the_folder(path: str) -> None:
    assert not is_safe_path(path)
