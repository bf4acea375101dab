"""Writes a checkpoint variable by variable, for models that do not fit into memory twice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh.engine import checkpoints
from gpt_mesh.storage import files

SHARD_BYTES = 1 << 30


def write(
    directory: str,
    step: int,
    arrays: Iterable[tuple[str, NDArray]],
    state: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Write a checkpoint and make it the newest, as `checkpoints.save` does, in several `.data` files.

    Args:
        directory: of the run; it exists.
        arrays: names and values. At most `shard_bytes`, or one array, are held in memory at a time.
            `global_step` is added.
        state: JSON-ready, returned by `checkpoints.restore_state`.

    Returns:
        The checkpoint's path. If `arrays` raises, nothing of it is left.
    """
    path = os.path.join(directory, f"model.ckpt-{step}")
    temporary = path + checkpoints.TEMPORARY
    try:
        parts = _write_parts(temporary, arrays, step, shard_bytes)
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=temporary, delete_old_dirs=False)
        checkpoints.save_state(directory, step, state)
        checkpoints.move_into_place(temporary, path, _suffixes(directory, temporary))
    finally:
        for suffix in _suffixes(directory, temporary):
            files.remove(temporary + suffix)
    checkpoints.finish(directory, step)
    return path


def _suffixes(directory: str, prefix: str) -> list[str]:
    """The rest of the names of files that begin with the prefix."""
    names = (os.path.join(directory, name) for name in files.list_folder(directory))
    return [name[len(prefix) :] for name in names if name.startswith(prefix)]


def _write_parts(prefix: str, arrays: Iterable[tuple[str, NDArray]], step: int, shard_bytes: int) -> list[str]:
    """Write groups of arrays, each as a checkpoint of its own; returns their paths."""
    parts: list[str] = []
    names, held, size = ["global_step"], [np.array(step, np.int64)], 0

    def flush() -> None:
        parts.append(f"{prefix}-part-{len(parts)}")
        with tf.device("/device:CPU:0"):
            tensors = [tf.constant(array) for array in held]
            tf.raw_ops.SaveV2(
                prefix=parts[-1], tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
            )

    for name, array in arrays:
        if names and size + array.nbytes > shard_bytes:
            flush()
            names, held, size = [], [], 0
        names.append(name)
        held.append(array)
        size += array.nbytes
    flush()
    return parts
