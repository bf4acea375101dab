"""Frequencies of rotary positions (Su et al., 2021, arXiv:2104.09864), and their scaling for longer contexts.

The formulas are those of Hugging Face's `transformers`, in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.config import ModelConfig, RopeScaling


class Rope(NamedTuple):
    """How features rotate: the i-th pair of n features by position * factors[i] * base ** (-2 i / n) radians.

    Attributes:
        base: the base of the powers.
        factors: of the frequencies, [n / 2]; None: all are 1.
        magnitude: what rotated features are multiplied by.
    """

    base: float
    factors: NDArray[np.float64] | None = None
    magnitude: float = 1.0


def rope_of(model: ModelConfig) -> Rope:
    """The rotation of a model, in which `model.rotary_features` of each head rotate."""
    base, features, scaling = model.rotary_emb_base, model.rotary_features, model.rope_scaling
    if scaling is None:
        return Rope(base)
    context = scaling.original_max_position_embeddings or model.n_ctx
    if scaling.rope_type == "dynamic":
        # The length is that of the whole context in every pass. If it were the pass's own, the keys in a cache would
        # have been rotated by other frequencies than the queries that meet them.
        growth = scaling.factor * max(model.n_ctx, context) / context - (scaling.factor - 1)
        return Rope(base * growth ** (features / (features - 2)))
    if scaling.rope_type == "linear":
        return Rope(base, np.full(features // 2, 1 / scaling.factor))
    frequencies = base ** (-np.arange(0, features, 2) / features)
    if scaling.rope_type == "llama3":
        return Rope(base, _llama3(scaling, context * frequencies / (2 * math.pi)))
    return Rope(base, _yarn(scaling, context, base, features), _yarn_magnitude(scaling))


def _llama3(scaling: RopeScaling, periods: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors by the number of periods in the original context (Llama 3.1)."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None and high is not None
    kept = np.clip((periods - low) / (high - low), 0, 1)
    return kept + (1 - kept) / scaling.factor


def _yarn(scaling: RopeScaling, context: int, base: float, features: int) -> NDArray[np.float64]:
    """Factors by a ramp over the features, between two numbers of periods in the original context (Peng et al., 2023,
    arXiv:2309.00071).
    """

    def feature_with(periods: float) -> float:
        return features * math.log(context / (periods * 2 * math.pi)) / (2 * math.log(base))

    first, last = feature_with(scaling.beta_fast), feature_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, features - 1)
    if first == last:
        last += 0.001
    divided = np.clip((np.arange(features // 2) - first) / (last - first), 0, 1)
    return (1 - divided) + divided / scaling.factor


def _yarn_magnitude(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)
