"""The interface of objectives, with defaults for token prediction: one pass, a loss of each label, and metrics."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.models import gpt, losses
from gpt_mesh.models.attention.cache import Cache
from gpt_mesh.models.context import Context
from gpt_mesh.models.experts.mixture import Balance
from gpt_mesh.objectives import token_loss

Tensors = Mapping[str, mtf.Tensor]  # features of a batch, on the mesh: [batch, sequence], or [batch]


PARTS = "/examples"  # after the name of a metric that is a sum over some examples: their number


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, or a microbatch's share of it.

    Attributes:
        loss: what is minimised: a scalar.
        nll: mean negative log-likelihood of the labels, in nats: a scalar without gradient.
        balance: of each mixture of experts in the pass, by its layer.
        metrics: more scalars to log, by name, as shares like the loss. One with another beside it, whose name ends with
            `PARTS`, is logged as the ratio of the two.
    """

    loss: mtf.Tensor
    nll: mtf.Tensor
    balance: Mapping[str, Balance] = field(default_factory=dict)
    metrics: Mapping[str, mtf.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Sums over each row of a batch, [batch] each: nll in nats, correct predictions, and the weights of both."""

    nll: mtf.Tensor
    correct: mtf.Tensor
    weight: mtf.Tensor


@dataclass(frozen=True)
class Comparison:
    """What an objective makes of each preference in a batch: [batch] each.

    Attributes:
        loss: what is minimised is its mean.
        nll: negative log-likelihood of the preference, in nats.
        chosen, rejected: the rewards of the two texts; 0 for one that is not there.
        correct: 1.0 where the rewards agree with the preference, else 0.0.
    """

    loss: mtf.Tensor
    nll: mtf.Tensor
    chosen: mtf.Tensor
    rejected: mtf.Tensor
    correct: mtf.Tensor


class Objective(abc.ABC):
    """What a model is trained on and evaluated by.

    A subclass is the only one in its file in this folder, which has its name and ends with `OBJECTIVE = <the class>`
    (`registry.find`). It defines how token windows become features. The methods defined here run one pass and predict
    the feature `labels` from the feature `inputs`, at every position or where the feature `weights` is not 0; an
    objective with other passes, another loss or other metrics overrides them.

    Attributes:
        name: what `objective` says in a config.
        pairs: whether an example is two texts, int32 [2, n + 1], of which one is preferred, and not a window [n + 1].
        causal: whether a position attends only to itself and earlier positions.
        predicts_next: whether such a model generates text and scores it, token by token.
        setting: what in a config chooses this objective, for messages.
        task: what its models do, for messages about what they cannot do.
        config: of the run.
    """

    name: ClassVar[str]
    pairs: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    predicts_next: ClassVar[bool] = True
    setting: ClassVar[str]
    task: ClassVar[str]

    def __init__(self, config: Config) -> None:
        self.config = config

    @abc.abstractmethod
    def features(
        self, tokens: tf.Tensor, seed: tf.Tensor | int | None = None, weights: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """The features of a batch: tensors [batch, sequence], [batch] or, of `pairs`, [batch, 2, sequence]; among them
        `inputs`.

        Args:
            tokens: int32 [batch, n + 1], windows; or examples of `pairs`.
            seed: int32 scalar for random draws, the step's in training; None: evaluation, the same every time.
            weights: float32 [batch, n]: 0 where the token after this position is padding.
        """

    @property
    def packed(self) -> int | None:
        """Held-out text: None if a window holds one document and may be padded; else windows hold this many tokens of
        consecutive documents and are always full.
        """
        return None

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the model with its initial weights, which are then kept (`objectives.reference`).
        """
        return False

    @property
    def texts(self) -> int:
        """Texts of an example."""
        return 2 if self.pairs else 1

    def batch_shape(self, size: int, width: int) -> tuple[int, ...]:
        """The shape of a batch of `size` examples with texts of `width` tokens."""
        return (size, 2, width) if self.pairs else (size, width)

    @property
    def nothing_chosen(self) -> str:
        """Why held-out text may have no label at all: key, value, problem and remedy."""
        raise AssertionError(f"{self.name}: every window has labels")

    def cache(self, features: Tensors) -> Cache | None:
        """What the layers of a pass know of other positions; None: all positions of a row are one sample."""
        del features
        return None

    def total(self, ctx: Context, features: Tensors, count: int = 1) -> mtf.Tensor:
        """The divisor of sums over a whole batch: the number of its labels, a scalar. An objective may return more that
        its `loss` must know of the whole batch.

        Args:
            count: of microbatches, for what takes a pass through the model.
        """
        weights = features.get("weights")
        if weights is None:
            tokens = ctx.dims.batch.size * ctx.dims.sequence.size
            return mtf.constant(ctx.mesh, float(tokens), dtype=ctx.statistics_dtype)
        # At least 1, so that the loss of a batch without labels is 0 and not NaN.
        return mtf.maximum(mtf.cast(mtf.reduce_sum(weights), ctx.statistics_dtype), 1.0)

    def loss(self, ctx: Context, features: Tensors, total: mtf.Tensor) -> Loss:
        """A microbatch's share of the loss of its batch.

        Args:
            features: of the microbatch.
            total: of the batch (`total`).
        """
        out = gpt.forward(ctx, features["inputs"], self.cache(features), recompute=self.config.training.recompute_grad)
        labels, shares = features["labels"], features.get("weights")
        shares = mtf.ones(ctx.mesh, labels.shape, ctx.statistics_dtype) if shares is None else shares
        shares = mtf.cast(shares, ctx.statistics_dtype) / total
        loss, nll = token_loss.sums(ctx, self.config.optimizer, out.features, labels, shares)
        return Loss(loss, nll, out.balance)

    def compare(self, ctx: Context, features: Tensors) -> Comparison:
        """The comparison of each example in a batch of `pairs`."""
        raise AssertionError(f"{self.name}: has no pairs")

    def evaluate(self, ctx: Context, features: Tensors) -> Scores:
        """The scores of a batch; `features` include `weights`."""
        nll, correct = self.predictions(ctx, features)
        weights = mtf.cast(features["weights"], nll.dtype)
        by_label = (nll * weights, correct * weights, weights)
        return Scores(*[mtf.reduce_sum(x, output_shape=[ctx.dims.batch]) for x in by_label])

    def predictions(self, ctx: Context, features: Tensors) -> tuple[mtf.Tensor, mtf.Tensor]:
        """The negative log-likelihood of each label, and 1.0 where it is the likeliest token, else 0.0:
        [batch, sequence].
        """
        logits = gpt.logits(ctx, features["inputs"], self.cache(features))
        nll, _ = losses.cross_entropy(ctx, logits, features["labels"])
        return nll, losses.correct(ctx, logits, features["labels"])
