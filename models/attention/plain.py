"""Softmax attention by all pairs of positions: on slices where each device can work alone, else on the mesh."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.attention import slices
from gpt_mesh.models.attention.backend import MASKED, Backend, Problem
from gpt_mesh.models.attention.slices import Part
from gpt_mesh.models.kernels import kernel


class Plain(Backend):
    """In plain TensorFlow, on slices."""

    def supports(self, problem: Problem) -> bool:
        return problem.on_slices

    def attend(self, problem: Problem) -> mtf.Tensor:
        dtype, heads, learned = problem.ctx.statistics_dtype, problem.heads, len(problem.heads.memory)
        packed = len(problem.starts)

        def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, positions: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
            wide_q = tf.cast(q, dtype)
            logits = slices.grouped_einsum("bqhf,bkhf->bhqk", wide_q, tf.cast(k, dtype))
            starts, rest = rest[:packed], rest[packed:]
            query, key = positions[:, None], tf.range(k.shape[1])[None, :]
            if heads.bias is not None:
                logits = slices.biased(logits, heads.bias.function(query, key, *rest[learned:]))
            seen = problem.view.sees_inside(query, key, starts[0][:, None, :, None] if starts else None)
            logits = tf.where(seen, logits, tf.cast(MASKED, logits.dtype))
            keys = Part(logits, lambda weights: slices.grouped_einsum("bhqk,bkhf->bqhf", weights, v))
            return slices.attend([*slices.learned(wide_q, "bqhf", rest[:learned]), keys], v.dtype)

        bias = [] if heads.bias is None else heads.bias.operands
        keys_met = problem.ctx.dims.memory_length
        return problem.run(attend, [heads.positions, *problem.starts, *heads.memory, *bias], keys_met=keys_met)


class OnMesh(Backend):
    """By mesh operations: for layouts that split queries or keys over positions, and for dropout of the weights."""

    def supports(self, problem: Problem) -> bool:
        return True

    def attend(self, problem: Problem) -> mtf.Tensor:
        ctx, dims, heads = problem.ctx, problem.ctx.dims, problem.heads
        # Queries by the head of keys and values that they read; where each has its own, the reshapes do nothing.
        by_group = mtf.Shape([dims.batch, dims.sequence, *dims.grouped_heads, dims.features_per_head])
        wide_q = mtf.cast(mtf.reshape(heads.q, by_group), ctx.statistics_dtype)
        shape = mtf.Shape([dims.batch, *dims.grouped_heads, dims.sequence, dims.memory_length])
        logits = mtf.einsum([wide_q, mtf.cast(problem.k, ctx.statistics_dtype)], output_shape=shape) + _mask(problem)
        peak = mtf.reduce_max(mtf.stop_gradient(logits), reduced_dim=dims.memory_length)
        if heads.memory:
            learned_shape = mtf.Shape([dims.batch, *dims.grouped_heads, dims.sequence, dims.learned_memory])
            learned = mtf.einsum([wide_q, mtf.cast(heads.memory[0], ctx.statistics_dtype)], output_shape=learned_shape)
            peak = mtf.maximum(peak, mtf.reduce_max(mtf.stop_gradient(learned), reduced_dim=dims.learned_memory))
        parts = [(mtf.exp(logits - peak), dims.memory_length, problem.v, f"{heads.site}/weights")]
        if heads.memory:
            exponentials = mtf.exp(learned - peak)
            parts.append((exponentials, dims.learned_memory, heads.memory[1], f"{heads.site}/memory_weights"))
        total = mtf.add_n([mtf.reduce_sum(part, reduced_dim=dim) for part, dim, _, _ in parts])
        sums = []
        for part, _, values, site in parts:
            weights = ctx.dropout(mtf.cast(part / total, problem.v.dtype), problem.dropout, site)
            sums.append(mtf.einsum([weights, values], output_shape=by_group))
        return mtf.reshape(mtf.add_n(sums), heads.q.shape)


def _mask(problem: Problem) -> mtf.Tensor:
    """What is added to the logits: a large negative number where a query does not see a key, else 0 or the bias.

    [sequence, memory_length], for packed samples with `batch` before it, with a bias with `grouped_heads`.
    """
    dims, dtype, bias = problem.ctx.dims, problem.ctx.statistics_dtype, problem.heads.bias

    def mask(positions: tf.Tensor, keys: tf.Tensor, *operands: tf.Tensor) -> tf.Tensor:
        query, key, starts = positions[:, None], keys[None, :], None
        if packed:
            first, operands = operands[0], operands[1:]
            starts = first[:, None, :, None] if bias is not None else first[:, :, None]
        added = tf.cast(0.0 if bias is None else bias.function(query, key, *operands), dtype)
        return tf.where(problem.view.sees_inside(query, key, starts), added, tf.cast(MASKED, dtype))

    packed = [dims.batch] if problem.starts else []
    shape = mtf.Shape([*packed, *([] if bias is None else [dims.heads]), dims.sequence, dims.memory_length])
    key_positions = mtf.range(problem.ctx.mesh, dims.memory_length, tf.int32)
    operands = [problem.heads.positions, key_positions, *problem.starts, *([] if bias is None else bias.operands)]
    found = kernel(mask, operands, [(shape, dtype)], shape.dims, "mask")[0]
    return found if bias is None else mtf.reshape(found, mtf.Shape([*packed, *dims.grouped_heads, *shape.dims[-2:]]))
