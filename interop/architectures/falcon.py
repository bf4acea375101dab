"""Falcon (https://huggingface.co/docs/transformers/model_doc/falcon)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.errors import InputError
from gpt_mesh.interop import rope
from gpt_mesh.interop.architecture import THEIR_ACTIVATIONS, Architecture, activation
from gpt_mesh.interop.exchange import Exchange, grouped_qkv, same, transposed

_MATRICES = [
    ("self_attention.dense", "attn/o", "attn/compute_output_bias/o_b"),
    ("mlp.dense_h_to_4h", "mlp/conv1d_main/c_fc/kernel", "mlp/conv1d_main/c_fc/bias"),
    ("mlp.dense_4h_to_h", "mlp/conv1d_main/c_proj/kernel", "mlp/conv1d_main/c_proj/bias"),
]


class Falcon(Architecture):
    """TII's Falcon: rotary positions, multi-query attention parallel to the feed-forward (7B), or grouped attention
    with a norm each (40B).

    The first Falcons (`falcon-rw`) have ALiBi, which transformers rounds to bfloat16 and divides by the root of the
    head size: another function than ALiBi here.
    """

    model_type = "falcon"
    title = "Falcon"
    causal_class = "FalconForCausalLM"
    base_class = "FalconModel"
    prefix = "transformer."
    defaults: ClassVar[Mapping[str, Any]] = {
        **rope.DEFAULTS,
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "num_ln_in_parallel_attn": None,
        "layer_norm_epsilon": 1e-5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "num_kv_heads": None,
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "max_position_embeddings": 2048,
        "ffn_hidden_size": None,
        "activation": "gelu",
        "tie_word_embeddings": True,
    }
    other_names: ClassVar[Mapping[str, str]] = {"n_embed": "hidden_size"}
    fixed: ClassVar[Mapping[str, Any]] = {"alibi": False, "partial_rotary_factor": 1.0}
    same_keys: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "layer_norm_epsilon": "norm_epsilon",
        "hidden_dropout": "res_dropout",
        "attention_dropout": "attn_dropout",
        "max_position_embeddings": "n_ctx",
        "ffn_hidden_size": "intermediate_size",
    }

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        is_new, is_parallel = bool(values["new_decoder_architecture"]), bool(values["parallel_attn"])
        norms = values["num_ln_in_parallel_attn"]
        if is_new and not is_parallel:
            raise InputError(f"{source}: parallel_attn = false: new_decoder_architecture is always parallel")
        if norms not in (None, 1, 2) or (norms == 2 and not is_new):
            raise InputError(f"{source}: num_ln_in_parallel_attn = {norms}: Falcon has 1, or 2 in the new architecture")
        shared = values["multi_query"] and not is_new
        return {
            **rope.keys(values, source),
            "activation_function": activation(values, "activation", source),
            "num_kv_heads": 1 if shared else values["num_kv_heads"] if is_new else values["num_attention_heads"],
            "gpt_j_residual": is_parallel,
            "gpt_j_tied": is_parallel and not (is_new and norms in (None, 2)),
            "scale_attn_weights": True,
            "use_bias_in_attn_linear": bool(values["bias"]),
            "use_bias_in_mlp": bool(values["bias"]),
        }

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        is_new = self._is_new(model)
        return {
            **rope.values(model),
            "activation": THEIR_ACTIVATIONS.get(model.activation_function, "gelu"),
            "alibi": False,
            "new_decoder_architecture": is_new,
            "num_ln_in_parallel_attn": (1 if model.gpt_j_tied else 2) if is_new else None,
            "multi_query": model.num_kv_heads == 1 < model.n_head,
            "num_kv_heads": model.num_kv_heads,
            "parallel_attn": model.gpt_j_residual,
            "bias": model.use_bias_in_mlp,
        }

    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        first, second = "input_layernorm", None if model.gpt_j_tied else "post_attention_layernorm"
        if model.gpt_j_residual and not model.gpt_j_tied:
            first, second = "ln_attn", "ln_mlp"
        parts = ("weight", "bias") if model.use_bias_in_mlp else ("weight",)
        found = [same("transformer.word_embeddings.weight", "gpt2/wte")]
        for i in range(model.n_layer):
            theirs, ours = f"transformer.h.{i}", f"gpt2/h{i}"
            for norm, number in ((first, 1), (second, 2)):
                if norm is not None:
                    found.append(same(f"{theirs}.{norm}.weight", f"{ours}/norm_{number}/g"))
                    found.append(same(f"{theirs}.{norm}.bias", f"{ours}/norm_{number}/b"))
            for part in parts:
                qkv = [f"{ours}/attn/{letter}{'_b' if part == 'bias' else ''}" for letter in "qkv"]
                name = f"{theirs}.self_attention.query_key_value.{part}"
                found.append(grouped_qkv(name, qkv, model.num_kv_heads, model.head_dim))
            for name, kernel, bias in _MATRICES:
                found.append(transposed(f"{theirs}.{name}.weight", f"{ours}/{kernel}"))
                if "bias" in parts:
                    found.append(same(f"{theirs}.{name}.bias", f"{ours}/{bias}"))
        found += [same("transformer.ln_f.weight", "gpt2/ln_f/g"), same("transformer.ln_f.bias", "gpt2/ln_f/b")]
        if model.no_weight_tie:
            found.append(transposed("lm_head.weight", "gpt2/linear_out/kernel"))
        return found

    @staticmethod
    def _is_new(model: ModelConfig) -> bool:
        """Whether only the new architecture has it: groups of heads, or two norms side by side."""
        is_grouped = 1 < model.num_kv_heads < model.n_head
        return is_grouped or (model.gpt_j_residual and not model.gpt_j_tied)
