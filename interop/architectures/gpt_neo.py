"""GPT-Neo (https://huggingface.co/docs/transformers/model_doc/gpt_neo)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.config.model import repeated
from gpt_mesh.interop.architecture import THEIR_ACTIVATIONS, Architecture, activation
from gpt_mesh.interop.exchange import Exchange, same, transposed

_LAYER = [
    (same, "ln_1.weight", "norm_1/g"),
    (same, "ln_1.bias", "norm_1/b"),
    (transposed, "attn.attention.q_proj.weight", "attn/q"),
    (transposed, "attn.attention.k_proj.weight", "attn/k"),
    (transposed, "attn.attention.v_proj.weight", "attn/v"),
    (transposed, "attn.attention.out_proj.weight", "attn/o"),
    (same, "attn.attention.out_proj.bias", "attn/compute_output_bias/o_b"),
    (same, "ln_2.weight", "norm_2/g"),
    (same, "ln_2.bias", "norm_2/b"),
    (transposed, "mlp.c_fc.weight", "mlp/conv1d_main/c_fc/kernel"),
    (same, "mlp.c_fc.bias", "mlp/conv1d_main/c_fc/bias"),
    (transposed, "mlp.c_proj.weight", "mlp/conv1d_main/c_proj/kernel"),
    (same, "mlp.c_proj.bias", "mlp/conv1d_main/c_proj/bias"),
]


class GPTNeo(Architecture):
    """EleutherAI's GPT-Neo: pre-norm, learned positions, global and local attention without a scale."""

    model_type = "gpt_neo"
    title = "GPT-Neo"
    causal_class = "GPTNeoForCausalLM"
    base_class = "GPTNeoModel"
    prefix = "transformer."
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": 2048,
        "num_layers": 24,
        "num_heads": 16,
        "attention_types": [[["global", "local"], 12]],
        "window_size": 256,
        "activation_function": "gelu_new",
        "resid_dropout": 0.0,
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_epsilon": 1e-5,
        "intermediate_size": None,
        "tie_word_embeddings": True,
    }
    other_names: ClassVar[Mapping[str, str]] = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
    same_keys: ClassVar[Mapping[str, str]] = {
        "max_position_embeddings": "n_ctx",
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "window_size": "local_attention_radius",
        "intermediate_size": "intermediate_size",
        "resid_dropout": "res_dropout",
        "embed_dropout": "embed_dropout",
        "attention_dropout": "attn_dropout",
        "layer_norm_epsilon": "norm_epsilon",
    }

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        return {
            "attention_types": values["attention_types"],
            "activation_function": activation(values, "activation_function", source),
        }

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        types = tuple(kind if kind == "local" else "global" for kind in model.attention_types)
        return {
            "attention_types": repeated(types),
            "activation_function": THEIR_ACTIVATIONS.get(model.activation_function, "gelu_new"),
        }

    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        found = [same("transformer.wte.weight", "gpt2/wte"), same("transformer.wpe.weight", "gpt2/wpe")]
        for i in range(model.n_layer):
            found += [how(f"transformer.h.{i}.{theirs}", f"gpt2/h{i}/{ours}") for how, theirs, ours in _LAYER]
        found += [same("transformer.ln_f.weight", "gpt2/ln_f/g"), same("transformer.ln_f.bias", "gpt2/ln_f/b")]
        if model.no_weight_tie:
            found.append(transposed("lm_head.weight", "gpt2/linear_out/kernel"))
        return found

    def is_buffer(self, name: str) -> bool:
        """The masks that older files hold."""
        return name.endswith((".attn.attention.bias", ".attn.attention.masked_bias"))
