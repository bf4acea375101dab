"""Clipping by global norm, on meshes too. Adam itself: tests/test_model_fns.py."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.optimizers.clipping import clip_factor, global_norm
from tests.support.models import Dim, on_mesh

ROWS, COLUMNS = Dim("rows", 4), Dim("columns", 6)


@pytest.mark.parametrize(
    ("mesh_shape", "layout"), [("", ""), ("a:2", "rows:a"), ("a:2,b:2", "rows:a,columns:b"), ("a:2", "columns:a")]
)
def test_the_global_norm_is_that_of_all_gradients_together(mesh_shape, layout):
    rng = np.random.default_rng(0)
    matrix, vector = rng.standard_normal((4, 6)).astype("float32"), rng.standard_normal(6).astype("float32")
    operands = [(matrix, [ROWS, COLUMNS]), (vector, [COLUMNS])]
    [norm] = on_mesh(lambda *gradients: [global_norm(gradients)], operands, mesh_shape, layout)
    assert norm == pytest.approx(np.sqrt((matrix**2).sum() + (vector**2).sum()), rel=1e-6)


def test_the_norm_of_bfloat16_gradients_is_summed_in_float32():
    values = np.full((4, 6), 1.0, np.float32)
    values[0, 0] = 100.0

    def build(x):
        return [global_norm([mtf.cast(x, tf.bfloat16)])]

    [norm] = on_mesh(build, [(values, [ROWS, COLUMNS])])
    assert norm.dtype == np.float32
    assert norm == pytest.approx(np.sqrt(100.0**2 + 23), rel=1e-6)


@pytest.mark.parametrize(("norm", "factor"), [(0.0, 1.0), (0.5, 1.0), (2.0, 1.0), (8.0, 0.25)])
def test_gradients_are_scaled_down_to_the_limit_and_never_up(norm, factor):
    [found] = on_mesh(lambda n: [clip_factor(n, 2.0)], [(np.float32(norm), [])])
    assert found == pytest.approx(factor)
