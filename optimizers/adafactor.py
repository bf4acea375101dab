"""Adafactor."""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import OptimizerConfig
from gpt_mesh.models.kernels import kernel
from gpt_mesh.optimizers.optimizer import Optimizer, master_value


class Adafactor(Optimizer):
    """Adafactor (Shazeer & Stern, 2018, arXiv:1804.04235, algorithms 4 and 5), with decoupled weight decay on matrices.

    The squared gradients of a matrix are averaged as means over its rows and over its columns (R, C), those of a vector
    element by element (V); here g² stands for g² + ada_epsilon1, and t counts from 1:

        beta2 = 1 - t^(-ada_decay_rate)
        R = beta2·R + (1-beta2)·mean_columns(g²);   C likewise over rows;   v = R·C / mean(R)
        u = g / √v;   u /= max(1, RMS(u))
        w -= lr·max(ada_epsilon2, RMS(w))·u + lr·weight_decay·w

    `lr` replaces the paper's relative step min(0.01, 1/√t). With beta1 > 0 the step (learning rate included) is
    averaged, m = beta1·m + (1-beta1)·lr·max(…)·u, and m is subtracted; with beta1 = 0 there is no such slot. All of
    this equals Hugging Face's Adafactor with `scale_parameter=True, relative_step=False`, except for weight decay,
    which Hugging Face scales by max(ada_epsilon2, RMS(w)) too; here the key means the same as with Adam.

    The last two dimensions of a weight with more than two are a matrix.
    """

    name = "adafactor"

    def __init__(self, config: OptimizerConfig, lr: mtf.Tensor, *others: Any, **named: Any) -> None:
        super().__init__(config, lr, *others, **named)
        dtype, exponent = lr.dtype, -config.ada_decay_rate

        def decay_rate(done: tf.Tensor) -> tf.Tensor:
            return 1.0 - tf.pow(tf.cast(done, dtype) + 1.0, exponent)

        (self._beta2,) = kernel(decay_rate, [self.step], [(self.step.shape, dtype)], [], "beta2")

    @staticmethod
    def slot_shapes(config: OptimizerConfig, shape: mtf.Shape) -> dict[str, mtf.Shape]:
        if len(shape) > 1:
            rows, columns = shape.dims[-2:]
            shapes = {"vr": shape - columns, "vc": shape - rows}
        else:
            shapes = {"v": shape}
        return {**shapes, "m": shape} if config.beta1 else shapes

    def update_one(self, weight: mtf.Variable, gradient: mtf.Tensor) -> list[mtf.Operation]:
        dtype, config = weight.master_dtype, self.config
        slots = dict(zip(self.slot_shapes(config, weight.shape), self.slots(weight), strict=True))
        lr, scale, beta2 = (mtf.cast(scalar, dtype) for scalar in (self.lr, self.scale, self._beta2))
        w, g = master_value(weight), mtf.cast(gradient, dtype) * scale
        inverse_root, updates = self._inverse_root_of_second_moment(slots, g, beta2)
        u = g * inverse_root
        change = u * (lr * mtf.maximum(_rms(w), config.ada_epsilon2) / mtf.maximum(_rms(u), 1.0))
        if "m" in slots:
            new_m = config.beta1 * slots["m"].value + (1.0 - config.beta1) * self.split.part(change)
            updates.append(self.assign(slots["m"], new_m))
            change = mtf.reshape(new_m, weight.shape)
        if decay := self.weight_decay(weight):
            change += lr * decay * w
        return [*updates, self.assign(weight, w - change)]

    def _inverse_root_of_second_moment(
        self, slots: dict[str, mtf.Variable], g: mtf.Tensor, beta2: mtf.Tensor
    ) -> tuple[mtf.Tensor, list[mtf.Operation]]:
        """1/√v, of the shape of g, and the operations that update the slots behind it."""
        squares = mtf.square(g) + self.config.ada_epsilon1

        def average(name: str, mean: mtf.Tensor) -> tuple[mtf.Tensor, mtf.Operation]:
            value = beta2 * slots[name].value + (1.0 - beta2) * mean
            return value, self.assign(slots[name], value)

        if "v" in slots:
            v, update_v = average("v", squares)
            return mtf.rsqrt(v), [update_v]
        rows, columns = g.shape.dims[-2:]
        r, update_r = average("vr", mtf.reduce_mean(squares, reduced_dim=columns))
        c, update_c = average("vc", mtf.reduce_mean(squares, reduced_dim=rows))
        # Roots first: the quotient r / mean(r) could underflow.
        by_row = mtf.rsqrt(r) * mtf.sqrt(mtf.reduce_mean(r, reduced_dim=rows))
        return mtf.multiply(by_row, mtf.rsqrt(c), output_shape=g.shape), [update_r, update_c]


def _rms(x: mtf.Tensor) -> mtf.Tensor:
    """The root of the mean square: a scalar."""
    return mtf.sqrt(mtf.reduce_mean(mtf.square(x)))


OPTIMIZER = Adafactor
