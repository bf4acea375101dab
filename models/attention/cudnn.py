"""Softmax attention in memory linear in the sequence, on NVIDIA GPUs (Dao, 2023, arXiv:2307.08691).

cuDNN has the kernels, forward and backward, and XLA compiles calls of them into a program. TensorFlow has no operation
for such a call; here it is StableHLO. Logits are never stored: the forward pass keeps the logarithm of each query's
softmax denominator, from which the backward pass recomputes them.
"""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import stablehlo
from gpt_mesh.meshes.stablehlo import Module
from gpt_mesh.models.attention.backend import Backend, Problem, View

_FORWARD, _BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
MAX_FEATURES = 128  # of a head; only some GPUs take more
WHOLE_TILES = 64  # multiples of this length were seen to run


class Cudnn(Backend):
    """cuDNN's flash attention."""

    def supports(self, problem: Problem) -> bool:
        ctx, dims = problem.ctx, problem.ctx.dims
        return (
            ctx.tensor_cores
            and problem.is_bare
            and problem.on_slices
            and fits(dims.sequence.size, dims.features_per_head.size, problem.heads.q.dtype, problem.view)
        )

    def attend(self, problem: Problem) -> mtf.Tensor:
        view = problem.view
        return problem.run(
            lambda q, k, v: attend(q, k, v, view),
            gradient=lambda q, k, v, out, log_sums, upstream, _: gradient(q, k, v, out, log_sums, upstream, view),
            log_sums=True,
        )


def fits(positions: int, features: int, dtype: tf.DType, view: View) -> bool:
    """Whether cuDNN has a kernel for such attention of positions 0 … n-1 to each other."""
    supported = dtype == tf.bfloat16 and features % 8 == 0 and features <= MAX_FEATURES
    return supported and positions % WHOLE_TILES == 0 and (view.causal or view.window is None)


def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, view: View) -> tuple[tf.Tensor, tf.Tensor]:
    """The weighted sums of values, and the logarithms of the weights' denominators.

    Args:
        q: [batch, n, heads, features], of a type and sizes that `fits`.
        k, v: [batch, n, kv_heads, features]; each of these heads is read by a group of consecutive heads of q.

    Returns:
        [batch, n, heads, features] in the type of v, and float32 [batch, heads, n].
    """
    call = _Call(q, view)
    sums = tf.TensorSpec([q.shape[0], q.shape[2], q.shape[1]], tf.float32)
    attended, log_sums = call.run(_FORWARD, [q, k, v], [_by_head(q), sums], _FORWARD_MATMULS)
    return attended, log_sums


def gradient(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    attended: tf.Tensor,
    log_sums: tf.Tensor,
    upstream: tf.Tensor,
    view: View,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gradients with respect to q, k and v, given `upstream` with respect to `attended`: see `attend`."""
    call = _Call(q, view)
    operands = [q, k, v, log_sums, tf.cast(upstream, q.dtype), attended]
    dq, dk, dv = call.run(_BACKWARD, operands, [_by_head(x) for x in (q, k, v)], _BACKWARD_MATMULS)
    return dq, dk, dv


def _by_head(x: tf.Tensor) -> tf.TensorSpec:
    """What cuDNN returns for x [batch, positions, heads, features]: [batch, heads, positions, features]."""
    batch, positions, heads, features = x.shape
    return tf.TensorSpec([batch, heads, positions, features], x.dtype)


class _Call:
    """What the forward and the backward call share."""

    def __init__(self, q: tf.Tensor, view: View) -> None:
        self._batch, self._positions, self._heads, _ = q.shape.as_list()
        self._dtype, self._view = q.dtype, view

    def run(
        self, target: str, operands: list[tf.Tensor], results: list[tf.TensorSpec], matmuls: dict[str, str]
    ) -> list[tf.Tensor]:
        """The results, those by head as [batch, positions, heads, features]."""
        module = Module(operands)
        found = [*results, tf.TensorSpec([0], tf.uint8)]  # the last is scratch space
        attributes = {
            "api_version": "2 : i32",
            "backend_config": stablehlo.string(self._settings(matmuls)),
            "operand_layouts": stablehlo.layouts([_layout(x.shape.rank) for x in operands]),
            "result_layouts": stablehlo.layouts([_layout(len(x.shape), by_head=True) for x in found]),
        }
        values = module.custom_call(target, module.arguments, found, attributes)[:-1]
        # Of results by head only the names change: in memory they are [batch, positions, heads, features] already.
        return module.run([module.transpose(x, [0, 2, 1, 3]) if len(x.spec.shape) == 4 else x for x in values])

    def _settings(self, matmuls: dict[str, str]) -> dict[str, Any]:
        """XLA's `GpuBackendConfig` with a `CudnnfMHABackendConfig`, in the JSON form of protocol buffers."""
        logits = {
            "element_type": stablehlo.element(self._dtype).upper(),
            "dimensions": [str(n) for n in (self._batch, self._heads, self._positions, self._positions)],
            "layout": {"minor_to_major": ["3", "2", "1", "0"]},
        }
        algorithm = {"algo_id": "0", "math_type": "TENSOR_OP_MATH", "is_cudnn_frontend": True, "workspace_size": "0"}
        return {
            "cudnn_fmha_backend_config": {
                "algorithm": {**algorithm, "tuning_knobs": {"17": "1", "24": "0"}},
                "fmha_scale": 1.0,
                "intermediate_tensor_shape": logits,
                "is_flash_attention": True,
                "mask_type": "CAUSAL" if self._view.causal else "NO_MASK",
                "dropout_rate": 0.0,
                "seed": "42",
                "sliding_window_length": self._view.window or 0,
                "max_seg_per_batch": 1,
                **{name: _matmul(equation) for name, equation in matmuls.items()},
            }
        }


# The matmuls inside, by XLA's names. Queries are b(atch) q h(eads) f(eatures), keys and values bkhf, logits and their
# gradients bhqk.
_FORWARD_MATMULS = {
    "bmm1_dot_dimension_numbers": "bqhf,bkhf",
    "bmm2_dot_dimension_numbers": "bhqk,bkhf",
}
_BACKWARD_MATMULS = {
    "bmm1_grad_gemm1_dot_dimension_numbers": "bhqk,bqhf",
    "bmm1_grad_gemm2_dot_dimension_numbers": "bhqk,bkhf",
    "bmm2_grad_gemm1_dot_dimension_numbers": "bhqk,bqhf",
    "bmm2_grad_gemm2_dot_dimension_numbers": "bqhf,bkhf",
}


def _matmul(equation: str) -> dict[str, list[str]]:
    """The contracting and the batch dimensions of a matmul, whose operands are given in einsum's notation."""
    left, right = equation.split(",")
    along = [name for name in "bh" if name in left and name in right]
    over = [name for name in left if name in right and name not in along]
    return {
        "lhs_contracting_dimensions": [str(left.index(name)) for name in over],
        "rhs_contracting_dimensions": [str(right.index(name)) for name in over],
        "lhs_batch_dimensions": [str(left.index(name)) for name in along],
        "rhs_batch_dimensions": [str(right.index(name)) for name in along],
    }


def _layout(rank: int, *, by_head: bool = False) -> list[int]:
    """Minor to major; of a result by head, positions before heads in memory."""
    return [3, 1, 2, 0] if by_head and rank == 4 else list(reversed(range(rank)))
