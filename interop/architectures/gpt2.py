"""GPT-2 (https://huggingface.co/docs/transformers/model_doc/gpt2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.interop.architecture import THEIR_ACTIVATIONS, Architecture, activation
from gpt_mesh.interop.exchange import Exchange, same, side_by_side, transposed

# Conv1D stores matrices as [input, output], as they are here.
_LAYER = [
    ("ln_1.weight", "norm_1/g"),
    ("ln_1.bias", "norm_1/b"),
    ("attn.c_proj.weight", "attn/o"),
    ("attn.c_proj.bias", "attn/compute_output_bias/o_b"),
    ("ln_2.weight", "norm_2/g"),
    ("ln_2.bias", "norm_2/b"),
    ("mlp.c_fc.weight", "mlp/conv1d_main/c_fc/kernel"),
    ("mlp.c_fc.bias", "mlp/conv1d_main/c_fc/bias"),
    ("mlp.c_proj.weight", "mlp/conv1d_main/c_proj/kernel"),
    ("mlp.c_proj.bias", "mlp/conv1d_main/c_proj/bias"),
]


class GPT2(Architecture):
    """OpenAI's GPT-2: pre-norm, learned positions, global attention with biases.

    `reorder_and_upcast_attn` is not read: in float32 it computes the same.
    """

    model_type = "gpt2"
    title = "GPT-2"
    causal_class = "GPT2LMHeadModel"
    base_class = "GPT2Model"
    prefix = "transformer."
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    }
    other_names: ClassVar[Mapping[str, str]] = {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    fixed: ClassVar[Mapping[str, Any]] = {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    same_keys: ClassVar[Mapping[str, str]] = {
        "n_positions": "n_ctx",
        "n_embd": "n_embd",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_inner": "intermediate_size",
        "resid_pdrop": "res_dropout",
        "embd_pdrop": "embed_dropout",
        "attn_pdrop": "attn_dropout",
        "layer_norm_epsilon": "norm_epsilon",
        "scale_attn_weights": "scale_attn_weights",
    }

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        return {
            "activation_function": activation(values, "activation_function", source),
            "use_bias_in_attn_linear": True,
        }

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        return {"activation_function": THEIR_ACTIVATIONS.get(model.activation_function, "gelu_new")}

    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        found = [same("transformer.wte.weight", "gpt2/wte"), same("transformer.wpe.weight", "gpt2/wpe")]
        for i in range(model.n_layer):
            theirs, ours = f"transformer.h.{i}", f"gpt2/h{i}"
            for part, suffix in (("weight", ""), ("bias", "_b")):
                qkv = [f"{ours}/attn/{letter}{suffix}" for letter in "qkv"]
                found.append(side_by_side(f"{theirs}.attn.c_attn.{part}", qkv))
            found += [same(f"{theirs}.{there}", f"{ours}/{here}") for there, here in _LAYER]
        found += [same("transformer.ln_f.weight", "gpt2/ln_f/g"), same("transformer.ln_f.bias", "gpt2/ln_f/b")]
        if model.no_weight_tie:
            found.append(transposed("lm_head.weight", "gpt2/linear_out/kernel"))
        return found

    def is_buffer(self, name: str) -> bool:
        """The masks that older files hold."""
        return name.endswith((".attn.bias", ".attn.masked_bias"))
