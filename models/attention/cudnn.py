"""Softmax attention in memory linear in the sequence, on NVIDIA GPUs (Dao, 2023, arXiv:2307.08691).

cuDNN has the kernels, forward and backward, and XLA compiles calls of them into a program. TensorFlow has no operation
for such a call; here it is written as StableHLO. Scores are never stored: the forward pass keeps the logarithm of each
query's softmax denominator, from which the backward pass computes its scores again.
"""

from __future__ import annotations

import json
from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import compat
from gpt_mesh.models.attention.backend import Backend, Problem, View

_FORWARD, _BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
_TYPES = {tf.bfloat16: "bf16", tf.float32: "f32", tf.uint8: "ui8"}
MAX_FEATURES = 128  # of a head; more run on some GPUs only
WHOLE_TILES = 64  # lengths that these divide were seen to run


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
            gradient=lambda *values: gradient(*values[:6], view),
            log_sums=True,
        )


def fits(positions: int, features: int, dtype: tf.DType, view: View) -> bool:
    """Whether cuDNN has a kernel for such attention of positions 0 … n-1 to each other."""
    supported = dtype == tf.bfloat16 and features % 8 == 0 and features <= MAX_FEATURES
    return supported and positions % WHOLE_TILES == 0 and (view.causal or view.window is None)


def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, view: View) -> tuple[tf.Tensor, tf.Tensor]:
    """The weighted sums of values, and the logarithms of the weights' denominators.

    Args:
        q, k, v: [batch, n, heads, features], of a type and sizes that `fits`.

    Returns:
        [batch, n, heads, features] in the type of v, and float32 [batch, heads, n].
    """
    call = _Call(q, view)
    out = call.by_head(q.dtype)
    sums = tf.TensorSpec([q.shape[0], q.shape[2], q.shape[1]], tf.float32)
    attended, log_sums = call.run(_FORWARD, [q, k, v], [out, sums], _FORWARD_PRODUCTS)
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
    dq, dk, dv = call.run(_BACKWARD, operands, [call.by_head(x.dtype) for x in (q, k, v)], _BACKWARD_PRODUCTS)
    return dq, dk, dv


class _Call:
    """What the forward and the backward call have in common."""

    def __init__(self, q: tf.Tensor, view: View) -> None:
        self._batch, self._positions, self._heads, self._features = q.shape.as_list()
        self._dtype, self._view = q.dtype, view

    def by_head(self, dtype: tf.DType) -> tf.TensorSpec:
        """What cuDNN gives back: [batch, heads, positions, features]."""
        return tf.TensorSpec([self._batch, self._heads, self._positions, self._features], dtype)

    def run(
        self, target: str, operands: list[tf.Tensor], results: list[tf.TensorSpec], products: dict[str, str]
    ) -> list[tf.Tensor]:
        """The results, those by head as [batch, positions, heads, features]."""
        module = self._module(target, [tf.TensorSpec(x.shape, x.dtype) for x in operands], results, products)
        swapped = [_swapped(result) if len(result.shape) == 4 else result for result in results]
        return compat.xla_call_module(module, operands, swapped)

    def _module(
        self, target: str, operands: list[tf.TensorSpec], results: list[tf.TensorSpec], products: dict[str, str]
    ) -> str:
        scratch = tf.TensorSpec([0], tf.uint8)
        given = ", ".join(f"%arg{i}: {_type(x)}" for i, x in enumerate(operands))
        found = [*results, scratch]
        attributes = [
            "api_version = 2 : i32",
            f"backend_config = {_quoted(json.dumps(self._settings(products)))}",
            f"operand_layouts = [{', '.join(_layout(x) for x in operands)}]",
            f"result_layouts = [{', '.join(_layout(x, by_head=True) for x in found)}]",
        ]
        types = f"({', '.join(_type(x) for x in operands)}) -> ({', '.join(_type(x) for x in found)})"
        arguments = ", ".join(f"%arg{i}" for i in range(len(operands)))
        call = f"stablehlo.custom_call @{target}({arguments})"
        lines = [f"%0:{len(found)} = {call} {{{', '.join(attributes)}}} : {types}"]
        names, returned = [], []
        for i, result in enumerate(results):
            names.append(f"%0#{i}")
            returned.append(_type(result))
            if len(result.shape) == 4:  # a change of names only: the layout is that of [batch, positions, …] already
                names[i], returned[i] = f"%{i + 1}", _type(_swapped(result))
                lines.append(
                    f"%{i + 1} = stablehlo.transpose %0#{i}, dims = [0, 2, 1, 3] : ({_type(result)}) -> {returned[i]}"
                )
        lines.append(f"return {', '.join(names)} : {', '.join(returned)}")
        body = "\n    ".join(lines)
        head = f"func.func public @main({given}) -> ({', '.join(returned)})"
        return f"module @flash_attention {{\n  {head} {{\n    {body}\n  }}\n}}\n"

    def _settings(self, products: dict[str, str]) -> dict[str, Any]:
        """XLA's `GpuBackendConfig` with a `CudnnfMHABackendConfig`, in the JSON form of protocol buffers."""
        scores = {
            "element_type": _TYPES[self._dtype].upper(),
            "dimensions": [str(n) for n in (self._batch, self._heads, self._positions, self._positions)],
            "layout": {"minor_to_major": ["3", "2", "1", "0"]},
        }
        algorithm = {"algo_id": "0", "math_type": "TENSOR_OP_MATH", "is_cudnn_frontend": True, "workspace_size": "0"}
        return {
            "cudnn_fmha_backend_config": {
                "algorithm": {**algorithm, "tuning_knobs": {"17": "1", "24": "0"}},
                "fmha_scale": 1.0,
                "intermediate_tensor_shape": scores,
                "is_flash_attention": True,
                "mask_type": "CAUSAL" if self._view.causal else "NO_MASK",
                "dropout_rate": 0.0,
                "seed": "42",
                "sliding_window_length": self._view.window or 0,
                "max_seg_per_batch": 1,
                **{name: _product(equation) for name, equation in products.items()},
            }
        }


# The products inside, as XLA names them. Queries are b(atch) q h(eads) f(eatures), keys and values bkhf, scores and
# their gradients bhqk.
_FORWARD_PRODUCTS = {
    "bmm1_dot_dimension_numbers": "bqhf,bkhf",
    "bmm2_dot_dimension_numbers": "bhqk,bkhf",
}
_BACKWARD_PRODUCTS = {
    "bmm1_grad_gemm1_dot_dimension_numbers": "bhqk,bqhf",
    "bmm1_grad_gemm2_dot_dimension_numbers": "bhqk,bkhf",
    "bmm2_grad_gemm1_dot_dimension_numbers": "bhqk,bqhf",
    "bmm2_grad_gemm2_dot_dimension_numbers": "bqhf,bkhf",
}


def _product(equation: str) -> dict[str, list[str]]:
    """The dimensions that a product sums over and those that it goes along, of operands in einsum's notation."""
    left, right = equation.split(",")
    along = [name for name in "bh" if name in left and name in right]
    over = [name for name in left if name in right and name not in along]
    return {
        "lhs_contracting_dimensions": [str(left.index(name)) for name in over],
        "rhs_contracting_dimensions": [str(right.index(name)) for name in over],
        "lhs_batch_dimensions": [str(left.index(name)) for name in along],
        "rhs_batch_dimensions": [str(right.index(name)) for name in along],
    }


def _swapped(spec: tf.TensorSpec) -> tf.TensorSpec:
    batch, heads, positions, features = spec.shape
    return tf.TensorSpec([batch, positions, heads, features], spec.dtype)


def _type(spec: tf.TensorSpec) -> str:
    return f"tensor<{''.join(f'{n}x' for n in spec.shape)}{_TYPES[spec.dtype]}>"


def _layout(spec: tf.TensorSpec, *, by_head: bool = False) -> str:
    """Minor to major; of a result by head, positions before heads in memory."""
    rank = len(spec.shape)
    order = [3, 1, 2, 0] if by_head and rank == 4 else list(reversed(range(rank)))
    return f"dense<{order if rank > 1 else order[0]}> : tensor<{rank}xindex>"


def _quoted(text: str) -> str:
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'
