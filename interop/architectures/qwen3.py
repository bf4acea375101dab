"""Qwen 3 (https://huggingface.co/docs/transformers/model_doc/qwen3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_mesh.interop.architectures.qwen2 import Qwen2


class Qwen3(Qwen2):
    """A Qwen 2 whose queries and keys are normalised in place of having biases."""

    model_type = "qwen3"
    title = "Qwen 3"
    causal_class = "Qwen3ForCausalLM"
    base_class = "Qwen3Model"
    defaults: ClassVar[Mapping[str, Any]] = {**Qwen2.defaults, "head_dim": 128}
    fixed: ClassVar[Mapping[str, Any]] = {"mlp_bias": False}
    use_bias_in_qkv = False

    def model_keys(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        return {**super().model_keys(values, source), "qk_norm": True}
