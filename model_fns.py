"""Where mesh, layout, model, objective and optimizer become one graph.

Each builder takes TensorFlow tensors, builds the mesh graph, lowers it on the given mesh, and returns TensorFlow
tensors. `build_train` is a training step; `build_eval`, `build_score` and `build_alternatives` judge text;
`build_logits` is the model alone. The engines call the builders: inside a `tf.function`, or in the graph of a session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.models import gpt
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.dropout import step_seed
from gpt_mesh.models.kernels import kernel
from gpt_mesh.objectives.objective import Loss
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.optimizers import clipping, registry, schedules
from gpt_mesh.optimizers.optimizer import is_matrix, is_no_norm_or_bias
from gpt_mesh.steps import buckets, microbatches
from gpt_mesh.steps.state_split import StateSplit

DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16}


@dataclass(frozen=True)
class TrainTensors:
    """One training step, lowered. Tensors are float32 scalars.

    Attributes:
        loss: what is minimised, a mean over labels plus the auxiliary losses.
        nll: mean negative log-likelihood of the labels, in nats.
        extras: more scalars to log, by name: the objective's metrics, `balance_loss`, `load/<layer>/<expert>`,
            `grad_norm/<variable>`.
        update: the operation that changes the weights.
    """

    loss: tf.Tensor
    nll: tf.Tensor
    grad_norm: tf.Tensor
    lr: tf.Tensor
    extras: dict[str, tf.Tensor]
    update: tf.Operation
    lowering: mtf.Lowering


@dataclass(frozen=True)
class EvalTensors:
    """`objectives.objective.Scores`, lowered: [batch] each."""

    nll: tf.Tensor
    correct: tf.Tensor
    weight: tf.Tensor


def build_train(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any, step: tf.Tensor, dtype: tf.DType | None = None
) -> TrainTensors:
    """Forward pass, gradients and update for one batch.

    Args:
        features: what the objective makes of a batch of train_batch_size windows (`Objective.features`).
        config: the run.
        mesh_impl: the devices and the layout to lower on.
        step: integer scalar, the number of steps done before this one.
        dtype: of activations; default: by `precision`.
    """
    ctx, tensors = import_features(features, config, mesh_impl, dtype, train_step=step)
    outputs, gradients = loss_and_gradients(config, mesh_impl, ctx, tensors)
    gradients = buckets.reduce_together(gradients, mesh_impl)
    weights = list(ctx.mesh.graph.trainable_variables)
    settings = config.optimizer
    norm = clipping.global_norm(gradients, cpu_kernels=ctx.cpu_kernels)
    scale = clipping.clip_factor(norm, settings.gradient_clipping)
    lr = schedules.learning_rate(settings, step)
    lr_on_mesh, step_on_mesh = (mtf.import_tf_tensor(ctx.mesh, x) for x in (lr, step))
    split = StateSplit.by_batch(ctx.axes, mesh_impl) if settings.split_optimizer_state else StateSplit()
    proceed = _both_finite(outputs["loss"], norm) if config.training.on_nonfinite == "skip" else None
    optimizer = registry.find(settings.opt_name)(
        settings, lr_on_mesh, scale, step_on_mesh, split, cpu_kernels=ctx.cpu_kernels, proceed=proceed,
        decays=is_no_norm_or_bias if config.model.gpt_neo_original else is_matrix,
    )  # fmt: skip
    updates = optimizer.update(weights, gradients)
    if config.training.log_grads:
        norms = {f"grad_norm/{w.name}": clipping.global_norm([g]) for w, g in zip(weights, gradients, strict=True)}
        outputs.update(norms)
    lowering = _lower(ctx.mesh, mesh_impl)
    lowered = {name: lowering.export_to_tf_tensor(x) for name, x in outputs.items()}
    return TrainTensors(
        loss=lowered.pop("loss"),
        nll=lowered.pop("nll"),
        grad_norm=lowering.export_to_tf_tensor(norm),
        lr=lr,
        extras=_by_expert(lowered),
        update=tf.group([lowering.lowered_operation(op) for op in updates]),
        lowering=lowering,
    )


def _both_finite(loss: mtf.Tensor, norm: mtf.Tensor) -> mtf.Tensor:
    """A boolean scalar: whether the loss and the norm of all gradients are finite numbers."""

    def finite(loss: tf.Tensor, norm: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(tf.math.is_finite(loss), tf.math.is_finite(norm))

    return kernel(finite, [loss, norm], [(mtf.Shape([]), tf.bool)], [], "finite")[0]


def build_inspection(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any, step: tf.Tensor, names: list[str]
) -> tf.Tensor:
    """How large activations and gradients of a training step are, without updating anything.

    Args:
        features, config, mesh_impl, step: as for `build_train`. There are no microbatches.
        names: gets the names of the rows: activations as `activation/<layer>`, gradients as `gradient/<variable>`.

    Returns:
        float32 [names, 3]: of each tensor its norm, its largest absolute value, and how many elements are not finite.
    """
    seen: dict[str, mtf.Tensor] = {}
    ctx, tensors = import_features(features, config, mesh_impl, None, train_step=step)
    ctx = dataclasses.replace(ctx, observe=lambda name, x: seen.update({f"activation/{name}": x}))
    objective = objective_of(config)
    outputs = _outputs(objective.loss(ctx, tensors, objective.total(ctx, tensors)), 1)
    weights = list(ctx.mesh.graph.trainable_variables)
    gradients = mtf.gradients([outputs["loss"]], [weight.value for weight in weights])
    seen |= {f"gradient/{weight.name}": g for weight, g in zip(weights, gradients, strict=True)}
    figures = [figure for x in seen.values() for figure in _size_of(x)]
    lowering = _lower(ctx.mesh, mesh_impl)
    names[:] = list(seen)
    return tf.reshape(tf.stack([lowering.export_to_tf_tensor(x) for x in figures]), [len(seen), 3])


def _size_of(x: mtf.Tensor) -> list[mtf.Tensor]:
    """Three float32 scalars: the norm, the largest absolute value, and the number of elements that are not finite."""

    def not_finite(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.logical_not(tf.math.is_finite(x)), tf.float32)

    x = mtf.cast(x, tf.float32)
    (flags,) = kernel(not_finite, [x], [(x.shape, tf.float32)], x.shape.dims, "not_finite")
    largest = mtf.reduce_max(mtf.abs(x), output_shape=mtf.Shape([]))
    return [mtf.sqrt(mtf.reduce_sum(mtf.square(x))), largest, mtf.reduce_sum(flags)]


def loss_and_gradients(
    config: Config, mesh_impl: Any, ctx: Context, tensors: dict[str, mtf.Tensor]
) -> tuple[dict[str, mtf.Tensor], list[mtf.Tensor]]:
    """`loss`, `nll` and more scalars of a batch, and the loss's gradient for each trainable variable; in microbatches
    if the config says so.
    """
    objective = objective_of(config)
    count = microbatches.count(config, mesh_impl, ctx.dims.batch, objective.texts)
    total = objective.total(ctx, tensors, count)

    def microbatch(ctx: Context, tensors: dict[str, mtf.Tensor]) -> tuple[dict[str, mtf.Tensor], list[mtf.Tensor]]:
        outputs = _outputs(objective.loss(ctx, tensors, total), count)
        variables = [weight.value for weight in ctx.mesh.graph.trainable_variables]
        gradients = mtf.gradients([outputs["loss"]], variables)
        assert None not in gradients, [v.operation.name for v, g in zip(variables, gradients, strict=True) if g is None]
        return outputs, gradients

    return microbatches.accumulate(ctx, tensors, count, microbatch)


def _outputs(found: Loss, count: int) -> dict[str, mtf.Tensor]:
    """The scalars of one of `count` microbatches, and each mixture's load; the balance loss is added to the loss."""
    loss, outputs = found.loss, {"nll": found.nll, **found.metrics}
    for layer, balance in found.balance.items():
        outputs[f"load/{layer}"] = balance.load * (1.0 / count)
    if found.balance:
        outputs["balance_loss"] = mtf.add_n([balance.loss for balance in found.balance.values()]) * (1.0 / count)
        loss += outputs["balance_loss"]
    return {"loss": loss, **outputs}


def _by_expert(lowered: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The scalars as they are, and each expert's load under a name of its own."""
    scalars = {name: x for name, x in lowered.items() if x.shape.rank == 0}
    for name, loads in lowered.items():
        if loads.shape.rank == 1:
            scalars.update({f"{name}/{expert}": load for expert, load in enumerate(tf.unstack(loads))})
    return scalars


def build_eval(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any, dtype: tf.DType | None = None
) -> EvalTensors:
    """Scores of one batch, row by row. `features`: as for `build_train`, with `weights`."""
    ctx, tensors = import_features(features, config, mesh_impl, dtype)
    found = objective_of(config).evaluate(ctx, tensors)
    lowering = _lower(ctx.mesh, mesh_impl)
    return EvalTensors(*[lowering.export_to_tf_tensor(x) for x in (found.nll, found.correct, found.weight)])


def build_comparison(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any, dtype: tf.DType | None = None
) -> list[tf.Tensor]:
    """`objectives.objective.Comparison` of a batch of pairs, lowered: [batch] each.

    `features`: as for `build_train`.
    """
    ctx, tensors = import_features(features, config, mesh_impl, dtype)
    found = objective_of(config).compare(ctx, tensors)
    lowering = _lower(ctx.mesh, mesh_impl)
    parts = found.loss, found.nll, found.chosen, found.rejected, found.correct
    return [lowering.export_to_tf_tensor(x) for x in parts]


def build_rewards(
    tokens: tf.Tensor, config: Config, mesh_impl: Any, dtype: tf.DType | None = None
) -> tf.Tensor:
    """The reward of the text up to each position, float32 [batch, sequence], for int32 tokens [batch, sequence]."""
    ctx, tensors = import_features({"inputs": tokens}, config, mesh_impl, dtype)
    rewards = gpt.rewards(ctx, gpt.forward(ctx, tensors["inputs"]).features)
    return _lower(ctx.mesh, mesh_impl).export_to_tf_tensor(rewards)


def build_logits(tokens: tf.Tensor, config: Config, mesh_impl: Any, dtype: tf.DType | None = None) -> tf.Tensor:
    """The logits of each next token, float32 [batch, sequence, n_vocab], for int32 tokens [batch, sequence]."""
    ctx, tensors = import_features({"inputs": tokens}, config, mesh_impl, dtype)
    logits = mtf.cast(gpt.logits(ctx, tensors["inputs"]), ctx.statistics_dtype)
    return _lower(ctx.mesh, mesh_impl).export_to_tf_tensor(logits)


def build_score(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """The log-probability of each label, and 1.0 where it is the likeliest token, else 0.0: float32 [batch, sequence].

    `features`: as for `build_train`.
    """
    ctx, tensors = import_features(features, config, mesh_impl, None)
    nll, correct = objective_of(config).predictions(ctx, tensors)
    found = mtf.negative(nll), correct
    lowering = _lower(ctx.mesh, mesh_impl)
    log_probabilities, is_likeliest = (lowering.export_to_tf_tensor(x) for x in found)
    return log_probabilities, is_likeliest


def build_alternatives(
    tokens: tf.Tensor, config: Config, mesh_impl: Any, top: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The log-probability of each token but the first, and the `top` likeliest ids at its place with theirs: float32
    [batch, n], int32 [batch, n, top] and float32 [batch, n, top], for int32 tokens [batch, n + 1].
    """
    logits = build_logits(tokens[:, :-1], config, mesh_impl)
    # One log Z a position, and no second tensor of the logits' size.
    log_z = tf.reduce_logsumexp(logits, -1)
    own = tf.gather(logits, tokens[:, 1:], axis=-1, batch_dims=2)
    values, ids = tf.math.top_k(logits, top)
    return own - log_z, ids, values - log_z[..., None]


def make_context(
    config: Config, mesh_impl: Any, batch: int, sequence: int, dtype: tf.DType | None = None, memory: int | None = None
) -> Context:
    """A new mesh graph, and what its layers need to know, without a seed for dropout.

    Args:
        batch, sequence: sizes of these dimensions.
        dtype: of activations; default: by `precision`.
        memory: positions of keys and values; default: `sequence`.
    """
    dims = Dims.of(config.model, batch, sequence, memory)
    mesh = mtf.Mesh(mtf.Graph(), "mesh", mesh_impl.variable_placer)
    return context_on(
        config,
        mesh,
        dims,
        _split_axes(dims, mesh_impl),
        dtype=dtype,
        tensor_cores=mesh_impl.tensor_cores,
        cpu_kernels=mesh_impl.cpu_kernels,
    )


def context_on(
    config: Config,
    mesh: mtf.Mesh,
    dims: Dims,
    axes: Mapping[str, int],
    *,
    dtype: tf.DType | None = None,
    tensor_cores: bool = False,
    cpu_kernels: bool = False,
) -> Context:
    """What layers need to know of a mesh graph, without a seed for dropout. See `Context` for the arguments."""
    return Context(
        mesh=mesh,
        dims=dims,
        model=config.model,
        dtype=dtype or DTYPES[config.training.precision],
        axes=axes,
        init_seed=config.training.seed,
        causal=objective_of(config).causal,
        fused=config.training.fused_ops,
        tensor_cores=config.training.fused_ops and tensor_cores,
        cpu_kernels=cpu_kernels,
    )


def _split_axes(dims: Dims, mesh_impl: Any) -> dict[str, int]:
    """The mesh axis of each dimension that is split into more than one part, by the dimension's name."""
    axes = {dim.name: mesh_impl.tensor_dimension_to_mesh_axis(dim) for dim in dims.all()}
    return {name: axis for name, axis in axes.items() if axis is not None and mesh_impl.shape.dims[axis].size > 1}


def import_features(
    features: Mapping[str, tf.Tensor],
    config: Config,
    mesh_impl: Any,
    dtype: tf.DType | None,
    train_step: tf.Tensor | None = None,
) -> tuple[Context, dict[str, mtf.Tensor]]:
    """A new mesh graph with the features (`Objective.features`) imported into it."""
    batch, *_, sequence = features["inputs"].shape.as_list()
    ctx = make_context(config, mesh_impl, batch, sequence, dtype)
    tensors = {
        name: mtf.import_tf_tensor(ctx.mesh, x, feature_shape(ctx.dims, x), name=name) for name, x in features.items()
    }
    if train_step is not None:
        seed = mtf.import_tf_tensor(ctx.mesh, step_seed(config.training.seed, train_step))
        ctx = dataclasses.replace(ctx, seed=seed)
    return ctx, tensors


def feature_shape(dims: Dims, x: tf.Tensor) -> mtf.Shape:
    """The dimensions of a feature by its rank: [batch], [batch, sequence] or [batch, pair, sequence]."""
    names = {1: [dims.batch], 2: [dims.batch, dims.sequence], 3: [dims.batch, dims.pair, dims.sequence]}
    return mtf.Shape(names[x.shape.rank])


def _lower(mesh: mtf.Mesh, mesh_impl: Any) -> mtf.Lowering:
    # No stacking: variables keep their own names in checkpoints.
    return mtf.Lowering(mesh.graph, {mesh: mesh_impl}, autostack=False)
