"""Rotary positions, their scaling and ALiBi's slopes, against Hugging Face's transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import Config
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models.positions import alibi_slopes, position_embedding
from gpt_mesh.models.rope import rope_of
from tests.support.models import mesh_of, tiny_config
from tests.support.outside import TRANSFORMERS_5, ask

pytestmark = pytest.mark.peers

ORIGINAL = {"original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0, **ORIGINAL},
    {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 100},
    {**LLAMA3, **ORIGINAL},
    {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 64},
    YARN,
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 1.0},
    {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    {**YARN, "attention_factor": 1.25},
    {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
    {**YARN, "mscale": 0.707, "mscale_all_dim": 0.0},
    {**YARN, "mscale": 0.707},
]
SHAPES: list[dict[str, Any]] = [
    {},
    {"rotary_emb_base": 500000.0},
    {"rotary_pct": 0.25},
    {"rotary_pct": 0.25, "rotary_interleaved": True},
    {"rotary_interleaved": True},
]
KEYS = [*SHAPES, *({"rope_scaling": s} for s in SCALINGS), *({**SHAPES[3], "rope_scaling": s} for s in SCALINGS)]
HEADS = [1, 2, 3, 7, 8, 12, 16, 20, 24, 71, 112]
POSITIONS, HEAD_SIZE = 128, 32


def config_of(keys: dict[str, Any]) -> Config:
    return tiny_config(n_ctx=POSITIONS, n_head=2, n_embd=2 * HEAD_SIZE, pos_emb="rotary", **keys)


def rotated(config: Config, x: np.ndarray) -> np.ndarray:
    """x: [positions, features] of one head."""
    implementation = mesh_of(store=VariableStore("/device:CPU:0"))
    ctx = model_fns.make_context(config, implementation, 1, POSITIONS, tf.float32)
    dims = ctx.dims
    shape = mtf.Shape([dims.batch, dims.sequence, mtf.Dimension("heads", 1), dims.features_per_head])
    on_mesh = mtf.import_tf_tensor(ctx.mesh, tf.constant(x[None, :, None]), shape)
    positions = mtf.range(ctx.mesh, dims.sequence, tf.int32)
    y = position_embedding(config.model).rotate(ctx, on_mesh, positions)
    lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: implementation}, autostack=False)
    found: np.ndarray = lowering.export_to_tf_tensor(y).numpy()
    return found[0, :, 0]


@pytest.mark.parametrize("site", [None, TRANSFORMERS_5], ids=["4", "5"])
def test_positions_are_those_of_transformers(tmp_path: Path, site: Path | None) -> None:
    x = np.random.default_rng(0).standard_normal([POSITIONS, HEAD_SIZE]).astype(np.float32)
    models = [
        {
            "n_ctx": POSITIONS, "head_size": HEAD_SIZE, "base": keys.get("rotary_emb_base", 10000.0),
            "share": keys.get("rotary_pct", 1.0), "interleaved": keys.get("rotary_interleaved", False),
            "scaling": keys.get("rope_scaling"), "x": x.tolist(),
        }
        for keys in KEYS
    ]  # fmt: skip
    theirs = ask("positions", {"models": models, "heads": HEADS}, tmp_path, site=site)
    assert theirs["version"] == (5 if site else 4)
    for number, keys in enumerate(KEYS):
        config = config_of(keys)
        rope, features = rope_of(config.model), config.model.rotary_features
        turns = rope.base ** (-np.arange(0, features, 2) / features) * (1 if rope.factors is None else rope.factors)
        np.testing.assert_allclose(turns, theirs[f"{number}/turns"], rtol=2e-6, err_msg=str(keys))
        assert rope.magnitude == pytest.approx(float(theirs[f"{number}/magnitude"]), rel=1e-12), keys
        wanted = theirs[f"{number}/rotated"]
        np.testing.assert_allclose(rotated(config, x), wanted, rtol=0, atol=1e-4, err_msg=str(keys))
    for heads in HEADS:
        np.testing.assert_allclose(alibi_slopes(heads), theirs[f"alibi/{heads}"], rtol=1e-6)
