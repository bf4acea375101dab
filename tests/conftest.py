"""Eight CPU devices for every test, so that tests in this process can lay models over meshes."""

from __future__ import annotations

from meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import tensorflow as tf  # isort: skip

# Before anything runs: TensorFlow fixes its devices when it first computes.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
)
