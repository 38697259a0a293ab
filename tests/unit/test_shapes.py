"""What is read from config.json and safetensors headers, on configs as their publishers wrote them (numbers only)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.hub import safetensors, tiny_model
from vllamad.domain.estimate import estimate
from vllamad.domain.footprint import EngineSettings
from vllamad.domain.shape import Layers, Memory, Role, Shape
from vllamad.hub.shapes import read_shape, shape_of
from vllamad.hub.tensors import Tensor

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I32": 4}

LLAMA_31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "vocab_size": 128256, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_06B: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128,
    "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 40960, "vocab_size": 151936,
    "tie_word_embeddings": True, "sliding_window": None, "use_sliding_window": False, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA3_4B: dict[str, Any] = {
    # The whole text part: everything else is transformers' default.
    "model_type": "gemma3", "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "max_position_embeddings": 163840, "vocab_size": 129280, "num_nextn_predict_layers": 1,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": 32768, "vocab_size": 32000, "sliding_window": None, "torch_dtype": "bfloat16",
}  # fmt: skip
GPT_OSS_20B: dict[str, Any] = {
    "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "head_dim": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "sliding_window": 128, "num_local_experts": 32,
    "num_experts_per_tok": 4, "max_position_embeddings": 131072, "vocab_size": 201088,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    "num_experts_per_tok": 10, "moe_intermediate_size": 512, "vocab_size": 151936, "max_position_embeddings": 262144,
}  # fmt: skip
GRANITE4_H: dict[str, Any] = {
    "model_type": "granitemoehybrid", "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 12,
    "num_key_value_heads": 4, "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_d_conv": 4,
    "mamba_n_groups": 1, "mamba_expand": 2, "vocab_size": 100352, "intermediate_size": 512,
    "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
}  # fmt: skip
LFM2: dict[str, Any] = {
    "model_type": "lfm2", "hidden_size": 2048, "conv_dim": 2048, "conv_L_cache": 3, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536,
    "layer_types": ["full_attention" if layer in {2, 5, 8, 10, 12, 14} else "conv" for layer in range(16)],
}  # fmt: skip


def tensor(name: str, *shape: int, dtype: str = "BF16") -> Tensor:
    one = Tensor(name, dtype, shape, 0)
    return Tensor(name, dtype, shape, one.elements * WIDTHS[dtype])


def llama_tensors(config: dict[str, Any], dtype: str = "BF16") -> Iterator[Tensor]:
    """The tensors of a Llama or Qwen3 with such a config."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield tensor("model.embed_tokens.weight", config["vocab_size"], hidden, dtype=dtype)
    if not config.get("tie_word_embeddings"):
        yield tensor("lm_head.weight", config["vocab_size"], hidden, dtype=dtype)
    yield tensor("model.norm.weight", hidden, dtype=dtype)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        yield tensor(f"{layer}self_attn.q_proj.weight", queries, hidden, dtype=dtype)
        yield tensor(f"{layer}self_attn.k_proj.weight", keys, hidden, dtype=dtype)
        yield tensor(f"{layer}self_attn.v_proj.weight", keys, hidden, dtype=dtype)
        yield tensor(f"{layer}self_attn.o_proj.weight", hidden, queries, dtype=dtype)
        for name in ("gate_proj", "up_proj"):
            yield tensor(f"{layer}mlp.{name}.weight", inner, hidden, dtype=dtype)
        yield tensor(f"{layer}mlp.down_proj.weight", hidden, inner, dtype=dtype)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield tensor(f"{layer}{name}.weight", hidden, dtype=dtype)
        if config["model_type"] == "qwen3":
            yield tensor(f"{layer}self_attn.q_norm.weight", size, dtype=dtype)
            yield tensor(f"{layer}self_attn.k_norm.weight", size, dtype=dtype)


def kinds(shape: Shape) -> dict[Memory, int]:
    return {layers.memory: layers.count for layers in shape.layers}


def per_token(config: dict[str, Any], **settings: Any) -> int:
    return estimate(shape_of(config, ()), EngineSettings(**settings)).kv_bytes_per_token


# --- caches ----------------------------------------------------------------------------------------------------------


def test_llama_takes_128_kib_a_token() -> None:
    assert shape_of(LLAMA_31_8B, ()).layers == (Layers(Memory.FULL, 32, 8, 128, 128),)
    assert per_token(LLAMA_31_8B) == 2 * 32 * 8 * 128 * 2 == 128 * 1024
    assert per_token(LLAMA_31_8B, kv_dtype="fp8") == 64 * 1024
    assert per_token(LLAMA_31_8B, dtype="float32") == 256 * 1024


def test_heads_have_their_own_size() -> None:
    assert per_token(QWEN3_06B) == 2 * 28 * 8 * 128 * 2 == 112 * 1024


def test_mixtral_remembers_like_a_small_model() -> None:
    assert per_token(MIXTRAL) == 128 * 1024
    assert shape_of(MIXTRAL, ()).experts_per_token == 2


def test_latent_attention_keeps_one_vector() -> None:
    shape = shape_of(DEEPSEEK_V3, ())
    assert shape.layers == (Layers(Memory.LATENT, 61, key_size=576),)
    assert per_token(DEEPSEEK_V3) == 576 * 2 * 61 == 70_272
    assert estimate(shape, EngineSettings(), 8).kv_bytes_per_token == 70_272, "every device has all of it"
    assert per_token(DEEPSEEK_V3, kv_dtype="fp8") == 656 * 61


def test_an_index_for_sparse_attention_comes_on_top() -> None:
    sparse = DEEPSEEK_V3 | {"model_type": "deepseek_v32", "index_head_dim": 128, "index_n_heads": 64}
    assert per_token(sparse) == (576 * 2 + 128 + 4) * 61


def test_others_with_a_latent_rank_are_run_with_whole_keys() -> None:
    minicpm3 = {
        "model_type": "minicpm3", "hidden_size": 2560, "num_hidden_layers": 62, "num_attention_heads": 40,
        "num_key_value_heads": 40, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
    }  # fmt: skip
    assert per_token(minicpm3) == 2 * 62 * 40 * 96 * 2


def test_gemma_slides_in_five_of_six_layers_and_leaves_most_to_defaults() -> None:
    shape = shape_of(GEMMA3_4B, ())
    assert shape.layers == (Layers(Memory.SLIDING, 29, 4, 256, 256, 1024), Layers(Memory.FULL, 5, 4, 256, 256))
    assert (shape.heads, shape.vocabulary_size, shape.has_tower, shape.notes) == (8, 262208, True, ())
    footprint = estimate(shape, EngineSettings(max_num_batched_tokens=8192))
    assert footprint.kv_bytes_per_token == 5 * 2 * 4 * 256 * 2
    (window,) = footprint.windows
    # 29 layers in groups of 5, as the others have, make 30; two batches may be in flight.
    assert window.token_bytes == 30 * 2 * 4 * 256 * 2
    assert window.tokens == -(-(1023 + 2 * 8192) // 16) * 16 + 16


def test_gemma2_alternates() -> None:
    config = {"model_type": "gemma2", "hidden_size": 2304, "num_hidden_layers": 26, "sliding_window": 4096}
    assert kinds(shape_of(config, ())) == {Memory.SLIDING: 13, Memory.FULL: 13}


def test_gpt_oss_alternates_too() -> None:
    shape = shape_of(GPT_OSS_20B, ())
    assert shape.layers == (Layers(Memory.SLIDING, 12, 8, 64, 64, 128), Layers(Memory.FULL, 12, 8, 64, 64))
    assert per_token(GPT_OSS_20B) == 12 * 2 * 8 * 64 * 2 == 24 * 1024
    unlisted = {name: value for name, value in GPT_OSS_20B.items() if name != "layer_types"}
    assert shape_of(unlisted, ()).layers == shape.layers


def test_one_window_for_all_layers() -> None:
    zephyr = MIXTRAL | {"model_type": "mistral", "sliding_window": 4096}
    assert kinds(shape_of(zephyr, ())) == {Memory.SLIDING: 32}
    assert kinds(shape_of(zephyr | {"use_sliding_window": False}, ())) == {Memory.FULL: 32}
    phi = LLAMA_31_8B | {"model_type": "phi3", "sliding_window": 262144}
    assert kinds(shape_of(phi, ())) == {Memory.FULL: 32}, "a window as long as the context is none"


def test_chunks_of_llama4_are_kept_whole() -> None:
    text = LLAMA_31_8B | {"model_type": "llama4_text", "num_hidden_layers": 48, "head_dim": 128}
    text["layer_types"] = (["chunked_attention"] * 3 + ["full_attention"]) * 12
    assert kinds(shape_of({"model_type": "llama4", "text_config": text}, ())) == {Memory.FULL: 48}


def test_layers_that_share_their_keys_have_none() -> None:
    config = {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text", "num_hidden_layers": 35}}
    # Of 35 layers the last 15 look at earlier ones; every fifth of the first 20 sees everything.
    assert kinds(shape_of(config, ())) == {Memory.SLIDING: 16, Memory.FULL: 4}


def test_linear_attention_has_a_state() -> None:
    shape = shape_of(QWEN3_NEXT, ())
    conv, state = (2 * 16 * 128 + 32 * 128) * 3, 32 * 128 * 128
    assert shape.layers == (
        Layers(Memory.STATE, 36, conv_size=conv, state_size=state),
        Layers(Memory.FULL, 12, 2, 256, 256),
    )
    footprint = estimate(shape, EngineSettings())
    assert footprint.kv_bytes_per_token == 12 * 2 * 2 * 256 * 2
    assert footprint.sequence_bytes >= 2 * 36 * (conv * 2 + state * 4)
    # A block of keys is as large as a state.
    assert footprint.block_tokens * 2 * 2 * 256 * 2 >= conv * 2 + state * 4


def test_mamba_has_one_as_well() -> None:
    shape = shape_of(GRANITE4_H, ())
    inner = 48 * 64
    assert shape.layers == (
        Layers(Memory.STATE, 36, conv_size=(inner + 2 * 128) * 3, state_size=inner * 128),
        Layers(Memory.FULL, 4, 4, 128, 128),
    )


def test_short_convolutions_keep_two_tokens() -> None:
    (conv, full) = shape_of(LFM2, ()).layers
    assert (conv.memory, conv.count, conv.conv_size, conv.state_size) == (Memory.STATE, 10, 2048 * 2, 0)
    assert (full.memory, full.count, full.heads, full.key_size) == (Memory.FULL, 6, 8, 64)


def test_nemotron_writes_its_layers_as_letters() -> None:
    config = {
        "model_type": "nemotron_h", "hidden_size": 2688, "num_hidden_layers": 8, "num_attention_heads": 32,
        "num_key_value_heads": 2, "head_dim": 128, "hybrid_override_pattern": "MEM*-EME", "mamba_num_heads": 64,
        "mamba_head_dim": 64, "ssm_state_size": 128, "conv_kernel": 4, "n_groups": 8,
    }  # fmt: skip
    assert kinds(shape_of(config, ())) == {Memory.STATE: 3, Memory.FULL: 1}


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert", "nomic_bert"])
def test_encoders_remember_nothing(family: str) -> None:
    config = {"model_type": family, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    assert shape_of(config, ()).layers == ()
    assert estimate(shape_of(config, ()), EngineSettings()).tokens_in(1 << 40) is None


def test_a_gemma_that_looks_both_ways_is_an_encoder() -> None:
    config = {"model_type": "gemma3_text", "num_hidden_layers": 24, "use_bidirectional_attention": True}
    assert shape_of(config, ()).layers == ()


def test_a_strange_family_is_counted_high_and_says_so() -> None:
    known = shape_of(GPT_OSS_20B, ())
    strange = shape_of(GPT_OSS_20B | {"model_type": "gpt_next"}, ())
    assert strange.layers == (Layers(Memory.FULL, 24, 8, 64, 64),)
    assert strange.notes == ("'gpt_next' is no family that is known here: counted as if every layer kept every token",)
    settings = EngineSettings()
    for tokens in (1, 100, 10_000, 1_000_000):
        assert estimate(strange, settings).cache_bytes(tokens) >= estimate(known, settings).cache_bytes(tokens)


def test_a_strange_kind_of_layer_is_counted_high_and_says_so() -> None:
    shape = shape_of(GPT_OSS_20B | {"layer_types": ["full_attention", "dreaming"] * 12}, ())
    assert kinds(shape) == {Memory.FULL: 24}
    assert shape.notes == ("layers of kind dreaming are counted as if they kept every token",)


def test_a_model_that_says_nothing() -> None:
    shape = shape_of({}, ())
    assert shape.layers == ()
    assert len(shape.notes) == 2
    assert not shape.splits_over(2)


def test_headers_correct_the_config() -> None:
    # A pruned model: its second layer has fewer heads than its config says.
    rows = {0: 1024, 1: 256}
    tensors = [
        tensor(f"model.layers.{index}.self_attn.{name}_proj.weight", width, 4096)
        for index, width in rows.items()
        for name in ("k", "v")
    ]
    shape = shape_of(LLAMA_31_8B | {"num_hidden_layers": 2}, tensors)
    assert shape.layers == (Layers(Memory.FULL, 1, 8, 128, 128), Layers(Memory.FULL, 1, 8, 32, 32))


def test_headers_stand_in_for_a_config() -> None:
    config = {name: value for name, value in LLAMA_31_8B.items() if name not in {"num_hidden_layers", "hidden_size"}}
    shape = shape_of(config, list(llama_tensors(LLAMA_31_8B)))
    assert (shape.layer_count, shape.hidden_size) == (32, 4096)
    assert shape.layers == (Layers(Memory.FULL, 32, 8, 128, 128),)


# --- weights ---------------------------------------------------------------------------------------------------------


def stored(config: dict[str, Any], tensors: list[Tensor], **settings: Any) -> int:
    return estimate(shape_of(config, tensors), EngineSettings(**settings)).weights_bytes


@pytest.mark.parametrize(
    ("config", "parameters"), [(LLAMA_31_8B, 8_030_261_248), (QWEN3_06B, 596_049_920)], ids=["llama", "qwen3"]
)
def test_weights_are_what_the_headers_add_up_to(config: dict[str, Any], parameters: int) -> None:
    tensors = list(llama_tensors(config))
    assert sum(each.elements for each in tensors) == parameters
    weights = stored(config, tensors)
    assert 2 * parameters <= weights <= 2 * parameters * 1.02
    assert 4 * parameters <= stored(config, tensors, dtype="float32") <= 4 * parameters * 1.02


def test_float32_on_disk_is_16_bits_in_memory() -> None:
    config = LLAMA_31_8B | {"torch_dtype": "float32"}
    assert stored(config, list(llama_tensors(config, "F32"))) == stored(LLAMA_31_8B, list(llama_tensors(LLAMA_31_8B)))


def test_quantising_at_load_leaves_embeddings_alone() -> None:
    tensors = list(llama_tensors(LLAMA_31_8B))
    vocabulary = 2 * 128256 * 4096
    linear = 8_030_261_248 - vocabulary
    weights = stored(LLAMA_31_8B, tensors, quantize="fp8")
    assert linear + 2 * vocabulary <= weights <= (linear + 2 * vocabulary) * 1.02


def test_a_tied_head_costs_nothing_but_where_it_is_packed() -> None:
    tensors = list(llama_tensors(QWEN3_06B))
    stray = [*tensors, tensor("lm_head.weight", 151936, 1024)]
    assert stored(QWEN3_06B, tensors) == stored(QWEN3_06B, stray)
    embedding = 151936 * 1024 * 4
    plain = stored(QWEN3_06B, tensors, device="cpu", dtype="float32")
    assert plain >= 4 * 596_049_920 + 2 * embedding
    assert stored(QWEN3_06B, tensors, device="cpu", has_bfloat16=False) < 2 * 596_049_920 * 1.03


def test_quantised_weights_stay_as_they_are_and_are_never_cast() -> None:
    tensors = [
        tensor("model.layers.0.mlp.up_proj.qweight", 4096, 1792, dtype="I32"),
        tensor("model.layers.0.mlp.up_proj.qzeros", 32, 1792, dtype="I32"),
        tensor("model.layers.0.mlp.up_proj.scales", 32, 14336, dtype="F16"),
        tensor("model.layers.0.mlp.down_proj.weight", 4096, 14336, dtype="F8_E4M3"),
        tensor("model.layers.0.mlp.down_proj.weight_scale_inv", 32, 112, dtype="F32"),
    ]
    total = sum(each.size_bytes for each in tensors)
    for dtype in ("auto", "float32"):
        assert total <= stored(LLAMA_31_8B, tensors, dtype=dtype) <= total * 1.02


def test_layers_that_predict_further_tokens_are_not_loaded() -> None:
    used = tensor("model.layers.60.mlp.experts.0.up_proj.weight", 2048, 7168, dtype="F8_E4M3")
    extra = tensor("model.layers.61.mlp.experts.0.up_proj.weight", 2048, 7168, dtype="F8_E4M3")
    assert stored(DEEPSEEK_V3, [used, extra]) == stored(DEEPSEEK_V3, [used])
    mtp = tensor("mtp.layers.0.mlp.experts.0.up_proj.weight", 512, 2048)
    assert stored(QWEN3_NEXT, [mtp]) == 0


def test_mxfp4_experts_are_padded() -> None:
    blocks = tensor("model.layers.0.mlp.experts.gate_up_proj_blocks", 32, 5760, 90, 16, dtype="U8")
    expected = blocks.size_bytes * 3072 * 3072 / 2880 / 2880
    assert expected * 0.999 <= stored(GPT_OSS_20B, [blocks]) <= expected * 1.02


def test_what_is_not_divided_is_on_every_device() -> None:
    tower = tensor("vision_tower.blocks.0.mlp.fc1.weight", 4304, 1152)
    norm = tensor("language_model.model.norm.weight", 2560)
    router = tensor("model.layers.0.mlp.gate.weight", 256, 7168)
    latent = tensor("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", 576, 7168)
    for one in (tower, norm, router, latent):
        (weights,) = shape_of(DEEPSEEK_V3, [one]).weights
        assert weights.role is Role.WHOLE, one.name
        shape = shape_of(DEEPSEEK_V3, [one])
        assert estimate(shape, EngineSettings(), 8).weights_bytes >= one.size_bytes


def test_key_projections_are_copied_where_heads_are_few() -> None:
    config = LLAMA_31_8B | {"num_key_value_heads": 2, "num_hidden_layers": 1}
    keys = tensor("model.layers.0.self_attn.k_proj.weight", 256, 4096)
    shape = shape_of(config, [keys])
    assert estimate(shape, EngineSettings(), 8).weights_bytes >= keys.size_bytes // 2


# --- folders ---------------------------------------------------------------------------------------------------------


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_is_read(tmp_path: Path) -> None:
    shape = read_shape(_write(tmp_path, tiny_model()))
    assert (shape.family, shape.hidden_size, shape.heads, shape.context_length) == ("llama", 64, 4, 2048)
    assert shape.layers == (Layers(Memory.FULL, 1, 2, 16, 16),)
    (weights,) = shape.weights
    assert (weights.role, weights.elements, weights.kept_bytes) == (Role.VOCABULARY, 64 * 64, 0)


def test_several_files_are_added_up(tmp_path: Path) -> None:
    files = tiny_model() | {
        "model-00002-of-00002.safetensors": safetensors({"model.layers.0.mlp.up_proj.weight": ("BF16", [128, 64], 2)})
    }
    shape = read_shape(_write(tmp_path, files))
    assert {each.role: each.elements for each in shape.weights} == {Role.VOCABULARY: 4096, Role.MATRIX: 128 * 64}
    assert shape.edge_sum == 128 + 64


def test_other_formats_count_by_their_size(tmp_path: Path) -> None:
    files = {name: data for name, data in tiny_model().items() if name != "model.safetensors"}
    shape = read_shape(_write(tmp_path, files | {"pytorch_model.bin": bytes(1000)}))
    assert [each.kept_bytes for each in shape.weights] == [1000]
    assert "no safetensors" in shape.notes[0]


def test_a_broken_config_leaves_what_the_headers_say(tmp_path: Path) -> None:
    shape = read_shape(_write(tmp_path, tiny_model() | {"config.json": b"{"}))
    assert shape.weights[0].elements == 64 * 64
    assert shape.notes


def test_numbers_that_are_none_do_not_hurt(tmp_path: Path) -> None:
    config = dict.fromkeys(LLAMA_31_8B, None) | {"num_hidden_layers": "many", "hidden_size": True, "text_config": 5}
    shape = read_shape(_write(tmp_path, tiny_model() | {"config.json": json.dumps(config).encode()}))
    assert shape.hidden_size == 64
