"""Products of a few rows and a matrix in what XLA compiles for a CPU: decoding a text, or several at once.

Such a product takes as long as reading the matrix, where it is done by few_rows.c. Where that cannot be (see
`native`), XLA's own are used, which take twice as long for eight rows. For one row they need not: two threads read
nearly twice as fast as one, and XLA gives a product to Eigen, which spreads it over all threads, unless it makes one
loop of the product and the bias or the normalisation beside it. So the product is written so that it stands alone.
"""

from __future__ import annotations

import math

from meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from meshes import compat, native

LEAST_ELEMENTS = 2**16  # of a matrix: smaller ones lie in a cache, and are done before a second thread has begun
LEAST_OF_ALL = 2**12  # of the matrices of a batch, for which XLA's products take longer still
# Up to so many rows few_rows.c is the faster; of a turned matrix, whose rows are summed over, up to so many.
FEW, FEW_TURNED = 16, 8
TYPES = {tf.float32: "f32", tf.int32: "i32"}
PARTS = (6, 4, 3, 2)  # the first of these that divides the sum; those from 2 to 6 are equally fast


def einsum(equation: str, *factors: tf.Tensor) -> tf.Tensor:
    """`tf.einsum`, done in another way for a few rows times a large matrix; sums are taken in another order.

    Args:
        equation: as mesh-tensorflow writes it, one letter a dimension.
        factors: of any shapes. What is meant is [..., summed] with [summed, kept] or [kept, summed].
    """
    names, result = equation.split("->")[0].split(","), equation.split("->")[1]
    known = all(x.shape.is_fully_defined() for x in factors)
    if known and len(factors) == 2 and factors[1].shape.rank == 2 and result[:-1] == names[0][:-1]:
        x, matrix = factors
        rows = tf.reshape(x, [math.prod(x.shape[:-1]), x.shape[-1]])
        if names[1] == names[0][-1] + result[-1]:
            found = _times(rows, matrix)
        elif names[1] == result[-1] + names[0][-1]:
            found = _times(rows, matrix, turned=True)
        else:
            found = None
        if found is not None:
            return tf.reshape(found, [*x.shape[:-1], found.shape[-1]])
    return tf.einsum(equation, *factors)


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
    return fits and few and rows.dtype == matrices.dtype == tf.float32 and native.few_rows_known()


def few_rows(rows: tf.Tensor, matrices: tf.Tensor, form: str = "", *limits: tf.Tensor) -> tf.Tensor:
    """[..., rows, summed] times [..., summed, kept], or turned, [..., kept, summed], by few_rows.c.

    `form`: the end of its target's name; `limits`: what some forms take (see `matmul`).
    """
    operands = [rows, matrices, *limits]
    result = tf.TensorSpec([*rows.shape[:-1], matrices.shape[-2 if form == "_turned" else -1]], tf.float32)
    types = [f"tensor<{''.join(f'{n}x' for n in x.shape)}{TYPES[x.dtype]}>" for x in [*operands, result]]
    *given, found = types
    names = [f"%arg{i}" for i in range(len(operands))]
    parameters = ", ".join(f"{name}: {kind}" for name, kind in zip(names, given, strict=True))
    module = f"""module @few_rows {{
  func.func public @main({parameters}) -> {found} {{
    %0 = stablehlo.custom_call @gpt_mesh_few_rows{form}({", ".join(names)})
        {{api_version = 4 : i32, backend_config = {{}}}} : ({", ".join(given)}) -> {found}
    return %0 : {found}
  }}
}}
"""
    return compat.xla_call_module(module, operands, [result], platform="CPU")[0]


def _by_parts(vector: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """The product with [summed, kept], as the sum of a batch of products of some rows each: [1, kept]."""
    summed, kept = matrix.shape
    parts = next((count for count in PARTS if summed % count == 0), 1)
    rows = tf.reshape(vector, [parts, 1, summed // parts])
    return tf.reduce_sum(tf.matmul(rows, tf.reshape(matrix, [parts, summed // parts, kept])), 0)
