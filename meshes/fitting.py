"""The mesh and layout nearest to a config's: for another number of devices, or if the layout does not work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from gpt_mesh.meshes.limits import ACTIVATION_DIMENSIONS, Limits, Rules, Sizes, shapes_of

# With more changes it would be another layout rather than a corrected one.
MAX_CHANGES = 3
MAX_MESHES = 200
# Tensor dimensions to try for a mesh dimension that would split nothing, in this order.
FALLBACK_DIMENSIONS = (
    "batch", "heads", "embd", "vocab", "intermediate_expanded", "experts", "expert_hidden", "memory_length",
)  # fmt: skip


def fit_sizes(limits: Limits, sizes: Sizes, rules: Rules, devices: int) -> dict[str, int] | None:
    """The same mesh dimensions resized to another number of devices, with the same layout.

    Mesh dimensions that split weights keep their size as far as possible, so that each device holds the part of the
    model that the config intends. Those that split the batch (or positions) take the rest: x:64,y:4 with batch:x,
    heads:y becomes x:2,y:4 on 8 devices and x:1,y:2 on 2. The distance of meshes is measured in ratios of sizes; of
    equally near ones, the one that splits weights more is chosen.

    Returns:
        Sizes whose product is `devices`, or None if the layout allows no such mesh.
    """
    cutting = {mesh_dim for name, mesh_dim in rules.items() if name not in ACTIVATION_DIMENSIONS}

    def distance(found: Sizes) -> tuple[float, float, int]:
        weights, rest = (
            sum(abs(math.log(found[name] / size)) for name, size in sizes.items() if (name in cutting) is cuts)
            for cuts in (True, False)
        )
        return round(weights, 9), round(rest, 9), -math.prod(found[name] for name in cutting)

    fitting = [found for found in shapes_of(devices, tuple(sizes)) if limits.allow(found, rules)]
    return min(fitting, key=distance, default=None)


def nearest(limits: Limits, sizes: Sizes, rules: Rules, devices: int) -> tuple[dict[str, int], dict[str, str]]:
    """The mesh and layout with the fewest changes that work on this number of devices or, if none does, on fewer.

    A change removes a rule, moves it to another mesh dimension, or adds one. Ties are broken by the nearest mesh.
    """
    names = tuple(sizes) or ("all",)
    for count in range(devices, 1, -1):
        shapes = sorted(shapes_of(count, names), key=lambda shape: _resized(sizes, shape))[:MAX_MESHES]
        for changes in range(MAX_CHANGES + 1):
            found = [
                (_resized(sizes, shape), lost, shape, changed)
                for lost, changed in _changed(limits, rules, names, changes)
                for shape in shapes
                if limits.allow(shape, changed) and _all_split(shape, rules, changed)
            ]
            if found:
                _, _, shape, changed = min(found, key=lambda item: item[:2])
                return shape, changed
    return {}, {}


def _all_split(sizes: Sizes, rules: Rules, changed: Rules) -> bool:
    """Whether every changed rule splits something."""
    return all(sizes[mesh_dim] > 1 for name, mesh_dim in changed.items() if rules.get(name) != mesh_dim)


def _resized(old: Sizes, new: Sizes) -> float:
    """Distance of two meshes, in ratios of sizes."""
    return round(sum(abs(math.log(size / old.get(name, 1))) for name, size in new.items()), 9)


def _changed(
    limits: Limits, rules: Rules, names: tuple[str, ...], changes: int
) -> Iterator[tuple[tuple[int, ...], dict[str, str]]]:
    """Layouts that differ from `rules` in this number of dimensions, each with a key for breaking ties: the number of
    removed rules, then the changed ones, where later rules and earlier fallbacks are preferred.
    """
    kept = {name: mesh_dim for name, mesh_dim in rules.items() if name in limits.splittable}
    candidates = [*kept, *(name for name in FALLBACK_DIMENSIONS if name in limits.splittable and name not in kept)]
    for chosen in itertools.combinations(range(len(candidates)), changes):
        options = [(None, *names) if candidates[i] in kept else names for i in chosen]
        for places in itertools.product(*options):
            changed: dict[str, str | None] = {**kept, **{candidates[i]: p for i, p in zip(chosen, places, strict=True)}}
            if any(changed[candidates[i]] == kept.get(candidates[i]) for i in chosen):
                continue
            left = {name: place for name, place in changed.items() if place is not None}
            order = tuple(len(kept) - i if i < len(kept) else i for i in chosen)
            yield (len(kept) - len(kept.keys() & left.keys()), *order), left
