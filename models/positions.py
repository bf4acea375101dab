"""Position embeddings: how the model knows where a token stands.

A position embedding may act in three places: `embed` is added to the token embeddings, `rotate` changes queries and
keys, and `bias` is added to the attention logits. `POSITIONS` lists them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import ModelConfig
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import whole
from gpt_mesh.models.kernels import embedding_lookup, kernel

ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class Bias:
    """A term of the attention logits, a function of head, query position and key position.

    Attributes:
        function: takes int32 positions of queries [..., queries, 1] and of keys [..., 1, keys], then the slices of
            `operands`; returns [..., heads, queries, keys].
        operands: mesh tensors, such as learned weights or the slope of each head; a layout may split their `heads`.
    """

    function: Callable[..., tf.Tensor]
    operands: Sequence[mtf.Tensor] = ()


class PositionEmbedding:
    """Base of all; by itself, no position embedding."""

    def embed(self, ctx: Context, positions: mtf.Tensor) -> mtf.Tensor | None:
        """[..., embd], added to the token embeddings; None if there is nothing to add.

        Args:
            positions: int32, [sequence] in a full pass, [batch, sequence] in decoding.
        """
        del ctx, positions
        return None

    def rotate(self, ctx: Context, x: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
        """Queries or keys [batch, sequence, heads, features_per_head], the same shape."""
        del ctx, positions
        return x

    def bias(self, ctx: Context) -> Bias | None:
        """What is added to the logits of softmax attention; None if there is nothing to add."""
        del ctx
        return None


class _Table(PositionEmbedding):
    """One vector a position, for n_ctx positions."""

    def table(self, ctx: Context) -> mtf.Tensor:
        """[embed_sequence, embd]."""
        raise NotImplementedError

    def embed(self, ctx: Context, positions: mtf.Tensor) -> mtf.Tensor:
        dims, table = ctx.dims, self.table(ctx)
        if dims.sequence.size == dims.embed_sequence.size:
            return ctx.rename_positions(table, dims.embed_sequence, dims.sequence)
        return embedding_lookup(table, positions, dims.embed_sequence)


class Learned(_Table):
    """A learned vector for each position, `wpe`."""

    def table(self, ctx: Context) -> mtf.Tensor:
        return ctx.variable("wpe", [ctx.dims.embed_sequence, ctx.dims.embd], ctx.normal("wpe", 0.01))


class Axial(_Table):
    """Position i*d2 + j is row i of `axial_wpe_1` plus row j of `axial_wpe_2`.

    Positions on a grid share their parts (Ho et al., 2019, arXiv:1912.12180; the sum: Kitaev et al., 2020,
    arXiv:2001.04451). Each part has 1/sqrt(2) of a learned table's initial standard deviation, so the sum has all of
    it.
    """

    def table(self, ctx: Context) -> mtf.Tensor:
        dims = ctx.dims
        stddev = 0.01 * 0.5**0.5
        rows = ctx.variable("axial_wpe_1", [dims.axial_rows, dims.embd], ctx.normal("axial_wpe_1", stddev))
        columns = ctx.variable("axial_wpe_2", [dims.axial_columns, dims.embd], ctx.normal("axial_wpe_2", stddev))
        grid = mtf.add(rows, columns, output_shape=[dims.axial_rows, dims.axial_columns, dims.embd])
        # Rows and columns are never split. They merge into a dimension that is not split either, which a layout may
        # then split.
        merged = mtf.reshape(grid, mtf.Shape([whole(dims.embed_sequence), dims.embd]))
        return mtf.replace_dimensions(merged, whole(dims.embed_sequence), dims.embed_sequence)


class Rotary(PositionEmbedding):
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864).

    Feature i of the first half of a head and feature i of its second half rotate together by
    position * 10000 ** (-2 i / head size); angles in float32.
    """

    def rotate(self, ctx: Context, x: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
        dims, half = ctx.dims, ctx.dims.features_per_head.size // 2

        def rotate(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
            dtype = ctx.statistics_dtype
            frequencies = ROTARY_BASE ** (-tf.range(half, dtype=dtype) / half)
            angles = (tf.cast(positions, dtype)[..., None] * frequencies)[..., None, :]
            cos, sin = tf.cos(angles), tf.sin(angles)
            first, second = tf.split(tf.cast(x, dtype), 2, axis=-1)
            return tf.cast(tf.concat([first * cos - second * sin, second * cos + first * sin], -1), x.dtype)

        splittable = [dims.batch, dims.sequence, dims.heads]
        return kernel(rotate, [x, positions], [(x.shape, x.dtype)], splittable, "rotary", kept=[])[0]  # linear in x


POSITIONS: dict[str, PositionEmbedding] = {
    "learned": Learned(),
    "axial": Axial(),
    "rotary": Rotary(),
    "none": PositionEmbedding(),
}


def position_name(model: ModelConfig) -> str:
    """The name in `POSITIONS` that a config's keys stand for."""
    if model.rotary_emb:
        return "rotary"
    return "axial" if model.axial_pos_emb else "learned"


def position_embedding(model: ModelConfig) -> PositionEmbedding:
    """The position embedding of a model."""
    return POSITIONS[position_name(model)]
