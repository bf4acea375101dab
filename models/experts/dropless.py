"""Experts that read the tokens that chose them, and lose none at any load (as in MegaBlocks; Gale et al., 2022,
arXiv:2211.15841). The work grows with the choices of a token, not with the number of experts.

On one device, experts with more choices than slots (`rows.SlottedRows`) read the rest in a loop over blocks, whose
length follows the load. So shapes are static, and memory is linear in the tokens.

Across devices, each device computes its own experts' part of the result for the tokens that it has, and the parts are
summed. Where a layout splits batch and experts along one mesh dimension, each device first gets the tokens of all: with
static shapes, an exchange that loses no token at any load moves no less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import compat, native
from gpt_mesh.models.activations import ACTIVATIONS, Elementwise
from gpt_mesh.models.context import Context
from gpt_mesh.models.experts.network import Weights
from gpt_mesh.models.experts.routing import apart
from gpt_mesh.models.experts.rows import Block, Overflow, Rows, SeparateRows, SlottedRows, SortedRows, slots_of
from gpt_mesh.models.kernels import Kept, kernel


def supports(ctx: Context) -> bool:
    """Whether this can compute the experts of the model; if not, `network.every_expert` does."""
    dropped = ctx.train and ctx.model.moe_params.moe_dropout_rate > 0
    by_element = isinstance(ACTIVATIONS[ctx.model.moe_activation], Elementwise)
    return ctx.fused and by_element and not dropped and ctx.is_whole(ctx.dims.embd)


def chosen_experts(ctx: Context, x: mtf.Tensor, ids: mtf.Tensor, weights: mtf.Tensor, name: str) -> mtf.Tensor:
    """The weighted sum of the outputs of each token's experts.

    Args:
        x: [batch, sequence, embd].
        ids, weights: [batch, sequence, expert_choices], int32 and float; ids of one token differ.
        name: prefix of the weights.

    Returns:
        [batch, sequence, embd].
    """
    dims = ctx.dims
    tokens = [apart(ctx, dim, dims.experts, dims.expert_hidden) for dim in (dims.batch, dims.sequence)]
    matrices = Weights.of(ctx, f"{name}/experts", [dims.experts], dims.expert_hidden)
    weights = mtf.cast(weights, ctx.dtype)
    x_in, ids, weights = (mtf.reshape(t, mtf.Shape([*tokens, t.shape.dims[-1]])) for t in (x, ids, weights))
    own = mtf.range(ctx.mesh, dims.experts, tf.int32)
    kernels = [matrices.up, matrices.down] if matrices.gate is None else [matrices.up, matrices.gate, matrices.down]
    inside = mtf.Shape([*tokens, dims.expert_choices, dims.expert_hidden])
    kept: list[Kept] = [x_in, weights, *[(inside, ctx.dtype)] * (len(kernels) - 1)]
    network = Network(ctx, len(kernels) - 1)
    y = kernel(
        network.forward,
        [x_in, ids, weights, own, *kernels],
        [(x_in.shape, ctx.dtype)],
        [*tokens, dims.experts, dims.expert_hidden],
        "chosen_experts",
        network.gradient,
        flops=2.0 * len(kernels) * inside.size * dims.embd.size,
        kept=kept,
        summed=[dims.experts, dims.expert_hidden],
        residuals=len(kernels) - 1,
    )[0]
    return mtf.reshape(y, x.shape)


class Network:
    """The experts on one device, which may have some of them, or a part of their hidden features: forward and backward.

    Arguments of both methods are slices: x [batch, sequence, embd]; ids and weights [batch, sequence, choices]; own
    [experts], the ids of the experts here; then their matrices, up [experts, embd, hidden], gate if there is one, and
    down [experts, hidden, embd].
    """

    def __init__(self, ctx: Context, inputs: int) -> None:
        """`inputs`: the matrices that read x: 1, or with a gate 2."""
        activation = ACTIVATIONS[ctx.model.moe_activation]
        assert isinstance(activation, Elementwise)
        self._activation, self._inputs, self._wide, self._train = (
            activation.function,
            inputs,
            ctx.statistics_dtype,
            ctx.train,
        )
        self._experts = ctx.dims.experts.size
        self._in_c = ctx.cpu_kernels and ctx.dtype == tf.float32
        self._recompute = ctx.tensor_cores

    def forward(
        self, x: tf.Tensor, ids: tf.Tensor, weights: tf.Tensor, own: tf.Tensor, *matrices: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """The weighted sum of outputs, like x, and for the gradient what enters the activation, [rows, hidden] each."""
        flat, (*inward, down) = tf.reshape(x, [-1, x.shape[-1]]), matrices
        rows, overflow = self._rows(ids, own)
        read = rows.read(flat)
        entered = [rows.times(read, matrix) for matrix in inward]
        written = rows.by_choice(rows.times(self._hidden(*entered), down))
        parts = tf.reshape(tf.cast(written, self._wide), [-1, ids.shape[-1], x.shape[-1]])
        y = tf.reduce_sum(parts * tf.cast(tf.reshape(weights, [-1, ids.shape[-1], 1]), self._wide), 1)
        if overflow is not None:
            y = self._add_overflow(overflow, y, flat, weights, matrices)
        return tf.reshape(tf.cast(y, x.dtype), x.shape), *entered

    def gradient(
        self, x: tf.Tensor, ids: tf.Tensor, weights: tf.Tensor, own: tf.Tensor, *others: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """The gradients of x, weights and matrices. `others`: matrices, the result, what entered the activation, and
        the gradient of the result.
        """
        (*inward, down), (_, *entered, upstream) = others[: self._inputs + 1], others[self._inputs + 1 :]
        flat, dy = (tf.reshape(t, [-1, x.shape[-1]]) for t in (x, upstream))
        if self._recompute:  # keep XLA from storing the hidden features of the forward pass
            entered = compat.optimization_barrier(entered)
        rows, overflow = self._rows(ids, own)
        read, dy_rows, weight = rows.read(flat), rows.read(dy), rows.weigh(weights)
        hidden, d_entered, d_weight = self._through_hidden(entered, rows.times(dy_rows, down, transposed=True), weight)
        d_down = rows.outer(hidden * weight, dy_rows)
        d_inward = [rows.outer(read, d) for d in d_entered]
        d_read = tf.add_n([rows.times(d, m, transposed=True) for d, m in zip(d_entered, inward, strict=True)])
        dx = tf.reduce_sum(tf.reshape(tf.cast(rows.by_choice(d_read), self._wide), [-1, ids.shape[-1], x.shape[-1]]), 1)
        d_weights = rows.by_choice(d_weight)
        found = [dx, d_weights, *d_inward, d_down]
        if overflow is not None:
            found = self._add_overflow_gradients(overflow, found, flat, dy, weights, others[: self._inputs + 1])
        dx, d_weights, *d_matrices = found
        return (
            tf.reshape(tf.cast(dx, x.dtype), x.shape),
            tf.reshape(tf.cast(d_weights, weights.dtype), weights.shape),
            *d_matrices,
        )

    def _rows(self, ids: tf.Tensor, own: tf.Tensor) -> tuple[Rows, Overflow | None]:
        """The rows of the experts here, in the fastest form, and the choices that have none."""
        here, choices = own.shape[0], ids.shape[-1]
        ids = tf.reshape(ids, [-1, choices]) - own[0]
        if self._in_c and here == self._experts and native.known():
            return SortedRows(ids, here), None
        tokens = ids.shape[0]
        if not self._train and tokens * choices < here:
            return SeparateRows(ids, here), None
        slots = slots_of(tokens, choices, self._experts)
        rows = SlottedRows(ids, here, slots)
        return rows, Overflow(rows, choices) if slots < tokens else None

    def _hidden(self, up: tf.Tensor, gate: tf.Tensor | None = None) -> tf.Tensor:
        """The features between the matrices."""
        if gate is None:
            return tf.cast(self._activation(tf.cast(up, self._wide)), up.dtype)
        return tf.cast(tf.cast(up, self._wide) * self._activation(tf.cast(gate, self._wide)), up.dtype)

    def _through_hidden(
        self, entered: Sequence[tf.Tensor], pulled: tf.Tensor, weight: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """The features between the matrices, and the gradients of what entered and of each row's weight [rows].

        `pulled`: the gradient of these features, but for the weight [rows, 1].
        """
        copies = [tf.identity(t) for t in entered]  # `tf.gradients` searches all that follows
        hidden = self._hidden(*copies)
        gradients = tf.gradients(hidden, copies, pulled * weight)
        return hidden, gradients, tf.reduce_sum(tf.cast(hidden, self._wide) * tf.cast(pulled, self._wide), 1)

    def _add_overflow(
        self, overflow: Overflow, y: tf.Tensor, x: tf.Tensor, weights: tf.Tensor, matrices: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """y [tokens, embd] plus the outputs for choices without a slot."""

        def add(block: Block, y: tf.Tensor) -> tuple[tf.Tensor]:
            *inward, down = (tf.gather(matrix, block.expert) for matrix in matrices)
            read = tf.gather(x, block.token)
            written = tf.matmul(self._hidden(*[tf.matmul(read, matrix) for matrix in inward]), down)
            weight = tf.gather(tf.reshape(weights, [-1]), block.choice)
            weight = tf.cast(weight, self._wide) * tf.cast(block.filled, self._wide)
            return (_add_rows(y, block.token, tf.cast(written, self._wide) * weight[:, None]),)

        return _for_each(overflow, add, [y])[0]

    def _add_overflow_gradients(
        self,
        overflow: Overflow,
        found: Sequence[tf.Tensor],
        x: tf.Tensor,
        dy: tf.Tensor,
        weights: tf.Tensor,
        matrices: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        """Gradients of x [tokens, embd], of weights [tokens * choices] and of matrices, plus those of choices without a
        slot.
        """

        def add(block: Block, dx: tf.Tensor, d_weights: tf.Tensor, *d_matrices: tf.Tensor) -> tuple[tf.Tensor, ...]:
            *inward, down = (tf.gather(matrix, block.expert) for matrix in matrices)
            read, dy_rows = (tf.gather(t, block.token) for t in (x, dy))
            entered = [tf.matmul(read, matrix) for matrix in inward]
            weight = tf.gather(tf.reshape(weights, [-1]), block.choice) * tf.cast(block.filled, weights.dtype)
            pulled = tf.matmul(dy_rows, down, transpose_b=True)
            hidden, d_entered, d_weight = self._through_hidden(entered, pulled, weight[:, None])
            d_read = tf.add_n([tf.matmul(d, m, transpose_b=True) for d, m in zip(d_entered, inward, strict=True)])
            outers = [tf.matmul(read, d, transpose_a=True) for d in d_entered]
            outers.append(tf.matmul(hidden * weight[:, None], dy_rows, transpose_a=True))
            return (
                _add_rows(dx, block.token, tf.cast(d_read, self._wide)),
                _add_rows(d_weights, block.choice, d_weight * tf.cast(block.filled, self._wide)),
                *[
                    _add_rows(total, block.expert[None], outer[None])
                    for total, outer in zip(d_matrices, outers, strict=True)
                ],
            )

        return _for_each(overflow, add, found)


def _for_each(
    overflow: Overflow, step: Callable[..., tuple[tf.Tensor, ...]], start: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """`start`, after a step for each block."""

    def body(number: tf.Tensor, *values: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return number + 1, *step(overflow.block(number), *values)

    _, *found = tf.while_loop(lambda number, *_: number < overflow.count, body, [tf.constant(0), *start])
    return found


def _add_rows(x: tf.Tensor, index: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """x [n, ...] with rows [m, ...] added at these indices [m]."""
    return tf.tensor_scatter_nd_add(x, index[:, None], rows)
