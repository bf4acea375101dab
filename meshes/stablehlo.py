"""Builds StableHLO modules (https://openxla.org/stablehlo/spec), for operations that TensorFlow lacks.

They run inside XLA-compiled functions. A `Module` is built one operation at a time:

    module = Module([x, y])
    (product,) = module.custom_call("target", module.arguments, [tf.TensorSpec([2, 3], tf.float32)], attributes)
    return module.run([module.transpose(product, [1, 0])])
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

from gpt_mesh.meshes import compat

import tensorflow as tf  # isort: skip  (after compat, which quiets its start-up)

_ELEMENTS = {
    tf.float64: "f64", tf.float32: "f32", tf.bfloat16: "bf16", tf.float16: "f16", tf.int64: "i64", tf.int32: "i32",
    tf.uint32: "ui32", tf.uint8: "ui8", tf.bool: "i1",
}  # fmt: skip
_ALIAS = "#stablehlo.output_operand_alias<output_tuple_indices = [{}], operand_index = {}, operand_tuple_indices = []>"


@dataclass(frozen=True)
class Value:
    """A tensor in a module: its name, shape and type."""

    name: str
    spec: tf.TensorSpec


class Module:
    """A module whose `main` takes these tensors as arguments."""

    def __init__(self, operands: Sequence[tf.Tensor]) -> None:
        """`operands`: tensors with static shapes."""
        self._operands, self._count = list(operands), 0
        self._lines: list[str] = []
        specs = [tf.TensorSpec(x.shape, x.dtype) for x in operands]
        self.arguments = [Value(f"%arg{i}", spec) for i, spec in enumerate(specs)]

    def custom_call(
        self, target: str, values: Sequence[Value], results: Sequence[tf.TensorSpec], attributes: Mapping[str, str]
    ) -> list[Value]:
        """Call a custom-call target of XLA; `attributes`: StableHLO text by name."""
        text = ", ".join(f"{name} = {value}" for name, value in attributes.items())
        given, found = (", ".join(map(_type, specs)) for specs in ([x.spec for x in values], results))
        operation = f"stablehlo.custom_call @{target}({_names(values)}) {{{text}}}"
        return self._add(f"{operation} : ({given}) -> ({found})", results)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Dimension i of the result is dimension `order[i]` of the value."""
        result = tf.TensorSpec([value.spec.shape[i] for i in order], value.spec.dtype)
        return self._simple(f"stablehlo.transpose {value.name}, dims = {list(order)}", value, result)

    def all_reduce(self, value: Value, reduction: str, groups: Sequence[Sequence[int]]) -> Value:
        """All-reduce over the replicas of each group; `reduction`: a binary StableHLO operation, such as "add"."""
        scalar = _type(tf.TensorSpec([], value.spec.dtype))
        body = (
            f"({{ ^bb0(%p: {scalar}, %q: {scalar}): %s = stablehlo.{reduction} %p, %q : {scalar} "
            f'"stablehlo.return"(%s) : ({scalar}) -> () }})'
        )
        return self._simple(f'"stablehlo.all_reduce"({value.name}) {body} {{{_groups(groups)}}}', value, value.spec)

    def all_gather(self, value: Value, groups: Sequence[Sequence[int]]) -> Value:
        """The values of each group's replicas, concatenated along the first dimension."""
        first, *rest = value.spec.shape
        result = tf.TensorSpec([first * len(groups[0]), *rest], value.spec.dtype)
        attributes = f"all_gather_dim = 0 : i64, {_groups(groups)}"
        return self._simple(f'"stablehlo.all_gather"({value.name}) {{{attributes}}}', value, result)

    def run(self, values: Sequence[Value], platform: str = "CUDA") -> list[tf.Tensor]:
        """Run the module; returns these values as tensors. `platform`: "CUDA" or "CPU"."""
        given = ", ".join(f"{x.name}: {_type(x.spec)}" for x in self.arguments)
        returned = ", ".join(_type(x.spec) for x in values)
        body = "\n    ".join([*self._lines, f"return {_names(values)} : {returned}"])
        text = f"module @gpt_mesh {{\n  func.func public @main({given}) -> ({returned}) {{\n    {body}\n  }}\n}}\n"
        return compat.xla_call_module(text, self._operands, [x.spec for x in values], platform)

    def _simple(self, operation: str, value: Value, result: tf.TensorSpec) -> Value:
        """Add an operation with one operand and one result."""
        return self._add(f"{operation} : ({_type(value.spec)}) -> {_type(result)}", [result])[0]

    def _add(self, operation: str, results: Sequence[tf.TensorSpec]) -> list[Value]:
        name = f"%{self._count}"
        self._count += 1
        single = len(results) == 1
        self._lines.append(f"{name}{'' if single else f':{len(results)}'} = {operation}")
        return [Value(name if single else f"{name}#{i}", spec) for i, spec in enumerate(results)]


def dictionary(values: Mapping[str, int | float]) -> str:
    """A dictionary attribute with numbers."""
    return f"{{{', '.join(f'{name} = {_number(value)}' for name, value in values.items())}}}"


def string(value: object) -> str:
    """A string attribute with JSON."""
    escaped = json.dumps(value).replace('"', '\\"')
    return f'"{escaped}"'


def layouts(orders: Sequence[Sequence[int]]) -> str:
    """An attribute with memory layouts of tensors: the dimensions of each, minor to major."""
    texts = [f"dense<{list(o) if len(o) > 1 else o[0]}> : tensor<{len(o)}xindex>" for o in orders]
    return f"[{', '.join(texts)}]"


def aliases(in_place: Mapping[int, int]) -> str:
    """An attribute that maps indices of results to the indices of operands whose memory they reuse."""
    return f"[{', '.join(_ALIAS.format(result, operand) for result, operand in in_place.items())}]"


def element(dtype: tf.DType) -> str:
    """The StableHLO name of a type."""
    return _ELEMENTS[dtype]


def _type(spec: tf.TensorSpec) -> str:
    return f"tensor<{''.join(f'{n}x' for n in spec.shape)}{_ELEMENTS[spec.dtype]}>"


def _number(x: int | float) -> str:
    return f"{int(x)} : i64" if isinstance(x, Integral) else f"{float(x):.17e} : f64"


def _names(values: Sequence[Value]) -> str:
    return ", ".join(value.name for value in values)


def _groups(groups: Sequence[Sequence[int]]) -> str:
    rows = [list(group) for group in groups]
    return f"replica_groups = dense<{rows}> : tensor<{len(rows)}x{len(rows[0])}xi64>"
