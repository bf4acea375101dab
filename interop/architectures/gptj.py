"""GPT-J (https://huggingface.co/docs/transformers/model_doc/gptj)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.interop.architecture import THEIR_ACTIVATIONS, Architecture, activation, whole
from gpt_mesh.interop.exchange import Exchange, same, transposed

_LAYER = [
    (same, "ln_1.weight", "norm_1/g"),
    (same, "ln_1.bias", "norm_1/b"),
    (transposed, "attn.q_proj.weight", "attn/q"),
    (transposed, "attn.k_proj.weight", "attn/k"),
    (transposed, "attn.v_proj.weight", "attn/v"),
    (transposed, "attn.out_proj.weight", "attn/o"),
    (transposed, "mlp.fc_in.weight", "mlp/conv1d_main/c_fc/kernel"),
    (same, "mlp.fc_in.bias", "mlp/conv1d_main/c_fc/bias"),
    (transposed, "mlp.fc_out.weight", "mlp/conv1d_main/c_proj/kernel"),
    (same, "mlp.fc_out.bias", "mlp/conv1d_main/c_proj/bias"),
]


class GPTJ(Architecture):
    """EleutherAI's GPT-J: one norm before parallel attention and feed-forward, and interleaved rotary positions."""

    model_type = "gptj"
    title = "GPT-J"
    causal_class = "GPTJForCausalLM"
    base_class = "GPTJModel"
    prefix = "transformer."
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 50400,
        "n_positions": 2048,
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "rotary_dim": 64,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
    }
    other_names: ClassVar[Mapping[str, str]] = {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
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
    }

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        head_size = whole(values, "n_embd", source) // whole(values, "n_head", source)
        return {
            "activation_function": activation(values, "activation_function", source),
            "pos_emb": "rotary",
            "rotary_interleaved": True,
            "rotary_pct": whole(values, "rotary_dim", source) / max(head_size, 1),
            "gpt_j_residual": True,
            "gpt_j_tied": True,
            "scale_attn_weights": True,
            "use_bias_in_attn_linear": False,
            "lm_head_bias": True,
        }

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        return {
            "activation_function": THEIR_ACTIVATIONS.get(model.activation_function, "gelu_new"),
            "rotary_dim": model.rotary_features,
        }

    def exchanges(self, model: ModelConfig) -> list[Exchange]:
        found = [same("transformer.wte.weight", "gpt2/wte")]
        for i in range(model.n_layer):
            found += [how(f"transformer.h.{i}.{theirs}", f"gpt2/h{i}/{ours}") for how, theirs, ours in _LAYER]
        found += [same("transformer.ln_f.weight", "gpt2/ln_f/g"), same("transformer.ln_f.bias", "gpt2/ln_f/b")]
        if model.no_weight_tie:
            found.append(transposed("lm_head.weight", "gpt2/linear_out/kernel"))
        return [*found, same("lm_head.bias", "gpt2/linear_out/bias")]

    def is_buffer(self, name: str) -> bool:
        """The masks that older files hold."""
        return name.endswith((".attn.bias", ".attn.masked_bias"))
