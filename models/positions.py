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
from gpt_mesh.models.rope import rope_of


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

    def rotate(self, ctx: Context, x: mtf.Tensor, positions: mtf.Tensor, scale: float = 1.0) -> mtf.Tensor:
        """Queries or keys [batch, sequence, heads, features_per_head] times `scale`, the same shape."""
        del ctx, positions
        return x if scale == 1.0 else x * scale

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
        whole_rows = positions.shape.dims == [dims.sequence]  # not where rows are packed with several samples
        if whole_rows and dims.sequence.size == dims.embed_sequence.size:
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
        original = ctx.model.gpt_neo_original  # the mean of the parts, not their sum
        stddev = 0.01 if original else 0.01 * 0.5**0.5
        rows = ctx.variable("axial_wpe_1", [dims.axial_rows, dims.embd], ctx.normal("axial_wpe_1", stddev))
        columns = ctx.variable("axial_wpe_2", [dims.axial_columns, dims.embd], ctx.normal("axial_wpe_2", stddev))
        grid = mtf.add(rows, columns, output_shape=[dims.axial_rows, dims.axial_columns, dims.embd])
        grid = 0.5 * grid if original else grid
        # Rows and columns are never split. They merge into a dimension that is not split either, which a layout may
        # then split.
        merged = mtf.reshape(grid, mtf.Shape([whole(dims.embed_sequence), dims.embd]))
        return mtf.replace_dimensions(merged, whole(dims.embed_sequence), dims.embed_sequence)


class Rotary(PositionEmbedding):
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864).

    Of the n = `rotary_features` first features of a head, feature i of their first half and feature i of their second
    half rotate together, or with `rotary_interleaved` features 2 i and 2 i + 1, by the angles of `rope_of`; angles in
    float32.
    """

    def rotate(self, ctx: Context, x: mtf.Tensor, positions: mtf.Tensor, scale: float = 1.0) -> mtf.Tensor:
        dims, rope, half = ctx.dims, rope_of(ctx.model), ctx.model.rotary_features // 2

        def angles(positions: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
            """[..., positions, 1, half]."""
            frequencies = rope.base ** (-tf.range(half, dtype=dtype) / half)
            if rope.factors is not None:
                frequencies *= tf.constant(rope.factors, dtype)
            return (tf.cast(positions, dtype)[..., None] * frequencies)[..., None, :]

        def rotate(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
            found = angles(positions, ctx.statistics_dtype)
            cos, sin = tf.cos(found), tf.sin(found)
            if rope.magnitude * scale != 1.0:
                cos, sin = cos * (rope.magnitude * scale), sin * (rope.magnitude * scale)
            rotating, rest = (x, None) if x.shape[-1] == 2 * half else tf.split(x, [2 * half, -1], axis=-1)
            wide = tf.cast(rotating, cos.dtype)
            if ctx.model.rotary_interleaved:
                first, second = wide[..., 0::2], wide[..., 1::2]
                pairs = tf.stack([first * cos - second * sin, second * cos + first * sin], -1)
                rotated = tf.reshape(pairs, wide.shape)
            else:
                first, second = tf.split(wide, 2, axis=-1)
                rotated = tf.concat([first * cos - second * sin, second * cos + first * sin], -1)
            rotated = tf.cast(rotated, x.dtype)
            if rest is None:
                return rotated
            return tf.concat([rotated, rest if scale == 1.0 else rest * scale], -1)

        splittable = [dims.batch, dims.sequence, dims.heads, dims.kv_heads]
        return kernel(rotate, [x, positions], [(x.shape, x.dtype)], splittable, "rotary", kept=[])[0]  # linear in x


@dataclass(frozen=True, kw_only=True)
class LinearBias(Bias):
    """A bias that falls linearly with distance: minus slope times the distance of query and key.

    Attributes:
        slopes: takes the slices of `operands` and a type; returns the slope of each head, [heads].
    """

    slopes: Callable[..., tf.Tensor]


class Alibi(PositionEmbedding):
    """ALiBi: logits fall with distance, at a slope of each head (Press et al., 2022, arXiv:2108.12409)."""

    def bias(self, ctx: Context) -> LinearBias:
        slopes = alibi_slopes(ctx.dims.heads.size)

        def of_heads(heads: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
            return tf.gather(tf.constant(slopes, dtype), heads)

        def linear(query: tf.Tensor, key: tf.Tensor, heads: tf.Tensor) -> tf.Tensor:
            distance = tf.cast(tf.abs(query - key), ctx.statistics_dtype)
            return -of_heads(heads, ctx.statistics_dtype)[:, None, None] * distance[..., None, :, :]

        return LinearBias(linear, [mtf.range(ctx.mesh, ctx.dims.heads, tf.int32)], slopes=of_heads)


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head: for a power of 2 the geometric sequence from 2 ** (-8 / heads) to 2 ** -8. For other
    numbers, that of the next lower power of 2, followed by every other slope of the next higher one, from the first on
    (the paper's code, and BLOOM).
    """
    power = 1 << heads.bit_length() - 1
    between = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)] + between


POSITIONS: dict[str, PositionEmbedding] = {
    "learned": Learned(),
    "axial": Axial(),
    "rotary": Rotary(),
    "alibi": Alibi(),
    "none": PositionEmbedding(),
}


def position_embedding(model: ModelConfig) -> PositionEmbedding:
    """The position embedding of a model."""
    return POSITIONS[model.pos_emb]
