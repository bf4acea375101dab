"""The memory that a run is said to take, against what it holds."""

from __future__ import annotations

import pytest

from gpt_mesh.config import load_config
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.models.shapes import weight_count
from gpt_mesh.planning import graph
from gpt_mesh.planning.memory import check_memory, training_memory
from tests.support.models import is_weight, make_engine, tiny_config


def sizes(engine):
    """Elements of the weights and of the optimizer's slots, as the first device holds them."""
    weights = slots = 0
    for name, whole in engine.store.masters.items():
        if name == "global_step":
            continue
        parts = engine.store._slices.get(name)
        size = (parts[0].variable if parts else whole).shape.num_elements()
        weights, slots = (weights + size, slots) if is_weight(name) else (weights, slots + size)
    return weights, slots


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"opt_name": "adafactor"},
        {"opt_name": "adafactor", "beta1": 0.0, "moe_layers": [0], "moe_params": {"moe_num_experts": 2}},
        {"mesh_shape": "a:2,b:2", "layout": "batch:a,heads:b,intermediate_expanded:b,vocab:b"},
        {"mesh_shape": "a:2", "layout": "heads:a", "num_kv_heads": 2, "head_dim": 6, "use_bias_in_attn_linear": True},
        {"mesh_shape": "a:2", "layout": "heads:a", "num_kv_heads": 1},
        {"mesh_shape": "a:2", "layout": "embd:a", "opt_name": "adafactor"},
        {"mesh_shape": "a:2,b:2", "layout": "batch:a,heads:b", "split_optimizer_state": True},
        pytest.param(
            {"mesh_shape": "a:2", "layout": "batch:a", "split_optimizer_state": True, "opt_name": "adafactor"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "adam",
        "adafactor",
        "adafactor without momentum, experts",
        "split",
        "split shared heads",
        "split queries of one head of keys",
        "split adafactor",
        "split state",
        "split state of adafactor",
    ],
)
def test_weights_and_slots_are_those_that_a_device_holds(keys):
    keys = {"n_layer": 1, "attention_types": [[["global"], 1]], **keys}
    engine = make_engine(tiny_config(**keys), compiled=False)
    engine.create_variables(training=True)
    memory = training_memory(engine.config, engine.plan)
    weights, slots = sizes(engine)
    assert memory["weights"] == 4 * weights
    assert memory["optimizer"] == 4 * slots


def test_gradients_and_activations_are_of_the_activation_type():
    exact, rounded = (training_memory(tiny_config(precision=p)) for p in ("float32", "bfloat16"))
    weights = weight_count(tiny_config().model)
    assert exact["gradients"] == 4 * weights and rounded["gradients"] == 2 * weights
    assert exact["activations"] > rounded["activations"] > 0
    assert exact["weights"] == rounded["weights"] == 4 * weights


def test_activations_are_those_of_one_microbatch():
    whole, part = (training_memory(tiny_config(tokens_per_mb_per_replica=n)) for n in (None, 16))
    assert part["activations"] == whole["activations"] / 4  # 16 tokens: one of four sequences
    assert part["gradients"] == 2 * whole["gradients"], "the sums, beside the microbatch's own"


def test_recomputing_keeps_one_layer_and_the_inputs_of_the_others():
    def activations(layers, recompute):
        keys = {"n_layer": layers, "attention_types": [[["global"], layers]], "recompute_grad": recompute}
        return training_memory(tiny_config(**keys))["activations"]

    batch, positions, width = 4, 16, 16
    assert activations(9, True) - activations(8, True) == batch * positions * width * 4
    assert activations(9, False) - activations(8, False) > 16 * batch * positions * width * 4
    assert activations(1, True) > activations(1, False)


@pytest.mark.parametrize(
    ("kind", "fused", "degree"), [("global", False, 2), ("global", True, 1), ("linear", True, 1), ("none", True, 1)]
)
def test_attention_grows_with_the_context(kind, fused, degree):
    def activations(n_ctx):
        keys = {"n_embd": 4, "n_head": 1, "attention_types": [[[kind], 2]], "n_vocab": 16, "fused_ops": fused}
        keys["n_ctx"] = n_ctx
        return training_memory(tiny_config(**keys))["activations"]

    assert activations(1 << 16) / activations(1 << 15) == pytest.approx(2**degree, rel=0.01)


def test_the_13b_model_on_its_own_mesh():
    config = load_config("gpt3_13B_256")
    weights, width, batch = 12_852_771_840, 5120, 1024
    assert weight_count(config.model) == weights
    memory = training_memory(config, MeshPlan(config.mesh.shape, config.mesh.rules, ("",)))
    # All but the biases of the feed-forward's inside are split 16 ways along embd.
    unsplit = 40 * 4 * width
    assert memory["weights"] == pytest.approx(4 * ((weights - unsplit) / 16 + unsplit), rel=0.002)
    assert memory["optimizer"] == 2 * memory["weights"]
    # A microbatch is one sequence of a replica's 64; between layers 2 bytes a feature are kept, split along embd.
    assert batch // 16 == 64
    kept = 40 * 2048 * (width // 16) * 2
    logits = 2048 * 50257 * 8
    assert kept + logits < memory["activations"] < 3 * (kept + logits)


@pytest.mark.parametrize(
    "more",
    [
        {"macaron": True},
        {"moe_layers": [0], "moe_params": {"moe_num_experts": 4, "moe_capacity_factor_train": 2.0}},
        {"mlp_glu": True},
        {"mlp_glu": True, "glu_columns": "separate"},
        {"intermediate_size": 80},
    ],
)
def test_wider_blocks_take_more(more):
    plain, wider = training_memory(tiny_config()), training_memory(tiny_config(**more))
    assert wider["activations"] > plain["activations"]


def test_experts_split_as_the_batch_is_hold_the_tokens_of_all_replicas():
    """Each device has half of the experts, and at them the tokens of both replicas."""
    keys = {"moe_layers": [0], "moe_params": {"moe_num_experts": 4}, "mesh_shape": "a:2"}
    configs = [tiny_config(**keys, layout=layout) for layout in ("batch:a,experts:a", "batch:a")]
    together, whole = (training_memory(c, MeshPlan(c.mesh.shape, c.mesh.rules, ("",))) for c in configs)
    assert together["weights"] < whole["weights"]
    assert together["activations"] == pytest.approx(whole["activations"], rel=0.02)


def test_a_split_sequence_leaves_keys_whole():
    def activations(layout, **keys):
        config = tiny_config(**keys, mesh_shape="a:2", layout=layout)
        return training_memory(config, MeshPlan(config.mesh.shape, config.mesh.rules, ("",)))["activations"]

    kinds = {"attention_types": [[["global"], 2]]}
    whole = activations("embed_sequence:a", **kinds)
    keys_and_values = 2 * 2 * 4 * 16 * 16 * 4  # two layers, a batch of 4, 16 positions of 16 features
    # Beside them, the mesh operations keep the denominators of the weights.
    assert activations("sequence:a", **kinds) == pytest.approx((whole + keys_and_values) / 2, rel=0.01)
    linear = {"attention_types": [[["linear"], 2]]}
    assert activations("sequence:a", **linear) > activations("embed_sequence:a", **linear) / 2 + keys_and_values / 2


def test_experts_take_as_much_as_they_are_wide_and_have_room():
    def activations(**moe):
        params = {"moe_num_experts": 8, "moe_capacity_factor_train": 1.0, **moe}
        return training_memory(tiny_config(moe_layers=[0], moe_params=params, n_ctx=64))["activations"]

    tokens, width = 4 * 64, 16
    assert activations(moe_hidden_size=200) - activations(moe_hidden_size=100) == tokens * 2 * 100 * 4
    one, two = activations(), activations(moe_capacity_factor_train=2.0)
    assert two - one == tokens * (4 * (2 * 4 * width + 2 * width) + 12 * 64)


def test_flash_attention_holds_no_weights_of_attention(monkeypatch):
    keys = {"attention_types": [[["global"], 2]], "precision": "bfloat16", "n_embd": 32, "n_head": 4, "n_ctx": 512}
    config = tiny_config(**keys)
    gpu = MeshPlan({}, {}, ("/device:GPU:0",))
    plain = training_memory(config, gpu)["activations"]
    monkeypatch.setattr(graph, "have_tensor_cores", lambda devices: True)
    weights = config.training.train_batch_size * config.model.n_layer * 4 * 512 * 512 * 8
    sums = config.training.train_batch_size * config.model.n_layer * 4 * 512 * 4
    assert training_memory(config, gpu)["activations"] == plain - weights + sums
    with_dropout = training_memory(tiny_config(**keys, attn_dropout=0.1), gpu)["activations"]
    assert with_dropout == pytest.approx(plain, rel=0.25), "scores in float32 and weights in bfloat16"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"n_vocab": 2**31 - 1}, "the weights take .* more than the .* of memory"),
        ({"n_embd": 2**30}, "the weights take"),
        ({"train_batch_size": 2**31 - 1}, "train_batch_size = 2147483647: its tokens do not fit into memory"),
        ({"eval_batch_size": 2**31 - 1}, "eval_batch_size"),
    ],
)
def test_what_no_machine_holds_is_refused(keys, said):
    here = MeshPlan({}, {}, ("/device:CPU:0",))
    check_memory(tiny_config(), here)
    with pytest.raises(InputError, match=said):
        check_memory(tiny_config(**keys), here)
