"""A model of a few megabytes that the real engine loads: random weights behind a real tokenizer. Its answers mean
nothing, and are the same every time."""

import json
import random
import shutil
from pathlib import Path

HIDDEN, HEADS, LAYERS, INNER = 64, 2, 2, 128

EMBEDDING, MATRIX = 0x3F, 0x3E
"""High bytes of bfloat16 numbers between 1/2 and 2, and between 1/8 and 1/2. A sign and a mantissa are drawn. Answers
at temperature 0 are then far from a tie, and no token only repeats itself."""


def make_tiny_model(folder: Path, like: Path) -> Path:
    """Write a Llama of two layers with the tokenizer and the chat template of the model in ``like``."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(like / name, folder / name)
    theirs = json.loads((like / "config.json").read_text())
    vocabulary = theirs["vocab_size"]
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "bos_token_id": theirs["bos_token_id"],
        "eos_token_id": theirs["eos_token_id"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write(folder / "model.safetensors", _tensors(vocabulary))
    return folder


def _tensors(vocabulary: int) -> dict[str, tuple[list[int], bytes]]:
    chance = random.Random(11)
    found = {"model.embed_tokens.weight": _drawn([vocabulary, HIDDEN], EMBEDDING, chance)}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"{place}.self_attn.{name}.weight"] = _drawn([HIDDEN, HIDDEN], MATRIX, chance)
        for name, shape in (("gate", [INNER, HIDDEN]), ("up", [INNER, HIDDEN]), ("down", [HIDDEN, INNER])):
            found[f"{place}.mlp.{name}_proj.weight"] = _drawn(shape, MATRIX, chance)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{place}.{name}.weight"] = _ones()
    return found | {"model.norm.weight": _ones()}


def _drawn(shape: list[int], high: int, chance: random.Random) -> tuple[list[int], bytes]:
    count = shape[0] * shape[1]
    data = bytearray(2 * count)
    data[0::2] = chance.randbytes(count)
    data[1::2] = chance.randbytes(count).translate(bytes(high | (byte & 0x80) for byte in range(256)))
    return shape, bytes(data)


def _ones() -> tuple[list[int], bytes]:
    return [HIDDEN], b"\x80\x3f" * HIDDEN


def _write(file: Path, tensors: dict[str, tuple[list[int], bytes]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        stream.writelines(data for _shape, data in tensors.values())
