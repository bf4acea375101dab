"""BLOOM (https://huggingface.co/docs/transformers/model_doc/bloom)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.interop.architecture import Architecture
from gpt_mesh.interop.exchange import Exchange, grouped_qkv, same, transposed

_LAYER = [
    (same, "input_layernorm.weight", "norm_1/g"),
    (same, "input_layernorm.bias", "norm_1/b"),
    (transposed, "self_attention.dense.weight", "attn/o"),
    (same, "self_attention.dense.bias", "attn/compute_output_bias/o_b"),
    (same, "post_attention_layernorm.weight", "norm_2/g"),
    (same, "post_attention_layernorm.bias", "norm_2/b"),
    (transposed, "mlp.dense_h_to_4h.weight", "mlp/conv1d_main/c_fc/kernel"),
    (same, "mlp.dense_h_to_4h.bias", "mlp/conv1d_main/c_fc/bias"),
    (transposed, "mlp.dense_4h_to_h.weight", "mlp/conv1d_main/c_proj/kernel"),
    (same, "mlp.dense_4h_to_h.bias", "mlp/conv1d_main/c_proj/bias"),
]


class Bloom(Architecture):
    """BigScience's BLOOM: ALiBi, and a norm after the token embedding.

    `slow_but_exact` and `pretraining_tp` are not read: they change the order of sums only. `seq_length` is no key of
    transformers, which needs none, but of the published models: the context that they were trained with.
    """

    model_type = "bloom"
    title = "BLOOM"
    causal_class = "BloomForCausalLM"
    base_class = "BloomModel"
    prefix = "transformer."
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 250880,
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 8,
        "seq_length": 2048,
        "layer_norm_epsilon": 1e-5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
    }
    other_names: ClassVar[Mapping[str, str]] = {
        "n_embed": "hidden_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    }
    fixed: ClassVar[Mapping[str, Any]] = {"apply_residual_connection_post_layernorm": False}
    same_keys: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "seq_length": "n_ctx",
        "layer_norm_epsilon": "norm_epsilon",
        "hidden_dropout": "res_dropout",
        "attention_dropout": "attn_dropout",
    }

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        return {
            "activation_function": "gelu",
            "pos_emb": "alibi",
            "embed_norm": True,
            "scale_attn_weights": True,
            "use_bias_in_attn_linear": True,
        }

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        return {}

    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        found = [
            same("transformer.word_embeddings.weight", "gpt2/wte"),
            same("transformer.word_embeddings_layernorm.weight", "gpt2/embed_norm/g"),
            same("transformer.word_embeddings_layernorm.bias", "gpt2/embed_norm/b"),
        ]
        for i in range(model.n_layer):
            theirs, ours = f"transformer.h.{i}", f"gpt2/h{i}"
            for part, suffix in (("weight", ""), ("bias", "_b")):
                qkv = [f"{ours}/attn/{letter}{suffix}" for letter in "qkv"]
                name = f"{theirs}.self_attention.query_key_value.{part}"
                found.append(grouped_qkv(name, qkv, model.n_head, model.head_dim))
            found += [how(f"{theirs}.{there}", f"{ours}/{here}") for how, there, here in _LAYER]
        found += [same("transformer.ln_f.weight", "gpt2/ln_f/g"), same("transformer.ln_f.bias", "gpt2/ln_f/b")]
        if model.no_weight_tie:
            found.append(transposed("lm_head.weight", "gpt2/linear_out/kernel"))
        return found
