"""One of several graphs, chosen when a function is called: a mesh graph is made for one length and one batch."""

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
    """What `build` makes for the smallest of these sizes that is not below `wanted`, an int32 scalar."""
    if len(sizes) == 1:
        return build(sizes[0])
    place = tf.reduce_sum(tf.cast(wanted > tf.constant(list(sizes[:-1]), tf.int32), tf.int32))
    return tf.switch_case(place, [partial(build, size) for size in sizes])


def separate(build: Callable[..., Any]) -> Any:
    """`build` as a function with a graph of its own, which TensorFlow optimises when it is first called. Inlined into
    branches, all of them would be optimised together, most of them for nothing.
    """
    return tf.function(build, autograph=False, experimental_attributes={"_noinline": True})
