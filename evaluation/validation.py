"""The held-out score of a model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from config import Config
from data.bytes import byte_lengths
from data.encoders import Encoder, load_encoder
from errors import InputError
from inputs import EvaluationData, count_bytes
from training.engine import Engine
from training.metrics import evaluation_metrics
from training.progress import track


class Validation:
    """A config's held-out set, ready to be scored as often as wanted.

    `eval_steps` limits it to so many batches of `eval_batch_size`, the same ones each time; 0: the whole set.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data = EvaluationData(config)
        encoder = common_encoder(config)
        self._byte_lengths = None if encoder is None else byte_lengths(encoder)
        self._limit = config.training.eval_steps or None

    def run(self, engine: Engine) -> dict[str, float | None]:
        """`nll` (nats a token), `perplexity`, `bits_per_byte` (None without a tokenizer), `accuracy`, `tokens`,
        `bytes`.
        """
        size = self.config.training.eval_batch_size
        total = -(-self.data.n_windows // size)
        batches: Iterable = self.data.batches(size, limit=self._limit)
        sums, scored_bytes = np.zeros(3), 0
        for tokens, weights in track(batches, min(total, self._limit or total), "validation", "batches"):
            sums += [float(x) for x in engine.eval_step(tokens, weights)]
            if self._byte_lengths is not None:
                scored_bytes += count_bytes(self._byte_lengths, tokens, weights)
        return evaluation_metrics(sums[0], sums[1], sums[2], scored_bytes or None)


def common_encoder(config: Config) -> Encoder | None:
    """The tokenizer that all datasets of a config share; None if they have none, several, or one that is not here."""
    paths = {(use.dataset.tokenizer_path, use.dataset.tokenizer_is_pretrained) for use in config.data.datasets}
    if len(paths) != 1:
        return None
    try:
        return required_encoder(config)
    except InputError:
        return None


def required_encoder(config: Config) -> Encoder:
    """The tokenizer of a config's first dataset.

    Raises:
        InputError: it names none, or the one named is not there.
    """
    dataset = config.data.datasets[0].dataset
    if dataset.tokenizer_path is None:
        raise InputError(f"{dataset.source}: tokenizer_path is missing; set it to the tokenizer that made the data")
    return load_encoder(dataset.resolve(dataset.tokenizer_path), pretrained=dataset.tokenizer_is_pretrained)
