"""Every shape of every Hugging Face family: decoding with the cache gives the logits of one full pass, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.interop.architectures import ARCHITECTURES
from tests.models.test_cache import cached_logits
from tests.support.families import FAMILIES, SHAPES
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch

READ, WIDTH = 10, 13  # windows are 8 or 5 wide, and rotary positions are scaled from 12 on
QUICK = [("llama", "scaled"), ("mixtral", "windowed"), ("bloom", "plain")]


@pytest.mark.parametrize(
    ("family", "shape"),
    [pytest.param(*row, marks=[] if row in QUICK else pytest.mark.slow) for row in SHAPES],
)
def test_cached_logits_are_those_of_a_full_pass(family: str, shape: str) -> None:
    keys = ARCHITECTURES[family].read(FAMILIES[family][shape], family)
    config = tiny_config(**{"attention_types": None, **keys})
    engine = make_engine(config, compiled=False)
    tokens = token_batch(config, rows=2, width=WIDTH)

    def build(tokens: tf.Tensor) -> tf.Tensor:
        return model_fns.build_logits(tokens, config, engine.mesh_impl, tf.float64)

    whole, cached = engine.function(build), cached_logits(engine, READ, tf.float64)
    for function in (whole, cached):
        function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine)
    wanted = whole(tokens).numpy()
    assert wanted.std() > 0.5
    np.testing.assert_allclose(cached(tokens), wanted, rtol=0, atol=1e-9)
