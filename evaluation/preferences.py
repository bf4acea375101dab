"""The held-out preferences of a model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.config import Config
from gpt_mesh.data.tokenizer_check import tokenizers_of
from gpt_mesh.engine.interface import Engine
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.statistics import Metrics, ratio, with_error
from gpt_mesh.inputs import PairEvaluationData, Tokens
from gpt_mesh.storage.progress import track


class HeldOutPreferences:
    """A config's held-out preferences, in place of held-out text, ready to be scored as often as wanted.

    `eval_steps` limits them to so many batches of `eval_batch_size`, the first ones; 0: all.
    """

    name: ClassVar[str] = "validation"

    def __init__(self, config: Config) -> None:
        """
        Raises:
            InputError: there are no held-out preferences.
        """
        self.config = config
        self.data = PairEvaluationData(config)
        self._size = config.training.eval_batch_size
        limit = config.training.eval_steps * self._size
        self.n_examples = min(self.data.n_examples, limit or self.data.n_examples)

    @classmethod
    def make(cls, config: Config, file: str | None, *, stride: int | None) -> HeldOutPreferences:
        """The task of a config. Raises InputError where a file or a stride is named, or there is nothing held out."""
        if file is not None or stride is not None:
            what = f"file {file}" if file is not None else f"stride {stride}"
            raise InputError(f"{what}: task validation scores the preferences in eval_path; leave it out")
        return cls(config)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`tokenizer_sha256`: of the tokenizer that made the held-out data, as far as it is known."""
        made = tokenizers_of(self.config.data.datasets, ["eval_path"])
        found = {one.facts.fingerprint for one in made if one.facts is not None}
        return {"tokenizer_sha256": found.pop() if len(found) == 1 else None}

    @property
    def n_batches(self) -> int:
        """How many batches `batches` gives."""
        return -(-self.n_examples // self._size)

    def batches(self) -> Iterator[Tokens]:
        """Examples int32 [eval_batch_size, 2, n_ctx + 1]."""
        return self.data.batches(self._size, limit=self.n_examples)

    def run(self, engine: Engine) -> Metrics:
        """`loss`, `nll` (nats a preference), `accuracy`, `margin` (of rewards), each with its standard error, and
        `examples`.

        Accuracy is the share of pairs whose chosen text has the larger reward. Where the held-out data has single
        completions with labels (`kto`), it is the share of rewards on the right side of the reference point, and
        `margin` is the difference between the means of both kinds (without an error).
        """
        columns = [engine.compare(tokens) for tokens in track(self.batches(), self.n_batches, self.name, "batches")]
        loss, nll, chosen, rejected, correct = (
            np.concatenate([np.asarray(x, np.float64) for x in column])[: self.n_examples]
            for column in zip(*columns, strict=True)
        )
        desirable = None
        if self.config.training.objective == "kto":
            desirable = np.concatenate([(tokens[:, 0] >= 0).any(-1) for tokens in self.batches()])[: self.n_examples]
        return preference_metrics(loss, nll, chosen, rejected, correct, desirable)


Floats = NDArray[np.float64]


def preference_metrics(
    loss: Floats,
    nll: Floats,
    chosen: Floats,
    rejected: Floats,
    correct: Floats,
    desirable: NDArray[np.bool_] | None = None,
) -> Metrics:
    """See `HeldOutPreferences.run`. All [examples].

    Args:
        desirable: where examples are single completions: whether each is desirable. Those of pairs alternate.
    """
    ones = np.ones_like(loss)
    metrics = {**with_error("loss", ratio(loss, ones)), **with_error("nll", ratio(nll, ones))}
    margins: Floats | None = chosen - rejected
    if desirable is not None:
        even = len(loss) - len(loss) % 2
        paired = desirable[:even:2].all() and not desirable[1:even:2].any()
        margins = chosen[:even:2] - rejected[1:even:2] if paired and even else None
    if margins is not None:
        found = margins > 0
        return {
            **metrics, **with_error("accuracy", ratio(found, np.ones_like(margins))),
            **with_error("margin", ratio(margins, np.ones_like(margins))), "examples": len(loss),
        }  # fmt: skip
    assert desirable is not None
    both = desirable.any() and not desirable.all()
    margin = float(chosen[desirable].mean() - rejected[~desirable].mean()) if both else None
    return {
        **metrics, **with_error("accuracy", ratio(correct, ones)), "margin": margin, "margin_stderr": None,
        "examples": len(loss),
    }  # fmt: skip
