"""What a backend of softmax attention is given, and what it has to say.

A backend computes attention of all positions of a pass to each other. `softmax.BACKENDS` lists them in order of
preference; the first one that supports a problem solves it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.attention.kind import Heads
from gpt_mesh.models.context import Context
from gpt_mesh.models.kernels import kernel

MASKED = -1e10  # finite, so that a masked logit minus a masked maximum is not NaN

SliceBias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class View:
    """Which positions a query sees.

    Attributes:
        causal: only its own and those before it.
        window: at most this many, its own included, counted in each direction; None: all.
    """

    causal: bool
    window: int | None

    def sees(self, query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Whether the query at one position sees the key at another (integer tensors, broadcast)."""
        distance = query - key
        if self.causal:
            seen = distance >= 0
            return seen if self.window is None else tf.logical_and(seen, distance < self.window)
        return tf.abs(distance) < (tf.int32.max if self.window is None else self.window)

    def sees_inside(self, query: tf.Tensor, key: tf.Tensor, starts: tf.Tensor | None) -> tf.Tensor:
        """The same, inside samples. `starts`: the first position of each query's sample, broadcast like `query`; None:
        a row is one sample.
        """
        seen = self.sees(query, key)
        return seen if starts is None else tf.logical_and(seen, key >= starts)


@dataclass(frozen=True)
class Problem:
    """Softmax attention of all positions of a pass to each other.

    Attributes:
        heads: queries, learned memory, bias; its k and v are replaced by those below.
        k, v: [batch, memory_length, kv_heads, features_per_head]; slot i holds position i.
    """

    ctx: Context
    heads: Heads
    k: mtf.Tensor
    v: mtf.Tensor
    view: View

    @property
    def drops(self) -> bool:
        """Whether attention weights are dropped."""
        return self.ctx.train and self.dropout > 0

    @property
    def dropout(self) -> float:
        """The rate at which attention weights are dropped in training; the original drops those of global layers."""
        model = self.ctx.model
        return 0.0 if model.gpt_neo_original and self.view.window is not None else model.attn_dropout

    @property
    def on_slices(self) -> bool:
        """Whether each device can work alone: it has all positions, and there is no dropout of weights."""
        return not self.drops and self.ctx.is_whole(self.ctx.dims.sequence, self.ctx.dims.memory_length)

    @property
    def starts(self) -> list[mtf.Tensor]:
        """`heads.starts` as a list of operands: empty if there is none."""
        return [] if self.heads.starts is None else [self.heads.starts]

    @property
    def is_bare(self) -> bool:
        """Whether it is of queries and keys alone, one sample a row: no learned memory, no bias, no packed samples."""
        return not self.heads.memory and self.heads.bias is None and self.heads.starts is None

    def run(
        self,
        fn: Callable[..., tf.Tensor],
        extra: list[mtf.Tensor] | None = None,
        gradient: Callable[..., tuple[tf.Tensor, ...]] | None = None,
        log_sums: bool = False,
        keys_met: mtf.Dimension | None = None,
    ) -> mtf.Tensor:
        """Run `fn` on slices of q, k, v and `extra`: [batch, sequence, heads, features_per_head].

        Args:
            gradient: of `fn`: see `kernel`.
            log_sums: `fn` also returns the logarithm of each softmax's denominator, [batch, heads, sequence] in the
                type of statistics.
            keys_met: the keys whose logits `fn` computes for each query, where the backward pass keeps its weights.
        """
        dims, q = self.ctx.dims, self.heads.q
        outputs = [(q.shape, q.dtype)]
        if log_sums:
            outputs.append((mtf.Shape([dims.batch, dims.heads, dims.sequence]), self.ctx.statistics_dtype))
        operands, split, kept = [q, self.k, self.v, *(extra or [])], [dims.batch, dims.heads, dims.kv_heads], None
        if keys_met is not None:  # the weights, and their gradient
            weights = mtf.Shape([dims.batch, dims.heads, dims.sequence, keys_met]), self.ctx.statistics_dtype
            kept = [*(x for x in operands if x.dtype.is_floating), weights, weights]
        return kernel(fn, operands, outputs, split, "attend", gradient, flops=self.flops, kept=kept)[0]

    @property
    def flops(self) -> float:
        """Of logits and weighted sums, over all keys in the window of a query, those of the future included."""
        seen = self.ctx.dims.memory_length.size
        seen = seen if self.view.window is None else min(seen, self.view.window)
        return 4.0 * self.heads.q.shape.size * (seen + self.ctx.model.num_mem_kv)


class Backend(abc.ABC):
    """One way to compute softmax attention."""

    @abc.abstractmethod
    def supports(self, problem: Problem) -> bool:
        """Whether it can solve a problem, and is the better choice than those after it."""

    @abc.abstractmethod
    def attend(self, problem: Problem) -> mtf.Tensor:
        """[batch, sequence, heads, features_per_head]."""
