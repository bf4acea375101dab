"""Computes gradients in microbatches, one after another, so that only one microbatch's activations are in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.models.context import Context
from gpt_mesh.models.dropout import mixed_key
from gpt_mesh.models.kernels import cast_sum, kernel

Outputs = tuple[dict[str, mtf.Tensor], list[mtf.Tensor]]


def count(config: Config, mesh_impl: Any, batch: mtf.Dimension, texts: int = 1) -> int:
    """The number of microbatches in a batch of examples.

    Each replica (each part of the batch in the layout) has microbatches of at most `tokens_per_mb_per_replica` tokens,
    or of one example if that is longer.

    Args:
        texts: sequences of an example.
    """
    axis = mesh_impl.tensor_dimension_to_mesh_axis(batch)
    sequences: int = batch.size // (1 if axis is None else mesh_impl.shape.dims[axis].size)
    return sequences // microbatch_size(config, sequences, texts)


def microbatch_size(config: Config, sequences: int, texts: int = 1) -> int:
    """The number of examples in a microbatch, of a replica's `sequences`, each of so many texts."""
    limit = config.training.tokens_per_mb_per_replica
    if limit is None:
        return sequences
    target = max(1, limit // (texts * config.model.n_ctx))
    return max(n for n in range(1, sequences + 1) if sequences % n == 0 and n <= target)


def accumulate(
    ctx: Context, tensors: dict[str, mtf.Tensor], count: int, fn: Callable[[Context, dict[str, mtf.Tensor]], Outputs]
) -> Outputs:
    """Call `fn` for each microbatch and sum its results.

    Args:
        tensors: tensors of the whole batch, [batch, ...].
        count: the number of microbatches; with 1, `fn` is called on the whole batch.
        fn: takes a context and the tensors of a microbatch; returns named outputs without a batch dimension, and
            gradients.

    Returns:
        Summed outputs and gradients. Gradients are summed at least in float32.
    """
    if count == 1:
        outputs, gradients = fn(ctx, tensors)
        return outputs, gradients
    small = mtf.Dimension(ctx.dims.batch.name, ctx.dims.batch.size // count)
    names: list[str] = []

    def body(number: mtf.Tensor) -> list[mtf.Tensor]:
        inner = dataclasses.replace(
            ctx, dims=dataclasses.replace(ctx.dims, batch=small), seed=_microbatch_seed(ctx, number)
        )
        outputs, gradients = fn(inner, {name: _select(x, small, count, number) for name, x in tensors.items()})
        names[:] = list(outputs)
        # All-reduces happen once, after the sum over microbatches.
        return [number + 1, *outputs.values(), *[cast_sum(g, ctx.statistics_dtype) for g in gradients]]

    first = mtf.constant(ctx.mesh, 0, dtype=tf.int32)
    _, *sums = mtf.while_loop(lambda number: mtf.less(number, count), body, [first], has_accumulators=True)
    return dict(zip(names, sums, strict=False)), sums[len(names) :]


def _select(x: mtf.Tensor, small: mtf.Dimension, count: int, number: mtf.Tensor) -> mtf.Tensor:
    """Every `count`-th row of x [batch, ...], starting at `number`: each device selects from its own part."""
    batch, *rest = x.shape.dims
    parts = mtf.reshape(x, mtf.Shape([small, mtf.Dimension("microbatch", count), *rest]))
    assert batch.size == small.size * count
    dims = [small, *rest]
    outputs = [(mtf.Shape(dims), x.dtype)]
    return kernel(lambda t, i: tf.gather(t, i, axis=1), [parts, number], outputs, dims, "microbatch")[0]


def _microbatch_seed(ctx: Context, number: mtf.Tensor) -> mtf.Tensor:
    """A different seed for each microbatch."""
    assert ctx.seed is not None

    def mix(seed: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        return tf.bitcast(mixed_key(seed, number), tf.int32)

    return kernel(mix, [ctx.seed, number], [(mtf.Shape([]), tf.int32)], [], "microbatch_seed")[0]
