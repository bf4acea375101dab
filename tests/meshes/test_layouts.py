"""Meshes and layouts that cannot work are refused before a graph is built, with the nearest that would."""

from __future__ import annotations

import re

import pytest

from gpt_mesh.config import Config, load_config
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.planning.graph import limits_of
from tests.support.models import tiny_config
from tests.test_config import SHIPPED


def plan_for(config: Config, n_devices: int, *, fit=False, chosen=True, training=False, kind="CPU") -> MeshPlan:
    names = [f"/device:{kind}:{i}" for i in range(n_devices)]
    return plan_mesh(config, limits_of(config), names, fit=fit, chosen=chosen, training=training)


def plan(n_devices=1, *, fit=False, chosen=True, training=False, kind="CPU", **keys):
    return plan_for(tiny_config(**keys), n_devices, fit=fit, chosen=chosen, training=training, kind=kind)


def refusal(n_devices, *, fit=False, training=False, **keys):
    with pytest.raises(InputError) as caught:
        plan(n_devices, fit=fit, training=training, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def suggested(message):
    """The mesh and the layout of the first suggestion in a refusal, as keys of a config."""
    found = re.search(r'"mesh_shape": "([^"]*)", "layout": "([^"]*)"', message.split("; ", 1)[1])
    assert found, message
    return {"mesh_shape": found[1], "layout": found[2]}


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
        '(for more: "mesh_shape": "all:2", "layout": "batch:all")'
    )
    assert plan(1, chosen=False).notice == ""


def test_more_devices_named_than_the_mesh_has():
    assert refusal(2) == (
        'tiny.json: "mesh_shape": "" is for 1 device, but 2 devices were given (device:CPU:0, device:CPU:1); '
        'add --fit_mesh to train on "all:2", or set "mesh_shape": "all:2", "layout": "batch:all", or name 1 device '
        "with --gpu_ids"
    )


def test_fewer_devices_than_the_mesh_has():
    keys = {"mesh_shape": "x:64,y:4", "layout": "batch:x,heads:y"}
    assert refusal(1, **keys) == (
        'tiny.json: "mesh_shape": "x:64,y:4" is for 256 devices, but 1 device was given (device:CPU:0); '
        'add --fit_mesh, or set "mesh_shape": "", "layout": "", or name 256 devices with --gpu_ids'
    )
    assert 'add --fit_mesh to train on "x:2,y:4", or set "mesh_shape": "x:2,y:4", "layout": "batch:x,heads:y"' in (
        refusal(8, **keys)
    )


def test_devices_that_no_mesh_of_the_layout_has():
    # A batch of 4 on 6 devices: 4 of them, or another dimension.
    message = refusal(6, mesh_shape="x:64", layout="batch:x")
    assert 'name 4 devices and set "mesh_shape": "x:4", "layout": "batch:x"' in message


@pytest.mark.parametrize(
    ("devices", "shape"), [(8, {"x": 2, "y": 4}), (16, {"x": 4, "y": 4}), (4, {"x": 1, "y": 4}), (2, {"x": 1, "y": 2})]
)
def test_fitting_keeps_the_split_of_the_weights(devices, shape):
    """And gives the batch what is left."""
    keys = {"mesh_shape": "x:64,y:4", "layout": "batch:x,heads:y,vocab:y", "train_batch_size": 64}
    for training in (True, False):
        found = plan(devices, fit=True, training=training, **keys)
        assert (found.shape, len(found.devices)) == (shape, devices)
        assert found.notice.startswith(
            f'tiny.json: "mesh_shape": "x:64,y:4" is for 256 devices; fitted to {devices} devices'
        )


def test_fitting_says_what_becomes_of_the_batch_and_leaves_it():
    keys = {"mesh_shape": "x:64,y:4", "layout": "batch:x,heads:y", "train_batch_size": 64}
    assert plan(8, fit=True, training=True, **keys).notice == (
        'tiny.json: "mesh_shape": "x:64,y:4" is for 256 devices; fitted to 8 devices: "x:2,y:4"; train_batch_size '
        "stays 64: 32 sequences a replica in place of 1 (tokens_per_mb_per_replica makes them microbatches)"
    )
    assert plan(1, fit=True, training=True, **keys).notice.endswith(
        "fitted to one (/device:CPU:0); train_batch_size stays 64: 64 sequences a replica in place of 1 "
        "(tokens_per_mb_per_replica makes them microbatches)"
    )
    assert "train_batch_size" not in plan(8, fit=True, **keys).notice, "of no matter to prediction"


def test_fitting_takes_what_divides():
    # Of six devices in x and y, y:3 does not divide four heads and x:6, x:3 do not divide the batch of 4.
    keys = {"mesh_shape": "x:64,y:4", "layout": "batch:x,heads:y"}
    assert plan(6, fit=True, **keys | {"train_batch_size": 6}).shape == {"x": 3, "y": 2}
    assert plan(6, fit=True, **keys).shape == {"x": 1, "y": 4}, "prediction goes on without the others"
    message = refusal(6, fit=True, training=True, **keys)
    assert "no mesh of 6 devices divides what the layout splits; with --gpu_ids device:CPU:0" in message
    assert 'device:CPU:3 it is fitted to "x:1,y:4"' in message


def test_a_config_without_a_mesh_trains_on_all_devices_where_it_is_fitted():
    found = plan(2, fit=True, training=True)
    assert (found.shape, found.rules) == ({"all": 2}, {"batch": "all"})
    assert plan(2, fit=True).devices == ("/device:CPU:0",), "prediction takes one"


def test_prediction_takes_what_there_is():
    keys = {"mesh_shape": "x:64,y:4", "layout": "batch:x,heads:y", "train_batch_size": 64}
    found = plan(1, fit=True, **keys)
    assert (found.shape, found.rules, found.devices) == ({}, {}, ("/device:CPU:0",))
    assert found.notice == ('tiny.json: "mesh_shape": "x:64,y:4" is for 256 devices; fitted to one (/device:CPU:0)')
    untouched = plan(2, fit=True, mesh_shape="a:2", layout="batch:a")
    assert (untouched.shape, untouched.notice) == ({"a": 2}, "")


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_shipped_config_is_fitted_to_any_number_of_devices(name):
    config = load_config(name)
    for devices in (1, 2, 3, 6, 8, 12):
        found = plan_for(config, devices, fit=True)
        assert 1 <= len(found.devices) <= devices
        # On a power of two, all are of use, and the weights are split as far as the config splits them.
        if devices in (2, 8) and config.mesh.shape:
            assert len(found.devices) == devices
            parts = config.mesh.shape.get("y", 1)
            assert found.shape.get("y", 1) == min(parts, devices)


def test_sizes_that_do_not_divide():
    assert refusal(3, mesh_shape="a:3", layout="heads:a") == (
        'tiny.json: "layout": "heads:a": heads (4) does not divide by mesh dimension a (3); use the nearest that '
        'works, on 2 devices: "mesh_shape": "a:2", "layout": "heads:a"'
    )
    message = refusal(8, mesh_shape="b:8", layout="batch:b")
    assert "batch (train_batch_size = 4) does not divide by mesh dimension b (8)" in message
    message = refusal(2, mesh_shape="a:2", layout="vocab:a", n_vocab=65)
    assert "vocab (65) does not divide by mesh dimension a (2)" in message
    message = refusal(5, mesh_shape="a:5", layout="intermediate_expanded:a", n_embd=18, n_head=2)
    assert "intermediate_expanded (intermediate_size = 72)" in message
    message = refusal(3, mesh_shape="a:3", layout="memory_length:a")
    assert "memory_length (n_ctx = 16) does not divide" in message


def test_heads_are_split_between_heads_and_not_within_them():
    # Their columns in weights (16) would divide by 8, but four heads do not.
    assert "heads (4) does not divide" in refusal(8, mesh_shape="a:8", layout="heads:a")


def test_heads_are_not_split_further_than_those_of_keys_and_values():
    assert refusal(4, mesh_shape="a:4", layout="heads:a", num_kv_heads=2) == (
        'tiny.json: "layout": "heads:a": heads (num_kv_heads = 2) does not divide by mesh dimension a (4); use the '
        'nearest that works: "mesh_shape": "a:4", "layout": "batch:a"'
    )
    assert plan(4, mesh_shape="a:4", layout="heads:a", num_kv_heads=1).rules == {"heads": "a"}


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
    first, second = layout.split(",")
    kept = suggested(message)
    assert kept["mesh_shape"] == "a:2" and kept["layout"] in (first, second)
    assert suggested(refusal(4, mesh_shape="a:2,b:2", layout=layout)) == {
        "mesh_shape": "a:2,b:2", "layout": f"{first},{second[:-1]}b"
    }, "where there is another mesh dimension, the second goes there"  # fmt: skip


def test_a_mesh_dimension_that_splits_nothing():
    assert refusal(4, mesh_shape="x:4", layout="") == (
        'tiny.json: "mesh_shape": "x:4": mesh dimension x splits nothing, since the layout does not name it: the 4 '
        'devices along it would all do the same; use the nearest that works: "mesh_shape": "x:4", "layout": "batch:x"'
    )
    message = refusal(2, mesh_shape="x:2", layout="experts:x,expert_hidden:x")
    assert "since the model has no experts or expert_hidden" in message
    for keys in ({"rotary_emb": True, "layout": "embed_sequence:x"},
                 {"attention_types": [[["linear"], 2]], "layout": "memory_length:x"}):  # fmt: skip
        assert "splits nothing, since the model has no" in refusal(2, mesh_shape="x:2", **keys)


def test_rules_for_what_the_model_does_not_have_are_said_to_do_nothing():
    found = plan(2, mesh_shape="x:2", layout="batch:x,experts:x")
    assert found.rules == {"batch": "x"}
    assert found.notice == 'tiny.json: "layout": the model has no experts; such rules do nothing'


def test_evaluation_that_replicas_cannot_share_is_said_to_be_repeated():
    keys = {"mesh_shape": "x:2", "layout": "batch:x", "eval_batch_size": 3}
    assert plan(2, **keys).notice == "", "there is none"
    assert plan(2, eval_steps=5, **keys).notice == (
        'tiny.json: "eval_batch_size": 3 does not divide by 2: each replica evaluates all of it (4 would be divided)'
    )


def test_a_mesh_dimension_of_size_one_splits_nothing():
    found = plan(2, mesh_shape="a:1,b:2", layout="batch:a,heads:a,sequence:b")
    assert found.shape == {"a": 1, "b": 2}
    assert found.rules == {"sequence": "b"}, "mesh-tensorflow refuses two dimensions along one of size 1"


def test_dimensions_of_different_tensors_share_a_mesh_dimension():
    found = plan(2, mesh_shape="a:2", layout="heads:a,vocab:a,intermediate_expanded:a")
    assert len(found.rules) == 3


def test_nothing_divides():
    keys = {"n_head": 1, "n_embd": 7, "n_vocab": 65, "n_ctx": 17, "train_batch_size": 3}
    message = refusal(2, mesh_shape="a:2", layout="batch:a", **keys)
    assert suggested(message) == {"mesh_shape": "a:2", "layout": "intermediate_expanded:a"}, "4 x 7 does"
    message = refusal(11, mesh_shape="a:11", layout="batch:a", **keys)
    assert "on 7 devices" in message and suggested(message)["mesh_shape"] == "a:7"
