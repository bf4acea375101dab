"""Checkpoints as mesh-tensorflow programs wrote them: a TensorFlow 1 graph and its Saver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf


def write_published(
    directory: Path, stored: Mapping[str, np.ndarray], *, step: int, dtype: str, shards: int = 1
) -> Path:
    """Write model.ckpt-<step> in a directory; returns its path.

    Beside the `.index` and `.data` files stand a `.meta` file and a `checkpoint` file with a relative path; there is no
    `.json`.

    Args:
        stored: variables by name; weights, and perhaps Adam's slots. Its `global_step` is left out.
        step: the `global_step`, which is int64.
        dtype: of the weights. Slots are float32.
        shards: `.data` files, one for each device that variables were on.
    """
    v1 = tf.compat.v1
    directory.mkdir(parents=True, exist_ok=True)
    devices = v1.ConfigProto(device_count={"CPU": shards})
    with tf.Graph().as_default(), v1.Session(config=devices) as session:
        for number, name in enumerate(sorted({*stored} - {"global_step"})):
            kind = tf.float32 if "/adam_" in name else tf.as_dtype(dtype)
            with tf.device(f"/device:CPU:{number % shards}"):
                v1.get_variable(name, initializer=tf.cast(stored[name], kind), use_resource=False)
        with tf.device("/device:CPU:0"):
            counter = v1.train.get_or_create_global_step()
        session.run(v1.global_variables_initializer())
        session.run(counter.assign(step))
        saver = v1.train.Saver(v1.global_variables(), sharded=True, save_relative_paths=True)
        return Path(saver.save(session, str(directory / "model.ckpt"), global_step=step))
