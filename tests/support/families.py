"""Small models of every Hugging Face architecture, as their `config.json` has them."""

from __future__ import annotations

from typing import Any

_SIZES = {
    "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 96, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
_GPT2 = {
    "vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
_LLAMA = {**_SIZES, "intermediate_size": 88}
_GROUPED = {**_LLAMA, "num_key_value_heads": 2}
_BLOOM = {
    **{name: value for name, value in _SIZES.items() if name != "max_position_embeddings"},
    "n_layer": 2, "n_head": 4, "seq_length": 96,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 12,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
# By model_type: each shape has a name, for tests.
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "gpt_neo": {
        "mixed": {
            "vocab_size": 320, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 8,
            "max_position_embeddings": 96, "attention_types": [[["global", "local"], 1]], "bos_token_id": 0,
            "eos_token_id": 0, "pad_token_id": 1,
        },
        "narrow": {
            "vocab_size": 320, "hidden_size": 48, "num_layers": 2, "num_heads": 3, "window_size": 5,
            "max_position_embeddings": 96, "attention_types": [[["local"], 2]], "intermediate_size": 100,
            "layer_norm_epsilon": 1e-3, "activation_function": "gelu", "tie_word_embeddings": False,
            "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
        },
    },
    "gpt2": {
        "plain": _GPT2,
        "unscaled": {
            **_GPT2, "n_head": 2, "n_inner": 100, "scale_attn_weights": False, "activation_function": "gelu",
            "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False,
        },
    },
    "gptj": {
        "plain": {**_GPT2, "rotary_dim": 4},
        "whole": {**_GPT2, "n_head": 2, "rotary_dim": 32, "n_inner": 100, "tie_word_embeddings": True},
    },
    "gpt_neox": {
        "parallel": {**_SIZES, "intermediate_size": 256, "rotary_pct": 0.25},
        "sequential": {
            **_SIZES, "intermediate_size": 100, "rotary_pct": 0.5, "rotary_emb_base": 500.0,
            "use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new",
            "tie_word_embeddings": True, "layer_norm_eps": 1e-3,
        },
        "scaled": {**_SIZES, "intermediate_size": 256, "rope_scaling": {"type": "linear", "factor": 4.0}},
    },
    "falcon": {
        "7b": _SIZES,
        "40b": {**_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 100},
        "11b": {**_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        "sequential": {
            **_SIZES, "multi_query": False, "parallel_attn": False, "bias": True, "tie_word_embeddings": False,
            "rope_theta": 500.0,
        },
        "parallel_with_biases": {**_SIZES, "bias": True, "rope_scaling": YARN},
    },
    "bloom": {
        "plain": _BLOOM,
        "six_heads": {**_BLOOM, "hidden_size": 48, "n_head": 6, "num_attention_heads": 6, "layer_norm_epsilon": 1e-3},
    },
    "llama": {
        "whole": _LLAMA,
        "grouped": {
            **_GROUPED, "head_dim": 24, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
        },
        "scaled": {**_GROUPED, "rope_theta": 5000.0, "rope_scaling": LLAMA3},
        "yarn": {**_GROUPED, "num_key_value_heads": 1, "rope_scaling": {**YARN, "beta_fast": 16.0}},
    },
    "mistral": {
        "windowed": {**_GROUPED, "sliding_window": 8},
        "whole": {**_GROUPED, "sliding_window": None, "head_dim": 24, "tie_word_embeddings": True},
    },
    "mixtral": {
        "plain": {**_GROUPED, "num_local_experts": 4},
        "windowed": {
            **_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 8,
            "tie_word_embeddings": True,
        },
    },
    "qwen2": {
        "grouped": {**_GROUPED, "tie_word_embeddings": True},
        "windowed": {
            **_LLAMA, "num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
        },
    },
    "qwen3": {
        "grouped": {**_GROUPED, "head_dim": 24, "tie_word_embeddings": True},
        "windowed": {
            **_GROUPED, "head_dim": 16, "attention_bias": True, "use_sliding_window": True, "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    },
}  # fmt: skip
SHAPES = [(family, shape) for family, shapes in FAMILIES.items() for shape in shapes]
