"""Chooses one of several graphs at run time, since a mesh graph has a fixed length and batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf


def sizes_to(largest: int, first: int, factor: int) -> list[int]:
    """`first`, each size `factor` times the one before, and `largest` at the end."""
    found = [first]
    while found[-1] * factor < largest:
        found.append(found[-1] * factor)
    return [size for size in found if size < largest] + [largest]


def for_size(sizes: Sequence[int], wanted: tf.Tensor, build: Callable[[int], Any]) -> Any:
    """The result of `build` for the smallest size that is at least `wanted`, an int32 scalar."""
    if len(sizes) == 1:
        return build(sizes[0])
    place = tf.reduce_sum(tf.cast(wanted > tf.constant(list(sizes[:-1]), tf.int32), tf.int32))
    return tf.switch_case(place, [partial(build, size) for size in sizes])


def separate(build: Callable[..., Any]) -> Any:
    """`build` as a function with its own graph, which TensorFlow optimises on the first call. If branches were inlined,
    all would be optimised together, most of them unnecessarily.
    """
    return tf.function(build, autograph=False, experimental_attributes={"_noinline": True})
