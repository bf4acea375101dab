"""Random preferences as batches, and models with another reference than themselves."""

from __future__ import annotations

import numpy as np

from gpt_mesh.config import Config
from gpt_mesh.data.marks import marked
from gpt_mesh.engine.engine import DeviceEngine
from tests.support.models import is_weight


def random_pairs(config: Config, seed: int = 0, *, single: bool = False, size: int | None = None) -> np.ndarray:
    """A batch int32 [train_batch_size, 2, n_ctx + 1]: prompts of 3 to 5 tokens, completions of at least 2.

    single: one completion an example, at random desirable or not, and both kinds at least once.
    """
    rows, width = size or config.training.train_batch_size, config.model.n_ctx + 1
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, config.model.n_vocab, (rows, 2, width)).astype(np.int32)
    learned = np.zeros(ids.shape, bool)
    for row in range(rows):
        prompt = rng.integers(3, 6)
        ids[row, 1, :prompt] = ids[row, 0, :prompt]
        for half in range(2):
            end = rng.integers(prompt + 2, width + 1 if half else width - 1)
            learned[row, half, prompt:end] = True
            ids[row, half, end:] = 0
    if single:
        missing = np.where(np.arange(rows) < 2, np.arange(rows) % 2, rng.integers(0, 2, rows))
        learned[np.arange(rows), missing] = False
        ids[np.arange(rows), missing] = 0
    return marked(ids, learned)


def set_weights(engine: DeviceEngine, scale: float = 0.1, seed: int = 0, *, apart: float = 0.3) -> None:
    """Random weights, and a reference that differs from them by `apart` times that."""
    rng = np.random.default_rng(seed)
    masters = engine.store.masters
    for name in sorted(filter(is_weight, masters)):
        shape = masters[name].shape.as_list()
        value = (1.0 if name.endswith("/g") else 0.0) + scale * rng.standard_normal(shape)
        masters[name].assign(value)
        if (other := f"reference/{name}") in masters:
            masters[other].assign(value + apart * scale * rng.standard_normal(shape))
    engine.store.scatter()
