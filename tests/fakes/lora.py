"""A LoRA adapter made by hand: no training, weights that turn an answer into another one."""

import json
import random
import struct
from pathlib import Path


def make_adapter(folder: Path, *, hidden: int, layers: int, rank: int = 4, strength: float = 0.1) -> Path:
    """Write an adapter for the output projections of a Llama's attention, as PEFT saves one. The same every time."""
    chance = random.Random(7)
    tensors: dict[str, tuple[list[int], bytes]] = {}
    for layer in range(layers):
        place = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        for name, shape in (("lora_A", [rank, hidden]), ("lora_B", [hidden, rank])):
            count = shape[0] * shape[1]
            numbers = [chance.gauss(0, strength) for _ in range(count)]
            tensors[f"{place}.{name}.weight"] = (shape, struct.pack(f"<{count}f", *numbers))
    header: dict[str, object] = {}
    end = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    folder.mkdir(parents=True)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head + b"".join(data for _, data in tensors.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["o_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
