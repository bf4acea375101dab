"""The layouts that a model allows on a mesh, all of them, by what they cost: memory first.

A layout gives each of some ten dimensions a mesh dimension or none. So few of these combinations work that they can be
tried one by one, at a fraction of a millisecond each, and what is found is the least there is, by the estimate.
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

# Within this share of the least, memory or time is as good as the least.
AS_GOOD = 1.02
# A layout that takes more memory is of interest when it takes at most this share of the time.
WORTHWHILE = 0.8
MOST_ROWS = 5
AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Candidate:
    """A mesh and a layout that work, with what a training step takes on each device."""

    config: Config
    plan: MeshPlan

    @cached_property
    def memory(self) -> dict[str, int]:
        """Bytes, by what they are for: `training_memory`."""
        return training_memory(self.config, self.plan)

    @cached_property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.memory.values())

    @cached_property
    def cost(self) -> Cost:
        """Work and communication."""
        return step_cost(self.config, self.plan)


def candidate(config: Config, limits: Limits, sizes: Sizes, rules: Rules) -> Candidate:
    """A layout that is known to work."""
    return Candidate(config, MeshPlan(dict(sizes), limits.effective(sizes, rules), ("",)))


def best_layouts(config: Config, meshes: Sequence[Sizes], now: Candidate | None = None) -> list[Candidate]:
    """Layouts worth a look on any of these meshes, those of less memory first; empty where none works.

    The first takes the least memory. Each further one takes more, for markedly less time on the nominal accelerator of
    `costs`. The one of least memory that is no slower than `now` is among them, if it takes less than `now`.
    """
    limits = limits_of(config)
    found = [candidate(config, limits, sizes, rules) for sizes in meshes for rules in layouts(limits, sizes)]
    if not found:
        return []
    found.sort(key=lambda each: each.bytes)
    best = [_simplest(found)]
    for each in found:
        if each.bytes > AS_GOOD * found[0].bytes and each.cost.seconds < WORTHWHILE * best[-1].cost.seconds:
            best.append(_simplest([other for other in found if each.bytes <= other.bytes <= AS_GOOD * each.bytes]))
    if len(best) > MOST_ROWS:
        best = [*best[: MOST_ROWS - 1], best[-1]]
    as_fast = [each for each in found if now is not None and each.cost.seconds <= now.cost.seconds]
    if now is not None and as_fast and as_fast[0].bytes * AS_GOOD < now.bytes:
        best.append(_simplest(as_fast))
    return sorted({_keys(each): each for each in best}.values(), key=lambda each: each.bytes)


def _simplest(found: Sequence[Candidate]) -> Candidate:
    """Of those with nearly the memory of the first: of nearly the least time, the one with the fewest rules."""
    near = [each for each in found if each.bytes <= AS_GOOD * found[0].bytes]
    limit = AS_GOOD * min(each.cost.seconds for each in near)
    quick = [each for each in near if each.cost.seconds <= limit]
    return min(quick, key=lambda each: (len(each.plan.rules), each.bytes, each.cost.seconds))


def _keys(each: Candidate) -> tuple[frozenset[tuple[str, int]], frozenset[tuple[str, str]]]:
    return frozenset(each.plan.shape.items()), frozenset(each.plan.rules.items())


def layouts(limits: Limits, sizes: Sizes) -> Iterator[dict[str, str]]:
    """Every layout that works on a mesh of these sizes, and divides the work along each mesh dimension."""
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
    """Whether a mesh dimension splits more than the position embedding, which takes next to no work."""
    return any(other == axis and name != "embed_sequence" for name, other in rules.items())


def mesh_shapes(devices: int) -> list[dict[str, int]]:
    """Every mesh of one to three dimensions over so many devices, larger dimensions first.

    Published layouts have one to split the batch and at most one to split the model; a third takes in those that split
    it in two ways.
    """
    sizes = [n for n in range(2, devices + 1) if devices % n == 0]
    pairs = [(devices // n, n) for n in sizes if n * n <= devices]
    triples = [(x // n, n, y) for x, y in pairs for n in sizes if x % n == 0 and y <= n <= x // n]
    return [dict(zip(AXES, shape, strict=False)) for shape in [(devices,), *pairs, *sorted(triples, reverse=True)]]
