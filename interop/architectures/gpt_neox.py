"""GPT-NeoX and Pythia (https://huggingface.co/docs/transformers/model_doc/gpt_neox)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.interop import rope
from gpt_mesh.interop.architecture import THEIR_ACTIVATIONS, Architecture, activation
from gpt_mesh.interop.exchange import Exchange, grouped_qkv, same, transposed


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
            found += self._norm(model, f"{theirs}.input_layernorm", f"{ours}/norm_1")
            found += self._attention(model, f"{theirs}.attention", f"{ours}/attn")
            if not model.gpt_j_tied:
                found += self._norm(model, f"{theirs}.post_attention_layernorm", f"{ours}/norm_2")
            found += self._feed_forward(model, f"{theirs}.mlp", f"{ours}/mlp/conv1d_main")
        found += self._norm(model, "gpt_neox.final_layer_norm", "gpt2/ln_f")
        if model.no_weight_tie:
            found.append(transposed("embed_out.weight", "gpt2/linear_out/kernel"))
        return found

    def _norm(self, model: ModelConfig, theirs: str, ours: str) -> list[Exchange]:
        return [same(f"{theirs}.weight", f"{ours}/g"), same(f"{theirs}.bias", f"{ours}/b")]

    def _attention(self, model: ModelConfig, theirs: str, ours: str) -> list[Exchange]:
        found, biased = [], model.use_bias_in_attn_linear
        for part, suffix in (("weight", ""), ("bias", "_b")) if biased else (("weight", ""),):
            qkv = [f"{ours}/{letter}{suffix}" for letter in "qkv"]
            found.append(self._qkv(model, f"{theirs}.query_key_value.{part}", qkv))
        found.append(transposed(f"{theirs}.dense.weight", f"{ours}/o"))
        if biased:
            found.append(same(f"{theirs}.dense.bias", f"{ours}/compute_output_bias/o_b"))
        return found

    def _qkv(self, model: ModelConfig, theirs: str, ours: list[str]) -> Exchange:
        return grouped_qkv(theirs, ours, model.n_head, model.head_dim)

    def _feed_forward(self, model: ModelConfig, theirs: str, ours: str) -> list[Exchange]:
        found = []
        for name, here in (("dense_h_to_4h", "c_fc"), ("dense_4h_to_h", "c_proj")):
            found.append(transposed(f"{theirs}.{name}.weight", f"{ours}/{here}/kernel"))
            found.append(same(f"{theirs}.{name}.bias", f"{ours}/{here}/bias"))
        return found

    def is_buffer(self, name: str) -> bool:
        """The masks and frequencies that older files hold."""
        return name.endswith((".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"))
