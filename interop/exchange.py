"""How the tensors of a Hugging Face state dict hold the numbers of weights here: copied, transposed, fused, stacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Arrays = Callable[[Sequence[NDArray]], Sequence[NDArray]]


@dataclass(frozen=True)
class Exchange:
    """Tensors of a Hugging Face state dict, and the weights of this library with the same numbers.

    Attributes:
        theirs: names in the state dict, such as ("transformer.h.0.attn.attention.q_proj.weight",).
        ours: names of the weights, such as ("gpt2/h0/attn/q",).
        pack: computes their tensors from ours, both in the order of the names.
        unpack: the inverse.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    pack: Arrays
    unpack: Arrays

    def shapes(self, sizes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The shapes of their tensors; `sizes`: shapes of our weights by name."""
        return [array.shape for array in self.pack([np.broadcast_to(np.int8(0), sizes[name]) for name in self.ours])]


def same(theirs: str, ours: str) -> Exchange:
    """A tensor with the same layout on both sides."""
    return Exchange((theirs,), (ours,), lambda arrays: [arrays[0]], lambda arrays: [arrays[0]])


def transposed(theirs: str, ours: str) -> Exchange:
    """A matrix that is [output, input] there (torch.nn.Linear) and [input, output] here."""
    return Exchange((theirs,), (ours,), lambda arrays: [arrays[0].T], lambda arrays: [arrays[0].T])


def side_by_side(theirs: str, ours: Sequence[str]) -> Exchange:
    """Matrices [input, output] of equal shape, or vectors, one behind the other along the last dimension of one
    tensor.
    """
    return Exchange(
        (theirs,),
        tuple(ours),
        lambda arrays: [np.concatenate(arrays, -1)],
        lambda arrays: np.split(arrays[0], len(ours), -1),
    )


def grouped_qkv(theirs: str, ours: Sequence[str], kv_heads: int, head_size: int) -> Exchange:
    """Queries, keys and values of each group of heads together: theirs is [kv_heads x (group + 2) x head_size, input],
    or that without the input; ours are [input, heads x head_size] for q and [input, kv_heads x head_size] for k and v.

    A group is the query heads that share a key head: one with as many keys as queries, all with one key head.
    """

    def pack(arrays: Sequence[NDArray]) -> Sequence[NDArray]:
        groups = [array.T.reshape(kv_heads, -1, *array.shape[:-1]) for array in arrays]
        joined = np.concatenate(groups, 1)
        return [joined.reshape(-1, *joined.shape[2:])]

    def unpack(arrays: Sequence[NDArray]) -> Sequence[NDArray]:
        (array,) = arrays
        group = array.reshape(kv_heads, -1, *array.shape[1:])
        parts = group[:, : -2 * head_size], group[:, -2 * head_size : -head_size], group[:, -head_size:]
        return [part.reshape(-1, *array.shape[1:]).T for part in parts]

    return Exchange((theirs,), tuple(ours), pack, unpack)


def stacked(theirs: Sequence[str], ours: str) -> Exchange:
    """Matrices [output, input] that are one weight [number, input, output] here. Theirs are read one at a time."""

    def unpack(arrays: Sequence[NDArray]) -> Sequence[NDArray]:
        first = arrays[0]
        whole = np.empty((len(arrays), *first.T.shape), first.dtype)
        for i in range(len(arrays)):
            whole[i] = arrays[i].T
        return [whole]

    return Exchange(tuple(theirs), (ours,), lambda arrays: [matrix.T for matrix in arrays[0]], unpack)
