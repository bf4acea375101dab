"""Batches that grow at the beginning of a run (`batch_ramp`)."""

from __future__ import annotations

from collections.abc import Generator

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import Tokens, TrainingData
from gpt_mesh.meshes.devices import MeshPlan


def stages(config: Config) -> list[tuple[int, int | None]]:
    """(batch size, step at which it ends) of each part of a run; the last has no end."""
    found: list[tuple[int, int | None]] = []
    end = 0
    for size, steps in config.training.batch_ramp:
        end += steps
        found.append((size, end))
    return [*found, (config.training.train_batch_size, None)]


def samples_before(config: Config, step: int) -> int:
    """The number of samples that the steps before `step` take."""
    samples = begin = 0
    for size, end in stages(config):
        last = step if end is None else min(end, step)
        samples, begin = samples + size * max(0, last - begin), max(begin, last)
    return samples


def ramped_batches(
    config: Config, data: TrainingData, step: int, position: int
) -> Generator[Tokens, None, None]:
    """Endless batches, int32 [size, n_ctx + 1], from a step and the position in the data there."""
    for size, end in stages(config):
        if end is not None and step >= end:
            continue
        with data.batches(position, size) as ready:
            for tokens in ready:
                yield tokens
                step, position = step + 1, position + size
                if step == end:
                    break


def check_ramp(config: Config, plan: MeshPlan) -> None:
    """
    Raises:
        InputError: a batch of the ramp does not divide by the mesh dimension that splits batches.
    """
    parts = plan.shape[plan.rules["batch"]] if "batch" in plan.rules else 1
    for size, _ in config.training.batch_ramp:
        if size % parts:
            raise InputError(
                f"{config.source}: batch_ramp: a batch of {size} does not divide by {parts}, the size of the mesh "
                f"dimension {plan.rules['batch']} that splits it; make it a multiple"
            )
