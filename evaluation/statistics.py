"""Means over tokens or passages, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

Metrics = dict[str, float | None]  # a metric `m` may have its standard error beside it, as `m_stderr`


def ratio(sums: ArrayLike, sizes: ArrayLike) -> tuple[float, float | None]:
    """The sum of `sums` divided by the sum of `sizes`, and its standard error.

    The sampling unit is a window, document or passage, since tokens inside one are not independent. The error is that
    of a ratio estimator (Cochran, Sampling Techniques, 1977, section 6.4), which for equal sizes is the error of the
    mean. None with fewer than two units.
    """
    values, weights = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    total, units = weights.sum(), int((weights > 0).sum())
    value = float(values.sum() / total)
    if units < 2:
        return value, None
    residuals = values - value * weights
    return value, float(math.sqrt(units / (units - 1) * np.square(residuals).sum()) / total)


def with_error(name: str, found: tuple[float, float | None]) -> Metrics:
    """A metric and its standard error as dictionary entries."""
    return {name: found[0], f"{name}_stderr": found[1]}


def scaled(found: tuple[float, float | None], factor: float) -> tuple[float, float | None]:
    """A value and its error, multiplied by a constant."""
    return found[0] * factor, None if found[1] is None else found[1] * factor


def exponential(found: tuple[float, float | None]) -> tuple[float, float | None]:
    """exp of a value, with its error by the delta method. Infinite on overflow."""
    value = math.exp(found[0]) if found[0] < 700 else math.inf
    return value, None if found[1] is None else value * found[1]


def token_metrics(nll: ArrayLike, correct: ArrayLike, tokens: ArrayLike, text_bytes: int | None) -> Metrics:
    """`nll` (nats per token), `perplexity`, `bits_per_byte` (None if the size is unknown) and `accuracy`, with
    standard errors; `tokens` and `bytes`.

    Args:
        nll, correct, tokens: sums over each unit of nll, correct predictions and scored tokens.
        text_bytes: UTF-8 length of the scored text. The number of bytes per token is treated as a constant.
    """
    count = float(np.asarray(tokens).sum())
    mean = ratio(nll, tokens)
    bits: Mapping[str, float | None] = {"bits_per_byte": None, "bits_per_byte_stderr": None}
    if text_bytes:
        bits = with_error("bits_per_byte", scaled(mean, count / text_bytes / math.log(2)))
    return {
        **with_error("nll", mean),
        **with_error("perplexity", exponential(mean)),
        **bits,
        **with_error("accuracy", ratio(correct, tokens)),
        "tokens": int(count),
        "bytes": text_bytes,
    }
