"""Supervised fine-tuning: next-token prediction of what the data marks, such as answers."""

from __future__ import annotations

import tensorflow as tf

from gpt_mesh.data.marks import BEGINS
from gpt_mesh.models.attention.cache import Cache, Packed
from gpt_mesh.objectives.objective import Objective, Tensors


class Sft(Objective):
    """A label is the token after its input, if it is to be learned: answers, and not the questions before them.

    In the data, an id with inverted bits (`~id`, a negative number) is read and not learned, and the first token of
    each sample in a window of several is marked, too (`data.marks`). Samples do not see each other, and their positions
    begin at 0. Held-out scores are of the learned tokens alone.
    """

    name = "sft"

    def features(
        self, tokens: tf.Tensor, seed: tf.Tensor | int | None = None, weights: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        marked = tf.maximum(tokens, -1 - tokens)
        ids, learned = tf.bitwise.bitwise_and(marked, BEGINS - 1), tf.cast(tokens[:, 1:] >= 0, tf.float32)
        found = {"inputs": ids[:, :-1], "labels": ids[:, 1:]}
        found["weights"] = learned if weights is None else learned * weights
        if seed is not None and self._packed:  # held-out windows hold one sample each
            found["starts"] = _starts(marked[:, :-1] >= BEGINS)
        return found

    def cache(self, features: Tensors) -> Cache | None:
        starts = features.get("starts")
        return None if starts is None else Packed(starts)

    @property
    def _packed(self) -> bool:
        return any(use.sampling_mode == "documents_packed" for use in self.config.data.datasets)


def _starts(begins: tf.Tensor) -> tf.Tensor:
    """The first position of each position's sample, int32 [batch, n], from where samples begin."""
    n = begins.shape[1]
    found = tf.where(begins, tf.range(n), 0)
    reach = 1
    while reach < n:  # the running maximum over as many positions, doubled each time
        found = tf.maximum(found, tf.pad(found, [[0, 0], [reach, 0]])[:, :n])
        reach *= 2
    return found


OBJECTIVE = Sft
