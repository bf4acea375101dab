"""The one place where mesh, layout, model, loss and optimizer become a graph.

Each builder takes TensorFlow tensors in, builds the mesh graph, lowers it on the given mesh, and returns TensorFlow
tensors.
The training loop calls the builders inside a `tf.function`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from config import Config
from meshes.compat import mtf
from models import entmax, gpt, losses
from models.context import Context
from models.dims import Dims
from models.dropout import step_seed
from training import optimizers, schedules

DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16}


@dataclass(frozen=True)
class TrainTensors:
    """One training step, lowered. Scalars are float32 except for the update operation."""

    loss: tf.Tensor
    nll: tf.Tensor
    grad_norm: tf.Tensor
    lr: tf.Tensor
    update: tf.Operation
    lowering: mtf.Lowering


@dataclass(frozen=True)
class EvalTensors:
    """Sums over one batch, lowered: nll in nats, correct predictions, and the weights of both."""

    nll: tf.Tensor
    correct: tf.Tensor
    weight: tf.Tensor


def build_train(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any, step: tf.Tensor, dtype: tf.DType | None = None
) -> TrainTensors:
    """Forward pass, gradients and update for one batch.

    Args:
        features: `inputs` and `labels`, int32 [train_batch_size, n_ctx].
        config: the run.
        mesh_impl: the devices and the layout to lower on.
        step: integer scalar, the number of steps done before this one.
        dtype: of activations; default: by `precision`.
    """
    ctx, tensors = _context(features, config, mesh_impl, dtype, dropout_step=step)
    logits = gpt.logits(ctx, tensors["inputs"])
    nll, log_z = losses.cross_entropy(ctx, logits, tensors["labels"])
    mean_nll = mtf.reduce_mean(nll)
    if config.optimizer.entmax_loss:  # there is no z-loss then: entmax has no normaliser to hold in bounds
        loss = mtf.reduce_mean(entmax.loss(ctx, logits, tensors["labels"]))
    else:
        loss = mean_nll + config.optimizer.z_loss * mtf.reduce_mean(mtf.square(log_z))
    weights = list(ctx.mesh.graph.trainable_variables)
    gradients = mtf.gradients([loss], [weight.value for weight in weights])
    assert None not in gradients, [w.name for w, g in zip(weights, gradients, strict=True) if g is None]
    norm = optimizers.global_norm(gradients)
    limit = config.optimizer.gradient_clipping
    scale = optimizers.clip_factor(norm, limit) if limit else mtf.constant(ctx.mesh, 1.0, dtype=norm.dtype)
    lr = schedules.learning_rate(config.optimizer, step)
    lr_on_mesh, step_on_mesh = (mtf.import_tf_tensor(ctx.mesh, x) for x in (lr, step))
    updates = optimizers.update(weights, gradients, lr_on_mesh, scale, step_on_mesh, config.optimizer)
    lowering = _lower(ctx.mesh, mesh_impl)
    return TrainTensors(
        loss=lowering.export_to_tf_tensor(loss),
        nll=lowering.export_to_tf_tensor(mean_nll),
        grad_norm=lowering.export_to_tf_tensor(norm),
        lr=lr,
        update=tf.group([lowering.lowered_operation(op) for op in updates]),
        lowering=lowering,
    )


def build_eval(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any, dtype: tf.DType | None = None
) -> EvalTensors:
    """Score one batch.

    Args:
        features: `inputs` and `labels`, int32 [batch, n_ctx], and `weights`, float32 [batch, n_ctx]: 0 where a label is
            padding.
    """
    ctx, tensors = _context(features, config, mesh_impl, dtype)
    logits = gpt.logits(ctx, tensors["inputs"])
    nll, _ = losses.cross_entropy(ctx, logits, tensors["labels"])
    correct = losses.correct(ctx, logits, tensors["labels"])
    weights = mtf.cast(tensors["weights"], nll.dtype)
    sums = [mtf.reduce_sum(x) for x in (nll * weights, correct * weights, weights)]
    lowering = _lower(ctx.mesh, mesh_impl)
    return EvalTensors(*[lowering.export_to_tf_tensor(x) for x in sums])


def build_logits(tokens: tf.Tensor, config: Config, mesh_impl: Any, dtype: tf.DType | None = None) -> tf.Tensor:
    """float32 [batch, sequence, n_vocab]: scores of each next token, for int32 tokens [batch, sequence]."""
    ctx, tensors = _context({"inputs": tokens}, config, mesh_impl, dtype)
    logits = mtf.cast(gpt.logits(ctx, tensors["inputs"]), ctx.statistics_dtype)
    return _lower(ctx.mesh, mesh_impl).export_to_tf_tensor(logits)


def build_score(features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any) -> tf.Tensor:
    """float32 [batch, sequence]: the log-probability of each label; features as for `build_eval`, without weights."""
    ctx, tensors = _context(features, config, mesh_impl, None)
    nll, _ = losses.cross_entropy(ctx, gpt.logits(ctx, tensors["inputs"]), tensors["labels"])
    log_probabilities = mtf.negative(nll)
    return _lower(ctx.mesh, mesh_impl).export_to_tf_tensor(log_probabilities)


def make_context(
    config: Config, mesh_impl: Any, batch: int, sequence: int, dtype: tf.DType | None = None, memory: int | None = None
) -> Context:
    """A new mesh graph and what its layers need to know, without dropout."""
    dims = Dims.of(config.model, batch, sequence, memory)
    return Context(
        mesh=mtf.Mesh(mtf.Graph(), "mesh"),
        dims=dims,
        model=config.model,
        dtype=dtype or DTYPES[config.training.precision],
        split=_split_names(dims, mesh_impl),
        init_seed=config.training.seed,
    )


def _split_names(dims: Dims, mesh_impl: Any) -> frozenset[str]:
    """Names of the dimensions that this mesh splits into more than one part."""
    axes = {dim.name: mesh_impl.tensor_dimension_to_mesh_axis(dim) for dim in dims.all()}
    return frozenset(name for name, axis in axes.items() if axis is not None and mesh_impl.shape.dims[axis].size > 1)


def _context(
    features: Mapping[str, tf.Tensor],
    config: Config,
    mesh_impl: Any,
    dtype: tf.DType | None,
    dropout_step: tf.Tensor | None = None,
) -> tuple[Context, dict[str, mtf.Tensor]]:
    """A new mesh graph with the features ([batch, sequence] each) imported into it."""
    batch, sequence = features["inputs"].shape.as_list()
    ctx = make_context(config, mesh_impl, batch, sequence, dtype)
    shape = mtf.Shape([ctx.dims.batch, ctx.dims.sequence])
    tensors = {name: mtf.import_tf_tensor(ctx.mesh, x, shape, name=name) for name, x in features.items()}
    model = config.model
    if dropout_step is not None and max(model.embed_dropout, model.attn_dropout, model.res_dropout) > 0:
        seed = mtf.import_tf_tensor(ctx.mesh, step_seed(config.training.seed, dropout_step))
        ctx = dataclasses.replace(ctx, dropout_seed=seed)
    return ctx, tensors


def _lower(mesh: mtf.Mesh, mesh_impl: Any) -> mtf.Lowering:
    # Variables keep their own names in checkpoints: no stacking.
    return mtf.Lowering(mesh.graph, {mesh: mesh_impl}, autostack=False)
