"""Mixtures of experts against Hugging Face's Mixtral and OLMoE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.mixtures import MixtureLayer, inputs, mixture_config
from tests.support.outside import ask

pytestmark = pytest.mark.peers

PARAMS = {"moe_gating": "top_k", "moe_glu": True, "moe_dropless": True, "moe_loss_coef": 1.0}


@pytest.mark.parametrize("family, normalised", [("mixtral", True), ("olmoe", False), ("olmoe", True)])
@pytest.mark.parametrize("choices", [1, 2, 3])
def test_numbers_and_gradients_are_those_of_transformers(family, normalised, choices, tmp_path: Path) -> None:
    params = {**PARAMS, "moe_top_k": choices, "moe_norm_topk_prob": normalised}
    layer = MixtureLayer(mixture_config(keys={"moe_activation": "silu"}, **params), train=True)
    x = inputs()[:1]  # their loss takes means over the batch, ours over each sequence
    found = layer(x)
    job = {
        "family": family, "choices": choices, "normalised": normalised, "x": x.tolist(),
        "pull": inputs(1, x.shape).tolist(),
        "weights": {name: value.tolist() for name, value in layer.weights().items()},
    }  # fmt: skip
    wanted = ask("experts", job, tmp_path)
    for name, array in wanted.items():
        # They compute gates in float32.
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6 * np.abs(array).max(), err_msg=name)
