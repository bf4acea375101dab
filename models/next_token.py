"""Sampling the next token from its logits, with settings for each row.

The order is that of the transformers library: repetition penalty, minimum length, temperature, top-k, top-p.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.models import entmax
from gpt_mesh.models.dropout import mixed_key, uniform


class Controls(NamedTuple):
    """How each row is continued: arrays or tensors [batch].

    Attributes:
        seeds: int32. A row's draw depends on its own seed and the position alone.
        temperature: float32; 0: the argmax.
        top_k: int32; 0: all.
        top_p: float32 in (0, 1].
        penalty: float32, of tokens that the row has already; 1: none.
        sparse: int32; 1: draw from 1.5-entmax, not softmax.
        min_length: int32, the length in tokens, prompt included, before which no end of text is drawn.
    """

    seeds: Any
    temperature: Any
    top_k: Any
    top_p: Any
    penalty: Any
    sparse: Any
    min_length: Any


LEAST_MASS = 1e-9  # of `top_p`: what float32 rounds to 0 would keep no token at all
CONTROL_TYPES = Controls(tf.int32, tf.float32, tf.int32, tf.float32, tf.float32, tf.int32, tf.int32)


def choose(
    logits: tf.Tensor, seen: tf.Tensor, position: tf.Tensor, controls: Controls, eos_ids: tuple[int, ...] = ()
) -> tf.Tensor:
    """One id a row, by the Gumbel-max trick (Gumbel, 1954): int32 [batch].

    Args:
        logits: float32 [batch, vocab].
        seen: bool [batch, vocab], the tokens that a row has already.
        position: int32 [batch], of the newest of them.
        eos_ids: the tokens that end a text.
    """
    penalty = controls.penalty[:, None]
    penalised = tf.where(logits > 0, logits / penalty, logits * penalty)
    logits = tf.where(tf.logical_and(seen, tf.not_equal(penalty, 1.0)), penalised, logits)
    if eos_ids:
        early = (position + 1 < controls.min_length)[:, None]
        is_end = is_any(tf.range(logits.shape[-1]), eos_ids)[None, :]
        logits = tf.where(tf.logical_and(early, is_end), tf.constant(-float("inf"), logits.dtype), logits)
    draws = controls.temperature > 0
    drawn = _if_any(draws, lambda: _draw(logits, position, controls), lambda: logits)
    return tf.argmax(tf.where(draws[:, None], drawn, logits), -1, output_type=tf.int32)


def is_any(tokens: tf.Tensor, ids: tuple[int, ...]) -> tf.Tensor:
    """Whether each of the tokens is one of at least one id: bool, of their shape."""
    return functools.reduce(tf.logical_or, [tf.equal(tokens, one) for one in ids])


def _draw(logits: tf.Tensor, position: tf.Tensor, controls: Controls) -> tf.Tensor:
    """Logits [batch, vocab] with temperature, filters and Gumbel noise: the argmax of a row is a sample."""
    temperature = tf.where(controls.temperature > 0, controls.temperature, 1.0)[:, None]
    # Subtracting the maximum avoids infinity minus infinity at very small temperatures. Tokens that may not be drawn
    # keep their -inf.
    scaled = (logits - tf.reduce_max(logits, -1, keepdims=True)) / temperature
    logits = tf.where(tf.equal(logits, -float("inf")), logits, scaled)
    filters = tf.logical_or(controls.top_k > 0, controls.top_p < 1)
    logits = _if_any(filters, lambda: keep_likeliest(logits, controls.top_k, controls.top_p), lambda: logits)
    sparse = controls.sparse > 0
    # -inf, which is never drawn, where the probability is 0
    logits = _if_any(
        sparse, lambda: tf.where(sparse[:, None], tf.math.log(entmax.probabilities(logits)), logits), lambda: logits
    )
    u = uniform([1, logits.shape[-1]], (0, 0), [0, 1], mixed_key(controls.seeds, position)[:, None])
    # Gumbel noise is the negative log of an exponential draw, which log1p makes exactly where it is small; in (0, inf).
    exponential = -tf.math.log1p(-tf.minimum(u + 2.0**-25, 1.0 - 2.0**-24))
    return logits - tf.cast(tf.math.log(exponential), logits.dtype)


def keep_likeliest(logits: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor) -> tf.Tensor:
    """`logits` [batch, vocab], -inf for tokens outside the `top_k` largest (0: all) or outside the smallest set of them
    with total probability `top_p`. Tokens that tie with the last one kept are kept too.
    """
    order = _ordered(logits)
    most = tf.where(top_k > 0, tf.minimum(top_k, logits.shape[-1]), logits.shape[-1])
    kept = order >= _threshold(order, tf.ones_like(logits), tf.cast(most, logits.dtype))[:, None]
    shares = tf.nn.softmax(tf.where(kept, logits, -float("inf")))
    mass = tf.maximum(tf.cast(top_p, logits.dtype), LEAST_MASS)
    in_mass = order >= _threshold(order, shares, mass)[:, None]
    kept = tf.logical_and(kept, tf.logical_or(in_mass, (top_p >= 1)[:, None]))
    return tf.where(kept, logits, tf.constant(-float("inf"), logits.dtype))


def _ordered(logits: tf.Tensor) -> tf.Tensor:
    """int32 that compare like the float32 logits."""
    bits = tf.bitcast(tf.cast(logits, tf.float32) + 0.0, tf.int32)  # -0.0 + 0.0 is 0.0
    return tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, tf.int32.max), bits)


def _threshold(order: tf.Tensor, weights: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """The largest number [batch] such that the weights of entries at or above it sum to at least `target`.

    Bit by bit: 32 sums over the row, while sorting 50,257 logits would take longer than the model.
    """

    def step(i: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        more = found + tf.bitwise.left_shift(1, 31 - i)  # wraps around from the smallest number, at first to 0
        mass = tf.reduce_sum(tf.where(order >= more[:, None], weights, tf.zeros_like(weights)), -1)
        return i + 1, tf.where(mass >= target, more, found)

    least = tf.fill(tf.shape(target), tf.int32.min)
    return tf.while_loop(lambda i, _: i < 32, step, (tf.constant(0), least))[1]


def log_probabilities(logits: tf.Tensor, chosen: tf.Tensor, top: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of the chosen ids [batch], and the `top` likeliest ids with theirs: float32 [batch], int32 and float32 [batch,
    top]; by the softmax of the logits [batch, vocab].
    """
    logs = tf.nn.log_softmax(logits)
    values, ids = tf.math.top_k(logs, top)
    return tf.gather(logs, chosen, batch_dims=1), tf.cast(ids, tf.int32), values


def _if_any(wanted: tf.Tensor, do: Any, otherwise: Any) -> tf.Tensor:
    """`do()` where a row wants it, so that nobody pays for what nobody asked for."""
    return tf.cond(tf.reduce_any(wanted), do, otherwise)
