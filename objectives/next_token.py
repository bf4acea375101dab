"""Next-token prediction."""

from __future__ import annotations

import tensorflow as tf

from gpt_mesh.objectives.objective import Objective


class NextToken(Objective):
    """A label is the token after its input."""

    name = "next_token"

    def features(
        self, tokens: tf.Tensor, seed: tf.Tensor | int | None = None, weights: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        found = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
        return found if weights is None else {**found, "weights": weights}


OBJECTIVE = NextToken
