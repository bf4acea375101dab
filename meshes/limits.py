"""What a model allows a layout to split, from the shapes of its tensors.

mesh-tensorflow enforces these rules one by one during lowering. Here they are checked beforehand, with reasons.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.config import TENSOR_DIMENSIONS

Sizes = Mapping[str, int]
Rules = Mapping[str, str]

# Splitting these keeps every weight whole on each device.
ACTIVATION_DIMENSIONS = ("batch", "sequence", "memory_length")


# Names of tensors with these dimensions, for messages.
TENSORS = {
    ("batch", "sequence"): "token batch",
    ("batch", "sequence", "embd"): "residual stream",
    ("batch", "sequence", "heads", "features_per_head"): "queries",
    ("batch", "memory_length", "heads", "features_per_head"): "keys and values",
    ("batch", "heads", "sequence", "memory_length"): "attention weights",
    ("batch", "sequence", "intermediate_expanded"): "feed-forward activations",
    ("batch", "sequence", "vocab"): "logits",
    ("vocab", "embd"): "token embedding",
    ("embed_sequence", "embd"): "position embedding",
    ("embd", "heads"): "attention kernels",
    ("embd", "intermediate_expanded"): "feed-forward kernels",
    ("experts", "embd", "expert_hidden"): "expert kernels",
    ("batch", "sequence", "experts", "expert_hidden"): "expert activations",
    ("batch", "groups", "experts", "expert_capacity", "expert_hidden"): "expert activations",
}


class Limits:
    """What a model allows a layout to split.

    A layout works if

    * the size of every split dimension is divisible by the size of its mesh dimension;
    * no tensor has two dimensions that are split along one mesh dimension;
    * every mesh dimension splits something: otherwise all devices along it do the same work.

    Mesh dimensions of size 1, and rules for dimensions that the model does not have, are ignored.
    """

    def __init__(self, shapes: Callable[..., Sequence[mtf.Shape]]) -> None:
        """`shapes`: a function that takes the names of up to two dimensions, and returns the shapes of the model's
        tensors under a layout that splits these along one mesh dimension. (They may depend on the layout: a mixture of
        experts keeps `batch` and `experts` apart.)
        """
        self._shapes = shapes
        self._shared: dict[frozenset[str], mtf.Shape | None] = {}

    @cached_property
    def splittable(self) -> dict[str, int]:
        """The dimensions of the model that a layout may split, in their usual order, with the maximum number of parts
        of each: the greatest common divisor of its sizes.
        """
        sizes: dict[str, int] = {}
        for dim in {dim for shape in self._shapes() for dim in shape.dims}:
            sizes[dim.name] = math.gcd(sizes.get(dim.name, 0), dim.size)
        return {name: sizes[name] for name in TENSOR_DIMENSIONS if name in sizes}

    def shared(self, one: str, other: str) -> mtf.Shape | None:
        """The shape of a tensor that has both dimensions under a layout that splits both along one mesh dimension; None
        if there is no such tensor."""
        pair = frozenset((one, other))
        if pair not in self._shared:
            names = [name for name in TENSOR_DIMENSIONS if name in pair]
            found = [shape for shape in self._shapes(*names) if pair <= set(shape.dimension_names)]
            known = list(TENSORS)
            places = [known.index(key) if (key := tuple(x.dimension_names)) in TENSORS else len(known) for x in found]
            self._shared[pair] = found[places.index(min(places))] if found else None
        return self._shared[pair]

    def effective(self, sizes: Sizes, rules: Rules) -> dict[str, str]:
        """The rules that split something. (For mesh-tensorflow, a mesh dimension of size 1 counts as a split.)"""
        return {name: mesh_dim for name, mesh_dim in rules.items() if name in self.splittable and sizes[mesh_dim] > 1}

    def allow(self, sizes: Sizes, rules: Rules) -> bool:
        """Whether a mesh of these sizes and a layout work."""
        split = self.effective(sizes, rules)
        if any(self.splittable[name] % sizes[mesh_dim] for name, mesh_dim in split.items()):
            return False
        if any(split[a] == split[b] and self.shared(a, b) for a, b in itertools.combinations(split, 2)):
            return False
        return all(size == 1 or mesh_dim in split.values() for mesh_dim, size in sizes.items())

    def problem(self, sizes: Sizes, rules: Rules) -> tuple[str, str] | None:
        """The key that is wrong, "layout" or "mesh_shape", and the reason; None if `allow` is true."""
        split = self.effective(sizes, rules)
        for name, mesh_dim in split.items():
            for size in self._sizes(name):
                if size % sizes[mesh_dim]:
                    by = f"mesh dimension {mesh_dim} ({sizes[mesh_dim]})"
                    return "layout", f"{self._key_of(mtf.Dimension(name, size))} does not divide by {by}"
        twice = [
            (shape, one, other)
            for one, other in itertools.combinations(split, 2)
            if split[one] == split[other] and (shape := self.shared(one, other))
        ]
        if twice:
            shape, one, other = twice[0]
            names = tuple(shape.dimension_names)
            first, second = sorted((one, other), key=names.index)
            what = f"{TENSORS.get(names, 'a tensor')} [{', '.join(names)}]"
            return "layout", f"{what} would be split twice along {split[one]}, by {first} and {second}"
        for mesh_dim, size in sizes.items():
            if size > 1 and mesh_dim not in split.values():
                named = [name for name, other in rules.items() if other == mesh_dim]
                why = f"the model has no {' or '.join(named)}" if named else "the layout does not name it"
                same = f"the {size} devices along it would all do the same"
                return "mesh_shape", f"mesh dimension {mesh_dim} splits nothing, since {why}: {same}"
        return None

    def _sizes(self, name: str) -> list[int]:
        """The sizes of dimensions of this name, in ascending order."""
        return sorted({dim.size for shape in self._shapes() for dim in shape.dims if dim.name == name})

    def _key_of(self, dim: mtf.Dimension) -> str:
        """A dimension with its size, and the config key that sets it if its name differs."""
        keys = {
            "batch": "train_batch_size",
            "sequence": "n_ctx",
            "memory_length": "n_ctx",
            "embed_sequence": "n_ctx",
            "experts": "moe_num_experts",
            "intermediate_expanded": "intermediate_size",
        }
        if dim.name == "heads" and dim.size < self._queries:
            keys["heads"] = "num_kv_heads"
        return f"{dim.name} ({keys[dim.name]} = {dim.size})" if dim.name in keys else f"{dim.name} ({dim.size})"

    @property
    def _queries(self) -> int:
        """Heads of queries."""
        by_head = [shape for shape in self._shapes() if {"heads", "features_per_head"} <= set(shape.dimension_names)]
        return max(dim.size for shape in by_head for dim in shape.dims if dim.name == "heads")


def shapes_of(devices: int, names: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """Every way to arrange this number of devices along these mesh dimensions, of which only the first four may be
    larger than 1.
    """
    if len(names) > 4:
        yield from ({**shape, **dict.fromkeys(names[4:], 1)} for shape in shapes_of(devices, names[:4]))
        return
    if len(names) <= 1:
        if names or devices == 1:
            yield dict.fromkeys(names, devices)
        return
    for size in (n for n in range(1, devices + 1) if devices % n == 0):
        for rest in shapes_of(devices // size, names[1:]):
            yield {names[0]: size, **rest}


def as_keys(sizes: Sizes, rules: Rules) -> str:
    """A mesh and a layout as the two keys of a config, ready to paste."""
    return f'"mesh_shape": "{shape_text(sizes)}", "layout": "{layout_text(rules)}"'


def shape_text(sizes: Sizes) -> str:
    """The value of `mesh_shape`."""
    return ",".join(f"{name}:{size}" for name, size in sizes.items())


def layout_text(rules: Rules) -> str:
    """The value of `layout`."""
    return ",".join(f"{name}:{mesh_dim}" for name, mesh_dim in rules.items())
