"""Masked language modelling."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from gpt_mesh.data.check import known_padding_id
from gpt_mesh.objectives.draws import draws
from gpt_mesh.objectives.objective import Objective

EVALUATION_SEED = 0x5EED


class Masked(Objective):
    """Hide some tokens, which are then the labels (Devlin et al., 2018, arXiv:1810.04805).

    A token is chosen with probability `mlm_mask_prob`, unless it is special. Of the chosen tokens, a share stays as it
    is, a share becomes a random token that is not special, and the rest becomes `mlm_mask_id`. The three draws of a
    token (whether, how, which) are independent (`draws`). If there is a `mlm_cls_token_id`, it is put before the
    window, and the window's last token is dropped.
    """

    name = "masked"
    causal = False
    predicts_next = False
    setting = "mlm_training = true"
    task = "mlm_training models fill masks from both sides"

    @property
    def packed(self) -> int:
        """The model would see padding, and is trained without any."""
        return self.config.model.n_ctx - (self.config.mlm.mlm_cls_token_id is not None)

    @property
    def nothing_chosen(self) -> str:
        return (
            f"mlm_mask_prob = {self.config.mlm.mlm_mask_prob}: of the held-out text not one token was chosen to be "
            "masked; raise it, ignore fewer ids (mlm_mask_ignore_ids), or evaluate more text"
        )

    def features(
        self, tokens: tf.Tensor, seed: tf.Tensor | int | None = None, weights: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """The window's first token, which is no label, is dropped; tokens without a weight are not chosen."""
        mlm, tokens = self.config.mlm, tokens[:, 1:]
        seed = tf.convert_to_tensor(EVALUATION_SEED if seed is None else seed, tf.int32)
        candidates = tf.ones_like(tokens, tf.float32) if weights is None else weights
        if mlm.mlm_cls_token_id is not None:
            tokens = tf.concat([tf.fill([tokens.shape[0], 1], mlm.mlm_cls_token_id), tokens[:, :-1]], 1)
            candidates = tf.concat([tf.zeros([tokens.shape[0], 1]), candidates[:, :-1]], 1)
        whether, how, which = draws(tokens, seed)
        chosen = tf.logical_and(whether < mlm.mlm_mask_prob, candidates > 0)
        special = self._special_ids()
        for token in special:
            chosen = tf.logical_and(chosen, tf.not_equal(tokens, token))
        inputs = tf.where(chosen, self._replacement(special, tokens, how, which), tokens)
        return {"inputs": inputs, "labels": tokens, "weights": tf.cast(chosen, tf.float32)}

    def _replacement(self, special: list[int], tokens: tf.Tensor, how: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
        """What each token becomes if it is chosen."""
        mlm = self.config.mlm
        vocabulary = max(use.dataset.n_vocab for use in self.config.data.datasets)
        ordinary = np.setdiff1d(np.arange(vocabulary, dtype=np.int32), np.array(special, np.int32))
        random_tokens = tf.gather(ordinary, tf.cast(which * float(len(ordinary)), tf.int32))
        same, changed = mlm.mlm_same_token_prob, mlm.mlm_same_token_prob + mlm.mlm_random_token_prob
        masked = tf.fill(tokens.shape, tf.constant(mlm.mlm_mask_id, tf.int32))
        return tf.where(how < same, tokens, tf.where(how < changed, random_tokens, masked))

    def _special_ids(self) -> list[int]:
        """Ids that are neither chosen nor used as random tokens."""
        mlm = self.config.mlm
        paddings = [known_padding_id(use.dataset) for use in self.config.data.datasets]
        known = [mlm.mlm_mask_id, mlm.mlm_cls_token_id, *paddings, *mlm.mlm_mask_ignore_ids]
        return sorted({token for token in known if token is not None})


OBJECTIVE = Masked
