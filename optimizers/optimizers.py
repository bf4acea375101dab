"""Optimizers as mesh operations: clipping, Adam, Adafactor, weight decay."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import OptimizerConfig
from gpt_mesh.meshes import native
from gpt_mesh.models.context import constant
from gpt_mesh.models.kernels import kernel
from gpt_mesh.steps.state_split import StateSplit

WHOLE = StateSplit()
LEAST_NATIVE = 2**12  # elements of a tensor that native/optimizer.c is called for


def global_norm(gradients: Sequence[mtf.Tensor], *, cpu_products: bool = False) -> mtf.Tensor:
    """The Euclidean norm of all gradients together: a scalar, at least float32. `cpu_products`: see `Context`."""
    dtype = tf.float64 if gradients[0].dtype == tf.float64 else tf.float32

    def squares(g: tf.Tensor) -> tf.Tensor:
        return native.call("sum_of_squares", [g], [tf.TensorSpec([], tf.float32)])[0]

    sums = []
    for g in gradients:
        if cpu_products and _is_for_native(g):
            sums += kernel(squares, [g], [(mtf.Shape([]), dtype)], [], "sum_of_squares")
        else:
            sums.append(mtf.reduce_sum(mtf.square(mtf.cast(g, dtype))))
    return mtf.sqrt(mtf.add_n(sums))


def _is_for_native(x: mtf.Tensor) -> bool:
    return x.dtype == tf.float32 and x.shape.size >= LEAST_NATIVE and native.known()


def clip_factor(norm: mtf.Tensor, limit: float | None) -> mtf.Tensor:
    """What to multiply gradients by so that their global norm is at most `limit` (Pascanu et al., 2013,
    arXiv:1211.5063); 1 where there is no limit.

    Every update is multiplied by it and it depends on every gradient: in a graph that a session runs, where nothing
    else says so, weights are thus read before any is changed.
    """

    def factor(n: tf.Tensor) -> tf.Tensor:
        return limit / tf.maximum(n, limit) if limit else tf.ones_like(n)

    return kernel(factor, [norm], [(norm.shape, norm.dtype)], [], "clip_factor")[0]


def update(
    weights: Sequence[mtf.Variable],
    gradients: Sequence[mtf.Tensor],
    lr: mtf.Tensor,
    scale: mtf.Tensor,
    step: mtf.Tensor,
    config: OptimizerConfig,
    split: StateSplit = WHOLE,
    *,
    cpu_products: bool = False,
) -> list[mtf.Operation]:
    """One step of the config's optimizer.

    Args:
        weights: the variables to update, and `gradients` theirs, in the same order.
        lr, scale: float scalars; gradients are multiplied by `scale` first.
        step: integer scalar, the number of steps done before this one.
        config: which optimizer, and its constants.
        split: how its state is cut over the replicas.
        cpu_products: see `Context`.

    Returns:
        Operations that do the update.
    """
    if config.opt_name == "adafactor":
        return adafactor(weights, gradients, lr, scale, step, config, split)
    return adam(weights, gradients, lr, scale, config, split, cpu_products=cpu_products)


def adam(
    weights: Sequence[mtf.Variable],
    gradients: Sequence[mtf.Tensor],
    lr: mtf.Tensor,
    scale: mtf.Tensor,
    config: OptimizerConfig,
    split: StateSplit = WHOLE,
    *,
    cpu_products: bool = False,
) -> list[mtf.Operation]:
    """One step of Adam without bias correction (Kingma & Ba, 2014, arXiv:1412.6980), with decoupled weight decay
    (Loshchilov & Hutter, 2017, arXiv:1711.05101) on matrices only.

    m and v are kept as `<weight>/adam_m` and `<weight>/adam_v`, in the type of the master weight:

        m = beta1·m + (1-beta1)·g;   v = beta2·v + (1-beta2)·g²;   w -= lr·(m / (√v + epsilon) + weight_decay·w)

    Args:
        weights: the variables to update, and `gradients` theirs, in the same order.
        lr, scale: float scalars; gradients are multiplied by `scale` first.
        config: the constants.
        split: how m and v are cut over the replicas.
        cpu_products: see `Context`.

    Returns:
        Operations that do the update.
    """
    return [
        op
        for weight, gradient in zip(weights, gradients, strict=True)
        for op in _adam_one(weight, gradient, lr, scale, config, split, cpu_products)
    ]


def _adam_one(
    weight: mtf.Variable,
    gradient: mtf.Tensor,
    lr: mtf.Tensor,
    scale: mtf.Tensor,
    config: OptimizerConfig,
    split: StateSplit,
    cpu_products: bool,
) -> list[mtf.Operation]:
    shape, dtype = split.shape(weight.shape), weight.master_dtype
    m, v = (_slot(weight, name, shape) for name in ("adam_m", "adam_v"))
    decay = config.weight_decay if len(shape) > 1 else 0.0

    def update(
        w: tf.Tensor, g: tf.Tensor, m: tf.Tensor, v: tf.Tensor, lr: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        lr = tf.cast(lr, dtype)
        g = tf.cast(g, dtype) * tf.cast(scale, dtype)
        m = config.beta1 * m + (1.0 - config.beta1) * g
        v = config.beta2 * v + (1.0 - config.beta2) * tf.square(g)
        change = m / (tf.sqrt(v) + config.epsilon)
        if decay:
            change += decay * w
        return w - lr * change, m, v

    def native_update(w: tf.Tensor, *others: tf.Tensor) -> tuple[tf.Tensor, ...]:
        results = [tf.TensorSpec(w.shape, w.dtype)] * 3
        constants = {"beta1": config.beta1, "beta2": config.beta2, "epsilon": config.epsilon, "decay": decay}
        told = {name: float(x) for name, x in constants.items()}
        return tuple(native.call("adam", [w, *others], results, told, in_place={0: 0, 1: 2, 2: 3}))

    operands = [split.part(master_value(weight)), split.part(gradient), m.value, v.value, lr, scale]
    is_native = cpu_products and all(_is_for_native(x) for x in operands[:4]) and lr.dtype == scale.dtype == tf.float32
    work = native_update if is_native else update
    new_weight, new_m, new_v = kernel(work, operands, [(shape, dtype)] * 3, shape.dims, "adam")
    return [mtf.assign(weight, mtf.reshape(new_weight, weight.shape)), mtf.assign(m, new_m), mtf.assign(v, new_v)]


def adafactor(
    weights: Sequence[mtf.Variable],
    gradients: Sequence[mtf.Tensor],
    lr: mtf.Tensor,
    scale: mtf.Tensor,
    step: mtf.Tensor,
    config: OptimizerConfig,
    split: StateSplit = WHOLE,
) -> list[mtf.Operation]:
    """One step of Adafactor (Shazeer & Stern, 2018, arXiv:1804.04235, algorithms 4 and 5), with decoupled weight decay
    on matrices only.

    The squared gradients of a matrix are averaged as means over its rows and over its columns (R, C), those of a vector
    one by one (V); here g² stands for g² + ada_epsilon1, and t counts from 1:

        beta2 = 1 - t^(-ada_decay_rate)
        R = beta2·R + (1-beta2)·mean_columns(g²);   C likewise over rows;   v = R·C / mean(R)
        u = g / √v;   u /= max(1, RMS(u))
        w -= lr·max(ada_epsilon2, RMS(w))·u + lr·weight_decay·w

    `lr` takes the place of the paper's relative step min(0.01, 1/√t). With beta1 > 0 the step (learning rate included)
    is averaged, m = beta1·m + (1-beta1)·lr·max(…)·u, and m is subtracted; with 0 there is no such slot. All of this is
    what Hugging Face's Adafactor does with `scale_parameter=True, relative_step=False`, but for weight decay, which
    there is scaled by max(ada_epsilon2, RMS(w)) too; here the key means the same as with Adam.

    Kept as `<weight>/adafactor_vr`, `adafactor_vc`, `adafactor_v`, `adafactor_m`. Of a weight with more than two
    dimensions the last two are a matrix.

    Args:
        step: integer scalar, the number of steps done before this one; the others as for `update`.
        split: how m is cut over the replicas; the factors are small, and stay whole.
    """
    dtype = lr.dtype
    exponent = -config.ada_decay_rate
    (beta2,) = kernel(
        lambda done: 1.0 - tf.pow(tf.cast(done, dtype) + 1.0, exponent), [step], [(step.shape, dtype)], [], "beta2"
    )
    return [
        op
        for weight, gradient in zip(weights, gradients, strict=True)
        for op in _adafactor_one(weight, gradient, lr, scale, beta2, config, split)
    ]


def _adafactor_one(
    weight: mtf.Variable,
    gradient: mtf.Tensor,
    lr: mtf.Tensor,
    scale: mtf.Tensor,
    beta2: mtf.Tensor,
    config: OptimizerConfig,
    split: StateSplit,
) -> list[mtf.Operation]:
    dtype = weight.master_dtype
    lr, scale, beta2 = (mtf.cast(scalar, dtype) for scalar in (lr, scale, beta2))
    w, g = master_value(weight), mtf.cast(gradient, dtype) * scale
    inverse_root, updates = _inverse_root_of_second_moment(weight, g, beta2, config.ada_epsilon1)
    u = g * inverse_root
    change = u * (lr * mtf.maximum(_rms(w), config.ada_epsilon2) / mtf.maximum(_rms(u), 1.0))
    if config.beta1:
        m = _slot(weight, "adafactor_m", split.shape(weight.shape))
        new_m = config.beta1 * m.value + (1.0 - config.beta1) * split.part(change)
        updates.append(mtf.assign(m, new_m))
        change = mtf.reshape(new_m, weight.shape)
    if config.weight_decay and len(weight.shape) > 1:
        change += lr * config.weight_decay * w
    return [*updates, mtf.assign(weight, w - change)]


def _inverse_root_of_second_moment(
    weight: mtf.Variable, g: mtf.Tensor, beta2: mtf.Tensor, epsilon: float
) -> tuple[mtf.Tensor, list[mtf.Operation]]:
    """1/√v of Adafactor, and the operations that update what it is made of."""
    squares = mtf.square(g) + epsilon

    def average(name: str, mean: mtf.Tensor) -> tuple[mtf.Tensor, mtf.Operation]:
        slot = _slot(weight, name, mean.shape)
        value = beta2 * slot.value + (1.0 - beta2) * mean
        return value, mtf.assign(slot, value)

    if len(weight.shape) < 2:
        v, update_v = average("adafactor_v", squares)
        return mtf.rsqrt(v), [update_v]
    rows, columns = weight.shape.dims[-2:]
    r, update_r = average("adafactor_vr", mtf.reduce_mean(squares, reduced_dim=columns))
    c, update_c = average("adafactor_vc", mtf.reduce_mean(squares, reduced_dim=rows))
    # Roots first: the quotient r / mean(r) could underflow.
    by_row = mtf.rsqrt(r) * mtf.sqrt(mtf.reduce_mean(r, reduced_dim=rows))
    return mtf.multiply(by_row, mtf.rsqrt(c), output_shape=weight.shape), [update_r, update_c]


def _rms(x: mtf.Tensor) -> mtf.Tensor:
    """The root of the mean square: a scalar."""
    return mtf.sqrt(mtf.reduce_mean(mtf.square(x)))


def _slot(weight: mtf.Variable, name: str, shape: mtf.Shape | None = None) -> mtf.Variable:
    """The optimizer's variable `<weight>/<name>`: the weight's shape (or `shape`) and stored type, zeros at first."""
    tensor = mtf.get_variable(
        weight.mesh,
        f"{weight.name}/{name}",
        weight.shape if shape is None else shape,
        dtype=weight.master_dtype,
        initializer=constant(0.0),
        trainable=False,
    )
    return tensor.operation


def master_value(weight: mtf.Variable) -> mtf.Tensor:
    """The weight as stored, not narrowed to the activation type."""
    return weight.value if weight.activation_dtype == weight.slice_dtype else _ReadStored(weight).outputs[0]


class _ReadStored(mtf.Operation):
    def __init__(self, weight: mtf.Variable) -> None:
        super().__init__([], mesh=weight.mesh, name="read_stored")
        self.weight = weight
        self._outputs = [mtf.Tensor(self, weight.shape, weight.slice_dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: mtf.Lowering) -> None:
        stored = lowering.variables[self.weight].laid_out_tensor
        lowering.set_tensor_lowering(self.outputs[0], lowering.mesh_impl(self).slicewise(tf.identity, stored))
