"""Mixtral (https://huggingface.co/docs/transformers/model_doc/mixtral)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.interop.architecture import THEIR_ACTIVATIONS, whole
from gpt_mesh.interop.architectures.mistral import Mistral
from gpt_mesh.interop.exchange import Exchange, stacked, transposed

_EXPERTS = (("w1", "wg"), ("w3", "wi"), ("w2", "wo"))  # gates, values, output


class Mixtral(Mistral):
    """A Mistral whose feed-forward layers are mixtures of gated experts."""

    model_type = "mixtral"
    title = "Mixtral"
    causal_class = "MixtralForCausalLM"
    base_class = "MixtralModel"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Mistral.defaults,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "router_aux_loss_coef": 0.001,
    }
    other_names: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}
    same_keys: ClassVar[Mapping[str, str]] = {
        name: key for name, key in Mistral.same_keys.items() if name != "intermediate_size"
    }
    ignored = frozenset({"activation_function", "intermediate_size", "mlp_glu", "glu_columns", "use_bias_in_mlp"})

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        keys, layers = super().model_keys(values, source), whole(values, "num_hidden_layers", source)
        return {
            **{name: value for name, value in keys.items() if name not in self.ignored},
            "moe_layers": [*range(layers)],
            "moe_activation": keys["activation_function"],
            "moe_params": {
                "moe_num_experts": values["num_local_experts"],
                "moe_hidden_size": values["intermediate_size"],
                "moe_gating": "top_k",
                "moe_top_k": values["num_experts_per_tok"],
                "moe_norm_topk_prob": True,
                "moe_glu": True,
                "moe_dropless": True,
                "moe_loss_coef": values["router_aux_loss_coef"] / layers,  # of one loss for all layers there
            },
        }

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        moe = model.moe_params
        return {
            **super().config_values(model),
            "hidden_act": THEIR_ACTIVATIONS.get(model.moe_activation, "silu"),
            "intermediate_size": moe.moe_hidden_size or 4 * model.n_embd,
            "num_local_experts": moe.moe_num_experts,
            "num_experts_per_tok": moe.moe_top_k,
            "router_aux_loss_coef": moe.moe_loss_coef * model.n_layer,
        }

    def _feed_forward(self, model: ModelConfig, theirs: str, ours: str) -> list[Exchange]:
        block, moe = f"{theirs}.block_sparse_moe", f"{ours}/moe"
        found = [transposed(f"{block}.gate.weight", f"{moe}/gating/kernel")]
        for there, here in _EXPERTS:
            names = [f"{block}.experts.{i}.{there}.weight" for i in range(model.moe_params.moe_num_experts)]
            found.append(stacked(names, f"{moe}/experts/{here}"))
        return found
