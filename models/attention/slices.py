"""Softmax attention in plain TensorFlow, on the slices of one device.

A query may see several sets of keys: those of its sequence, learned ones, and in decoding older and new ones. One
softmax covers them all; each set is a `Part`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf


class Part(NamedTuple):
    """One set of keys.

    Attributes:
        logits: [..., queries, keys].
        sum_values: from weights of the same shape to the weighted sums of the set's values.
    """

    logits: tf.Tensor
    sum_values: Callable[[tf.Tensor], tf.Tensor]


def attend(parts: Sequence[Part], dtype: tf.DType) -> tf.Tensor:
    """Sums of all values, weighted by the softmax over the keys of all parts; weights are of type `dtype`."""
    if len(parts) == 1:
        return parts[0].sum_values(tf.cast(tf.nn.softmax(parts[0].logits), dtype))
    weights = tf.cast(tf.nn.softmax(tf.concat([part.logits for part in parts], -1)), dtype)
    split = tf.split(weights, [part.logits.shape[-1] for part in parts], axis=-1)
    return tf.add_n([part.sum_values(share) for part, share in zip(parts, split, strict=True)])


def learned(queries: tf.Tensor, axes: str, memory: Sequence[tf.Tensor]) -> list[Part]:
    """The part of learned keys and values; nothing if there are none.

    Args:
        queries: in the type of logits. Its dimensions are `axes`, with h(eads) and f(eatures) among them, such as bqhf.
        memory: keys and values, [learned, kv_heads, features] each, or nothing.
    """
    if not memory:
        return []
    keys, values = memory
    pairs = axes.translate(str.maketrans("", "", "qhf")) + "hqm"
    logits = grouped_einsum(f"{axes},mhf->{pairs}", queries, tf.cast(keys, queries.dtype))
    return [Part(logits, lambda weights: grouped_einsum(f"{pairs},mhf->{axes}", weights, values))]


def grouped_einsum(equation: str, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """`tf.einsum` of x, with all h(eads), and y, with the heads of keys and values; the result has all heads.

    Each head of y is read by a group of consecutive heads of x, without being repeated in memory.
    """
    axes, of_y, result = equation.replace("->", ",").split(",")
    place, shared = axes.index("h"), y.shape[of_y.index("h")]
    if x.shape[place] == shared:
        return tf.einsum(equation, x, y)
    groups = tf.reshape(x, [*x.shape[:place], shared, x.shape[place] // shared, *x.shape[place + 1 :]])
    found = tf.einsum(f"{axes.replace('h', 'hr')},{of_y}->{result.replace('h', 'hr')}", groups, y)
    place = result.index("h")
    return tf.reshape(found, [*found.shape[:place], x.shape[axes.index("h")], *found.shape[place + 2 :]])


def biased(logits: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """Logits [..., heads, queries, keys] plus a bias that broadcasts against them."""
    return logits if bias is None else logits + tf.cast(bias, logits.dtype)
