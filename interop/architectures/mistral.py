"""Mistral (https://huggingface.co/docs/transformers/model_doc/mistral)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.interop.architecture import whole
from gpt_mesh.interop.architectures.llama import Llama


class Mistral(Llama):
    """A Llama without biases, with one sliding window for all layers, or none."""

    model_type = "mistral"
    title = "Mistral"
    causal_class = "MistralForCausalLM"
    base_class = "MistralModel"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    }
    fixed: ClassVar[Mapping[str, Any]] = {"attention_bias": False, "mlp_bias": False}

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        keys = super().model_keys(values, source)
        if values["sliding_window"] is None:
            return keys
        layers = whole(values, "num_hidden_layers", source)
        window = whole(values, "sliding_window", source)
        return {**keys, "attention_types": [[["local"], layers]], "local_attention_radius": window}

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        is_local = set(model.attention_types) == {"local"}
        values = {**super().config_values(model), "sliding_window": model.local_attention_radius if is_local else None}
        return {name: value for name, value in values.items() if name not in self.fixed}
