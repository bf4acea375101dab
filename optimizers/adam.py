"""Adam."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import OptimizerConfig
from gpt_mesh.meshes import native
from gpt_mesh.optimizers.optimizer import Optimizer


class Adam(Optimizer):
    """Adam without bias correction (Kingma & Ba, 2014, arXiv:1412.6980), with decoupled weight decay on matrices:

    m = beta1·m + (1-beta1)·g;   v = beta2·v + (1-beta2)·g²;   w -= lr·(m / (√v + epsilon) + weight_decay·w)
    """

    name = "adam"

    @staticmethod
    def slot_shapes(config: OptimizerConfig, shape: mtf.Shape) -> dict[str, mtf.Shape]:
        return {"m": shape, "v": shape}

    def update_one(self, weight: mtf.Variable, gradient: mtf.Tensor) -> list[mtf.Operation]:
        config, decay = self.config, self.weight_decay(weight)

        def new_values(
            w: tf.Tensor, g: tf.Tensor, lr: tf.Tensor, m: tf.Tensor, v: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            m = config.beta1 * m + (1.0 - config.beta1) * g
            v = config.beta2 * v + (1.0 - config.beta2) * tf.square(g)
            change = m / (tf.sqrt(v) + config.epsilon)
            if decay:
                change += decay * w
            return w - lr * change, m, v

        def native_values(w: tf.Tensor, *others: tf.Tensor) -> tuple[tf.Tensor, ...]:
            results = [tf.TensorSpec(w.shape, w.dtype)] * 3
            constants = {"beta1": config.beta1, "beta2": config.beta2, "epsilon": config.epsilon, "decay": decay}
            attributes = {name: float(x) for name, x in constants.items()}
            return tuple(native.call("adam", [w, *others], results, attributes, in_place={0: 0, 1: 2, 2: 3}))

        return self.elementwise(weight, gradient, new_values, native_values)


OPTIMIZER = Adam
