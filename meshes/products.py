"""Products of matrices in what XLA compiles for a CPU.

Those of many rows (training, reading a prompt) are done by native/matmul.c, which is faster than what XLA calls, most
so where a factor is turned, as in gradients of weights. A product of a few rows and a matrix (decoding) takes as long
as reading the matrix, where it is done by native/few_rows.c.

Where those cannot be (see `native`), XLA's own are used, which take twice as long for eight rows. For one row they need
not: two threads read nearly twice as fast as one, and XLA gives a product to Eigen, which spreads it over all threads,
unless it makes one loop of the product and the bias or the normalisation beside it. So the product is written so that
it stands alone.
"""

from __future__ import annotations

import math

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.meshes import native

LEAST_ELEMENTS = 2**16  # of a matrix: smaller ones lie in a cache, and are done before a second thread has begun
LEAST_OF_ALL = 2**12  # of the matrices of a batch, for which XLA's products take longer still
LEAST_WORK = 2**16  # multiplications of a product of many rows: fewer are done before it is called
# Up to so many rows few_rows.c is the faster; of a turned matrix, whose rows are summed over, up to so many.
FEW, FEW_TURNED = 16, 8
PARTS = (6, 4, 3, 2)  # the first of these that divides the sum; those from 2 to 6 are equally fast


def einsum(equation: str, *factors: tf.Tensor) -> tf.Tensor:
    """`tf.einsum`, done in another way where that is faster; sums are taken in another order.

    Args:
        equation: as mesh-tensorflow writes it, one letter a dimension.
        factors: of any shapes. What is meant are products of two matrices, whose dimensions may be several each.
    """
    found = None
    if len(factors) == 2 and all(x.shape.is_fully_defined() for x in factors):
        found = _few(equation, *factors)
        found = _many(equation, *factors) if found is None else found
    return tf.einsum(equation, *factors) if found is None else found


def _few(equation: str, x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor | None:
    """[..., summed] times [summed, kept] or [kept, summed], where that is a few rows times a large matrix; else None.
    """
    names, result = _names(equation)
    if matrix.shape.rank != 2 or result[:-1] != names[0][:-1]:
        return None
    rows = tf.reshape(x, [math.prod(x.shape[:-1]), x.shape[-1]])
    if names[1] == names[0][-1] + result[-1]:
        found = _times(rows, matrix)
    elif names[1] == result[-1] + names[0][-1]:
        found = _times(rows, matrix, turned=True)
    else:
        return None
    return None if found is None else tf.reshape(found, [*x.shape[:-1], found.shape[-1]])


def _many(equation: str, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor | None:
    """A product that matmul.c can do, and does faster; else None."""
    (left, right), result = _names(equation)
    if result[:1] not in left:
        x, y, left, right = y, x, right, left
    count = sum(name in left for name in result)
    rows, columns, summed = result[:count], result[count:], "".join(name for name in left if name not in result)
    turned_x, turned_y = left == summed + rows, right == columns + summed
    if not (turned_x or left == rows + summed) or not (turned_y or right == summed + columns):
        return None
    sizes = dict(zip(left + right, [*x.shape, *y.shape], strict=True))
    height, depth, width = (math.prod(sizes[name] for name in names) for names in (rows, summed, columns))
    agree = [sizes[name] for name in left] == x.shape  # what does not is TensorFlow's to refuse
    suits = agree and rows and columns and summed and x.dtype == y.dtype == tf.float32
    if not suits or height * depth * width < LEAST_WORK or not native.known():
        return None
    flat_x = tf.reshape(x, [depth, height] if turned_x else [height, depth])
    flat_y = tf.reshape(y, [width, depth] if turned_y else [depth, width])
    return tf.reshape(many_rows(flat_x, flat_y, turned_x, turned_y), [sizes[name] for name in result])


def many_rows(x: tf.Tensor, y: tf.Tensor, turned_x: bool = False, turned_y: bool = False) -> tf.Tensor:
    """[rows, columns] of [rows, summed] and [summed, columns], or turned, the other way round, by matmul.c."""
    result = tf.TensorSpec([x.shape[turned_x], y.shape[not turned_y]], tf.float32)
    return native.call("matmul", [x, y], [result], {"turned_a": turned_x, "turned_b": turned_y})[0]


def _names(equation: str) -> tuple[list[str], str]:
    """The dimensions of the factors, and of the product."""
    names, _, result = equation.partition("->")
    return names.split(","), result


def matmul(
    rows: tf.Tensor, matrices: tf.Tensor, summed: tf.Tensor | None = None, kept: tf.Tensor | None = None
) -> tf.Tensor:
    """`tf.matmul` of [..., rows, summed] with [..., summed, kept], as `einsum` does it.

    Args:
        summed: int32, of the first batch dimension: behind so many places `rows` are zero; they need not be read.
        kept: the same: only so many columns are wanted. The others may hold anything finite.
    """
    known = rows.shape.is_fully_defined() and matrices.shape.is_fully_defined()
    if not known or matrices.shape.num_elements() < LEAST_OF_ALL or not _suits(rows, matrices):
        return tf.matmul(rows, matrices)
    if summed is not None:
        return few_rows(rows, matrices, "_first_summed", summed)
    return few_rows(rows, matrices, *([] if kept is None else ["_first_columns", kept]))


def _times(rows: tf.Tensor, matrix: tf.Tensor, turned: bool = False) -> tf.Tensor | None:
    """[rows, summed] times [summed, kept], or turned, [kept, summed]; None where `tf.einsum` does it as well."""
    if matrix.shape.num_elements() < LEAST_ELEMENTS:
        return None
    if _suits(rows, matrix, turned):
        return few_rows(rows, matrix, "_turned" if turned else "")
    if rows.shape[0] != 1:
        return None
    return tf.transpose(tf.matmul(matrix, tf.transpose(rows))) if turned else _by_parts(rows, matrix)


def _suits(rows: tf.Tensor, matrices: tf.Tensor, turned: bool = False) -> bool:
    """Whether few_rows.c is to do this product, and can: what does not fit is TensorFlow's to refuse."""
    fits = rows.shape[:-2] == matrices.shape[:-2] and rows.shape[-1] == matrices.shape[-1 if turned else -2]
    few = 0 < rows.shape[-2] <= (FEW_TURNED if turned else FEW)
    return fits and few and rows.dtype == matrices.dtype == tf.float32 and native.known()


def few_rows(rows: tf.Tensor, matrices: tf.Tensor, form: str = "", *limits: tf.Tensor) -> tf.Tensor:
    """[..., rows, summed] times [..., summed, kept], or turned, [..., kept, summed], by few_rows.c.

    `form`: the end of its target's name; `limits`: what some forms take (see `matmul`).
    """
    result = tf.TensorSpec([*rows.shape[:-1], matrices.shape[-2 if form == "_turned" else -1]], tf.float32)
    return native.call(f"few_rows{form}", [rows, matrices, *limits], [result])[0]


def _by_parts(vector: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """The product with [summed, kept], as the sum of a batch of products of some rows each: [1, kept]."""
    summed, kept = matrix.shape
    parts = next((count for count in PARTS if summed % count == 0), 1)
    rows = tf.reshape(vector, [parts, 1, summed // parts])
    return tf.reduce_sum(tf.matmul(rows, tf.reshape(matrix, [parts, summed // parts, kept])), 0)
