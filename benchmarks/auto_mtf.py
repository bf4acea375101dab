"""mesh-tensorflow's own layout optimizer on a config's training graph, compared with our search.

docs/parallelism.md says why it is not used. It needs ortools, which is not among the project's requirements: install it
in a separate environment.

    python -m benchmarks.auto_mtf --model gpt3_13B_256
"""

from __future__ import annotations

import argparse
import time

from ortools.sat.python import cp_model  # noqa: F401  # isort: skip  (after TensorFlow its solver crashes)
from gpt_mesh.meshes.compat import mtf

import mesh_tensorflow.auto_mtf  # noqa: F401
import tensorflow as tf
from mesh_tensorflow.auto_mtf import layout_optimizer, memory_estimator

from gpt_mesh import model_fns
from gpt_mesh.config import Config, load_config, replace
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.meshes.limits import layout_text
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.planning.layout_report import find_layouts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    config = load_config(parser.parse_args().model)
    started = time.monotonic()
    layout, splittable, operations = theirs(config)
    print(f"auto_mtf: {layout}, of {', '.join(splittable)}; {operations} operations, {elapsed(started)}")
    started = time.monotonic()
    found = find_layouts(config, config.mesh.size, keep_mesh=True)[0]
    print(f"ours:     {layout_text(found.plan.rules)}; {elapsed(started)}")


def theirs(config: Config) -> tuple[str, list[str], int]:
    """The optimizer's layout, the dimensions that it chooses from, and the size of the graph: the forward and backward
    pass of the whole batch, since it does not look into loops.
    """
    config = replace(config, tokens_per_mb_per_replica=None)
    with tf.Graph().as_default():
        store = VariableStore("/device:CPU:0")
        mesh = MeshPlan({}, {}, ("/device:CPU:0",)).implementation(store)
        shape = [config.training.train_batch_size, config.model.n_ctx]
        features = {name: tf.compat.v1.placeholder(tf.int32, shape) for name in ("inputs", "labels")}
        with store.scope():
            ctx, tensors = model_fns.import_features(features, config, mesh, None, train_step=tf.constant(0))
            outputs, gradients = model_fns.loss_and_gradients(config, mesh, ctx, tensors)
        graph, sizes = ctx.mesh.graph, [mtf.Dimension(name, size) for name, size in config.mesh.shape.items()]
        estimator = memory_estimator.MemoryEstimator(graph, mtf.Shape(sizes), [outputs["loss"], *gradients])
        layout = layout_optimizer.LayoutOptimizer(estimator).solve()
        splittable = estimator.get_layout_validator().splittable_mtf_dimension_names
        return layout, sorted(splittable), len(graph.operations)


def elapsed(started: float) -> str:
    return f"{time.monotonic() - started:.1f} s"


if __name__ == "__main__":
    main()
