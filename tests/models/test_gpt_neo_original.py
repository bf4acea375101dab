"""`gpt_neo_original` against the original's formulas, written again in NumPy from what its code does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpt_mesh.config import ModelConfig
from tests.support import reference
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch, weights_of

CASES: dict[str, dict[str, Any]] = {
    "layers without attention": {"attention_types": [[["global", "none"], 1]]},
    "axial positions": {"axial_pos_emb": [4, 4], "n_ctx": 16},
    "one gain": {"scalenorm": True},
    "macaron": {"macaron": True},
    "an untied head": {"no_weight_tie": True},
    "shared weights": {"share_parameters": True},
    "gains, no norms": {"rezero": True, "attention_types": [[["global", "none"], 1]]},
    "macaron with gains": {"rezero": True, "macaron": True},
}


@pytest.mark.parametrize("keys", CASES.values(), ids=CASES)
def test_logits_are_the_originals(keys: dict[str, Any]) -> None:
    config = tiny_config(**{"n_layer": 2, **keys}, gpt_neo_original=True, precision="float32")
    engine = make_engine(config)
    engine.create_variables(training=False)
    enlarge_weights(engine)
    weights = {name.removeprefix("gpt2/"): value for name, value in weights_of(engine).items()}
    tokens = token_batch(config)[:, :-1]
    expected = np.stack([original(weights, row, config.model) for row in tokens])
    np.testing.assert_allclose(engine.logits(tokens), expected, rtol=2e-4, atol=2e-4)


def test_the_default_differs() -> None:
    """Each case of the above is a difference: without the key, weights or logits are others."""
    for keys in CASES.values():
        found = []
        for original_form in (False, True):
            engine = make_engine(tiny_config(**{"n_layer": 2, **keys}, gpt_neo_original=original_form))
            engine.create_variables(training=False)
            enlarge_weights(engine)
            found.append((set(weights_of(engine)), engine.logits(token_batch(engine.config)[:, :-1])))
        assert found[0][0] != found[1][0] or np.abs(found[0][1] - found[1][1]).max() > 1e-3, keys


def test_names_of_weights() -> None:
    """As mesh-tensorflow gives them to the original's variable scopes; shared weights lie in a scope without a name."""
    keys = {"macaron": True, "no_weight_tie": True, "share_parameters": True, "n_layer": 2}
    engine = make_engine(tiny_config(**keys, gpt_neo_original=True))
    engine.create_variables(training=False)
    dense = [f"conv1d_main/{part}/{kind}" for part in ("c_fc", "c_proj") for kind in ("kernel", "bias")]
    block = ["norm_1/g", "norm_1/b", "norm_2/g", "norm_2/b", *(f"attn/{part}" for part in "qkvo")]
    block += ["attn/compute_output_bias/o_b", *(f"{mlp}/{part}" for mlp in ("mlp", "mlp_macaron") for part in dense)]
    head = [f"wte_final_linear/conv1d_main/linear_out/{kind}" for kind in ("kernel", "bias")]
    assert set(weights_of(engine)) == {"wte", "wpe", *head, *(f"/{name}" for name in block)}


def original(w: dict[str, np.ndarray], tokens: np.ndarray, model: ModelConfig) -> np.ndarray:
    """Logits [sequence, n_vocab] of one row."""
    if model.axial_pos_emb:
        rows, columns = w["axial_wpe_1"], w["axial_wpe_2"]
        positions = np.concatenate([[(row + column) / 2 for column in columns] for row in rows])
    else:
        positions = w["wpe"]
    x = w["wte"][tokens] + positions[: len(tokens)]
    for i in range(model.n_layer):
        name = "" if model.share_parameters else f"h{i}"
        if model.macaron:
            x = x + 0.5 * reference._feed_forward(w, f"{name}/mlp_macaron/conv1d_main", x, "gelu")
        if model.attention_types[i] == "none":
            y = x
        else:
            h = _norm(w, f"{name}/norm_1", x, model)
            radius = model.local_attention_radius if model.attention_types[i] == "local" else len(tokens)
            y = reference._attention(w, f"{name}/attn", h, model.n_head, radius)
        x = x + _gain(w, f"{name}/norm_rezero_1", y, model)
        y = reference._feed_forward(w, f"{name}/mlp/conv1d_main", _norm(w, f"{name}/norm_2", x, model), "gelu")
        x = x + _gain(w, f"{name}/norm_rezero_2", (0.5 if model.macaron else 1.0) * y, model)
    if model.no_weight_tie:
        head = "wte_final_linear/conv1d_main/linear_out"
        return x @ w[f"{head}/kernel"] + w[f"{head}/bias"]
    return reference.layer_norm(x, w["ln_f/g"], w["ln_f/b"]) @ w["wte"].T


def _norm(w: dict[str, np.ndarray], name: str, x: np.ndarray, model: ModelConfig) -> np.ndarray:
    if model.rezero:
        return x
    return reference.layer_norm(x, w[f"{name}/g"], np.zeros(1) if model.scalenorm else w[f"{name}/b"])


def _gain(w: dict[str, np.ndarray], name: str, y: np.ndarray, model: ModelConfig) -> np.ndarray:
    return y * w[f"{name}/g"] if model.rezero else y
