"""Products of one vector and a matrix in what XLA compiles for a CPU: decoding a single text.

Such a product takes as long as reading the matrix, and two threads read nearly twice as fast as one. XLA makes one loop
of a product and the bias or the normalisation beside it, for one thread; a product that stands alone it gives to Eigen,
which spreads it over all threads.
"""

from __future__ import annotations

from meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

LEAST_ELEMENTS = 2**16  # of a matrix: smaller ones lie in a cache, and are done before a second thread has begun
PARTS = (6, 4, 3, 2)  # the first of these that divides the sum; those from 2 to 6 are equally fast


def einsum(equation: str, *factors: tf.Tensor) -> tf.Tensor:
    """`tf.einsum`. A vector times a large matrix is written so that it stands alone; sums are taken in another order.

    Args:
        equation: as mesh-tensorflow writes it, one letter a dimension.
        factors: of any shapes. What is meant is [1, …, summed] with [summed, kept] or [kept, summed].
    """
    names, result = equation.split("->")[0].split(","), equation.split("->")[1]
    if len(factors) == 2 and factors[1].shape.rank == 2 and result[:-1] == names[0][:-1]:
        vector, matrix = factors
        alone = vector.shape.num_elements() == vector.shape[-1] and matrix.shape.num_elements() >= LEAST_ELEMENTS
        if alone and names[1] == names[0][-1] + result[-1]:
            return tf.reshape(_by_parts(vector, matrix), [*vector.shape[:-1], matrix.shape[1]])
        if alone and names[1] == result[-1] + names[0][-1]:
            column = tf.reshape(vector, [matrix.shape[1], 1])
            return tf.reshape(tf.matmul(matrix, column), [*vector.shape[:-1], matrix.shape[0]])
    return tf.einsum(equation, *factors)


def _by_parts(vector: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """The product with [summed, kept], as the sum of a batch of products of some rows each: [1, kept]."""
    summed, kept = matrix.shape
    parts = next((count for count in PARTS if summed % count == 0), 1)
    rows = tf.reshape(vector, [parts, 1, summed // parts])
    return tf.reduce_sum(tf.matmul(rows, tf.reshape(matrix, [parts, summed // parts, kept])), 0)
