"""Each registry of the models has the names that a config can choose, and no others."""

from __future__ import annotations

from gpt_mesh.config import ACTIVATIONS, ATTENTION_TYPES, NORMS, POSITION_EMBEDDINGS
from gpt_mesh.models import activations, norms
from gpt_mesh.models.attention.kinds import KINDS, by_layer, layer_kinds, positions_axes, state_tensors
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.feed_forward import FEED_FORWARDS, feed_forward_name
from gpt_mesh.models.positions import POSITIONS
from tests.support.models import tiny_config

MOE = {"moe_layers": [1], "moe_params": {"moe_num_experts": 2}}


def test_activations() -> None:
    assert activations.ACTIVATIONS.keys() == set(ACTIVATIONS)


def test_position_embeddings() -> None:
    assert POSITIONS.keys() == set(POSITION_EMBEDDINGS)


def test_norms() -> None:
    assert norms.NORMS.keys() == set(NORMS)


def test_attention_kinds() -> None:
    assert KINDS.keys() == set(ATTENTION_TYPES)


def test_feed_forwards() -> None:
    names = [feed_forward_name(tiny_config(**keys).model, 1) for keys in ({}, {"mlp_glu": True}, MOE)]
    assert len(set(names)) == len(names) and set(names) == set(FEED_FORWARDS)


def test_states_by_layer() -> None:
    model = tiny_config(n_layer=4, attention_types=[[["global", "linear", "none", "local"], 1]]).model
    dims = Dims.of(model, 3, 1, 7)
    tensors = state_tensors(model, dims)
    assert [tensor.shape.to_integer_list for tensor in tensors] == [
        [3, 4, 7, 4], [3, 4, 7, 4], [3, 4, 4, 4], [3, 4, 4], [3, 4, 7, 4], [3, 4, 7, 4],
    ]  # fmt: skip
    assert positions_axes(model) == [2, 2, None, None, 2, 2]
    assert len(layer_kinds(model)) == 3
    assert by_layer(model, "abcdef") == [("a", "b"), ("c", "d"), ("e", "f")]
