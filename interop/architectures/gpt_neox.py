"""GPT-NeoX and Pythia (https://huggingface.co/docs/transformers/model_doc/gpt_neox)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.interop import rope
from gpt_mesh.interop.architecture import THEIR_ACTIVATIONS, Architecture, activation
from gpt_mesh.interop.exchange import Exchange, grouped_qkv, same, transposed

_LAYER = [
    (same, "input_layernorm.weight", "norm_1/g"),
    (same, "input_layernorm.bias", "norm_1/b"),
    (transposed, "attention.dense.weight", "attn/o"),
    (same, "post_attention_layernorm.weight", "norm_2/g"),
    (same, "post_attention_layernorm.bias", "norm_2/b"),
    (transposed, "mlp.dense_h_to_4h.weight", "mlp/conv1d_main/c_fc/kernel"),
    (same, "mlp.dense_h_to_4h.bias", "mlp/conv1d_main/c_fc/bias"),
    (transposed, "mlp.dense_4h_to_h.weight", "mlp/conv1d_main/c_proj/kernel"),
    (same, "mlp.dense_4h_to_h.bias", "mlp/conv1d_main/c_proj/bias"),
]


class GPTNeoX(Architecture):
    """EleutherAI's GPT-NeoX: two norms before parallel (or sequential) attention and feed-forward, and partly rotary
    positions.
    """

    model_type = "gpt_neox"
    title = "GPT-NeoX"
    causal_class = "GPTNeoXForCausalLM"
    base_class = "GPTNeoXModel"
    prefix = "gpt_neox."
    head = "embed_out.weight"
    defaults: ClassVar[Mapping[str, Any]] = {
        **rope.DEFAULTS,
        "partial_rotary_factor": 0.25,
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
    }
    other_names: ClassVar[Mapping[str, str]] = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
    same_keys: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "intermediate_size",
        "attention_dropout": "attn_dropout",
        "hidden_dropout": "res_dropout",
        "max_position_embeddings": "n_ctx",
        "layer_norm_eps": "norm_epsilon",
        "use_parallel_residual": "gpt_j_residual",
    }

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        return {
            **rope.keys(values, source),
            "activation_function": activation(values, "hidden_act", source),
            "embed_dropout": values["hidden_dropout"],
            "scale_attn_weights": True,
            "use_bias_in_attn_linear": values["attention_bias"],
        }

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        positions = rope.values(model)
        return {
            **positions,
            "rotary_emb_base": positions["rope_theta"],
            "rotary_pct": model.rotary_pct,
            "hidden_act": THEIR_ACTIVATIONS.get(model.activation_function, "gelu"),
            "attention_bias": bool(model.use_bias_in_attn_linear),
        }

    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        found = [same("gpt_neox.embed_in.weight", "gpt2/wte")]
        for i in range(model.n_layer):
            theirs, ours = f"gpt_neox.layers.{i}", f"gpt2/h{i}"
            for part, suffix in (
                (("weight", ""), ("bias", "_b")) if model.use_bias_in_attn_linear else (("weight", ""),)
            ):
                qkv = [f"{ours}/attn/{letter}{suffix}" for letter in "qkv"]
                name = f"{theirs}.attention.query_key_value.{part}"
                found.append(grouped_qkv(name, qkv, model.n_head, model.head_dim))
            if model.use_bias_in_attn_linear:
                found.append(same(f"{theirs}.attention.dense.bias", f"{ours}/attn/compute_output_bias/o_b"))
            found += [how(f"{theirs}.{there}", f"{ours}/{here}") for how, there, here in _LAYER]
        found += [
            same("gpt_neox.final_layer_norm.weight", "gpt2/ln_f/g"),
            same("gpt_neox.final_layer_norm.bias", "gpt2/ln_f/b"),
        ]
        if model.no_weight_tie:
            found.append(transposed("embed_out.weight", "gpt2/linear_out/kernel"))
        return found

    def is_buffer(self, name: str) -> bool:
        """The masks and frequencies that older files hold."""
        return name.endswith((".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"))
