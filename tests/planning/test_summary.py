"""The tree of a model's weights, with its sums, held against other counts."""

from __future__ import annotations

from typing import Any

import pytest

from gpt_mesh.models.shapes import weight_count
from gpt_mesh.planning.metrics import flops_per_token
from gpt_mesh.planning.summary import Node, summary, tree
from tests.support.models import tiny_config


def leaves(node: Node) -> list[Node]:
    return [leaf for part in node.parts.values() for leaf in leaves(part)] or [node]


@pytest.mark.parametrize(
    "keys", [{}, {"rotary_emb": True, "mlp_glu": True}, {"no_weight_tie": True}, {"axial_pos_emb": [4, 4]}]
)
def test_parameters_and_flops_add_up(keys: dict[str, Any]) -> None:
    config = tiny_config(attention_types=[[["global"], 2]], **keys)
    root = tree(config.model)
    assert root.parameters == weight_count(config.model) == sum(leaf.parameters for leaf in leaves(root))
    # Training counts the forward pass and twice that backward.
    assert 3 * root.flops / config.model.n_ctx == pytest.approx(flops_per_token(config), rel=0.02)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = summary(tiny_config(attention_types=[[["global"], 2]]).model)
    assert lines[0].split() == ["parameters", "FLOPs", "shape"]
    assert any("h0 … h1 (each of 2)" in line for line in lines)
    wte = next(line for line in lines if "wte" in line)
    assert "1,024" in wte and "vocab 64" in wte and "embd 16" in wte
    assert lines[1].split()[:1] == ["model"] and lines[1].split()[2:] == ["100.0%", "100.0%"]


def test_layers_that_differ_stand_apart() -> None:
    lines = summary(tiny_config(moe_layers=[1], moe_params={"moe_num_experts": 2}).model)
    assert any(line.startswith("├ h0 ") for line in lines) and any(line.startswith("├ h1 ") for line in lines)
