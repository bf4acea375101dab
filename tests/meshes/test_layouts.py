"""Meshes and layouts that cannot work are refused before a graph is built, with what would."""

from __future__ import annotations

import pytest

from errors import InputError
from meshes.layouts import plan_mesh
from models.dims import Dims
from tests.support.models import tiny_config


def plan(n_devices=1, *, fit=False, chosen=True, kind="CPU", **keys):
    config = tiny_config(**keys)
    dims = Dims.of(config.model, config.training.train_batch_size, config.model.n_ctx)
    names = [f"/device:{kind}:{i}" for i in range(n_devices)]
    return plan_mesh(config, dims.tensors(), names, fit=fit, chosen=chosen)


def refusal(n_devices, **keys):
    with pytest.raises(InputError) as caught:
        plan(n_devices, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_mesh_of_as_many_devices_as_there_are():
    found = plan(4, mesh_shape="x:2,y:2", layout="batch:x,heads:y,vocab:y")
    assert found.shape == {"x": 2, "y": 2}
    assert found.rules == {"batch": "x", "heads": "y", "vocab": "y"}
    assert found.devices == tuple(f"/device:CPU:{i}" for i in range(4))
    assert found.notice == ""
    assert found.master_device == "/device:CPU:0"


def test_one_gpu_holds_its_variables_and_several_leave_them_to_the_host():
    assert plan(1, kind="GPU").master_device == "/device:GPU:0"
    assert plan(2, kind="GPU", mesh_shape="a:2", layout="batch:a").master_device == "/device:CPU:0"


def test_no_mesh_takes_the_first_device_and_says_what_would_use_all():
    found = plan(2, chosen=False)
    assert (found.shape, found.devices) == ({}, ("/device:CPU:0",))
    assert found.notice == (
        "using /device:CPU:0 of 2 devices: the config has no mesh_shape "
        '(for all: "mesh_shape": "all:2", "layout": "batch:all")'
    )
    assert plan(1, chosen=False).notice == ""


def test_more_devices_named_than_the_mesh_has():
    assert refusal(2) == (
        'tiny.json: "mesh_shape": "" is for 1 device, but 2 devices were given (device:CPU:0, device:CPU:1); '
        'set "mesh_shape": "all:2", "layout": "batch:all", or name 1 device with --gpu_ids'
    )


def test_fewer_devices_than_the_mesh_has():
    keys = {"mesh_shape": "x:64,y:4", "layout": "batch:x"}
    for chosen in (True, False):
        assert refusal(1, chosen=chosen, **keys) == (
            'tiny.json: "mesh_shape": "x:64,y:4" is for 256 devices, but 1 device was given (device:CPU:0); '
            'set "mesh_shape": "", "layout": "", or name 256 devices with --gpu_ids'
        )


@pytest.mark.parametrize(
    ("count", "batch", "remedy"),
    [
        (4, 4, 'set "mesh_shape": "all:4", "layout": "batch:all", or'),
        (3, 6, 'set "mesh_shape": "all:3", "layout": "batch:all", or'),
        (3, 4, 'set "mesh_shape": "all:3", "layout": "batch:all" and train_batch_size to a multiple of 3, or'),
    ],
)
def test_the_remedy_that_is_printed_works(count, batch, remedy):
    assert remedy in refusal(count, mesh_shape="a:8", layout="batch:a", train_batch_size=batch)
    batch += -batch % count
    assert plan(count, mesh_shape=f"all:{count}", layout="batch:all", train_batch_size=batch).notice == ""


def test_evaluation_fits_the_mesh_and_says_so():
    found = plan(2, fit=True, mesh_shape="x:64,y:4", layout="batch:x,heads:y")
    assert (found.shape, found.rules, found.devices) == ({}, {}, ("/device:CPU:0",))
    assert found.notice == ('tiny.json: "mesh_shape": "x:64,y:4" is for 256 devices; fitted to one (/device:CPU:0)')
    assert plan(2, fit=True).devices == ("/device:CPU:0",)
    untouched = plan(2, fit=True, mesh_shape="a:2", layout="batch:a")
    assert (untouched.shape, untouched.notice) == ({"a": 2}, "")


def test_sizes_that_do_not_divide():
    assert refusal(3, mesh_shape="a:3", layout="heads:a") == (
        'tiny.json: "layout": "heads:a": heads (4) does not divide by mesh dimension a (3); sizes that divide it: 2, 4'
    )
    assert "batch (4) does not divide by mesh dimension b (8)" in refusal(8, mesh_shape="b:8", layout="batch:b")
    assert "vocab (65) does not divide by mesh dimension a (2)" in refusal(
        2, mesh_shape="a:2", layout="vocab:a", n_vocab=65
    )
    assert "intermediate_expanded (72)" in refusal(
        5, mesh_shape="a:5", layout="intermediate_expanded:a", n_embd=18, n_head=2
    )


def test_heads_are_split_between_heads_and_not_within_them():
    # Their columns in weights (16) would divide by 8, but four heads do not.
    assert "heads (4) does not divide" in refusal(8, mesh_shape="a:8", layout="heads:a")


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (
            "batch:a,heads:a",
            "queries [batch, sequence, heads, features_per_head] would be split twice along a, by batch",
        ),
        (
            "sequence:a,memory_length:a",
            "attention weights [batch, heads, sequence, memory_length] would be split twice",
        ),
        ("vocab:a,embd:a", "token embedding [vocab, embd] would be split twice along a, by vocab and embd"),
        ("embed_sequence:a,embd:a", "position embedding [embed_sequence, embd] would be split twice"),
        ("intermediate_expanded:a,embd:a", "feed-forward kernels [embd, intermediate_expanded] would be split twice"),
        ("batch:a,sequence:a", "token batch [batch, sequence] would be split twice along a, by batch and sequence"),
        ("embd:a,batch:a", "residual stream [batch, sequence, embd] would be split twice"),
        ("batch:a,vocab:a", "logits [batch, sequence, vocab] would be split twice"),
        ("batch:a,memory_length:a", "keys and values [batch, memory_length, heads, features_per_head] would be split"),
    ],
)
def test_two_dimensions_of_a_tensor_on_one_mesh_dimension(layout, words):
    message = refusal(2, mesh_shape="a:2", layout=layout)
    assert message.startswith(f'tiny.json: "layout": "{layout}": ') and words in message
    assert message.endswith("put one of them on another mesh dimension or leave it out")


def test_a_mesh_dimension_of_size_one_splits_nothing():
    found = plan(2, mesh_shape="a:1,b:2", layout="batch:a,heads:a,sequence:b")
    assert found.shape == {"a": 1, "b": 2}
    assert found.rules == {"sequence": "b"}, "mesh-tensorflow refuses two dimensions along one of size 1"


def test_dimensions_of_different_tensors_share_a_mesh_dimension():
    found = plan(2, mesh_shape="a:2", layout="heads:a,vocab:a,intermediate_expanded:a")
    assert len(found.rules) == 3
