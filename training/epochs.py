"""The length of a run in passes over its data."""

from __future__ import annotations

import math

from gpt_mesh.config import Config, with_settings
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import TrainingData
from gpt_mesh.training.ramp import stages


def with_epochs(config: Config, epochs: float, setter: str = "--epochs") -> Config:
    """`config` with `train_steps` set to the number of steps in that many epochs of its data.

    Where windows are drawn at random, that many tokens are read, some of them more often than others.

    Raises:
        InputError: the number is not above 0, or the data cannot be used.
    """
    if not 0 < epochs < math.inf:
        raise InputError(f"{setter} = {epochs:g}: must be a number above 0")
    tokens = TrainingData(config).n_tokens
    samples = math.ceil(epochs * tokens / config.model.n_ctx)
    return with_settings(config, {"train_steps": steps_of(config, samples)}, f"{setter} {epochs:g}")


def steps_of(config: Config, samples: int) -> int:
    """The number of steps that read at least that many samples, at least 1."""
    step = 0
    for size, end in stages(config):
        wanted = step + math.ceil(samples / size)
        if end is None or wanted <= end:
            return max(1, wanted)
        samples, step = samples - size * (end - step), end
    raise AssertionError("the last stage has no end")
