"""Qwen 2 and 2.5 (https://huggingface.co/docs/transformers/model_doc/qwen2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.errors import InputError
from gpt_mesh.interop.architecture import whole
from gpt_mesh.interop.architectures.llama import Llama

_KINDS = {"full_attention": "global", "sliding_attention": "local"}


class Qwen2(Llama):
    """A Llama with biases on queries, keys and values, and sliding windows in some layers."""

    model_type = "qwen2"
    title = "Qwen 2"
    causal_class = "Qwen2ForCausalLM"
    base_class = "Qwen2Model"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    }
    fixed: ClassVar[Mapping[str, Any]] = {"attention_bias": False, "mlp_bias": False}
    use_bias_in_qkv: ClassVar[bool] = True

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        keys = {**super().model_keys(values, source), **self._windows(values, source)}
        return {**keys, "use_bias_in_qkv": True} if self.use_bias_in_qkv else keys

    def config_values(self, model: ModelConfig) -> dict[str, Any]:
        types, theirs = model.attention_types, {ours: theirs for theirs, ours in _KINDS.items()}
        is_windowed = "local" in types
        values = {
            **super().config_values(model),
            "use_sliding_window": is_windowed,
            "sliding_window": model.local_attention_radius if is_windowed else None,
            "max_window_layers": types.index("local") if is_windowed else model.n_layer,
            "layer_types": [theirs.get(kind, "full_attention") for kind in types],
        }
        return {name: value for name, value in values.items() if name not in self.fixed}

    def _windows(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The attention of each layer, where some have a window."""
        layers, types = whole(values, "num_hidden_layers", source), values["layer_types"]
        is_windowed = values["use_sliding_window"] and values["sliding_window"] is not None
        if types is None:
            if type(first := values["max_window_layers"]) is not int:
                raise InputError(f"{source}: max_window_layers = {json.dumps(first)}: must be a whole number")
            types = ["sliding_attention" if is_windowed and i >= first else "full_attention" for i in range(layers)]
        if not isinstance(types, list) or not {*map(str, types)} <= {*_KINDS}:
            raise InputError(f"{source}: layer_types = {json.dumps(types)}: only {' and '.join(_KINDS)} are supported")
        if "sliding_attention" not in types:
            return {}
        if not is_windowed:
            raise InputError(f"{source}: layer_types has sliding_attention, and there is no sliding_window in use")
        return {
            "attention_types": [[[_KINDS[kind] for kind in types], 1]],
            "local_attention_radius": whole(values, "sliding_window", source),
        }
