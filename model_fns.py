"""The one place where mesh, layout, model, loss and optimizer become a graph.

Each builder takes TensorFlow tensors in, builds the mesh graph, lowers it on the given mesh, and returns TensorFlow
tensors.
The training loop calls the builders inside a `tf.function`; `model_fn` calls them for TPUEstimator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.models import entmax, gpt, losses, vocabulary_loss
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.dropout import step_seed
from gpt_mesh.objectives import objectives
from gpt_mesh.optimizers import optimizers, schedules
from gpt_mesh.steps import buckets, microbatches
from gpt_mesh.steps.state_split import StateSplit

DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16}


@dataclass(frozen=True)
class TrainTensors:
    """One training step, lowered. Scalars are float32, but for the update operation.

    Attributes:
        loss: what is optimised, a mean over predicted tokens plus the auxiliary losses.
        nll: mean negative log-likelihood of the labels, in nats.
        extras: further scalars to log, by name: `balance_loss`, `load/<layer>/<expert>`, `grad_norm/<variable>`.
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
    """Sums over each row of a batch, lowered: nll in nats, correct predictions, and the weights of both; [batch] each.
    """

    nll: tf.Tensor
    correct: tf.Tensor
    weight: tf.Tensor


def build_train(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any, step: tf.Tensor, dtype: tf.DType | None = None
) -> TrainTensors:
    """Forward pass, gradients and update for one batch.

    Args:
        features: `inputs` and `labels`, int32 [train_batch_size, n_ctx], and, where not every label counts, `weights`,
            float32 of that shape.
        config: the run.
        mesh_impl: the devices and the layout to lower on.
        step: integer scalar, the number of steps done before this one.
        dtype: of activations; default: by `precision`.
    """
    ctx, tensors = _context(features, config, mesh_impl, dtype, train_step=step)
    outputs, gradients = _gradients(config, mesh_impl, ctx, tensors)
    gradients = buckets.reduce_together(gradients, mesh_impl)
    weights = list(ctx.mesh.graph.trainable_variables)
    norm = optimizers.global_norm(gradients, cpu_products=ctx.cpu_products)
    scale = optimizers.clip_factor(norm, config.optimizer.gradient_clipping)
    lr = schedules.learning_rate(config.optimizer, step)
    lr_on_mesh, step_on_mesh = (mtf.import_tf_tensor(ctx.mesh, x) for x in (lr, step))
    split = _state_split(config, ctx, mesh_impl)
    updates = optimizers.update(
        weights, gradients, lr_on_mesh, scale, step_on_mesh, config.optimizer, split, cpu_products=ctx.cpu_products
    )
    if config.training.log_grads:
        norms = {f"grad_norm/{w.name}": optimizers.global_norm([g]) for w, g in zip(weights, gradients, strict=True)}
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


def _state_split(config: Config, ctx: Context, mesh_impl: Any) -> StateSplit:
    """How the optimizer's state is cut: as the batch is, if the config asks for it."""
    axis = ctx.axes.get("batch")
    if not config.optimizer.split_optimizer_state or axis is None:
        return StateSplit()
    return StateSplit(mesh_impl.shape.dims[axis].size, axis, ctx.axes)


def _gradients(
    config: Config, mesh_impl: Any, ctx: Context, tensors: dict[str, mtf.Tensor]
) -> tuple[dict[str, mtf.Tensor], list[mtf.Tensor]]:
    """What the batch gives, and the loss's gradient for each trainable variable, in microbatches if the config says so.
    """
    weights = tensors.get("weights")
    tokens = ctx.dims.batch.size * ctx.dims.sequence.size
    total = mtf.constant(ctx.mesh, float(tokens), dtype=ctx.statistics_dtype)
    if weights is not None:  # at least one, so that a batch without a single label gives 0 and not NaN
        total = mtf.maximum(mtf.cast(mtf.reduce_sum(weights), ctx.statistics_dtype), 1.0)
    count = microbatches.count(config, mesh_impl, ctx.dims.batch)

    def microbatch(ctx: Context, tensors: dict[str, mtf.Tensor]) -> tuple[dict[str, mtf.Tensor], list[mtf.Tensor]]:
        outputs = _losses(config, ctx, tensors, total, count)
        variables = [weight.value for weight in ctx.mesh.graph.trainable_variables]
        gradients = mtf.gradients([outputs["loss"]], variables)
        assert None not in gradients, [v.operation.name for v, g in zip(variables, gradients, strict=True) if g is None]
        return outputs, gradients

    return microbatches.accumulate(ctx, tensors, count, microbatch)


def _losses(
    config: Config, ctx: Context, tensors: dict[str, mtf.Tensor], total: mtf.Tensor, count: int
) -> dict[str, mtf.Tensor]:
    """`loss`, `nll` and the mixtures' balance: this microbatch's share of them, one in `count`.

    Args:
        tensors: `inputs`, `labels` and perhaps `weights`, [batch, sequence].
        total: what the sums over tokens are divided by.
    """
    out = gpt.forward(ctx, tensors["inputs"], recompute=config.training.recompute_grad)
    shares = tensors.get("weights")
    shares = mtf.ones(ctx.mesh, tensors["labels"].shape, ctx.statistics_dtype) if shares is None else shares
    shares = mtf.cast(shares, ctx.statistics_dtype) / total
    loss, nll = _sums_over_tokens(config, ctx, out.features, tensors["labels"], shares)
    outputs = {"nll": nll}
    for layer, balance in out.balance.items():
        outputs[f"load/{layer}"] = balance.load * (1.0 / count)
    if out.balance:
        outputs["balance_loss"] = mtf.add_n([balance.loss for balance in out.balance.values()]) * (1.0 / count)
        loss += outputs["balance_loss"]
    return {"loss": loss, **outputs}


def _sums_over_tokens(
    config: Config, ctx: Context, features: mtf.Tensor, labels: mtf.Tensor, shares: mtf.Tensor
) -> tuple[mtf.Tensor, mtf.Tensor]:
    """What is optimised, and the negative log-likelihood of the labels, each token's times its share.

    Args:
        features: [batch, sequence, embd].
        labels, shares: [batch, sequence].
    """
    z_loss, sparse = config.optimizer.z_loss, config.optimizer.entmax_loss
    if ctx.fused and not sparse and vocabulary_loss.fits(ctx):
        return vocabulary_loss.cross_entropy(ctx, features, gpt.output_weight(ctx), labels, shares, z_loss)
    logits = gpt.score(ctx, features)
    nll, log_z = losses.cross_entropy(ctx, logits, labels)
    if sparse:  # there is no z-loss then: entmax has no normaliser to hold in bounds
        objective = entmax.loss(ctx, logits, labels)
    else:
        objective = nll + z_loss * mtf.square(log_z) if z_loss else nll
    return mtf.reduce_sum(objective * shares), mtf.reduce_sum(nll * shares)


def _by_expert(lowered: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The scalars as they are, and each expert's load under its own name."""
    scalars = {name: x for name, x in lowered.items() if x.shape.rank == 0}
    for name, loads in lowered.items():
        if loads.shape.rank == 1:
            scalars.update({f"{name}/{expert}": load for expert, load in enumerate(tf.unstack(loads))})
    return scalars


def build_eval(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any, dtype: tf.DType | None = None
) -> EvalTensors:
    """Score one batch.

    Args:
        features: `inputs` and `labels`, int32 [batch, n_ctx], and `weights`, float32 [batch, n_ctx]: 0 where a label
            does not count.
    """
    ctx, tensors = _context(features, config, mesh_impl, dtype)
    logits = gpt.logits(ctx, tensors["inputs"])
    nll, _ = losses.cross_entropy(ctx, logits, tensors["labels"])
    correct = losses.correct(ctx, logits, tensors["labels"])
    weights = mtf.cast(tensors["weights"], nll.dtype)
    sums = [mtf.reduce_sum(x, output_shape=[ctx.dims.batch]) for x in (nll * weights, correct * weights, weights)]
    lowering = _lower(ctx.mesh, mesh_impl)
    return EvalTensors(*[lowering.export_to_tf_tensor(x) for x in sums])


def build_logits(tokens: tf.Tensor, config: Config, mesh_impl: Any, dtype: tf.DType | None = None) -> tf.Tensor:
    """float32 [batch, sequence, n_vocab]: scores of each next token, for int32 tokens [batch, sequence]."""
    ctx, tensors = _context({"inputs": tokens}, config, mesh_impl, dtype)
    logits = mtf.cast(gpt.logits(ctx, tensors["inputs"]), ctx.statistics_dtype)
    return _lower(ctx.mesh, mesh_impl).export_to_tf_tensor(logits)


def build_score(
    features: Mapping[str, tf.Tensor], config: Config, mesh_impl: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """The log-probability of each label, and 1.0 where it is the likeliest token, else 0.0: float32 [batch, sequence].

    Args:
        features: as for `build_eval`, without weights.
    """
    ctx, tensors = _context(features, config, mesh_impl, None)
    logits = gpt.logits(ctx, tensors["inputs"])
    nll, _ = losses.cross_entropy(ctx, logits, tensors["labels"])
    found = mtf.negative(nll), losses.correct(ctx, logits, tensors["labels"])
    lowering = _lower(ctx.mesh, mesh_impl)
    log_probabilities, correct = (lowering.export_to_tf_tensor(x) for x in found)
    return log_probabilities, correct


class Host(Protocol):
    """What stands around a model function: where it runs, and what becomes of what it builds."""

    config: Config

    def mesh(self, params: Mapping[str, Any], batch: int, positions: int | None) -> Any:
        """The mesh for batches of that size; `params`: TPUEstimator's; `positions`: None when decoding."""

    def spec(self, out: Any, mesh_impl: Any) -> Any:
        """The `TPUEstimatorSpec` of what was built; of the features themselves, when decoding."""


def model_fn(features: Mapping[str, tf.Tensor], mode: str, params: Mapping[str, Any], host: Host) -> Any:
    """TPUEstimator's model function: the builders above, in a graph that a session runs.

    Args:
        features: `tokens`, int32 [batch, n_ctx + 1]; in evaluation `weights` too, float32 [batch, n_ctx]; when
            decoding, the arrays of `sample.Batch`.
        mode: "train", "eval" or "infer".
        params: in which TPUEstimator says where the TPU's cores are.
    """
    config = host.config
    if mode == "infer":  # decoding is built on top of this file
        return host.spec(features, host.mesh(params, features["prompts"].shape[0], None))
    mesh_impl = host.mesh(params, features["tokens"].shape[0], config.model.n_ctx)
    if mode == "eval":
        given = objectives.features(config, features["tokens"], weights=features["weights"])
        return host.spec(build_eval(given, config, mesh_impl), mesh_impl)
    step = tf.cast(tf.compat.v1.train.get_global_step().read_value(), tf.int32)
    given = objectives.features(config, features["tokens"], step_seed(config.training.seed, step))
    return host.spec(build_train(given, config, mesh_impl, step), mesh_impl)


def make_context(
    config: Config, mesh_impl: Any, batch: int, sequence: int, dtype: tf.DType | None = None, memory: int | None = None
) -> Context:
    """A new mesh graph and what its layers need to know, outside training."""
    dims = Dims.of(config.model, batch, sequence, memory)
    return Context(
        # On a TPU of several hosts the mesh says on which of them a whole variable is kept.
        mesh=mtf.Mesh(mtf.Graph(), "mesh", getattr(mesh_impl, "variable_placer", None)),
        dims=dims,
        model=config.model,
        dtype=dtype or DTYPES[config.training.precision],
        axes=_split_axes(dims, mesh_impl),
        init_seed=config.training.seed,
        causal=not config.mlm.mlm_training,
        fused=config.training.fused_ops,
        tensor_cores=config.training.fused_ops and getattr(mesh_impl, "tensor_cores", False),
        cpu_products=getattr(mesh_impl, "cpu_products", False),
    )


def _split_axes(dims: Dims, mesh_impl: Any) -> dict[str, int]:
    """The mesh axis along which each dimension is split, by name, for those that are split into more than one part."""
    axes = {dim.name: mesh_impl.tensor_dimension_to_mesh_axis(dim) for dim in dims.all()}
    return {name: axis for name, axis in axes.items() if axis is not None and mesh_impl.shape.dims[axis].size > 1}


def _context(
    features: Mapping[str, tf.Tensor],
    config: Config,
    mesh_impl: Any,
    dtype: tf.DType | None,
    train_step: tf.Tensor | None = None,
) -> tuple[Context, dict[str, mtf.Tensor]]:
    """A new mesh graph with the features ([batch, sequence] each) imported into it."""
    batch, sequence = features["inputs"].shape.as_list()
    ctx = make_context(config, mesh_impl, batch, sequence, dtype)
    shape = mtf.Shape([ctx.dims.batch, ctx.dims.sequence])
    tensors = {name: mtf.import_tf_tensor(ctx.mesh, x, shape, name=name) for name, x in features.items()}
    if train_step is not None:
        seed = mtf.import_tf_tensor(ctx.mesh, step_seed(config.training.seed, train_step))
        ctx = dataclasses.replace(ctx, seed=seed)
    return ctx, tensors


def _lower(mesh: mtf.Mesh, mesh_impl: Any) -> mtf.Lowering:
    # Variables keep their own names in checkpoints: no stacking.
    return mtf.Lowering(mesh.graph, {mesh: mesh_impl}, autostack=False)
