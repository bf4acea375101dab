"""Random draws that an objective makes for its tokens."""

from __future__ import annotations

import tensorflow as tf

from gpt_mesh.models.dropout import mixed_key, row_keys, uniform


def draws(tokens: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
    """Three independent draws for each token: float32 [batch, n] in [0, 1).

    They are functions of the seed, the window's tokens and the position, and do not depend on a window's place in its
    batch.

    Args:
        tokens: int32 [batch, n].
        seed: int32 scalar.
    """
    keys = row_keys(tokens, seed)
    shape = tokens.shape.as_list()
    streams = [mixed_key(keys, tf.constant(stream, tf.int32))[:, None] for stream in (1, 2, 3)]
    return [uniform(shape, (0, 0), [0, 1], key) for key in streams]
