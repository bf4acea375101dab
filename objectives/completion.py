"""Next-token prediction of a part of the tokens, which the data marks."""

from __future__ import annotations

import tensorflow as tf

from gpt_mesh.objectives.objective import Objective


class Completion(Objective):
    """A label is the token after its input, if it is to be learned: answers, and not the questions before them.

    In the data, an id with inverted bits (`~id`, a negative number) is read and not learned (`data.marks`). Held-out
    scores are of the learned tokens alone.
    """

    name = "completion"

    def features(
        self, tokens: tf.Tensor, seed: tf.Tensor | int | None = None, weights: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        ids, learned = tf.maximum(tokens, -1 - tokens), tf.cast(tokens[:, 1:] >= 0, tf.float32)
        found = {"inputs": ids[:, :-1], "labels": ids[:, 1:]}
        return {**found, "weights": learned if weights is None else learned * weights}


OBJECTIVE = Completion
