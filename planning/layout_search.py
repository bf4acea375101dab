"""Exhaustive search of the layouts that a model allows on a mesh, ordered by memory.

A layout assigns a mesh dimension or none to each of about ten dimensions. So few of these combinations work that all
can be tried, at a fraction of a millisecond each, and the result is the optimum of the estimates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from gpt_mesh.config import Config
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.meshes.limits import Limits, Rules, Sizes
from gpt_mesh.planning.costs import Cost, step_cost
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.planning.memory import training_memory

# Memory or time within this factor of the minimum counts as equal to it.
TOLERANCE = 1.02
# A layout that takes more memory is listed if it takes less than this share of the time.
WORTHWHILE_TIME = 0.8
MAX_ROWS = 5
AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Candidate:
    """A mesh and a layout that work, with the memory and cost of a training step on each device."""

    config: Config
    plan: MeshPlan

    @cached_property
    def memory(self) -> dict[str, int]:
        """Bytes by purpose: see `training_memory`."""
        return training_memory(self.config, self.plan)

    @cached_property
    def bytes(self) -> int:
        """Total bytes."""
        return sum(self.memory.values())

    @cached_property
    def cost(self) -> Cost:
        """Work and communication."""
        return step_cost(self.config, self.plan)


def candidate(config: Config, limits: Limits, sizes: Sizes, rules: Rules) -> Candidate:
    """A layout that is known to work."""
    return Candidate(config, MeshPlan(dict(sizes), limits.effective(sizes, rules), ("",)))


def best_layouts(config: Config, meshes: Sequence[Sizes], now: Candidate | None = None) -> list[Candidate]:
    """Recommended layouts on any of these meshes, in ascending order of memory; empty if none works.

    The first takes the least memory. Each of the others takes more memory and clearly less time on the nominal
    accelerator of `costs`. If some layout is no slower than `now` and takes less memory, the one with the least memory
    is included.
    """
    limits = limits_of(config)
    found = [candidate(config, limits, sizes, rules) for sizes in meshes for rules in layouts(limits, sizes)]
    if not found:
        return []
    found.sort(key=lambda each: each.bytes)
    best = [_simplest(found)]
    for each in found:
        if each.bytes > TOLERANCE * found[0].bytes and each.cost.seconds < WORTHWHILE_TIME * best[-1].cost.seconds:
            best.append(_simplest([other for other in found if each.bytes <= other.bytes <= TOLERANCE * each.bytes]))
    if len(best) > MAX_ROWS:
        best = [*best[: MAX_ROWS - 1], best[-1]]
    as_fast = [each for each in found if now is not None and each.cost.seconds <= now.cost.seconds]
    if now is not None and as_fast and as_fast[0].bytes * TOLERANCE < now.bytes:
        best.append(_simplest(as_fast))
    return sorted({_keys(each): each for each in best}.values(), key=lambda each: each.bytes)


def _simplest(found: Sequence[Candidate]) -> Candidate:
    """Of the layouts with about the memory of the first and about the minimum time, the one with the fewest rules."""
    near = [each for each in found if each.bytes <= TOLERANCE * found[0].bytes]
    limit = TOLERANCE * min(each.cost.seconds for each in near)
    quick = [each for each in near if each.cost.seconds <= limit]
    return min(quick, key=lambda each: (len(each.plan.rules), each.bytes, each.cost.seconds))


def _keys(each: Candidate) -> tuple[frozenset[tuple[str, int]], frozenset[tuple[str, str]]]:
    return frozenset(each.plan.shape.items()), frozenset(each.plan.rules.items())


def layouts(limits: Limits, sizes: Sizes) -> Iterator[dict[str, str]]:
    """All layouts that work on a mesh of these sizes and divide work along each mesh dimension."""
    axes = [axis for axis, size in sizes.items() if size > 1]

    def extend(rules: dict[str, str], rest: list[str]) -> Iterator[dict[str, str]]:
        if not rest:
            if limits.allow(sizes, rules) and all(_divides_work(axis, rules) for axis in axes):
                yield dict(rules)
            return
        name = rest[0]
        yield from extend(rules, rest[1:])
        for axis in axes:
            beside = [held for held, other in rules.items() if other == axis]
            apart = not any(limits.shared(name, held) for held in beside)
            if apart and limits.splittable[name] % sizes[axis] == 0:
                yield from extend({**rules, name: axis}, rest[1:])

    return extend({}, list(limits.splittable))


def _divides_work(axis: str, rules: Rules) -> bool:
    """Whether a mesh dimension splits more than the position embedding, which takes almost no work."""
    return any(other == axis and name != "embed_sequence" for name, other in rules.items())


def mesh_shapes(devices: int) -> list[dict[str, int]]:
    """All meshes of one to three dimensions over this number of devices, larger dimensions first.

    Published layouts have one dimension for the batch and at most one for the model; a third allows splitting the model
    in two ways.
    """
    sizes = [n for n in range(2, devices + 1) if devices % n == 0]
    pairs = [(devices // n, n) for n in sizes if n * n <= devices]
    triples = [(x // n, n, y) for x, y in pairs for n in sizes if x % n == 0 and y <= n <= x // n]
    return [dict(zip(AXES, shape, strict=False)) for shape in [(devices,), *pairs, *sorted(triples, reverse=True)]]
