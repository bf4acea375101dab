"""Hugging Face's GPT-Neo with the weights of a TensorFlow checkpoint, read by Hugging Face's own reader."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM
from transformers.models.gpt_neo.modeling_gpt_neo import load_tf_weights_in_gpt_neo


def load(checkpoint: str, keys: dict[str, Any]) -> GPTNeoForCausalLM:
    """The model, in float32 and with nothing dropped.

    Args:
        checkpoint: its path, without a suffix.
        keys: of GPTNeoConfig.
    """
    config = GPTNeoConfig(
        activation_function="gelu_new",
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        layer_norm_epsilon=1e-5,
        attn_implementation="eager",
        **keys,
    )
    model = GPTNeoForCausalLM(config)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints each name
        load_tf_weights_in_gpt_neo(model, config, checkpoint)
    left = [name for name, weight in model.named_parameters() if _same(weight, before[name])]
    assert not left, f"not in {checkpoint}: {left}"
    assert model.lm_head.weight is model.transformer.wte.weight
    return model


def _same(weight: torch.Tensor, initial: torch.Tensor) -> bool:
    """Whether a weight is what the model was made with; gains and biases may be stored at their initial values."""
    return weight.dim() > 1 and weight.shape == initial.shape and bool((weight == initial).all())
