"""Families of models, by how their layers remember (floor 2): names are the ``model_type`` of a config.json, or of the
text part in it. Where a config leaves something out, transformers has a default, and the ones that matter are here."""

from collections.abc import Mapping
from typing import Any

ENCODERS = frozenset(
    {
        "albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "new", "nomic_bert", "roberta",
        "xlm-roberta",
    }
)  # fmt: skip
"""They look at all of a text at once and remember nothing."""

LATENT = frozenset(
    {
        "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_vl_v2", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2",
    }
)  # fmt: skip
"""Where vLLM keeps latent vectors (``is_deepseek_mla``), if ``kv_lora_rank`` is set. Others that have that number
(minicpm3) are run with whole keys and values."""

PLAIN = frozenset(
    {
        "aya_vision", "cohere", "exaone", "falcon", "gemma", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode",
        "gpt_neox", "granite", "granitemoe", "internlm2", "llama", "llama4_text", "minicpm", "minicpmv", "ministral3",
        "mistral", "mixtral", "moondream1", "nemotron", "olmo", "olmo2", "olmoe", "opt", "phi", "phi3", "phi4mm",
        "phimoe", "qwen2", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen3",
        "qwen3_moe", "qwen3_vl_moe_text", "qwen3_vl_text", "seed_oss", "smollm3", "solar", "stablelm", "starcoder2",
    }
)  # fmt: skip
"""Every layer remembers in the same way: every token, or all within one window. Llama 4's chunks count as every token:
vLLM keeps them all unless it is told otherwise (``VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE``)."""

PATTERNS: Mapping[str, int] = {
    "gemma2": 2, "gemma3_text": 6, "gemma3n_text": 5, "gemma4_text": 6, "cohere2": 4, "olmo3": 4, "exaone4": 4,
    "gpt_oss": 2,
}  # fmt: skip
"""Every n-th layer looks at everything, the others slide; for configs that do not list their layers. The defaults of
transformers 5.19."""

HYBRIDS = frozenset(
    {
        "bamba", "falcon_h1", "granitemoehybrid", "lfm2", "lfm2_moe", "nemotron_h", "qwen3_5_moe_text", "qwen3_5_text",
        "qwen3_next",
    }
)  # fmt: skip
"""Some layers keep a state."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    # Configs of Gemma leave out what is transformers' default (5.19), and that is most in the small ones.
    "gemma2": {"num_key_value_heads": 4, "num_attention_heads": 8, "head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "hidden_size": 2304,
        "num_hidden_layers": 26, "intermediate_size": 9216, "sliding_window": 4096,
    },
    "gemma3n_text": {
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 262400, "hidden_size": 2048,
        "num_hidden_layers": 35, "sliding_window": 512, "num_kv_shared_layers": 15,
    },
    # So do the text parts of some models that see.
    "llama": {"num_attention_heads": 32, "intermediate_size": 11008, "vocab_size": 32000},
    "mistral": {
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
    },
    "gemma": {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256},
    "cohere2": {"sliding_window": 4096},
    "exaone4": {"sliding_window": 0},
    "qwen3_next": {"full_attention_interval": 4},
    "qwen3_5_text": {"full_attention_interval": 4},
    "qwen3_5_moe_text": {"full_attention_interval": 4},
}  # fmt: skip

TIED = frozenset({"gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "cohere", "cohere2", "starcoder2"})
"""Where a config that does not say so means that the head is the embedding."""

NO_TIES = ENCODERS | frozenset({"cohere", "gpt2"})
"""They have no head, or use the embedding itself as one."""

KNOWN = ENCODERS | LATENT | PLAIN | HYBRIDS | frozenset(PATTERNS)
