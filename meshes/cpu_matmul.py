"""Matmuls in programs that XLA compiles for a CPU.

Matmuls of many rows (training, prefill) use native/matmul.c, which is faster than XLA's, above all for transposed
factors, which gradients of weights have. A matmul of a few rows with a matrix (decoding) uses native/few_rows.c, which
takes as long as reading the matrix.

If these are not available (see `native`), XLA's own matmul is used, which takes twice as long for eight rows. One row
can be as fast: two threads read nearly twice as fast as one, and XLA passes a matmul to Eigen, which uses all threads,
unless XLA fuses it into one loop with a bias or a normalisation. So the matmul is written in a form that XLA does not
fuse.
"""

from __future__ import annotations

import math

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.meshes import native

MIN_ELEMENTS = 2**16  # of a matrix: smaller ones fit a cache, and are done before a second thread starts
MIN_ELEMENTS_BATCHED = 2**12  # of all matrices of a batch, for which XLA's matmul is even slower
MIN_WORK = 2**16  # multiplications of a matmul of many rows: for fewer, a call costs more than it saves
# Up to this number of rows few_rows.c is faster than matmul.c: for a matrix, and for a transposed one.
MAX_ROWS, MAX_ROWS_TRANSPOSED = 16, 8
PARTS = (6, 4, 3, 2)  # the first of these that divides the summed dimension; all are equally fast


def einsum(equation: str, *factors: tf.Tensor) -> tf.Tensor:
    """`tf.einsum`, with a faster matmul where there is one; sums may be computed in another order.

    Args:
        equation: one letter for each dimension, as mesh-tensorflow writes it.
        factors: of any shapes. Matmuls of two factors are accelerated, each side of which may be several dimensions.
    """
    found = None
    if len(factors) == 2 and all(x.shape.is_fully_defined() for x in factors):
        found = _few(equation, *factors)
        found = _many(equation, *factors) if found is None else found
    return tf.einsum(equation, *factors) if found is None else found


def _few(equation: str, x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor | None:
    """[..., summed] times [summed, kept] or [kept, summed], if that is a few rows times a large matrix; else None."""
    names, result = _names(equation)
    if matrix.shape.rank != 2 or result[:-1] != names[0][:-1]:
        return None
    rows = tf.reshape(x, [math.prod(x.shape[:-1]), x.shape[-1]])
    if names[1] == names[0][-1] + result[-1]:
        found = _times(rows, matrix)
    elif names[1] == result[-1] + names[0][-1]:
        found = _times(rows, matrix, transposed=True)
    else:
        return None
    return None if found is None else tf.reshape(found, [*x.shape[:-1], found.shape[-1]])


def _many(equation: str, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor | None:
    """The result, if matmul.c supports this matmul and is faster; else None."""
    (left, right), result = _names(equation)
    if result[:1] not in left:
        x, y, left, right = y, x, right, left
    count = sum(name in left for name in result)
    rows, columns, summed = result[:count], result[count:], "".join(name for name in left if name not in result)
    transposed_x, transposed_y = left == summed + rows, right == columns + summed
    if not (transposed_x or left == rows + summed) or not (transposed_y or right == summed + columns):
        return None
    sizes = dict(zip(left + right, [*x.shape, *y.shape], strict=True))
    height, depth, width = (math.prod(sizes[name] for name in names) for names in (rows, summed, columns))
    agree = [sizes[name] for name in left] == x.shape  # if not, TensorFlow raises the error
    suits = agree and rows and columns and summed and x.dtype == y.dtype == tf.float32
    if not suits or height * depth * width < MIN_WORK or not native.known():
        return None
    flat_x = tf.reshape(x, [depth, height] if transposed_x else [height, depth])
    flat_y = tf.reshape(y, [width, depth] if transposed_y else [depth, width])
    return tf.reshape(many_rows(flat_x, flat_y, transposed_x, transposed_y), [sizes[name] for name in result])


def many_rows(x: tf.Tensor, y: tf.Tensor, transposed_x: bool = False, transposed_y: bool = False) -> tf.Tensor:
    """[rows, summed] times [summed, columns], each possibly transposed, by matmul.c."""
    result = tf.TensorSpec([x.shape[transposed_x], y.shape[not transposed_y]], tf.float32)
    return native.call("matmul", [x, y], [result], {"transposed_a": transposed_x, "transposed_b": transposed_y})[0]


def _names(equation: str) -> tuple[list[str], str]:
    """The dimensions of the factors, and of the result."""
    names, _, result = equation.partition("->")
    return names.split(","), result


def matmul(
    rows: tf.Tensor, matrices: tf.Tensor, summed: tf.Tensor | None = None, kept: tf.Tensor | None = None
) -> tf.Tensor:
    """`tf.matmul` of [..., rows, summed] with [..., summed, kept], accelerated like `einsum`.

    Args:
        summed: int32, one for each entry of the first batch dimension: `rows` are zero after this many elements, which
            therefore need not be read.
        kept: likewise: only this many columns are needed. The others may have any finite values.
    """
    known = rows.shape.is_fully_defined() and matrices.shape.is_fully_defined()
    if not known or matrices.shape.num_elements() < MIN_ELEMENTS_BATCHED or not _suits(rows, matrices):
        return tf.matmul(rows, matrices)
    if summed is not None:
        return few_rows(rows, matrices, "_first_summed", summed)
    return few_rows(rows, matrices, *([] if kept is None else ["_first_columns", kept]))


def _times(rows: tf.Tensor, matrix: tf.Tensor, transposed: bool = False) -> tf.Tensor | None:
    """[rows, summed] times [summed, kept], or transposed, [kept, summed]; None if `tf.einsum` is as fast."""
    if matrix.shape.num_elements() < MIN_ELEMENTS:
        return None
    if _suits(rows, matrix, transposed):
        return few_rows(rows, matrix, "_transposed" if transposed else "")
    if rows.shape[0] != 1:
        return None
    return tf.transpose(tf.matmul(matrix, tf.transpose(rows))) if transposed else _by_parts(rows, matrix)


def _suits(rows: tf.Tensor, matrices: tf.Tensor, transposed: bool = False) -> bool:
    """Whether few_rows.c supports this matmul and is faster; TensorFlow raises the errors for wrong shapes."""
    fits = rows.shape[:-2] == matrices.shape[:-2] and rows.shape[-1] == matrices.shape[-1 if transposed else -2]
    few = 0 < rows.shape[-2] <= (MAX_ROWS_TRANSPOSED if transposed else MAX_ROWS)
    return fits and few and rows.dtype == matrices.dtype == tf.float32 and native.known()


def few_rows(rows: tf.Tensor, matrices: tf.Tensor, form: str = "", *limits: tf.Tensor) -> tf.Tensor:
    """[..., rows, summed] times [..., summed, kept], or transposed, [..., kept, summed], by few_rows.c.

    `form`: suffix of the target's name; `limits`: operands of some forms (see `matmul`).
    """
    result = tf.TensorSpec([*rows.shape[:-1], matrices.shape[-2 if form == "_transposed" else -1]], tf.float32)
    return native.call(f"few_rows{form}", [rows, matrices, *limits], [result])[0]


def _by_parts(vector: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """[1, summed] times [summed, kept], as the sum over a batch of smaller matmuls: [1, kept]."""
    summed, kept = matrix.shape
    parts = next((count for count in PARTS if summed % count == 0), 1)
    rows = tf.reshape(vector, [parts, 1, summed // parts])
    return tf.reduce_sum(tf.matmul(rows, tf.reshape(matrix, [parts, summed // parts, kept])), 0)
