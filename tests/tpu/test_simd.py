"""What a TPU would run: the whole graph as TPUEstimator builds it for a made-up one, and the same carried out on CPUs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_mesh.meshes.compat import HAS_TPU_ESTIMATOR, mtf

import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import Config, parse_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.models.dropout import step_seed
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.sample import Batch, build_generate
from gpt_mesh.tpu.estimator import Function, Training
from gpt_mesh.tpu.feed import Feed
from gpt_mesh.tpu.session import StepRecorderHook, graph_mode
from gpt_mesh.tpu.simd import SimdMesh, logical_to_physical
from tests.support import replicas
from tests.support.models import ONE_LAYER, tiny_config, token_batch
from tests.support.tpu import V3_4, V3_8, V3_256, assign, build, stand_in_tpu, tpu_engine

pytestmark = [
    pytest.mark.tpu_env,
    pytest.mark.skipif(not HAS_TPU_ESTIMATOR, reason="TensorFlow 2.15 has TPUEstimator: make test-tpu"),
]
v1 = tf.compat.v1
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = "batch:x,heads:y,vocab:y,intermediate_expanded:y"


def training_graph(config: Config, chips: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> tuple[tf.Graph, Any]:
    """As TPUEstimator builds it: the loop of steps, what is fed in and told out, hooks."""
    engine = tpu_engine(config, stand_in_tpu(monkeypatch, chips))
    account = StepRecorderHook(object(), 1, 1)  # type: ignore[arg-type]
    host = Training(config, engine.plan, engine.tpu, account, 1, lambda session, step: {}, [])
    form = tf.TensorSpec([config.training.train_batch_size, config.model.n_ctx + 1], tf.int32)
    return build(host, "train", Feed({"tokens": form}, lambda step: []).input_fn)


def shipped(name: str, layers: int) -> Config:
    """A shipped config at its size, but with so many layers."""
    path = CONFIGS / f"{name}.json"
    keys = json.loads(path.read_text())
    return parse_config({**keys, "n_layer": layers, "attention_types": [[["global"], layers]]}, str(path), CONFIGS)


def slices(graph: tf.Graph) -> dict[str, dict[int, tf.Variable]]:
    """The parts of each variable, by the replica that has them."""
    found: dict[str, dict[int, tf.Variable]] = {}
    for variable in graph.get_collection("TPU_VAR"):
        name, _, replica = variable.op.name.rpartition("_slice_")
        found.setdefault(name[name.index("gpt2/", 1) if "gpt2/" in name[1:] else 0 :], {})[int(replica)] = variable
    return found


def expected_groups(shape: mtf.Shape, axes: list[int], chips: tuple[int, int]) -> set[frozenset[int]]:
    """The cores that differ along these mesh axes only."""
    order = logical_to_physical(shape, assign(chips))
    grouped: dict[tuple[int, ...], list[int]] = {}
    for pnum, replica in enumerate(order):
        place = mtf.pnum_to_processor_coordinates(shape, pnum)
        grouped.setdefault(tuple(x for i, x in enumerate(place) if i not in axes), []).append(replica)
    return {frozenset(group) for group in grouped.values()}


def sums(graph: tf.Graph) -> list[tuple[set[frozenset[int]], list[int]]]:
    """Of each sum over cores: who takes part, and the shape."""
    return [
        ({frozenset(group) for group in replicas.groups(op)}, op.inputs[0].shape.as_list())
        for op in replicas.of_a_core(graph)
        if op.type == "CrossReplicaSum"
    ]


def check_slices(graph: tf.Graph, shapes: Mapping[str, list[int]], chips: tuple[int, int]) -> None:
    """Every replica has its part, of that shape, of the weights and of what the optimizer keeps, on its own core."""
    found, assignment = slices(graph), assign(chips)
    for name, shape in shapes.items():
        for part in (name, f"{name}/adam_m", f"{name}/adam_v"):
            assert found[part].keys() == set(range(assignment.num_replicas))
            assert all(variable.shape.as_list() == shape for variable in found[part].values()), part
    for replica, variable in found["gpt2/wte"].items():
        device, core = (tf.DeviceSpec.from_string(x) for x in (variable.device, assignment.tpu_device(replica)))
        assert (device.task, device.device_type, device.device_index) == (core.task, "TPU", core.device_index)


def test_training_on_a_v3_8(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(mesh_shape="x:4,y:2", layout=SMALL, **ONE_LAYER)
    graph, spec = training_graph(config, V3_8, monkeypatch)
    kernels = {"gpt2/h0/attn/q": [16, 8], "gpt2/h0/attn/o": [8, 16], "gpt2/h0/mlp/conv1d_main/c_fc/kernel": [16, 32]}
    check_slices(graph, {"gpt2/wte": [32, 16], "gpt2/ln_f/g": [16], **kernels}, V3_8)

    shape = mtf.convert_to_shape("x:4,y:2")
    over_x, over_y = (expected_groups(shape, [axis], V3_8) for axis in (0, 1))
    found = sums(graph)
    assert {frozenset(groups) for groups, _ in found} == {frozenset(over_x), frozenset(over_y)}
    # Gradients, in parts, over the batch's dimension; activations of a quarter of the batch over the weights'.
    for part in ([32, 16], [16, 8], [8, 16], [16, 32], [16]):
        assert (over_x, part) in found
    assert (over_y, [1, 16, 16]) in found and (over_x, [1, 16, 16]) not in found

    kinds = [op.type for op in graph.get_operations()]
    assert kinds.count("InfeedEnqueueTuple") == kinds.count("OutfeedDequeueTuple") == 8
    assert "InfeedDequeueTuple" in kinds and "OutfeedEnqueueTuple" in kinds and "WriteSummary" in kinds
    hooks = {type(hook).__name__ for hook in spec.training_hooks}
    assert {"MtfRestoreHook", "SaveHook", "StepRecorderHook", "TPUInfeedOutfeedSessionHook"} <= hooks
    assert spec.scaffold.saver is not None and not spec.training_chief_hooks


def test_evaluation_and_decoding_on_a_v3_8(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(mesh_shape="x:4,y:2", layout=SMALL, **ONE_LAYER)
    engine = tpu_engine(config, stand_in_tpu(monkeypatch, V3_8))
    forms = {"0": tf.TensorSpec([4, 17], tf.int32), "1": tf.TensorSpec([4, 16], tf.float32)}

    def evaluate(arrays: Sequence[tf.Tensor], mesh: Any) -> list[tf.Tensor]:
        out = model_fns.build_eval(objective_of(config).features(arrays[0], weights=arrays[1]), config, mesh)
        return [out.nll, out.correct, out.weight]

    host = Function(config, engine.plan, engine.tpu, evaluate, 4, 16)
    graph, spec = build(host, "infer", Feed(forms, lambda step: []).dataset)
    assert [x.shape.as_list()[1:] for x in spec.predictions.values()] == [[]] * 3
    assert not any("adam" in name for name in slices(graph))

    def generate(arrays: Sequence[tf.Tensor], mesh: Any) -> list[tf.Tensor]:
        batch = Batch.from_arrays(arrays)
        return build_generate(batch, config=config, mesh_impl=mesh, eos_ids=(0,), top=3)

    arrays = Batch.of([], 4, config.model).arrays
    forms = {str(i): tf.TensorSpec(x.shape, x.dtype) for i, x in enumerate(arrays)}
    host = Function(config, engine.plan, engine.tpu, generate, 4, None)
    graph, spec = build(host, "infer", Feed(forms, lambda step: []).dataset)
    assert [x.shape.as_list()[1:] for x in spec.predictions.values()] == [[16], [16], [16, 3], [16, 3]]
    assert any(part == [4, 15] for _, part in sums(graph))  # tokens after the first, put together from quarters


@pytest.mark.slow
def test_microbatches_on_a_v3_8(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop within the loop of steps."""
    keys = {"tokens_per_mb_per_replica": 16, "train_batch_size": 8, "precision": "bfloat16", "recompute_grad": True}
    config = tiny_config(mesh_shape="x:4,y:2", layout=SMALL, **keys, **ONE_LAYER)
    graph, _ = training_graph(config, V3_8, monkeypatch)
    assert sum(op.type == "LoopCond" for op in replicas.of_a_core(graph)) == 2
    over_x = expected_groups(mtf.convert_to_shape("x:4,y:2"), [0], V3_8)
    assert (over_x, [32, 16]) in sums(graph)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "local", "activation"),
    [
        pytest.param(
            "gpt3_small_256",
            {"gpt2/wte": [12576, 768], "gpt2/h0/attn/q": [768, 192], "gpt2/ln_f/g": [768]},
            [4, 2048, 768],
            marks=pytest.mark.exhaustive,
        ),
        (
            "gpt3_XL_256_Pile",
            {"gpt2/wte": [50257, 1024], "gpt2/h0/attn/q": [1024, 2048], "gpt2/ln_f/g": [1024]},
            None,
        ),
    ],
)
def test_shipped_configs_on_a_v3_256(
    monkeypatch: pytest.MonkeyPatch, name: str, local: dict[str, list[int]], activation: list[int] | None
) -> None:
    """At their real size but for the number of layers, which only repeat."""
    config = shipped(name, layers=1)
    graph, _ = training_graph(config, V3_256, monkeypatch)
    check_slices(graph, local, V3_256)
    shape = mtf.convert_to_shape(config.mesh.mesh_shape)
    over_x, over_y, over_both = (expected_groups(shape, axes, V3_256) for axes in ([0], [1], [0, 1]))
    by_number = {len(groups): groups for groups in (over_x, over_y, over_both)}
    assert len(over_x) * shape.dims[0].size == 256 == len(over_y) * shape.dims[1].size
    for groups, part in sums(graph):
        assert groups == by_number[len(groups)]
        assert groups != over_both or part == [], "only a number is summed over the whole mesh"
    for part in local.values():
        assert (over_x, part) in sums(graph)
    if activation is not None:
        assert (over_y, activation) in sums(graph)


CASES: dict[str, dict[str, Any]] = {
    "small": {"layout": SMALL, "embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1},
    "embd": {"layout": "batch:x,embd:y,memory_length:y", "recompute_grad": True, "attention_types": [[["local"], 1]]},
    "sequence": {"layout": "batch:x,sequence:y"},
    "experts": {"layout": "batch:x,experts:x", "moe_layers": [0], "moe_params": {"moe_num_experts": 4}},
    "dropless experts": {
        "layout": "batch:x,experts:y", "moe_layers": [0], "moe_params": {
            "moe_num_experts": 4, "moe_gating": "top_k", "moe_glu": True, "moe_dropless": True,
        },
    },
    "linear_unclipped": {"layout": SMALL, "attention_types": [[["linear"], 1]], "gradient_clipping": None},
    "masked_adafactor": {"layout": SMALL, "mlm_training": True, "mlm_mask_id": 63, "opt_name": "adafactor"},
    "entmax_rotary": {"layout": SMALL, "entmax_loss": True, "rotary_emb": True, "mlp_glu": True, "num_mem_kv": 2},
}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[] if name in ("small", "experts") else pytest.mark.slow) for name in CASES]
)
def test_what_the_cores_compute_together_is_what_one_device_does(case: str) -> None:
    """Steps with every core's graph, against the loop's engine: losses, gradient norms, and through them weights."""
    config = tiny_config(**{"n_layer": 1, "attention_types": [[["global"], 1]], "mesh_shape": "x:2,y:2"} | CASES[case])
    engine = DeviceEngine(config, MeshPlan({}, {}, ("/device:CPU:0",)), compiled=False)
    for number, found in enumerate(steps_on_cores(config, 3)):
        expected = engine.train_step(token_batch(config, number))
        assert found == pytest.approx({name: float(expected[name]) for name in found}, rel=1e-5)


def steps_on_cores(config: Config, steps: int) -> list[dict[str, float]]:
    """The figures of training steps on a v3 of four cores, each carried out by a CPU's copy of its graph."""
    assignment = assign(V3_4)
    shape = mtf.Shape([mtf.Dimension(*item) for item in config.mesh.shape.items()])
    with graph_mode(), tf.Graph().as_default() as graph:
        tokens = v1.placeholder(tf.int32, token_batch(config).shape, name="tokens")
        step = v1.placeholder(tf.int32, [], name="step")
        mesh = SimdMesh(shape, mtf.LayoutRules(list(config.mesh.rules.items())), assignment, ["/device:CPU:0"])

        def train_step() -> dict[str, tf.Tensor]:
            features = objective_of(config).features(tokens, step_seed(config.training.seed, step))
            out = model_fns.build_train(features, config, mesh, step)
            with tf.control_dependencies([out.update]):
                return {name: tf.identity(getattr(out, name)) for name in ("loss", "nll", "grad_norm", "lr")}

        names = replicas.build(assignment, 4, train_step)
        initialise = [v1.global_variables_initializer().name, mesh.copy_masters_to_slices().name]
        expanded = replicas.expand(graph, 4)
    found = []
    settings = v1.ConfigProto()
    settings.graph_options.rewrite_options.disable_meta_optimizer = True
    with v1.Session(graph=expanded, config=settings) as session:
        for operation in initialise:
            session.run(operation)
        for number in range(steps):
            given = {"tokens:0": token_batch(config, number), "step:0": number}
            values = session.run(replicas.results(names, 4), given)
            found.append({name: float(replicas.agreed(each)) for name, each in values.items()})
    return found
