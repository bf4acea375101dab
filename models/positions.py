"""How the model knows where a token stands."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.cache import Cache
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import whole
from gpt_mesh.models.kernels import embedding_lookup, kernel

ROTARY_BASE = 10000.0


def position_embedding(ctx: Context, cache: Cache) -> mtf.Tensor | None:
    """[sequence, embd] ([batch, sequence, embd] when decoding), to be added to the token embeddings; None where rotary
    embeddings take its place.
    """
    if ctx.model.rotary_emb:
        return None
    dims = ctx.dims
    table = _axial_table(ctx) if ctx.model.axial_pos_emb else _learned_table(ctx)
    if dims.sequence.size == dims.embed_sequence.size:
        return ctx.rename_positions(table, dims.embed_sequence, dims.sequence)
    return embedding_lookup(table, cache.positions(ctx), dims.embed_sequence)


def _learned_table(ctx: Context) -> mtf.Tensor:
    """[embed_sequence, embd], one learned row a position."""
    return ctx.variable("wpe", [ctx.dims.embed_sequence, ctx.dims.embd], ctx.normal("wpe", 0.01))


def _axial_table(ctx: Context) -> mtf.Tensor:
    """[embed_sequence, embd]: position i*d2 + j is row i of `axial_wpe_1` plus row j of `axial_wpe_2`.

    Positions on a grid share their parts (Ho et al., 2019, arXiv:1912.12180; the sum: Kitaev et al., 2020,
    arXiv:2001.04451). Each part has 1/sqrt(2) of a learned table's initial deviation, so that the sum has all of it.
    """
    dims = ctx.dims
    stddev = 0.01 * 0.5**0.5
    rows = ctx.variable("axial_wpe_1", [dims.axial_rows, dims.embd], ctx.normal("axial_wpe_1", stddev))
    columns = ctx.variable("axial_wpe_2", [dims.axial_columns, dims.embd], ctx.normal("axial_wpe_2", stddev))
    grid = mtf.add(rows, columns, output_shape=[dims.axial_rows, dims.axial_columns, dims.embd])
    # Rows and columns are never split: they merge into a dimension that is not either, which a layout may then split.
    merged = mtf.reshape(grid, mtf.Shape([whole(dims.embed_sequence), dims.embd]))
    return mtf.replace_dimensions(merged, whole(dims.embed_sequence), dims.embed_sequence)


def rotate(ctx: Context, x: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
    """Rotary position embedding of queries or keys (Su et al., 2021, arXiv:2104.09864).

    Feature i of the first half of a head and feature i of its second half turn together by
    position * 10000 ** (-2 i / head size); angles in float32.

    Args:
        x: [batch, sequence, heads, features_per_head].
        positions: int32 [sequence] or [batch, sequence].
    """
    dims, half = ctx.dims, ctx.dims.features_per_head.size // 2

    def turn(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        dtype = ctx.statistics_dtype
        frequencies = ROTARY_BASE ** (-tf.range(half, dtype=dtype) / half)
        angles = (tf.cast(positions, dtype)[..., None] * frequencies)[..., None, :]
        cos, sin = tf.cos(angles), tf.sin(angles)
        first, second = tf.split(tf.cast(x, dtype), 2, axis=-1)
        return tf.cast(tf.concat([first * cos - second * sin, second * cos + first * sin], -1), x.dtype)

    return kernel(turn, [x, positions], [(x.shape, x.dtype)], [dims.batch, dims.sequence, dims.heads], "rotary")[0]
