"""Activation functions of the feed-forward layers, by the names of the config."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from meshes.compat import mtf
from models.kernels import kernel


def _gelu(x: tf.Tensor) -> tf.Tensor:
    """GELU in its tanh form (Hendrycks & Gimpel, 2016, arXiv:1606.08415)."""
    return tf.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {"gelu": _gelu, "relu": tf.nn.relu}


def activate(x: mtf.Tensor, name: str) -> mtf.Tensor:
    """Apply the activation of that name element by element."""
    return kernel(ACTIVATIONS[name], [x], [(x.shape, x.dtype)], x.shape.dims, name)[0]
