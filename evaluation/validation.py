"""Evaluation on held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from gpt_mesh.config import Config
from gpt_mesh.data.bytes import byte_lengths
from gpt_mesh.data.corpus import Ints
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.tokenizer_check import tokenizers_of
from gpt_mesh.engine.interface import Engine
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.statistics import Metrics, token_metrics
from gpt_mesh.inputs import EvaluationData, Tokens, Weights, count_bytes
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.storage.progress import log, track


class Validation:
    """The held-out set of a config.

    `eval_steps` limits it to that many batches of `eval_batch_size`, the same ones every time; 0: the whole set.
    """

    name: ClassVar[str] = "validation"
    slides: ClassVar[bool] = True

    @classmethod
    def make(cls, config: Config, file: str | None, *, stride: int | None, download: bool) -> Validation:
        """The task of a config. Raises InputError if a file is given or there is no held-out data."""
        if file is not None:
            raise InputError(f"file {file}: task validation scores eval_path of the config's datasets; leave it out")
        return cls(config, stride=stride)

    def __init__(self, config: Config, *, stride: int | None = None) -> None:
        """`stride`: labels scored by each window of a document after the first; None: windows do not overlap.

        Raises:
            InputError: no held-out data, or a stride that its windows do not allow.
        """
        self.config, self.stride = config, stride
        self._objective = objective_of(config)
        self.data = EvaluationData(config, stride=stride, packed=self._objective.packed)
        self._limit = config.training.eval_steps or None
        if self._limit and self.n_batches < self._limit:
            log.info(
                "%s: eval_steps = %d asks for %s windows of held-out text, and there are %s: all of them are scored",
                config.source,
                self._limit,
                f"{self._limit * config.training.eval_batch_size:,}",
                f"{self.data.n_windows:,}",
            )
        # Without a byte length per token, the manifest may still have the size of the whole text.
        self._all_bytes = self.data.manifest_bytes() if self._objective.predicts_next and not self._limit else None
        self._byte_lengths = None if self._all_bytes is not None else _byte_lengths(config)
        self._scored_bytes = 0

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`tokenizer_sha256` of the tokenizer that encoded the held-out data, if known; `stride`, if any."""
        made = tokenizers_of(self.config.data.datasets, ["eval_path"])  # other data may be unreachable
        found = {one.facts.fingerprint for one in made if one.facts is not None}
        if not found:
            with suppress(InputError):
                found = {common_encoder(self.config).fingerprint}
        known = {"tokenizer_sha256": found.pop() if len(found) == 1 else None}
        return known if self.stride is None else {**known, "stride": self.stride}

    def run(self, engine: Engine) -> Metrics:
        """`nll` (nats per token), `perplexity`, `bits_per_byte` (None without a tokenizer or with `mlm_training`) and
        `accuracy`, each with its standard error (such as `nll_stderr`); `tokens` and `bytes`.

        Raises:
            InputError: no token is masked.
        """
        found: list[list[np.ndarray]] = []
        for tokens, weights in track(self.batches(), self.n_batches, self.name, "batches"):
            found.append([np.asarray(x, np.float64) for x in engine.eval_step(tokens, weights)])
        return self.metrics(*(np.concatenate(column) for column in zip(*found, strict=True)))

    @property
    def n_batches(self) -> int:
        """The number of batches that `batches` yields."""
        total = -(-self.data.n_windows // self.config.training.eval_batch_size)
        return min(total, self._limit or total)

    def batches(self) -> Iterator[tuple[Tokens, Weights]]:
        """Tokens [eval_batch_size, n_ctx + 1] and label weights. Counts the scored bytes, which `metrics` uses."""
        self._scored_bytes = 0
        for tokens, weights in self.data.batches(self.config.training.eval_batch_size, limit=self._limit):
            if self._byte_lengths is not None:
                self._scored_bytes += count_bytes(self._byte_lengths, tokens, weights)
            yield tokens, weights

    def metrics(self, nll: ArrayLike, correct: ArrayLike, weight: ArrayLike) -> Metrics:
        """What `run` returns, from sums over each window of all `batches`. A single sum over all windows leaves no
        standard error.
        """
        if not np.asarray(weight).any():  # there are no windows of padding only, so this is masking
            raise InputError(f"{self.config.source}: {self._objective.nothing_chosen}")
        return token_metrics(nll, correct, weight, self._all_bytes or self._scored_bytes or None)


def _byte_lengths(config: Config) -> Ints | None:
    """UTF-8 length of each token. If unknown, None, and the reason is logged.

    Also None for masked language modelling: predicting masked tokens from both sides does not measure compression.
    """
    if not objective_of(config).predicts_next:
        return None
    try:
        return byte_lengths(common_encoder(config))
    except InputError as error:
        log.warning("bits per byte are left out: %s", error)
        return None


def common_encoder(config: Config) -> Encoder:
    """The tokenizer shared by all datasets of a config.

    Raises:
        InputError: there is none, more than one, or it does not exist.
    """
    paths = sorted({str(use.dataset.tokenizer_path) for use in config.data.datasets})
    if len(paths) > 1:
        raise InputError(
            f"{config.source}: its datasets have different tokenizers ({', '.join(paths)}); one for all is needed here"
        )
    return required_encoder(config)


def required_encoder(config: Config) -> Encoder:
    """The tokenizer of a config's first dataset.

    Raises:
        InputError: it names none, or the file does not exist.
    """
    dataset = config.data.datasets[0].dataset
    if dataset.tokenizer_path is None:
        raise InputError(f"{dataset.source}: tokenizer_path is missing; set it to the tokenizer that made the data")
    try:
        return load_encoder(dataset.resolve(dataset.tokenizer_path), pretrained=dataset.tokenizer_is_pretrained)
    except InputError as error:
        raise InputError(f"{dataset.source}: tokenizer_path: {error}") from None


def model_encoder(config: Config) -> Encoder:
    """`required_encoder`, if its vocabulary fits the model.

    Raises:
        InputError: see `required_encoder`; or its vocabulary is larger than the model's.
    """
    encoder = required_encoder(config)
    if encoder.n_vocab > config.model.n_vocab:
        raise InputError(
            f"{config.source}: n_vocab = {config.model.n_vocab} is smaller than the tokenizer's vocabulary "
            f"({encoder.n_vocab}); use the tokenizer that made the training data"
        )
    return encoder
