"""Modules in StableHLO, run by XLA on a CPU; and that no other file of the product writes any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.meshes import compat, stablehlo
from gpt_mesh.meshes.stablehlo import Module
from tests.test_architecture import ROOT, sources

WRITER = "meshes/stablehlo.py"


@pytest.mark.parametrize("path", [path for path in sources() if path != WRITER])
def test_one_module_writes_stablehlo(path: str) -> None:
    text = (Path(ROOT) / path).read_text()
    signs = ["func.func", '"stablehlo.', "stablehlo.custom_call", "tensor<", "#stablehlo", ".xla_call_module("]
    allowed = ["operations.xla_call_module("] if path == "meshes/compat.py" else []
    for sign in signs:
        assert text.count(sign) == sum(sign in x for x in allowed), f"{path} writes {sign}"


def test_a_module_of_several_operations() -> None:
    @tf.function(jit_compile=True)
    def run(x: tf.Tensor) -> list[tf.Tensor]:
        module = Module([x, x])
        first, second = module.arguments
        swapped = module.transpose(first, [2, 0, 1])
        return module.run([module.transpose(swapped, [1, 2, 0]), second, swapped], platform="CPU")

    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    same, again, swapped = run(tf.constant(x))
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(again, x)
    np.testing.assert_array_equal(swapped, x.transpose(2, 0, 1))


def test_collectives_say_their_groups_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def call(text: str, _: Any, results: Any, platform: str) -> Any:
        texts.append(text)
        return results

    monkeypatch.setattr(compat, "xla_call_module", call)
    module = Module([tf.zeros([1, 3], tf.bfloat16)])
    largest = module.all_reduce(module.arguments[0], "maximum", [[0, 2], [1, 3]])
    (found,) = module.run([module.all_gather(largest, [[0, 1], [2, 3]])])
    assert found == tf.TensorSpec([2, 3], tf.bfloat16)
    reduce, gather, last = [line.strip() for line in texts[0].splitlines()[2:5]]
    assert reduce.startswith('%0 = "stablehlo.all_reduce"(%arg0) ({ ^bb0(%p: tensor<bf16>, %q: tensor<bf16>)')
    assert "stablehlo.maximum %p, %q : tensor<bf16>" in reduce
    groups = "{replica_groups = dense<[[0, 2], [1, 3]]> : tensor<2x2xi64>}"
    assert reduce.endswith(f"{groups} : (tensor<1x3xbf16>) -> tensor<1x3xbf16>")
    assert gather.startswith('%1 = "stablehlo.all_gather"(%0) {all_gather_dim = 0 : i64, replica_groups = dense<')
    assert gather.endswith(": (tensor<1x3xbf16>) -> tensor<2x3xbf16>")
    assert last == "return %1 : tensor<2x3xbf16>"


def test_attributes() -> None:
    assert stablehlo.dictionary({"n": 3, "yes": True, "x": 0.5}) == (
        "{n = 3 : i64, yes = 1 : i64, x = 5.00000000000000000e-01 : f64}"
    )
    assert stablehlo.string({"a": "b"}) == '"{\\"a\\": \\"b\\"}"'
    assert stablehlo.layouts([[1, 0], [0]]) == "[dense<[1, 0]> : tensor<2xindex>, dense<0> : tensor<1xindex>]"
    assert "output_tuple_indices = [0], operand_index = 2" in stablehlo.aliases({0: 2})
