"""Llama (https://huggingface.co/docs/transformers/model_doc/llama), and what its relatives share with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.errors import InputError
from gpt_mesh.interop import rope
from gpt_mesh.interop.architecture import THEIR_ACTIVATIONS, Architecture, activation
from gpt_mesh.interop.exchange import Exchange, same, transposed


class Llama(Architecture):
    """Meta's Llama: RMSNorm, rotary positions, gated feed-forward, grouped attention, and hardly a bias.

    Relatives derive from it and add to `defaults`, `model_keys` and `config_values`.
    """

    model_type = "llama"
    title = "Llama"
    causal_class = "LlamaForCausalLM"
    base_class = "LlamaModel"
    prefix = "model."
    defaults: ClassVar[Mapping[str, Any]] = {
        **rope.DEFAULTS,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }
    same_keys: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "num_kv_heads",
        "head_dim": "head_dim",
        "max_position_embeddings": "n_ctx",
        "rms_norm_eps": "norm_epsilon",
        "attention_dropout": "attn_dropout",
    }

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        positions = rope.keys(values, source)
        if positions["rotary_pct"] != 1:
            raise InputError(f"{source}: partial_rotary_factor = {positions['rotary_pct']}: {self.title} rotates all")
        return {
            **positions,
            "activation_function": activation(values, "hidden_act", source),
            "norm": "rmsnorm",
            "mlp_glu": True,
            "glu_columns": "separate",
            "scale_attn_weights": True,
            "use_bias_in_attn_linear": values["attention_bias"],
            "use_bias_in_mlp": values["mlp_bias"],
        }

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        return {
            **rope.values(model),
            "hidden_act": THEIR_ACTIVATIONS.get(model.activation_function, "silu"),
            "attention_bias": bool(model.use_bias_in_attn_linear),
            "mlp_bias": model.use_bias_in_mlp,
        }

    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        found = [same("model.embed_tokens.weight", "gpt2/wte")]
        for i in range(model.n_layer):
            theirs, ours = f"model.layers.{i}", f"gpt2/h{i}"
            found += self._attention(model, f"{theirs}.self_attn", f"{ours}/attn")
            found += self._feed_forward(model, theirs, ours)
            found.append(same(f"{theirs}.input_layernorm.weight", f"{ours}/norm_1/g"))
            found.append(same(f"{theirs}.post_attention_layernorm.weight", f"{ours}/norm_2/g"))
        found.append(same("model.norm.weight", "gpt2/ln_f/g"))
        if model.no_weight_tie:
            found.append(transposed("lm_head.weight", "gpt2/linear_out/kernel"))
        return found

    def _attention(self, model: ModelConfig, theirs: str, ours: str) -> list[Exchange]:
        found = [transposed(f"{theirs}.{letter}_proj.weight", f"{ours}/{letter}") for letter in "qkvo"]
        if model.use_bias_in_qkv:
            found += [same(f"{theirs}.{letter}_proj.bias", f"{ours}/{letter}_b") for letter in "qkv"]
        if model.use_bias_in_attn_linear:
            found.append(same(f"{theirs}.o_proj.bias", f"{ours}/compute_output_bias/o_b"))
        if model.qk_norm:
            found += [same(f"{theirs}.{letter}_norm.weight", f"{ours}/{letter}_norm/g") for letter in "qk"]
        return found

    def _feed_forward(self, model: ModelConfig, theirs: str, ours: str) -> list[Exchange]:
        found = []
        for name, here in (("gate_proj", "c_gate"), ("up_proj", "c_fc"), ("down_proj", "c_proj")):
            found.append(transposed(f"{theirs}.mlp.{name}.weight", f"{ours}/mlp/conv1d_main/{here}/kernel"))
            if model.use_bias_in_mlp:
                found.append(same(f"{theirs}.mlp.{name}.bias", f"{ours}/mlp/conv1d_main/{here}/bias"))
        return found
